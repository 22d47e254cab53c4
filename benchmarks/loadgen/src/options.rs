//! The command line.

use std::time::Duration;

/// What `--help` prints.
pub const USAGE: &str = "\
etcd-loadgen WORKLOAD --address HOST:PORT [OPTION VALUE ...]

Workloads; each prints one line of JSON:
  put              puts of distinct keys
  range            reads of single keys that are there (see fill)
  txn              compare mod_revision, then put; each client has a key of its own
  range-all        one read of all keys that begin with --prefix
  watch            --watchers watchers of one key; puts of it; counts delivered events
  lease-keepalive  a lease and a keep-alive stream for each client
  fill             puts --total keys, --txn-ops in a transaction

Options:
  --clients N        clients that each wait for an answer before the next request (1)
  --connections N    connections that the clients share (1)
  --total N          requests, or keys to fill (10000)
  --seconds S        no new request after so many seconds (600)
  --key-size N       bytes in a key (16)
  --value-size N     bytes in a value (256)
  --prefix TEXT      what all keys begin with (k)
  --keys N           keys that are there, for range and range-all (10000)
  --order WORD       sequential or random (sequential)
  --consistency WORD linearizable or serializable (linearizable)
  --watchers N       watchers, spread over the connections, one stream on each (1000)
  --txn-ops N        puts in a transaction of fill (100)
";

/// The options, as USAGE explains them.
pub struct Options {
    pub workload: String,
    pub address: String,
    pub clients: usize,
    pub connections: usize,
    pub total: u64,
    pub limit: Duration,
    pub key_size: usize,
    pub value_size: usize,
    pub prefix: String,
    pub keys: u64,
    pub random: bool,
    pub serializable: bool,
    pub watchers: usize,
    pub txn_ops: u64,
}

impl Options {
    /// Reads the command line; None when help was asked for. The error is one line for the user.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options {
            workload: String::new(),
            address: String::new(),
            clients: 1,
            connections: 1,
            total: 10_000,
            limit: Duration::from_secs(600),
            key_size: 16,
            value_size: 256,
            prefix: "k".into(),
            keys: 10_000,
            random: false,
            serializable: false,
            watchers: 1_000,
            txn_ops: 100,
        };
        let mut parser = lexopt::Parser::from_iter(arguments);
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            let name = match argument {
                lexopt::Arg::Value(word) if options.workload.is_empty() => {
                    options.workload = word.to_string_lossy().into_owned();
                    continue;
                }
                lexopt::Arg::Long("help") | lexopt::Arg::Short('h') => return Ok(None),
                lexopt::Arg::Long(name) => name.to_owned(),
                other => return Err(other.unexpected().to_string()),
            };
            let value = parser.value().map_err(|error| error.to_string())?.to_string_lossy().into_owned();
            options.set(&name, value)?;
        }
        options.check()?;
        Ok(Some(options))
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "address" => self.address = value,
            "clients" => self.clients = number(name, &value)? as usize,
            "connections" => self.connections = number(name, &value)? as usize,
            "total" => self.total = number(name, &value)?,
            "seconds" => self.limit = Duration::from_secs(number(name, &value)?),
            "key-size" => self.key_size = number(name, &value)? as usize,
            "value-size" => self.value_size = number(name, &value)? as usize,
            "prefix" => self.prefix = value,
            "keys" => self.keys = number(name, &value)?,
            "order" => self.random = choice(name, &value, "sequential", "random")?,
            "consistency" => self.serializable = choice(name, &value, "linearizable", "serializable")?,
            "watchers" => self.watchers = number(name, &value)? as usize,
            "txn-ops" => self.txn_ops = number(name, &value)?,
            _ => return Err(format!("--{name}: no such option; --help lists them")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let largest = self.total.max(self.keys).to_string().len() + self.prefix.len();
        if self.workload.is_empty() {
            return Err("no workload; --help lists them".into());
        }
        if self.address.is_empty() {
            return Err("--address is missing; expected HOST:PORT".into());
        }
        if self.key_size < largest {
            return Err(format!("--key-size {}: keys need {largest} bytes", self.key_size));
        }
        if self.value_size < 8 {
            return Err(format!("--value-size {}: expected at least 8", self.value_size));
        }
        Ok(())
    }
}

fn number(name: &str, value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(found) if found > 0 => Ok(found),
        _ => Err(format!("--{name} {value}: expected a whole number of at least 1")),
    }
}

fn choice(name: &str, value: &str, no: &str, yes: &str) -> Result<bool, String> {
    if value == yes || value == no {
        return Ok(value == yes);
    }
    Err(format!("--{name} {value}: expected {no} or {yes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(std::iter::once("etcd-loadgen").chain(line.split_whitespace()).map(str::to_owned))
    }

    #[test]
    fn options_are_read() {
        let options = parse("put --address a:1 --clients=5 --order random --seconds 3").unwrap().unwrap();
        assert_eq!((options.clients, options.random, options.limit.as_secs()), (5, true, 3));
        assert!(parse("--help").unwrap().is_none());
    }

    #[test]
    fn errors_are_one_clear_line() {
        for (line, text) in [
            ("", "no workload"),
            ("put", "--address is missing"),
            ("put --address a:1 --clients 0", "--clients 0: expected a whole number of at least 1"),
            ("put --address a:1 --wat 1", "--wat: no such option"),
            ("put --address a:1 --order up", "--order up: expected sequential or random"),
            ("put --address a:1 --key-size 3", "--key-size 3: keys need 6 bytes"),
            ("put more", "unexpected argument"),
        ] {
            let error = parse(line).err().unwrap_or_default();
            assert!(error.contains(text) && !error.contains('\n'), "{line}: {error}");
        }
    }
}

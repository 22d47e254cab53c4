//! Closed loops of single calls: put, range, txn, range-all, fill.

use std::time::Instant;

use crate::driver::Driver;
use crate::http2::{Handler, Output, Status};
use crate::options::Options;
use crate::proto;
use crate::report::Report;

/// What a closed loop asks, and what it expects.
pub trait Job {
    /// The method.
    fn path(&self) -> &'static str;
    /// Appends the request with this number, of this client.
    fn request(&mut self, client: usize, number: u64, out: &mut Vec<u8>);
    /// Looks at the answer; the error is what is wrong with it.
    fn answer(&mut self, client: usize, response: &[u8]) -> Result<(), String>;
}

/// Clients that each wait for their answer before they ask again.
struct ClosedLoop<J> {
    job: J,
    report: Report,
    next: u64,
    total: u64,
    open: usize,
    deadline: Instant,
    started: Vec<Instant>,
    request: Vec<u8>,
}

impl<J: Job> ClosedLoop<J> {
    fn ask(&mut self, client: usize, output: &mut Output) {
        if self.next == self.total || Instant::now() >= self.deadline {
            return;
        }
        self.request.clear();
        self.job.request(client, self.next, &mut self.request);
        self.next += 1;
        self.open += 1;
        self.started[client] = Instant::now();
        output.call(client, self.job.path(), &self.request, true);
    }
}

impl<J: Job> Handler for ClosedLoop<J> {
    fn message(&mut self, client: usize, body: &[u8], _: &mut Output) {
        if let Err(text) = self.job.answer(client, body) {
            self.report.fault(&text);
        }
    }

    fn end(&mut self, client: usize, status: Status, output: &mut Output) {
        self.open -= 1;
        if status.code == 0 {
            self.report.done(self.started[client].elapsed());
        } else {
            self.report.failed(&status);
        }
        self.ask(client, output);
    }
}

/// Runs a job with `total` requests, and reports.
fn run<J: Job>(options: &Options, name: &'static str, job: J, total: u64) -> Result<Report, String> {
    let mut driver = Driver::connect(&options.address, options.connections)?;
    let now = Instant::now();
    let mut clients = ClosedLoop {
        job,
        report: Report::new(name),
        next: 0,
        total,
        open: 0,
        deadline: now + options.limit,
        started: vec![now; options.clients],
        request: Vec::new(),
    };
    for client in 0..options.clients {
        let connection = client % driver.connections();
        clients.ask(client, driver.output(connection));
    }
    driver.run(&mut clients, options.limit, |clients| clients.open == 0)?;
    clients.report.stop();
    Ok(clients.report)
}

/// The key with this number: prefix, zeros, number, in `key_size` bytes.
fn write_key(out: &mut Vec<u8>, options: &Options, mut number: u64) {
    let start = out.len();
    out.resize(start + options.key_size, b'0');
    out[start..start + options.prefix.len()].copy_from_slice(options.prefix.as_bytes());
    for at in (start + options.prefix.len()..out.len()).rev() {
        out[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The n-th of `count` numbers, each once, in their order or in one that jumps about.
fn ordered(number: u64, count: u64, random: bool) -> u64 {
    // A prime larger than any count in use, so that it shares no factor with it.
    const STEP: u128 = 2_305_843_009_213_693_951;
    if random { (u128::from(number) * STEP % u128::from(count)) as u64 } else { number }
}

/// Bytes that do not compress well; the same in each run.
pub fn value(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(size)
    .collect()
}

struct Put<'a> {
    options: &'a Options,
    value: Vec<u8>,
    key: Vec<u8>,
}

impl Job for Put<'_> {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Put"
    }

    fn request(&mut self, _: usize, number: u64, out: &mut Vec<u8>) {
        self.key.clear();
        let number = ordered(number, self.options.total, self.options.random);
        write_key(&mut self.key, self.options, number);
        proto::put(out, &self.key, &self.value);
    }

    fn answer(&mut self, _: usize, response: &[u8]) -> Result<(), String> {
        (proto::revision(response) > 0)
            .then_some(())
            .ok_or_else(|| "a put answered without a revision".into())
    }
}

/// Puts of distinct keys.
pub fn put(options: &Options) -> Result<Report, String> {
    run(options, "put", Put { options, value: value(options.value_size), key: Vec::new() }, options.total)
}

struct Range<'a> {
    options: &'a Options,
    /// What each client has asked for.
    keys: Vec<Vec<u8>>,
}

impl Job for Range<'_> {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Range"
    }

    fn request(&mut self, client: usize, number: u64, out: &mut Vec<u8>) {
        let key = &mut self.keys[client];
        key.clear();
        let keys = self.options.keys;
        write_key(key, self.options, ordered(number % keys, keys, self.options.random));
        proto::range(out, key, &[], self.options.serializable);
    }

    fn answer(&mut self, client: usize, response: &[u8]) -> Result<(), String> {
        let found = proto::find_bytes(response, 2);
        let size = proto::find_bytes(found, 5).len();
        (proto::find_bytes(found, 1) == self.keys[client] && size == self.options.value_size)
            .then_some(())
            .ok_or_else(|| {
                format!("expected the key asked for and {} bytes, found {size}", self.options.value_size)
            })
    }
}

/// Reads of single keys.
pub fn range(options: &Options) -> Result<Report, String> {
    let keys = vec![Vec::with_capacity(options.key_size); options.clients];
    run(options, "range", Range { options, keys }, options.total)
}

struct RangeAll<'a> {
    options: &'a Options,
    range_end: Vec<u8>,
}

impl Job for RangeAll<'_> {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Range"
    }

    fn request(&mut self, _: usize, _: u64, out: &mut Vec<u8>) {
        proto::range(out, self.options.prefix.as_bytes(), &self.range_end, self.options.serializable);
    }

    fn answer(&mut self, _: usize, response: &[u8]) -> Result<(), String> {
        let found = proto::Fields(response).filter(|(field, _)| *field == 2).count() as u64;
        (found == self.options.keys)
            .then_some(())
            .ok_or_else(|| format!("expected {} keys, found {found}", self.options.keys))
    }
}

/// Reads of all keys at once.
pub fn range_all(options: &Options) -> Result<Report, String> {
    let mut range_end = options.prefix.clone().into_bytes();
    *range_end.last_mut().ok_or("--prefix must not be empty")? += 1;
    run(options, "range-all", RangeAll { options, range_end }, options.total)
}

struct CompareAndPut<'a> {
    options: &'a Options,
    value: Vec<u8>,
    key: Vec<u8>,
    mod_revisions: Vec<i64>,
}

impl Job for CompareAndPut<'_> {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Txn"
    }

    fn request(&mut self, client: usize, _: u64, out: &mut Vec<u8>) {
        self.key.clear();
        write_key(&mut self.key, self.options, client as u64);
        proto::compare_and_put(out, &self.key, self.mod_revisions[client], &self.value);
    }

    fn answer(&mut self, client: usize, response: &[u8]) -> Result<(), String> {
        self.mod_revisions[client] = proto::revision(response);
        (proto::find_number(response, 2) == 1)
            .then_some(())
            .ok_or_else(|| "a comparison failed: is --prefix used by another?".into())
    }
}

/// Compare-and-put transactions: each client knows the revision of its own key.
pub fn txn(options: &Options) -> Result<Report, String> {
    let mod_revisions = vec![0; options.clients];
    let job = CompareAndPut { options, value: value(options.value_size), key: Vec::new(), mod_revisions };
    run(options, "txn", job, options.total)
}

struct Fill<'a> {
    options: &'a Options,
    value: Vec<u8>,
    key: Vec<u8>,
}

impl Job for Fill<'_> {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Txn"
    }

    fn request(&mut self, _: usize, number: u64, out: &mut Vec<u8>) {
        let first = number * self.options.txn_ops;
        for nth in first..(first + self.options.txn_ops).min(self.options.total) {
            self.key.clear();
            write_key(&mut self.key, self.options, nth);
            proto::put_operation(out, &self.key, &self.value);
        }
    }

    fn answer(&mut self, _: usize, response: &[u8]) -> Result<(), String> {
        (proto::find_number(response, 2) == 1).then_some(()).ok_or_else(|| "a transaction failed".into())
    }
}

/// Many keys in few transactions.
pub fn fill(options: &Options) -> Result<Report, String> {
    let transactions = options.total.div_ceil(options.txn_ops);
    let job = Fill { options, value: value(options.value_size), key: Vec::new() };
    let mut report = run(options, "fill", job, transactions)?;
    report.add("keys", (report.count() * options.txn_ops).min(options.total) as f64);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_comes_once() {
        for random in [false, true] {
            let mut seen: Vec<u64> = (0..1000).map(|number| ordered(number, 1000, random)).collect();
            assert_eq!(random, seen != (0..1000).collect::<Vec<_>>());
            seen.sort_unstable();
            assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        }
    }
}

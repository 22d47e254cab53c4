//! Workloads on streams: watch fan-out and lease keep-alive.

use std::time::{Duration, Instant};

use crate::driver::Driver;
use crate::http2::{Handler, Output, Status};
use crate::options::Options;
use crate::proto::{self, Fields, Value};
use crate::report::Report;
use crate::unary::value;

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const PUT: &str = "/etcdserverpb.KV/Put";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Tokens of watch streams; those of put clients begin at 0.
const WATCH_TOKEN: usize = 1 << 32;

/// Puts of one key, seen by many watchers. The first bytes of each value are the number of the put.
struct FanOut<'a> {
    options: &'a Options,
    report: Report,
    key: Vec<u8>,
    value: Vec<u8>,
    created: usize,
    expected: u64,
    sent_at: Vec<Instant>,
    puts_done: u64,
    open_puts: usize,
    deadline: Instant,
    fatal: Option<String>,
}

impl FanOut<'_> {
    fn put(&mut self, client: usize, output: &mut Output) {
        let number = self.sent_at.len() as u64;
        if number == self.options.total || Instant::now() >= self.deadline {
            return;
        }
        self.value[..8].copy_from_slice(&number.to_be_bytes());
        self.sent_at.push(Instant::now());
        self.open_puts += 1;
        let mut request = Vec::with_capacity(self.value.len() + 32);
        proto::put(&mut request, &self.key, &self.value);
        output.call(client, PUT, &request, true);
    }

    fn watched(&mut self, body: &[u8]) {
        for (field, found) in Fields(body) {
            match (field, found) {
                (3, Value::Number(1)) => self.created += 1,
                (4, Value::Number(1)) => self.fatal = Some("the server cancelled a watch".into()),
                (11, Value::Bytes(event)) => {
                    let value = proto::find_bytes(proto::find_bytes(event, 2), 5);
                    let number = value.first_chunk().map_or(u64::MAX, |first| u64::from_be_bytes(*first));
                    match self.sent_at.get(number as usize) {
                        Some(sent_at) => self.report.done(sent_at.elapsed()),
                        None => self.report.fault("an event of a put that was not made"),
                    }
                }
                _ => {}
            }
        }
    }

    fn finished(&self) -> bool {
        self.fatal.is_some() || (self.open_puts == 0 && self.report.count() >= self.expected * self.puts_done)
    }
}

impl Handler for FanOut<'_> {
    fn message(&mut self, token: usize, body: &[u8], _: &mut Output) {
        if token >= WATCH_TOKEN {
            self.watched(body);
        }
    }

    fn end(&mut self, token: usize, status: Status, output: &mut Output) {
        if token >= WATCH_TOKEN {
            self.fatal = Some(format!("a watch stream ended, code {}: {}", status.code, status.message));
            return;
        }
        self.open_puts -= 1;
        if status.code == 0 {
            self.puts_done += 1;
        } else {
            self.report.failed(&status);
        }
        self.put(token, output);
    }
}

/// Counts the events that all watchers of one key together receive. Latency: from the put to the event.
pub fn watch(options: &Options) -> Result<Report, String> {
    let mut driver = Driver::connect(&options.address, options.connections + 1)?;
    let mut fan_out = FanOut {
        options,
        report: Report::new("watch"),
        key: format!("{}watched", options.prefix).into_bytes(),
        value: value(options.value_size),
        created: 0,
        expected: options.watchers as u64,
        sent_at: Vec::new(),
        puts_done: 0,
        open_puts: 0,
        deadline: Instant::now() + options.limit,
        fatal: None,
    };
    let mut create = Vec::new();
    proto::watch_create(&mut create, &fan_out.key, &[]);
    let mut streams = vec![0; options.connections];
    for watcher in 0..options.watchers {
        let connection = watcher % options.connections;
        let output = driver.output(connection);
        if streams[connection] == 0 {
            streams[connection] = output.call(WATCH_TOKEN + connection, WATCH, &create, false);
        } else {
            output.send(streams[connection], &create, false);
        }
    }
    let ready = |fan_out: &FanOut<'_>| fan_out.created == options.watchers || fan_out.fatal.is_some();
    driver.run(&mut fan_out, Duration::from_secs(30), ready)?;

    fan_out.report = Report::new("watch");
    fan_out.deadline = Instant::now() + options.limit;
    for client in 0..options.clients {
        fan_out.put(client, driver.output(options.connections));
    }
    driver.run(&mut fan_out, Duration::from_secs(30), FanOut::finished)?;
    if let Some(text) = fan_out.fatal {
        return Err(text);
    }
    fan_out.report.stop();
    fan_out.report.add("puts", fan_out.puts_done as f64);
    Ok(fan_out.report)
}

/// One lease and one stream a client; a keep-alive follows the answer to the one before.
struct KeepAlive<'a> {
    options: &'a Options,
    report: Report,
    leases: Vec<i64>,
    granted: usize,
    streams: Vec<u32>,
    started: Vec<Instant>,
    next: u64,
    open: usize,
    deadline: Instant,
    fatal: Option<String>,
}

impl KeepAlive<'_> {
    fn ask(&mut self, client: usize, output: &mut Output) {
        if self.next == self.options.total || Instant::now() >= self.deadline {
            return;
        }
        self.next += 1;
        self.open += 1;
        self.started[client] = Instant::now();
        let mut request = Vec::with_capacity(12);
        proto::lease_keep_alive(&mut request, self.leases[client]);
        if self.streams[client] == 0 {
            self.streams[client] = output.call(client, KEEP_ALIVE, &request, false);
        } else {
            output.send(self.streams[client], &request, false);
        }
    }
}

impl Handler for KeepAlive<'_> {
    fn message(&mut self, client: usize, body: &[u8], output: &mut Output) {
        if self.leases[client] == 0 {
            self.leases[client] = proto::find_number(body, 2);
            return;
        }
        self.open -= 1;
        if proto::find_number(body, 3) > 0 {
            self.report.done(self.started[client].elapsed());
        } else {
            self.report.fault("a lease has gone");
        }
        self.ask(client, output);
    }

    fn end(&mut self, client: usize, status: Status, _: &mut Output) {
        if self.streams[client] == 0 && status.code == 0 && self.leases[client] != 0 {
            self.granted += 1;
        } else {
            self.fatal = Some(format!("a lease call ended, code {}: {}", status.code, status.message));
        }
    }
}

/// Keep-alives of many leases.
pub fn lease_keep_alive(options: &Options) -> Result<Report, String> {
    let mut driver = Driver::connect(&options.address, options.connections)?;
    let now = Instant::now();
    let mut clients = KeepAlive {
        options,
        report: Report::new("lease-keepalive"),
        leases: vec![0; options.clients],
        granted: 0,
        streams: vec![0; options.clients],
        started: vec![now; options.clients],
        next: 0,
        open: 0,
        deadline: now + options.limit,
        fatal: None,
    };
    let mut grant = Vec::new();
    proto::lease_grant(&mut grant, 600);
    for client in 0..options.clients {
        driver.output(client % options.connections).call(client, GRANT, &grant, true);
    }
    let granted = |clients: &KeepAlive<'_>| clients.granted == options.clients || clients.fatal.is_some();
    driver.run(&mut clients, Duration::from_secs(30), granted)?;

    if clients.fatal.is_none() {
        clients.report = Report::new("lease-keepalive");
        clients.deadline = Instant::now() + options.limit;
        for client in 0..options.clients {
            clients.ask(client, driver.output(client % options.connections));
        }
        let finished = |clients: &KeepAlive<'_>| clients.open == 0 || clients.fatal.is_some();
        driver.run(&mut clients, Duration::from_secs(30), finished)?;
    }
    if let Some(text) = clients.fatal {
        return Err(text);
    }
    clients.report.stop();
    Ok(clients.report)
}

//! Load for any etcd that speaks gRPC without TLS, from one thread, with as little CPU for a request as
//! possible, so that on a small machine the server gets the rest. It measures; it judges nothing.

mod driver;
mod http2;
mod options;
mod proto;
mod report;
mod streams;
mod unary;

use std::process::ExitCode;

use options::{Options, USAGE};

fn main() -> ExitCode {
    match Options::parse(std::env::args()) {
        Ok(None) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match run(&options) {
            Ok(line) => {
                println!("{line}");
                ExitCode::SUCCESS
            }
            Err(text) => fail(&text, 1),
        },
        Err(text) => fail(&text, 2),
    }
}

fn run(options: &Options) -> Result<String, String> {
    let report = match options.workload.as_str() {
        "put" => unary::put(options),
        "range" => unary::range(options),
        "range-all" => unary::range_all(options),
        "txn" => unary::txn(options),
        "fill" => unary::fill(options),
        "watch" => streams::watch(options),
        "lease-keepalive" => streams::lease_keep_alive(options),
        other => Err(format!("{other}: no such workload; --help lists them")),
    };
    report.map(|report| report.json())
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("etcd-loadgen: {text}");
    ExitCode::from(code)
}

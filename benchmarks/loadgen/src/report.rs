//! What a run has measured, as one line of JSON.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::http2::Status;

/// Counts and latencies of one run. Latencies are in microseconds, exact to three digits.
pub struct Report {
    workload: &'static str,
    started: Instant,
    seconds: f64,
    latencies: Histogram<u64>,
    count: u64,
    errors: u64,
    first_error: String,
    extra: Vec<(&'static str, f64)>,
}

impl Report {
    /// The clock starts now.
    pub fn new(workload: &'static str) -> Self {
        Report {
            workload,
            started: Instant::now(),
            seconds: 0.0,
            latencies: Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are constants"),
            count: 0,
            errors: 0,
            first_error: String::new(),
            extra: Vec::new(),
        }
    }

    /// One thing was done, and took this long.
    pub fn done(&mut self, latency: Duration) {
        self.count += 1;
        self.latencies.saturating_record(latency.as_micros() as u64);
    }

    /// One call failed.
    pub fn failed(&mut self, status: &Status) {
        self.fault(&format!("code {}: {}", status.code, status.message));
    }

    /// An answer was not what it should be.
    pub fn fault(&mut self, text: &str) {
        if self.errors == 0 {
            self.first_error = text.to_owned();
        }
        self.errors += 1;
    }

    /// How many were done.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Another figure for the report.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.extra.push((name, value));
    }

    /// The clock stops.
    pub fn stop(&mut self) {
        self.seconds = self.started.elapsed().as_secs_f64();
    }

    /// The report as one line.
    pub fn json(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let mut text = format!(
            "{{\"workload\":\"{}\",\"count\":{},\"seconds\":{:.6},\"rate\":{:.1}",
            self.workload,
            self.count,
            seconds,
            self.count as f64 / seconds
        );
        for (name, quantile) in [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99)] {
            text += &format!(",\"{name}\":{}", self.latencies.value_at_quantile(quantile));
        }
        text += &format!(",\"max_us\":{},\"errors\":{}", self.latencies.max(), self.errors);
        for (name, value) in &self.extra {
            text += &format!(",\"{name}\":{value:.3}");
        }
        text += &format!(",\"loadgen_cpu_seconds\":{:.2}", cpu_seconds());
        if self.errors > 0 {
            text += &format!(",\"first_error\":{}", quoted(&self.first_error));
        }
        text + "}"
    }
}

/// CPU time that this process has used so far: in a fair run it is far from `seconds`.
fn cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if (letter as u32) < 0x20 => out += &format!("\\u{:04x}", letter as u32),
            letter => out.push(letter),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_one_line_of_json() {
        let mut report = Report::new("put");
        report.done(Duration::from_micros(100));
        report.done(Duration::from_micros(300));
        report.failed(&Status { code: 8, message: "a \"quoted\"\nline".into() });
        report.stop();
        let line = report.json();
        assert!(line.starts_with("{\"workload\":\"put\",\"count\":2,"), "{line}");
        assert!(line.contains("\"p50_us\":100") && line.contains("\"max_us\":300"), "{line}");
        assert!(line.ends_with("\"first_error\":\"code 8: a \\\"quoted\\\"\\u000aline\"}"), "{line}");
    }

    #[test]
    fn cpu_time_is_read() {
        let before = cpu_seconds();
        let mut sum = 0u64;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(60) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert!(std::hint::black_box(sum) > 0 && cpu_seconds() > before);
    }
}

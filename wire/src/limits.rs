//! Counting things that a client may not do without bound: unsent bytes, and pings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

/// Bytes given to `h2` and not yet written by it; a stream's gauge counts in its connection's too.
#[derive(Debug, Default)]
pub struct Gauge {
    unsent: AtomicUsize,
    parent: Option<Arc<Gauge>>,
}

impl Gauge {
    /// A gauge whose bytes count in `parent` also.
    pub fn child_of(parent: &Arc<Gauge>) -> Arc<Gauge> {
        Arc::new(Gauge { unsent: AtomicUsize::new(0), parent: Some(Arc::clone(parent)) })
    }

    /// Bytes that wait.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add(bytes);
        }
    }

    fn subtract(&self, bytes: usize) {
        self.unsent.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.subtract(bytes);
        }
    }
}

/// Bytes that are counted by a gauge until they have been written, or dropped.
#[derive(Debug)]
pub struct Payload {
    bytes: Bytes,
    gauge: Arc<Gauge>,
}

impl Payload {
    /// Counts `bytes` in `gauge` from now on.
    pub fn new(bytes: Bytes, gauge: &Arc<Gauge>) -> Self {
        gauge.add(bytes.len());
        Payload { bytes, gauge: Arc::clone(gauge) }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.gauge.subtract(count);
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.gauge.subtract(self.bytes.len());
        }
    }
}

/// grpc-go's enforcement policy for the pings of clients (internal/transport/http2_server.go, handlePing), with
/// etcd's setting of it: no pings without an open stream.
#[derive(Debug)]
pub struct PingPolicy {
    min_time: Duration,
    last: Option<Instant>,
    strikes: u32,
    forgiven: bool,
}

impl PingPolicy {
    /// Time that must lie between pings when no stream is open.
    const MIN_TIME_IDLE: Duration = Duration::from_secs(2 * 3600);
    const MAX_STRIKES: u32 = 2;

    /// A policy that asks for `min_time` between pings while a stream is open.
    pub fn new(min_time: Duration) -> Self {
        PingPolicy { min_time, last: None, strikes: 0, forgiven: false }
    }

    /// Headers or data have been sent: the next ping is free, as it may measure the round trip of them.
    pub fn forgive(&mut self) {
        self.forgiven = true;
    }

    /// A ping has come; false when it was one too many and the connection must go.
    pub fn allows(&mut self, now: Instant, streams_open: bool) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.forgiven) {
            self.strikes = 0;
            return true;
        }
        let min_time = if streams_open { self.min_time } else { Self::MIN_TIME_IDLE };
        if last.is_some_and(|last| last + min_time > now) {
            self.strikes += 1;
        }
        self.strikes <= Self::MAX_STRIKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN_TIME: Duration = Duration::from_secs(5);

    #[test]
    fn the_third_strike_is_too_many() {
        let mut policy = PingPolicy::new(MIN_TIME);
        let start = Instant::now();
        let allowed: Vec<bool> =
            (0..4).map(|second| policy.allows(start + Duration::from_secs(second), true)).collect();
        assert_eq!(allowed, [true, true, true, false]);
    }

    #[test]
    fn slow_pings_are_allowed_with_a_stream_and_not_without() {
        let start = Instant::now();
        let times: Vec<Instant> = (0..4).map(|n| start + MIN_TIME * n).collect();
        let mut policy = PingPolicy::new(MIN_TIME);
        assert!(times.iter().all(|now| policy.allows(*now, true)));
        let mut policy = PingPolicy::new(MIN_TIME);
        assert_eq!(times.iter().filter(|now| policy.allows(**now, false)).count(), 3);
    }

    #[test]
    fn something_sent_forgives() {
        let mut policy = PingPolicy::new(MIN_TIME);
        let now = Instant::now();
        for _ in 0..10 {
            policy.forgive();
            assert!(policy.allows(now, false));
        }
    }

    #[test]
    fn a_gauge_counts_what_is_neither_written_nor_dropped() {
        let connection = Arc::new(Gauge::default());
        let stream = Gauge::child_of(&connection);
        let mut payload = Payload::new(Bytes::from_static(b"0123456789"), &stream);
        let other = Payload::new(Bytes::from_static(b"01234"), &connection);
        payload.advance(4);
        assert_eq!((stream.unsent_bytes(), connection.unsent_bytes()), (6, 11));
        drop(payload);
        drop(other);
        assert_eq!((stream.unsent_bytes(), connection.unsent_bytes()), (0, 0));
    }
}

//! Keeps the threads of the wire awake between two steps of a single client.
//!
//! A client that waits for each answer leaves the threads with nothing to do many times a request, and to wake one takes
//! longer than the work it is woken for. While one event or one answer at a time goes through, a task on the runtime goes
//! round without sleeping, so that the sockets are looked at as soon as something is there, and an answer that another
//! thread hands over needs no system call to be noticed. With many clients the threads do not sleep anyway; without any
//! the task sleeps like the rest. Whoever else wants the processor gets it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long after a step the next one is looked out for: the time of a client, or of the sync of a quick disk.
pub const WATCHFUL: Duration = Duration::from_micros(300);

/// See the module.
pub struct Brisk {
    begun: Instant,
    /// Nanoseconds since `begun` until which the task stays awake.
    until: AtomicU64,
    step: Notify,
}

impl Default for Brisk {
    fn default() -> Self {
        Brisk { begun: Instant::now(), until: AtomicU64::new(0), step: Notify::new() }
    }
}

impl Brisk {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// `count` events or answers went through together: one alone promises another soon.
    pub fn step(&self, count: usize) {
        if count != 1 {
            self.until.store(0, Ordering::Relaxed);
            return;
        }
        let was_awake = self.is_awake();
        self.until.store(self.now() + WATCHFUL.as_nanos() as u64, Ordering::Relaxed);
        if !was_awake {
            self.step.notify_one();
        }
    }

    fn is_awake(&self) -> bool {
        self.now() < self.until.load(Ordering::Relaxed)
    }

    /// The task; it ends with the runtime.
    pub async fn run(&self) {
        loop {
            self.step.notified().await;
            while self.is_awake() {
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_keeps_awake_and_several_do_not() {
        let brisk = Brisk::default();
        assert!(!brisk.is_awake());
        brisk.step(1);
        assert!(brisk.is_awake());
        brisk.step(2);
        assert!(!brisk.is_awake());
        brisk.step(1);
        std::thread::sleep(2 * WATCHFUL);
        assert!(!brisk.is_awake());
    }
}

//! Keeps the threads of the wire awake between two steps of a single client.
//!
//! A client that waits for each answer leaves the threads with nothing to do many times a request, and to wake one takes
//! longer than the work it is woken for. While one event or one answer at a time goes through, a task on the runtime goes
//! round without sleeping, so that the sockets are looked at as soon as something is there, and an answer that another
//! thread hands over needs no system call to be noticed. With many clients the threads do not sleep anyway; without any
//! the task sleeps like the rest. Whoever else wants the processor gets it, and once somebody did, nobody here looks
//! out for a while: on a crowded machine a thread that goes round is late when there is something to do for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long after a step the next one is looked out for: the time of a client, or of the sync of a quick disk.
pub const WATCHFUL: Duration = Duration::from_micros(300);

/// A thread that let go of its processor for longer than this has shared it.
const SHARED: Duration = Duration::from_micros(60);
/// For how long nobody looks out after that.
const CROWDED: Duration = Duration::from_millis(50);

/// Whether there are processors to spare, as far as the threads of this process have seen.
#[derive(Debug)]
pub struct Room {
    begun: Instant,
    /// Nanoseconds since `begun` until which the machine counts as crowded.
    crowded_until: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Room { begun: Instant::now(), crowded_until: AtomicU64::new(0) }
    }
}

impl Room {
    /// Nanoseconds since `begun`.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether a thread may look out instead of sleeping.
    pub fn is_there(&self) -> bool {
        self.now() >= self.crowded_until.load(Ordering::Relaxed)
    }

    /// Lets others have the processor; false when somebody wanted it.
    pub fn pause(&self) -> bool {
        let before = Instant::now();
        std::thread::yield_now();
        let is_there = before.elapsed() < SHARED;
        if !is_there {
            self.crowded_until.store(self.now() + CROWDED.as_nanos() as u64, Ordering::Relaxed);
        }
        is_there
    }
}

/// See the module.
pub struct Brisk {
    /// Until when the task stays awake, by the clock of `room`.
    until: AtomicU64,
    step: Notify,
    room: Arc<Room>,
}

impl Brisk {
    /// A task that looks out while there is room.
    pub fn new(room: Arc<Room>) -> Self {
        Brisk { until: AtomicU64::new(0), step: Notify::new(), room }
    }

    /// `count` events or answers went through together: one alone promises another soon.
    pub fn step(&self, count: usize) {
        if count != 1 || !self.room.is_there() {
            self.until.store(0, Ordering::Relaxed);
            return;
        }
        let was_awake = self.is_awake();
        self.until.store(self.room.now() + WATCHFUL.as_nanos() as u64, Ordering::Relaxed);
        if !was_awake {
            self.step.notify_one();
        }
    }

    fn is_awake(&self) -> bool {
        self.room.now() < self.until.load(Ordering::Relaxed)
    }

    /// The task; it ends with the runtime.
    pub async fn run(&self) {
        loop {
            self.step.notified().await;
            while self.is_awake() && self.room.pause() {
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
        let brisk = Brisk::new(Arc::default());
        assert!(!brisk.is_awake());
        brisk.step(1);
        assert!(brisk.is_awake());
        brisk.step(2);
        assert!(!brisk.is_awake());
        brisk.step(1);
        std::thread::sleep(2 * WATCHFUL);
        assert!(!brisk.is_awake());
    }

    #[test]
    fn where_others_want_the_processor_nobody_keeps_awake() {
        let room = Arc::new(Room::default());
        assert!(room.is_there());
        room.crowded_until.store(u64::MAX, Ordering::Relaxed);
        assert!(!room.is_there());
        let brisk = Brisk::new(room);
        brisk.step(1);
        assert!(!brisk.is_awake());
    }
}

//! The events that wait for `Wire.poll`: one queue, one lock for a batch in either direction.
//!
//! The queue is bounded by bytes, not by refusing events: once `max_bytes` wait, [`Inbox::is_full`] is true and
//! connections stop reading from their sockets, until the owner has taken half of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::brisk::{Room, WATCHFUL};
use crate::event::Event;

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
    polling: bool,
}

/// See the module.
pub struct Inbox {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Events in the queue, as a waiter that does not sleep sees them.
    count: AtomicUsize,
    /// The last wait was shorter than `WATCHFUL`, so the next one probably is.
    is_brisk: AtomicBool,
    full: AtomicBool,
    max_bytes: usize,
    room: Arc<Room>,
}

/// What [`Inbox::take`] returns.
pub struct Taken {
    pub events: VecDeque<Event>,
    /// The inbox was full and is so no longer: connections may read again.
    pub room_again: bool,
}

impl Inbox {
    /// An empty inbox that counts as full from `max_bytes` on.
    pub fn new(max_bytes: usize, room: Arc<Room>) -> Self {
        Inbox {
            queue: Mutex::new(Queue::default()),
            arrived: Condvar::new(),
            count: AtomicUsize::new(0),
            is_brisk: AtomicBool::new(false),
            full: AtomicBool::new(false),
            max_bytes,
            room,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while connections must not read.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Number of events that wait.
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Moves all of `events` to the end of the queue.
    pub fn push_all(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let bytes: usize = events.iter().map(Event::size_bytes).sum();
        let mut queue = self.lock();
        queue.events.extend(events.drain(..));
        queue.bytes += bytes;
        self.count.store(queue.events.len(), Ordering::Release);
        if queue.bytes >= self.max_bytes {
            self.full.store(true, Ordering::Release);
        }
        let polling = queue.polling;
        drop(queue);
        if polling {
            self.arrived.notify_one();
        }
    }

    /// Waits until something has arrived or `timeout` has passed, then takes the oldest `max` events.
    pub fn take(&self, timeout: Duration, max: usize) -> Taken {
        let begun = Instant::now();
        if !timeout.is_zero() && self.is_brisk.load(Ordering::Relaxed) && self.room.is_there() {
            self.watch(begun);
        }
        let mut queue = self.lock();
        if queue.events.is_empty() && !timeout.is_zero() {
            let deadline = begun + timeout;
            queue.polling = true;
            while queue.events.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                queue = self.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            queue.polling = false;
        }
        if !queue.events.is_empty() {
            self.is_brisk.store(begun.elapsed() < WATCHFUL, Ordering::Relaxed);
        }
        let events = if queue.events.len() <= max {
            queue.bytes = 0;
            std::mem::take(&mut queue.events)
        } else {
            let events: VecDeque<Event> = queue.events.drain(..max).collect();
            queue.bytes -= events.iter().map(Event::size_bytes).sum::<usize>();
            events
        };
        self.count.store(queue.events.len(), Ordering::Release);
        // Between half and full the flag stays as it was.
        let room_again = queue.bytes <= self.max_bytes / 2 && self.full.swap(false, Ordering::AcqRel);
        Taken { events, room_again }
    }
}

impl Inbox {
    /// Looks for an arrival for a short time without going to sleep: to be woken takes longer than most waits between
    /// two requests of one client, and longer than a disk takes to sync. Whoever else wants this processor gets it.
    fn watch(&self, begun: Instant) {
        while self.count.load(Ordering::Acquire) == 0 && begun.elapsed() < WATCHFUL && self.room.pause() {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(id: u64, size: usize) -> Event {
        Event::Message { id, message: Bytes::from(vec![0; size]) }
    }

    fn ids(taken: &Taken) -> Vec<u64> {
        taken.events.iter().map(|event| if let Event::Message { id, .. } = event { *id } else { 0 }).collect()
    }

    #[test]
    fn events_leave_in_order_and_at_most_max() {
        let inbox = Inbox::new(1 << 20, Arc::default());
        inbox.push_all(&mut vec![message(1, 0), message(2, 0), message(3, 0)]);
        assert_eq!(ids(&inbox.take(Duration::ZERO, 2)), [1, 2]);
        assert_eq!(ids(&inbox.take(Duration::ZERO, 2)), [3]);
        assert!(inbox.take(Duration::from_millis(1), 2).events.is_empty());
    }

    #[test]
    fn a_brisk_waiter_sees_what_arrives_and_still_keeps_its_time() {
        let inbox = Arc::new(Inbox::new(1 << 20, Arc::default()));
        inbox.push_all(&mut vec![message(1, 0)]);
        assert_eq!(ids(&inbox.take(Duration::from_secs(1), 9)), [1]);
        assert!(inbox.is_brisk.load(Ordering::Relaxed));
        let other = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || other.push_all(&mut vec![message(2, 0)]));
        assert_eq!(ids(&inbox.take(Duration::from_secs(30), 9)), [2]);
        thread.join().unwrap();
        let begun = Instant::now();
        assert!(inbox.take(Duration::from_millis(20), 9).events.is_empty());
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn full_until_half_is_taken() {
        let inbox = Inbox::new(10_000, Arc::default());
        inbox.push_all(&mut (1..=4).map(|id| message(id, 2_500)).collect());
        assert!(inbox.is_full());
        assert!(!inbox.take(Duration::ZERO, 1).room_again);
        assert!(inbox.is_full());
        assert!(inbox.take(Duration::ZERO, 2).room_again);
        assert!(!inbox.is_full());
    }

    #[test]
    fn an_arrival_ends_the_wait() {
        let inbox = Arc::new(Inbox::new(1 << 20, Arc::default()));
        let other = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || other.push_all(&mut vec![Event::Posted(7)]));
        assert_eq!(inbox.take(Duration::from_secs(30), 10).events.len(), 1);
        thread.join().unwrap();
    }
}

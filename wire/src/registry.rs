//! The open connections, and for each a mailbox of answers that its task collects when it is woken.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use fnv::FnvHashMap;

use crate::event::{Command, connection_of, stream_of};

/// What a connection is told beside the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// Serve.
    #[default]
    Serving,
    /// Take nothing new, end what is open.
    Draining,
    /// The owner listens no more: end what would wait for it. What it has answered is still sent.
    Closing,
    /// End now.
    Ending,
}

#[derive(Default)]
struct Letters {
    commands: Vec<(u32, Command)>,
    waker: Option<Waker>,
    phase: Phase,
}

/// Answers on their way to one connection, with the number of the stream each is for.
#[derive(Default)]
pub struct Mailbox {
    letters: Mutex<Letters>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what waits into `commands` (which must be empty) and remembers whom to wake for more.
    pub fn collect(&self, waker: &Waker, commands: &mut Vec<(u32, Command)>) -> Phase {
        let mut letters = self.lock();
        std::mem::swap(&mut letters.commands, commands);
        if !letters.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            letters.waker = Some(waker.clone());
        }
        letters.phase
    }

    fn advance(&self, phase: Phase) {
        let mut letters = self.lock();
        letters.phase = letters.phase.max(phase);
        let waker = letters.waker.take();
        drop(letters);
        waker.into_iter().for_each(Waker::wake);
    }

    fn wake(&self) {
        let waker = self.lock().waker.take();
        waker.into_iter().for_each(Waker::wake);
    }
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: FnvHashMap<u64, Arc<Mailbox>>,
    phase: Phase,
}

/// See the module.
#[derive(Default)]
pub struct Registry {
    connections: Mutex<Connections>,
    left: Condvar,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection: its number, never used before, and its mailbox.
    pub fn enter(&self) -> (u64, Arc<Mailbox>) {
        let mut connections = self.lock();
        connections.next += 1;
        let number = connections.next;
        let mailbox = Arc::new(Mailbox::default());
        mailbox.lock().phase = connections.phase;
        connections.open.insert(number, Arc::clone(&mailbox));
        (number, mailbox)
    }

    /// Removes a connection that has ended.
    pub fn leave(&self, number: u64) {
        let mut connections = self.lock();
        connections.open.remove(&number);
        if connections.open.is_empty() {
            self.left.notify_all();
        }
    }

    /// Hands each answer to its connection, dropping those whose connection is gone, and wakes each connection
    /// concerned once, after all of the batch is in place.
    pub fn dispatch(&self, commands: Vec<(u64, Command)>) {
        let mut wakers: Vec<Waker> = Vec::new();
        let connections = self.lock();
        let mut commands = commands.into_iter().peekable();
        while let Some((id, first)) = commands.next() {
            let number = connection_of(id);
            let Some(mailbox) = connections.open.get(&number) else { continue };
            let mut letters = mailbox.lock();
            letters.commands.push((stream_of(id), first));
            while let Some((id, command)) = commands.next_if(|(id, _)| connection_of(*id) == number) {
                letters.commands.push((stream_of(id), command));
            }
            wakers.extend(letters.waker.take());
        }
        drop(connections);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes every connection, so that it looks at the inbox again.
    pub fn wake_all(&self) {
        let mailboxes: Vec<Arc<Mailbox>> = self.lock().open.values().cloned().collect();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }

    /// Tells every connection, and each that is still to come, to drain or to end.
    pub fn advance(&self, phase: Phase) {
        let mut connections = self.lock();
        connections.phase = connections.phase.max(phase);
        let mailboxes: Vec<Arc<Mailbox>> = connections.open.values().cloned().collect();
        drop(connections);
        mailboxes.iter().for_each(|mailbox| mailbox.advance(phase));
    }

    /// Waits until no connection is open, at most `timeout`; true when none is.
    pub fn wait_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut connections = self.lock();
        while !connections.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            connections = self.left.wait_timeout(connections, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::event::id_of;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_batch_wakes_each_connection_once() {
        let registry = Registry::default();
        let wakes = [Arc::new(Count::default()), Arc::new(Count::default())];
        let boxes: Vec<(u64, Arc<Mailbox>)> = (0..2).map(|_| registry.enter()).collect();
        for ((_, mailbox), count) in boxes.iter().zip(&wakes) {
            mailbox.collect(&Waker::from(Arc::clone(count)), &mut Vec::new());
        }
        let fail = || Command::Fail { code: 0, text: String::new() };
        let (a, b) = (boxes[0].0, boxes[1].0);
        registry.dispatch(vec![
            (id_of(a, 1), fail()),
            (id_of(b, 1), fail()),
            (id_of(a, 3), fail()),
            (id_of(99, 1), fail()),
        ]);
        assert_eq!(wakes.each_ref().map(|count| count.0.load(Ordering::SeqCst)), [1, 1]);
        let mut commands = Vec::new();
        boxes[0].1.collect(Waker::noop(), &mut commands);
        assert_eq!(commands.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_connection_that_comes_late_is_told_the_phase() {
        let registry = Registry::default();
        registry.advance(Phase::Draining);
        let (number, mailbox) = registry.enter();
        assert_eq!(mailbox.collect(Waker::noop(), &mut Vec::new()), Phase::Draining);
        assert!(!registry.wait_empty(Duration::ZERO));
        registry.leave(number);
        assert!(registry.wait_empty(Duration::ZERO));
    }
}

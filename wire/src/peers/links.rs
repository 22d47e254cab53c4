//! All links and files of a wire, as its owner numbers them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use fnv::{FnvHashMap, FnvHashSet};
use tokio::runtime::Handle;

use super::incoming::Received;
use super::outgoing::{Config, Outgoing};
use super::queue::Frame;
use super::send;
use crate::settings::SharedRef;

/// One line of [`Peers::statistics`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    pub is_up: bool,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub dropped_frames: u64,
    pub failures: u64,
    pub round_trip: Option<Duration>,
}

#[derive(Default)]
struct State {
    links: FnvHashMap<u64, Arc<Outgoing>>,
    /// Accepted links of peers, by their ids.
    incoming: FnvHashMap<u64, Arc<Received>>,
    /// Files that are being sent.
    files: FnvHashSet<u64>,
    /// Links whose task has not ended, closed ones too.
    running: usize,
}

/// See the module.
#[derive(Default)]
pub struct Peers {
    state: Mutex<State>,
    ended: Condvar,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a link, or gives an open one another configuration.
    pub fn open(shared: &SharedRef, runtime: &Handle, number: u64, config: Config, queue_bytes: usize) {
        let mut state = shared.peers.lock();
        if let Some(link) = state.links.get(&number) {
            link.replace(config, queue_bytes);
            return;
        }
        let link = Outgoing::new(number, config, queue_bytes, shared.settings.link_timeout);
        state.links.insert(number, Arc::clone(&link));
        state.running += 1;
        let shared = Arc::clone(shared);
        runtime.spawn(async move {
            link.run(Arc::clone(&shared)).await;
            let mut state = shared.peers.lock();
            state.running -= 1;
            if state.running == 0 {
                shared.peers.ended.notify_all();
            }
        });
    }

    /// Closes a link; what is queued is sent if that is done by `deadline`.
    pub fn close(&self, number: u64, deadline: Instant) {
        if let Some(link) = self.lock().links.remove(&number) {
            link.close(deadline);
        }
    }

    /// Closes all links and waits for their ends, at most until a little after `deadline`.
    pub fn close_all(&self, deadline: Instant) {
        let mut state = self.lock();
        for (_, link) in state.links.drain() {
            link.close(deadline);
        }
        while state.running > 0 {
            let left = (deadline + super::LINGER).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Queues frames, each for the link of its number; those for no link are dropped.
    pub fn push(&self, frames: Vec<(u64, Frame)>) {
        let mut wakers: Vec<Waker> = Vec::new();
        let state = self.lock();
        let mut frames = frames.into_iter().peekable();
        while let Some((number, first)) = frames.next() {
            let rest = std::iter::from_fn(|| frames.next_if(|(next, _)| *next == number));
            let group = std::iter::once(first).chain(rest.map(|(_, frame)| frame));
            match state.links.get(&number) {
                Some(link) => wakers.extend(link.push(group)),
                None => group.for_each(drop),
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Counts of each link, and under its id of each accepted link of a peer.
    pub fn statistics(&self) -> Vec<(u64, Line)> {
        let state = self.lock();
        let incoming = state.incoming.iter().map(|(id, received)| {
            let line = Line {
                is_up: true,
                sent_bytes: received.sent_bytes.load(Ordering::Relaxed),
                received_bytes: received.received_bytes.load(Ordering::Relaxed),
                dropped_frames: 0,
                failures: 0,
                round_trip: None,
            };
            (*id, line)
        });
        let links = state.links.iter().map(|(number, link)| {
            let counts = &link.statistics;
            let round_trip_ns = counts.round_trip_ns.load(Ordering::Relaxed);
            let line = Line {
                is_up: counts.is_up.load(Ordering::Relaxed),
                sent_bytes: counts.sent_bytes.load(Ordering::Relaxed),
                received_bytes: counts.received_bytes.load(Ordering::Relaxed),
                dropped_frames: link.dropped(),
                failures: counts.failures.load(Ordering::Relaxed),
                round_trip: (round_trip_ns > 0).then(|| Duration::from_nanos(round_trip_ns)),
            };
            (*number, line)
        });
        incoming.chain(links).collect()
    }

    /// A link of a peer has been accepted.
    pub fn enter(&self, id: u64, received: &Arc<Received>) {
        self.lock().incoming.insert(id, Arc::clone(received));
    }

    /// It has ended.
    pub fn leave(&self, id: u64) {
        self.lock().incoming.remove(&id);
    }

    /// Sends a file; false when one of this id is being sent.
    pub fn send_file(shared: &SharedRef, runtime: &Handle, id: u64, parcel: send::Parcel) -> bool {
        if !shared.peers.lock().files.insert(id) {
            return false;
        }
        let shared = Arc::clone(shared);
        runtime.spawn(async move {
            let event = send::run(&shared, id, parcel).await;
            // The id is free before the owner hears of it.
            shared.peers.lock().files.remove(&id);
            shared.inbox.push_all(&mut vec![event]);
        });
        true
    }
}

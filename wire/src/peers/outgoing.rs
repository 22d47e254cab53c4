//! One link to one peer: a task that connects, connects again when the connection is lost, and sends what is queued.
//!
//! The owner talks to the task through [`Outgoing`]: it queues frames, changes the configuration, or closes it.
//! What happens on one connection is [`super::flow`]. While the task waits for frames, with nothing of its own to write,
//! the owner writes a few small ones itself: to wake a thread for them takes longer than the system call.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::flow::{End, Flow};
use super::frame::{self, HEADER_BYTES, kind};
use super::queue::{Frame, Queue};
use super::{LINK_PATH, LINK_PROTOCOL, head};
use crate::event::Event;
use crate::listener::Address;
use crate::settings::SharedRef;
use crate::socket::Socket;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Bytes that the kernel holds unsent, beside those that are on their way.
const MAX_UNSENT_BYTES: u32 = 262_144;
/// What the owner writes itself, at most.
const MAX_DIRECT_BYTES: usize = 16_384;

/// What the owner wants of a link.
#[derive(Debug)]
pub struct Config {
    /// Each as given, and what it says; at least one.
    pub urls: Vec<(Arc<str>, Address)>,
    pub hello: head::Headers,
}

/// Counts of a link since it was opened.
#[derive(Debug, Default)]
pub struct Statistics {
    pub is_up: AtomicBool,
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    pub failures: AtomicU64,
    /// 0 when it has not been measured.
    pub round_trip_ns: AtomicU64,
}

/// What the owner and the task share.
pub struct State {
    pub queue: Queue,
    config: Arc<Config>,
    /// Counts the configurations.
    pub generation: u64,
    /// When what is queued must have been sent; then, or before, the link ends.
    pub closing: Option<Instant>,
    /// None while connected.
    down_since: Option<Instant>,
    /// The task waits for frames. Whoever finds this under the lock may write to the connection.
    pub hungry: bool,
    /// For the owner to write with, while connected.
    direct: Option<socket2::Socket>,
    /// A frame of which the owner has written only so many bytes; it comes before all in the queue.
    pub begun: Option<(Frame, usize)>,
    pub waker: Option<Waker>,
}

impl State {
    /// A peer that is away for long is told what is new then, not what was.
    fn drop_stale(&mut self, now: Instant, timeout: Duration) -> bool {
        let stale = self.down_since.is_some_and(|since| since + timeout <= now);
        if stale {
            self.queue.drop_all();
        }
        stale
    }

    /// Writes frames while nobody else does; those that did not fit are left, the first of them perhaps begun.
    fn write(&mut self, frames: &mut VecDeque<Frame>, statistics: &Statistics) {
        let Some(direct) = &mut self.direct else { return };
        let bytes: usize = frames.iter().map(|frame| HEADER_BYTES + frame.payload.len()).sum();
        if bytes > MAX_DIRECT_BYTES {
            return;
        }
        let mut buffer = Vec::with_capacity(bytes);
        for frame in frames.iter() {
            buffer.extend_from_slice(&frame::header(kind::DATA, frame.payload.len()));
            buffer.extend_from_slice(&frame.payload);
        }
        // The task will meet the same error, and knows what to do about it.
        let mut left = direct.write(&buffer).unwrap_or(0);
        statistics.sent_bytes.fetch_add(left as u64, Ordering::Relaxed);
        while let Some(frame) = frames.pop_front() {
            let bytes = HEADER_BYTES + frame.payload.len();
            if left < bytes {
                if left > 0 {
                    self.begun = Some((frame, left));
                } else {
                    frames.push_front(frame);
                }
                return;
            }
            left -= bytes;
        }
    }
}

/// See the module.
pub struct Outgoing {
    number: u64,
    pub timeout: Duration,
    pub statistics: Statistics,
    state: Mutex<State>,
}

impl Outgoing {
    /// A link that is to be [`run`](Outgoing::run).
    pub fn new(number: u64, config: Config, queue_bytes: usize, timeout: Duration) -> Arc<Self> {
        let state = State {
            queue: Queue::new(queue_bytes),
            config: Arc::new(config),
            generation: 0,
            closing: None,
            down_since: Some(Instant::now()),
            hungry: false,
            direct: None,
            begun: None,
            waker: None,
        };
        Arc::new(Outgoing { number, timeout, statistics: Statistics::default(), state: Mutex::new(state) })
    }

    /// Held for moments only.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Another configuration: connects anew, and keeps what is queued.
    pub fn replace(&self, config: Config, queue_bytes: usize) {
        self.change(|state| {
            state.queue.set_max_bytes(queue_bytes);
            state.config = Arc::new(config);
            state.generation += 1;
        });
    }

    /// Ends the link, after sending what is queued if that is done by `deadline`.
    pub fn close(&self, deadline: Instant) {
        self.change(|state| {
            state.closing = Some(state.closing.map_or(deadline, |earlier| earlier.min(deadline)));
        });
    }

    /// Frames dropped so far.
    pub fn dropped(&self) -> u64 {
        self.lock().queue.dropped()
    }

    /// Writes or queues frames; whom to wake then.
    pub fn push(&self, frames: impl Iterator<Item = Frame>) -> Option<Waker> {
        let mut state = self.lock();
        let mut frames: VecDeque<Frame> = frames.collect();
        if state.hungry {
            state.write(&mut frames, &self.statistics);
            if frames.is_empty() && state.begun.is_none() {
                return None;
            }
        }
        let stale = state.down_since.is_some() && state.drop_stale(Instant::now(), self.timeout);
        for frame in frames {
            if stale && frame.droppable {
                state.queue.count_dropped();
            } else {
                state.queue.push(frame);
            }
        }
        if std::mem::take(&mut state.hungry) { state.waker.take() } else { None }
    }

    fn config(&self) -> (Arc<Config>, u64) {
        let state = self.lock();
        (Arc::clone(&state.config), state.generation)
    }

    /// Ready once the owner wants something else than configuration `generation`.
    fn poll_disturbed(&self, generation: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.generation != generation || state.closing.is_some() {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    async fn undisturbed<T>(&self, generation: u64, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.poll_disturbed(generation, cx).is_ready() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Keeps the link up until it is closed.
    pub async fn run(self: Arc<Self>, shared: SharedRef) {
        let mut backoff = Backoff::default();
        // What the owner has been told of each address since the link was last up: once is enough.
        let mut told: HashMap<Arc<str>, String> = HashMap::new();
        let mut turn = 0;
        while self.lock().closing.is_none() {
            let (config, generation) = self.config();
            let (url, address) = &config.urls[turn % config.urls.len()];
            turn += 1;
            let dialled = self.undisturbed(generation, dial(&shared, url, address, &config.hello)).await;
            let outcome = match dialled {
                None => continue,
                Some(Err(reason)) => Err(reason),
                Some(Ok((socket, rest))) => {
                    told.clear();
                    let begun = Instant::now();
                    let outcome = self.flow(&shared, url, socket, rest, generation).await;
                    if begun.elapsed() >= BACKOFF_MAX {
                        backoff = Backoff::default();
                    }
                    outcome
                }
            };
            let Err(reason) = outcome else { continue };
            self.statistics.failures.fetch_add(1, Ordering::Relaxed);
            if told.get(url) != Some(&reason) {
                told.insert(Arc::clone(url), reason.clone());
                shared.inbox.push_all(&mut vec![Event::LinkDown { link: self.number, reason }]);
            }
            self.undisturbed(generation, tokio::time::sleep(backoff.next())).await;
        }
    }

    /// Serves one connection until it is lost (the reason), or the owner wants something else.
    async fn flow(
        &self,
        shared: &SharedRef,
        url: &Arc<str>,
        mut socket: Socket,
        rest: BytesMut,
        generation: u64,
    ) -> Result<(), String> {
        socket.limit_unsent(MAX_UNSENT_BYTES);
        {
            let mut state = self.lock();
            state.drop_stale(Instant::now(), self.timeout);
            state.down_since = None;
            state.direct = socket.direct();
        }
        self.statistics.is_up.store(true, Ordering::Relaxed);
        let link = self.number;
        shared.inbox.push_all(&mut vec![Event::LinkUp { link, url: Arc::clone(url) }]);
        let mut flow = Flow::new(self, shared, &mut socket, rest, generation);
        let ended = poll_fn(|cx| flow.poll(cx)).await;
        let mut batch = flow.batch;
        {
            let mut state = self.lock();
            state.direct = None;
            if let Some((frame, _)) = state.begun.take() {
                state.queue.put_back(frame);
            }
            batch.unwritten().for_each(|frame| state.queue.put_back(frame));
            state.down_since = Some(Instant::now());
            state.hungry = false;
        }
        self.statistics.is_up.store(false, Ordering::Relaxed);
        self.statistics.round_trip_ns.store(0, Ordering::Relaxed);
        match ended {
            End::Lost(reason) => Err(format!("the connection to {url} was lost: {reason}")),
            End::Silent => Err(format!("{url} has been silent for {:?}", shared.settings.link_timeout)),
            End::Bye(status, text) => Err(format!("ended by {url} with status {status}: {text}")),
            End::Replaced => {
                let reason = format!("the link to {url} was replaced");
                shared.inbox.push_all(&mut vec![Event::LinkDown { link, reason }]);
                Ok(())
            }
            End::Closed => {
                super::linger(socket).await;
                Ok(())
            }
        }
    }
}

/// Connects and has the link accepted; what the peer has sent after that is not lost. The error is for the owner.
async fn dial(
    shared: &SharedRef,
    url: &str,
    address: &Address,
    hello: &head::Headers,
) -> Result<(Socket, BytesMut), String> {
    let dialling = async {
        let mut socket =
            Socket::connect(address).await.map_err(|error| format!("cannot connect to {url}: {error}"))?;
        let fixed = format!("connection: upgrade\r\nupgrade: {LINK_PROTOCOL}\r\n");
        let request = head::request("GET", LINK_PATH, &address.authority(), &fixed, hello);
        let lost = |error| format!("the connection to {url} was lost: {error}");
        socket.write_all(request.as_bytes()).await.map_err(|error| lost(error.to_string()))?;
        let mut buffer = BytesMut::with_capacity(4096);
        let response = head::read_response(&mut socket, &mut buffer).await.map_err(lost)?;
        if response.status != 101 {
            let text = head::read_text(&mut socket, &mut buffer, &response).await;
            return Err(format!("refused by {url} with status {}: {text}", response.status));
        }
        if head::value_of(&response.headers, "upgrade") != Some(LINK_PROTOCOL) {
            return Err(format!("{url} has answered with another protocol"));
        }
        Ok((socket, buffer))
    };
    let timeout = shared.settings.link_timeout;
    tokio::time::timeout(timeout, dialling)
        .await
        .unwrap_or_else(|_| Err(format!("{url} has not answered within {timeout:?}")))
}

/// Times between attempts.
struct Backoff {
    next: Duration,
    random: RandomState,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_MIN, random: RandomState::new() }
    }
}

impl Backoff {
    /// The next time, between half of the nominal one and all of it.
    fn next(&mut self) -> Duration {
        let nominal = self.next;
        self.next = (2 * nominal).min(BACKOFF_MAX);
        // The keys of a `RandomState` are all the randomness that two members need not to call in step.
        let random = self.random.hash_one(nominal) as u32;
        self.random = RandomState::new();
        nominal / 2 + (nominal / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_varies() {
        let mut backoff = Backoff::default();
        for nominal_ms in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let nominal = Duration::from_millis(nominal_ms);
            let next = backoff.next();
            assert!(nominal / 2 <= next && next <= nominal, "{next:?} of {nominal:?}");
        }
        let times: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(times.iter().any(|time| *time != times[0]));
    }
}

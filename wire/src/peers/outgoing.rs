//! One link to one peer: a task that connects, connects again when the connection is lost, and sends what is queued.
//!
//! The owner talks to the task through [`Outgoing`]: it queues frames, changes the configuration, or closes it. The
//! peer is known to live by what it sends, which is only answers to pings, or by taking more of what it is sent after
//! it had let us wait; a link that shows neither for `link_timeout` is given up.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::batch::Batch;
use super::frame::{Decoder, Received, kind};
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

struct State {
    queue: Queue,
    config: Arc<Config>,
    /// Counts the configurations.
    generation: u64,
    /// When what is queued must have been sent; then, or before, the link ends.
    closing: Option<Instant>,
    /// None while connected.
    down_since: Option<Instant>,
    /// The task waits for frames.
    hungry: bool,
    waker: Option<Waker>,
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
}

/// See the module.
pub struct Outgoing {
    number: u64,
    timeout: Duration,
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
            waker: None,
        };
        Arc::new(Outgoing { number, timeout, statistics: Statistics::default(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// Queues frames; whom to wake then.
    pub fn push(&self, frames: impl Iterator<Item = Frame>) -> Option<Waker> {
        let mut state = self.lock();
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
        }
        self.statistics.is_up.store(true, Ordering::Relaxed);
        let link = self.number;
        shared.inbox.push_all(&mut vec![Event::LinkUp { link, url: Arc::clone(url) }]);
        let early_bytes = rest.len();
        let mut flow = Flow::new(self, shared, &mut socket, rest, generation);
        flow.count_received(early_bytes);
        let ended = poll_fn(|cx| flow.poll(cx)).await;
        let mut batch = flow.batch;
        {
            let mut state = self.lock();
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

/// How a connection ended.
enum End {
    Lost(String),
    Silent,
    Bye(u16, String),
    Replaced,
    Closed,
}

/// One connection of a link.
struct Flow<'a> {
    link: &'a Outgoing,
    socket: &'a mut Socket,
    decoder: Decoder,
    batch: Batch,
    generation: u64,
    ping_interval: Duration,
    born: Instant,
    next_ping: Instant,
    /// When the peer last showed that it lives.
    alive: Instant,
    /// The socket had no room.
    waiting: bool,
    /// When the owner wants it to end.
    until: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Flow<'a> {
    /// Bytes written in one turn of the task, so that others have theirs.
    const MAX_TURN_BYTES: usize = 1 << 20;

    fn new(
        link: &'a Outgoing,
        shared: &SharedRef,
        socket: &'a mut Socket,
        rest: BytesMut,
        generation: u64,
    ) -> Self {
        let now = Instant::now();
        Flow {
            link,
            socket,
            // A peer sends back nothing but control frames.
            decoder: Decoder::new(rest, 0),
            batch: Batch::default(),
            generation,
            ping_interval: shared.settings.link_ping,
            born: now,
            next_ping: now,
            alive: now,
            waiting: false,
            until: None,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let now = Instant::now();
        if let Poll::Ready(end) = self.read(cx, now) {
            return Poll::Ready(end);
        }
        if self.next_ping <= now {
            // Zero would say that nothing is to be measured.
            let stamp = (now - self.born).as_nanos() as u64 + 1;
            self.batch.add_control(kind::PING, &stamp.to_be_bytes());
            self.next_ping = now + self.ping_interval;
        }
        if let Poll::Ready(end) = self.write(cx, now) {
            return Poll::Ready(end);
        }
        let silent = self.alive + self.link.timeout;
        if silent <= now {
            return Poll::Ready(End::Silent);
        }
        let next = self.until.into_iter().fold(silent.min(self.next_ping), Instant::min);
        if self.timer.deadline().into_std() != next {
            self.timer.as_mut().reset(next.into());
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            // Its moment has come since this turn began.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes what the peer sends back.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<End> {
        let mut chunk = [0; 1024];
        loop {
            // What came together with the acceptance is there already.
            if let Err(end) = self.take_frames(now) {
                return Poll::Ready(end);
            }
            let mut buf = ReadBuf::new(&mut chunk);
            match Pin::new(&mut *self.socket).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(error.to_string())),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    return Poll::Ready(End::Lost("closed by the peer".to_owned()));
                }
                Poll::Ready(Ok(())) => {
                    self.alive = now;
                    self.count_received(buf.filled().len());
                    self.decoder.space().extend_from_slice(buf.filled());
                }
            }
        }
    }

    fn count_received(&self, bytes: usize) {
        self.link.statistics.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn take_frames(&mut self, now: Instant) -> Result<(), End> {
        loop {
            match self.decoder.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Received::Pong(stamp))) => self.measure(stamp, now),
                Ok(Some(Received::Bye { status, text })) => return Err(End::Bye(status, text)),
                Ok(Some(_)) => return Err(End::Lost("the peer sent what only we may send".to_owned())),
                Err(text) => return Err(End::Lost(format!("the peer sent {text}"))),
            }
        }
    }

    fn measure(&self, stamp: u64, now: Instant) {
        let elapsed = (now - self.born).as_nanos() as u64 + 1;
        if stamp > 0
            && let Some(round_trip) = elapsed.checked_sub(stamp)
        {
            self.link.statistics.round_trip_ns.store(round_trip.max(1), Ordering::Relaxed);
        }
    }

    /// Writes what there is until the socket has no more room.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<End> {
        let mut turn_bytes = 0;
        loop {
            if self.batch.is_empty()
                && let Poll::Ready(end) = self.fill(cx, now)
            {
                return Poll::Ready(end);
            }
            if self.batch.is_empty() {
                return Poll::Pending;
            }
            if turn_bytes >= Self::MAX_TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.batch.poll_write(cx, self.socket) {
                Poll::Pending => {
                    self.waiting = true;
                    let link = self.link;
                    return self.wanted(&mut link.lock(), cx, now);
                }
                Poll::Ready(Ok(bytes)) => {
                    turn_bytes += bytes;
                    if std::mem::take(&mut self.waiting) {
                        self.alive = now;
                    }
                    self.link.statistics.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Poll::Ready(Err(error)) => {
                    // The peer may have said why.
                    let last = self.read(cx, now);
                    return if last.is_ready() { last } else { Poll::Ready(End::Lost(error.to_string())) };
                }
            }
        }
    }

    /// Takes frames out of the queue; ready when the connection is to end.
    fn fill(&mut self, cx: &Context<'_>, now: Instant) -> Poll<End> {
        let link = self.link;
        let mut state = link.lock();
        if let Poll::Ready(end) = self.wanted(&mut state, cx, now) {
            return Poll::Ready(end);
        }
        while self.batch.bytes() < Batch::TARGET_BYTES
            && let Some(frame) = state.queue.pop()
        {
            self.batch.add(frame);
        }
        state.hungry = self.batch.is_empty();
        if state.hungry && state.closing.is_some() {
            return Poll::Ready(End::Closed);
        }
        Poll::Pending
    }

    /// Ready when the owner wants something else than this connection.
    fn wanted(&mut self, state: &mut State, cx: &Context<'_>, now: Instant) -> Poll<End> {
        if state.generation != self.generation {
            return Poll::Ready(End::Replaced);
        }
        self.until = state.closing;
        if self.until.is_some_and(|deadline| deadline <= now) {
            return Poll::Ready(End::Closed);
        }
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
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

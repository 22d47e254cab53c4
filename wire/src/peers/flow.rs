//! One connection of a link, from its acceptance to its end: frames out of the queue, pings, and what comes back.
//!
//! The peer is known to live by what it sends, which is only answers to pings, or by taking more of what it is sent
//! after it had let us wait; a connection that shows neither for the time-out of the link is given up.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use super::batch::Batch;
use super::frame::{Decoder, Received, kind};
use super::outgoing::{Outgoing, State};
use crate::settings::SharedRef;
use crate::socket::Socket;

/// How a connection ended.
pub enum End {
    Lost(String),
    Silent,
    Bye(u16, String),
    Replaced,
    Closed,
}

/// One connection of a link.
pub struct Flow<'a> {
    link: &'a Outgoing,
    socket: &'a mut Socket,
    decoder: Decoder,
    /// What is being written.
    pub batch: Batch,
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

    /// A connection that has been accepted; `rest` came with the acceptance.
    pub fn new(
        link: &'a Outgoing,
        shared: &SharedRef,
        socket: &'a mut Socket,
        rest: BytesMut,
        generation: u64,
    ) -> Self {
        let now = Instant::now();
        let flow = Flow {
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
        };
        flow.count_received(flow.decoder.held_bytes());
        flow
    }

    /// Sends and takes what there is; ready when the connection is to end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let now = Instant::now();
        if let Poll::Ready(end) = self.read(cx, now) {
            return Poll::Ready(end);
        }
        if self.next_ping <= now {
            // Zero would say that nothing is to be measured.
            let stamp = (now - self.born).as_nanos() as u64 + 1;
            let link = self.link;
            self.claim(&mut link.lock());
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

    /// From here on the owner does not write; what it has begun is finished first.
    fn claim(&mut self, state: &mut State) {
        state.hungry = false;
        if let Some((frame, written)) = state.begun.take() {
            self.batch.add_rest(frame, written);
        }
    }

    /// Takes frames out of the queue; ready when the connection is to end.
    fn fill(&mut self, cx: &Context<'_>, now: Instant) -> Poll<End> {
        let link = self.link;
        let mut state = link.lock();
        if let Poll::Ready(end) = self.wanted(&mut state, cx, now) {
            return Poll::Ready(end);
        }
        self.claim(&mut state);
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

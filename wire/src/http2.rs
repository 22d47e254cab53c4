//! One HTTP/2 connection: a single task that owns the `h2` connection and all of its streams.
//!
//! Each time it is woken (bytes, room to write, answers in the mailbox, time) it makes rounds until nothing is left
//! to do: answers to `h2`, `h2` driven, requests out of it; then it publishes the events of all rounds at once and
//! flushes all frames at once. Work is proportional to what happened, not to the number of open streams.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use h2::server::{Builder, Connection, Handshake};
use h2::{Ping, PingPong, Reason};
use tokio::time::Sleep;

use crate::calls::Calls;
use crate::event::{Command, Origin};
use crate::frames;
use crate::limits::{Payload, PingPolicy};
use crate::pipe::{Pipe, PipeEnd};
use crate::registry::{Mailbox, Phase};
use crate::settings::{Counters, SharedRef};

enum Stage {
    Handshaking(Box<Handshake<PipeEnd, Payload>>),
    Open(Box<Connection<PipeEnd, Payload>>),
}

/// The future of a connection; it is ready when the connection is over.
pub struct Http2 {
    shared: SharedRef,
    pipe: Arc<Pipe>,
    mailbox: Arc<Mailbox>,
    stage: Stage,
    calls: Calls,
    commands: Vec<(u32, Command)>,
    touched: Vec<u32>,
    ping_policy: PingPolicy,
    draining: bool,
    /// When what the client has begun (the handshake, a block of headers) must have ended.
    header_deadline: Option<Instant>,
    ping_pong: Option<PingPong>,
    last_received: Instant,
    pinged: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

impl Http2 {
    /// A connection of which the preface has been recognised.
    pub fn new(
        shared: SharedRef,
        pipe: Arc<Pipe>,
        origin: Arc<Origin>,
        number: u64,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let settings = &shared.settings;
        let handshake = Builder::new()
            .initial_window_size(settings.stream_window_bytes())
            .initial_connection_window_size(settings.connection_window_bytes())
            .max_concurrent_streams(settings.max_concurrent_streams)
            .max_header_list_size(settings.max_header_bytes)
            // More of them in one read is an attack; fewer is a client whose calls timed out while we were busy.
            .max_pending_accept_reset_streams(256)
            .handshake(pipe.end());
        let now = Instant::now();
        let timer_at = now + settings.header_timeout;
        Http2 {
            ping_policy: PingPolicy::new(settings.keepalive_min_time),
            calls: Calls::new(Arc::clone(&shared), origin, number),
            stage: Stage::Handshaking(Box::new(handshake)),
            commands: Vec::new(),
            touched: Vec::new(),
            draining: false,
            header_deadline: Some(timer_at),
            ping_pong: None,
            last_received: now,
            pinged: None,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
            shared,
            pipe,
            mailbox,
        }
    }

    /// All that can be done now; ready when the connection is over.
    fn work(&mut self, waker: &Waker) -> Poll<()> {
        let now = Instant::now();
        let phase = self.mailbox.collect(waker, &mut self.commands);
        if phase == Phase::Ending {
            self.go_away(Some((Reason::NO_ERROR, b"")));
            return Poll::Ready(());
        }
        if let Stage::Handshaking(handshake) = &mut self.stage {
            match Pin::new(handshake).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending if self.header_deadline.is_some_and(|deadline| deadline <= now) => {
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(mut connection)) => {
                    self.ping_pong = connection.ping_pong();
                    self.stage = Stage::Open(Box::new(connection));
                }
            }
        }
        if phase >= Phase::Draining && !self.draining {
            self.draining = true;
            self.go_away(None);
        }
        let mut commands = std::mem::take(&mut self.commands);
        for (stream, command) in commands.drain(..) {
            self.calls.apply(stream, command);
        }
        self.commands = commands;
        loop {
            if self.drive(now).is_ready() {
                return Poll::Ready(());
            }
            self.calls.expire(now);
            if self.pinged.is_some_and(|pinged| pinged + self.shared.settings.keepalive_timeout <= now) {
                return Poll::Ready(());
            }
            let pinged = self.ping_if_silent(now);
            if !self.calls.take_stale() && !pinged {
                break;
            }
        }
        self.calls.settle();
        Poll::Pending
    }

    /// Lets `h2` read, write and hand over new streams, then looks at the streams that frames came for.
    fn drive(&mut self, now: Instant) -> Poll<()> {
        let Stage::Open(connection) = &mut self.stage else { return Poll::Pending };
        let mut cx = Context::from_waker(Waker::noop());
        self.calls.driven();
        loop {
            match connection.poll_accept(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok((request, respond)))) => self.calls.accept(request, respond, now),
                Poll::Ready(Some(Err(error))) => {
                    if error.is_go_away() && error.is_library() {
                        Counters::add(&self.shared.counters.goaways_sent_total, 1);
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
            }
        }
        let look = self.pipe.look(&mut self.touched);
        let mut touched = std::mem::take(&mut self.touched);
        for stream in touched.drain(..) {
            self.calls.touch(stream);
        }
        self.touched = touched;
        if look.received {
            self.last_received = now;
            self.pinged = None;
        }
        self.header_deadline = match (look.in_headers, self.header_deadline) {
            (false, _) => None,
            (true, Some(deadline)) => Some(deadline),
            (true, None) => Some(now + self.shared.settings.header_timeout),
        };
        if self.header_deadline.is_some_and(|deadline| deadline <= now) {
            self.go_away(Some((Reason::ENHANCE_YOUR_CALM, b"headers_too_slow")));
            return Poll::Ready(());
        }
        // A client measures the round trip of each piece of an answer by a ping, a large answer has many.
        if self.pipe.take_sent_payload() {
            self.ping_policy.forgive();
        }
        for _ in 0..look.seen.pings {
            if !self.ping_policy.allows(now, self.calls.any()) {
                self.go_away(Some((Reason::ENHANCE_YOUR_CALM, b"too_many_pings")));
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Sends GOAWAY: graceful, or as the last frame, with the debug data that gRPC clients look for.
    fn go_away(&mut self, fault: Option<(Reason, &[u8])>) {
        let Stage::Open(connection) = &mut self.stage else { return };
        Counters::add(&self.shared.counters.goaways_sent_total, 1);
        match fault {
            None => connection.graceful_shutdown(),
            Some((reason, debug)) => {
                self.pipe.append(|newest| frames::goaway(newest, reason.into(), debug));
            }
        }
    }

    /// Pings a client that has been silent; true when `h2` is to send the ping now.
    fn ping_if_silent(&mut self, now: Instant) -> bool {
        let Some(ping_pong) = &mut self.ping_pong else { return false };
        if self.pinged.is_some() || self.last_received + self.shared.settings.keepalive_interval > now {
            return false;
        }
        // The answer to an earlier ping has to be taken before the next can be sent.
        let _ = ping_pong.poll_pong(&mut Context::from_waker(Waker::noop()));
        let sent = ping_pong.send_ping(Ping::opaque()).is_ok();
        // Had `h2` no place for a ping, the client would still have this long to show that it lives.
        self.pinged = Some(now);
        sent
    }

    /// The next moment at which something is to be done that nothing else wakes the task for.
    fn next_moment(&self) -> Instant {
        let settings = &self.shared.settings;
        let silent = match self.pinged {
            Some(pinged) => pinged + settings.keepalive_timeout,
            None => self.last_received + settings.keepalive_interval,
        };
        [self.header_deadline, self.calls.next_deadline()].into_iter().flatten().fold(silent, Instant::min)
    }
}

impl Future for Http2 {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.pipe.wake_with(cx.waker());
        loop {
            let over = this.work(cx.waker()).is_ready();
            this.calls.publish();
            let again = this.pipe.flush();
            if over {
                return Poll::Ready(());
            }
            if again {
                continue;
            }
            // A timer that rings early is set anew then; this spares setting it for each call.
            let next = this.next_moment();
            if next < this.timer_at {
                this.timer_at = next;
                this.timer.as_mut().reset(next.into());
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.timer_at = next.max(Instant::now());
            this.timer.as_mut().reset(this.timer_at.into());
        }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.calls.end();
    }
}

//! One HTTP/1.1 connection: `hyper` parses and writes, this task stands between it and the owner of the wire.
//!
//! `hyper` runs the exchanges of a connection one after another, so a [`Board`] with room for one is all that is
//! shared between the service, the body of a streamed response and the task that collects answers. All three run
//! within the same task: nothing here needs a waker but the socket, the mailbox and the timer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::time::Sleep;

use crate::event::{Command, Event, Origin, id_of};
use crate::pipe::{Pipe, PipeEnd};
use crate::registry::{Mailbox, Phase};
use crate::settings::{Counters, SharedRef};
use crate::stream::http_request;

/// What the connection is waiting for, which decides how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The rest of a request's body.
    Body,
    /// The owner's answer.
    Answer,
}

#[derive(Debug, Default)]
enum Answer {
    #[default]
    None,
    Whole(StatusCode, HeaderMap, Bytes),
    Streamed(StatusCode, HeaderMap),
    /// The head has been handed to `hyper`, which now asks for the body.
    Streaming,
}

/// The exchange that its owner may answer.
struct Exchange {
    number: u32,
    answer: Answer,
    chunks: VecDeque<Bytes>,
    unsent_bytes: usize,
    finished: bool,
    paused: bool,
}

struct State {
    stage: Stage,
    since: Instant,
    last_number: u32,
    exchange: Option<Exchange>,
    events: Vec<Event>,
}

/// See the module.
struct Board {
    shared: SharedRef,
    origin: Arc<Origin>,
    connection: u64,
    state: Mutex<State>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        let mut state = self.lock();
        state.stage = stage;
        state.since = Instant::now();
    }

    fn id(&self, number: u32) -> u64 {
        id_of(self.connection, number)
    }

    /// Announces a whole request; None when the connection's numbers are used up.
    fn announce(self: &Arc<Self>, parts: http::request::Parts, body: Bytes) -> Option<Claim> {
        self.enter(Stage::Answer);
        let mut state = self.lock();
        let number = state.last_number.checked_add(1).filter(|number| *number < 1 << 31)?;
        state.last_number = number;
        let request = Box::new(http_request(parts, body));
        state.events.push(Event::Http { id: self.id(number), request, origin: Arc::clone(&self.origin) });
        state.exchange = Some(Exchange {
            number,
            answer: Answer::None,
            chunks: VecDeque::new(),
            unsent_bytes: 0,
            finished: false,
            paused: false,
        });
        self.shared.counters.streams_open.fetch_add(1, Ordering::Relaxed);
        Some(Claim { board: Arc::clone(self) })
    }

    /// Puts one answer of the owner where `hyper` finds it.
    fn apply(&self, number: u32, command: Command) {
        let limit = self.shared.settings.stream_buffer_bytes;
        let mut state = self.lock();
        let State { exchange, events, .. } = &mut *state;
        let Some(exchange) = exchange.as_mut().filter(|exchange| exchange.number == number) else { return };
        match command {
            _ if exchange.finished => {}
            Command::Respond { status, headers, body } if matches!(exchange.answer, Answer::None) => {
                exchange.answer = Answer::Whole(status, headers, body);
                exchange.finished = true;
            }
            Command::Begin { status, headers } if matches!(exchange.answer, Answer::None) => {
                exchange.answer = Answer::Streamed(status, headers);
            }
            Command::Chunk { body } if !matches!(exchange.answer, Answer::None) => {
                exchange.unsent_bytes += body.len();
                if !body.is_empty() {
                    exchange.chunks.push_back(body);
                }
                if !exchange.paused && exchange.unsent_bytes > limit {
                    exchange.paused = true;
                    events.push(Event::Paused { id: self.id(number) });
                }
            }
            Command::Finish if !matches!(exchange.answer, Answer::None) => exchange.finished = true,
            // An answer that does not fit is a fault of the owner's; the client must not wait for ever.
            _ => {
                if matches!(exchange.answer, Answer::None) {
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    exchange.answer = Answer::Whole(status, HeaderMap::new(), Bytes::new());
                }
                exchange.finished = true;
            }
        }
    }

    fn take_answer(&self) -> Answer {
        let mut state = self.lock();
        match state.exchange.as_mut() {
            Some(exchange) if !matches!(exchange.answer, Answer::None) => {
                std::mem::replace(&mut exchange.answer, Answer::Streaming)
            }
            _ => Answer::None,
        }
    }

    /// The next piece of a streamed response; None inside when it is over.
    fn next_chunk(&self) -> Poll<Option<Bytes>> {
        let limit = self.shared.settings.stream_buffer_bytes;
        let mut state = self.lock();
        let State { exchange, events, .. } = &mut *state;
        let Some(exchange) = exchange.as_mut() else { return Poll::Ready(None) };
        let Some(chunk) = exchange.chunks.pop_front() else {
            return if exchange.finished { Poll::Ready(None) } else { Poll::Pending };
        };
        exchange.unsent_bytes -= chunk.len();
        if exchange.paused && exchange.unsent_bytes < limit / 2 {
            exchange.paused = false;
            events.push(Event::Resumed { id: self.id(exchange.number) });
        }
        Poll::Ready(Some(chunk))
    }
}

/// Held while an exchange is open; when it is dropped before the answer was whole, the owner is told.
struct Claim {
    board: Arc<Board>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.board.lock();
        let Some(exchange) = state.exchange.take() else { return };
        if !exchange.finished {
            state.events.push(Event::Cancel { id: self.board.id(exchange.number) });
        }
        state.stage = Stage::Idle;
        state.since = Instant::now();
        self.board.shared.counters.streams_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a response.
enum Outgoing {
    Whole(Bytes),
    Streamed(Claim),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Outgoing::Whole(body) if body.is_empty() => Poll::Ready(None),
            Outgoing::Whole(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
            Outgoing::Streamed(claim) => {
                claim.board.next_chunk().map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Outgoing::Whole(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Outgoing::Streamed(_) => SizeHint::default(),
        }
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: Outgoing) -> Response<Outgoing> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What `hyper` calls with each request.
struct Exchanges(Arc<Board>);

impl Service<Request<Incoming>> for Exchanges {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let board = Arc::clone(&self.0);
        board.enter(Stage::Body);
        Box::pin(async move { Ok(exchange(board, request).await) })
    }
}

async fn exchange(board: Arc<Board>, request: Request<Incoming>) -> Response<Outgoing> {
    let refuse = |status| {
        Counters::add(&board.shared.counters.requests_refused_total, 1);
        board.enter(Stage::Idle);
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        respond(status, headers, Outgoing::Whole(Bytes::new()))
    };
    let (parts, incoming) = request.into_parts();
    let body = match gather(incoming, board.shared.settings.max_http_body_bytes()).await {
        Ok(body) => body,
        Err(status) => return refuse(status),
    };
    let Some(claim) = board.announce(parts, body) else { return refuse(StatusCode::SERVICE_UNAVAILABLE) };
    let answer = poll_fn(|_| match board.take_answer() {
        Answer::None => Poll::Pending,
        answer => Poll::Ready(answer),
    });
    match answer.await {
        Answer::Whole(status, headers, body) => respond(status, headers, Outgoing::Whole(body)),
        Answer::Streamed(status, headers) => respond(status, headers, Outgoing::Streamed(claim)),
        Answer::None | Answer::Streaming => refuse(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

async fn gather(mut incoming: Incoming, max_bytes: usize) -> Result<Bytes, StatusCode> {
    if incoming.size_hint().lower() > max_bytes as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut body = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data() else { continue };
        if body.len() + data.len() > max_bytes {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

type Hyper = Connection<TokioIo<PipeEnd>, Exchanges>;

/// The future of a connection; it is ready when the connection is over.
pub struct Http1 {
    pipe: Arc<Pipe>,
    mailbox: Arc<Mailbox>,
    board: Arc<Board>,
    hyper: Option<Pin<Box<Hyper>>>,
    commands: Vec<(u32, Command)>,
    touched: Vec<u32>,
    draining: bool,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

impl Http1 {
    /// A connection whose first bytes are not HTTP/2's.
    pub fn new(
        shared: SharedRef,
        pipe: Arc<Pipe>,
        origin: Arc<Origin>,
        number: u64,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let max_header_bytes = shared.settings.max_header_bytes as usize;
        let now = Instant::now();
        let timer_at = now + shared.settings.header_timeout;
        let state =
            State { stage: Stage::Head, since: now, last_number: 0, exchange: None, events: Vec::new() };
        let board = Arc::new(Board { shared, origin, connection: number, state: Mutex::new(state) });
        let hyper = Builder::new()
            .max_header_size(max_header_bytes)
            .serve_connection(TokioIo::new(pipe.end()), Exchanges(Arc::clone(&board)));
        Http1 {
            pipe,
            mailbox,
            board,
            hyper: Some(Box::pin(hyper)),
            commands: Vec::new(),
            touched: Vec::new(),
            draining: false,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
        }
    }

    fn work(&mut self, cx: &mut Context<'_>, waker: &Waker) -> Poll<()> {
        let phase = self.mailbox.collect(waker, &mut self.commands);
        let Some(hyper) = &mut self.hyper else { return Poll::Ready(()) };
        if phase == Phase::Ending {
            return Poll::Ready(());
        }
        if phase >= Phase::Draining && !self.draining {
            self.draining = true;
            hyper.as_mut().graceful_shutdown();
        }
        for (number, command) in self.commands.drain(..) {
            self.board.apply(number, command);
        }
        let over = hyper.as_mut().poll(cx).is_ready();
        let received = self.pipe.look(&mut self.touched).received;
        let mut state = self.board.lock();
        if received && matches!(state.stage, Stage::Idle | Stage::Body) {
            state.since = Instant::now();
            if state.stage == Stage::Idle {
                state.stage = Stage::Head;
            }
        }
        self.board.shared.inbox.push_all(&mut state.events);
        if over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// When the client's patience, or rather ours, is over.
    fn deadline(&self) -> Option<Instant> {
        let settings = &self.board.shared.settings;
        let state = self.board.lock();
        let time: Duration = match state.stage {
            Stage::Head => settings.header_timeout,
            Stage::Idle | Stage::Body => settings.idle_http_timeout,
            Stage::Answer => return None,
        };
        Some(state.since + time)
    }
}

impl Future for Http1 {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let waker = cx.waker().clone();
        this.pipe.wake_with(&waker);
        if this.work(cx, &waker).is_ready() {
            return Poll::Ready(());
        }
        while let Some(deadline) = this.deadline() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            if deadline < this.timer_at {
                this.timer_at = deadline;
                this.timer.as_mut().reset(deadline.into());
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                break;
            }
            this.timer_at = deadline;
            this.timer.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        // The claim of an open exchange leaves its CANCEL on the board.
        self.hyper = None;
        self.board.shared.inbox.push_all(&mut self.board.lock().events);
    }
}

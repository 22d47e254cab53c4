//! The streams of one HTTP/2 connection: gRPC calls and plain HTTP exchanges, from their headers to their answer.
//!
//! Everything runs in the connection's task, between two rounds of driving `h2`. No stream has a task or a waker of
//! its own: [`crate::frames`] tells which streams to look at, and `h2` is asked with a waker that does nothing.
//! Invariant: a stream is in `streams` exactly as long as its owner may still answer it, and once an event has been
//! emitted for it, it leaves either by its final answer or with a CANCEL.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fnv::FnvHashMap;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Request, StatusCode};

use crate::event::{Command, Event, Metadata, Origin, id_of};
use crate::grpc::{self, Decoder, Encoding, Status, code};
use crate::limits::{Gauge, Payload};
use crate::settings::{Counters, Kind, SharedRef};
use crate::stream::{Role, Stream, http_request, http_response, response};

/// Whether a stream lives on.
#[derive(PartialEq, Eq)]
enum Life {
    On,
    Over,
}

/// See the module.
pub struct Calls {
    shared: SharedRef,
    origin: Arc<Origin>,
    connection: u64,
    streams: FnvHashMap<u32, Stream>,
    deadlines: BTreeSet<(Instant, u32)>,
    events: Vec<Event>,
    unsent: Arc<Gauge>,
    held_bytes: usize,
    /// Streams that were sent something whose gauge is to be looked at, and streams paused.
    watched: Vec<u32>,
    stale: bool,
    released_bytes: usize,
    received_bytes: u64,
    sent_bytes: u64,
    counted_open: i64,
}

impl Calls {
    /// Window given back to `h2` that is not worth another round by itself.
    const LAZY_RELEASE_BYTES: usize = 16_384;

    /// No streams yet, on the connection of this number.
    pub fn new(shared: SharedRef, origin: Arc<Origin>, connection: u64) -> Self {
        Calls {
            shared,
            origin,
            connection,
            streams: FnvHashMap::default(),
            deadlines: BTreeSet::new(),
            events: Vec::new(),
            unsent: Arc::new(Gauge::default()),
            held_bytes: 0,
            watched: Vec::new(),
            stale: false,
            released_bytes: 0,
            received_bytes: 0,
            sent_bytes: 0,
            counted_open: 0,
        }
    }

    /// True while a stream is open.
    pub fn any(&self) -> bool {
        !self.streams.is_empty()
    }

    /// When the next deadline of a call passes.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// True when `h2` has been given something since this was last asked, and must be driven to act on it.
    pub fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// `h2` has been driven: it knows of all window given back.
    pub fn driven(&mut self) {
        self.released_bytes = 0;
    }

    /// Hands the events gathered to the inbox, and the counts to the counters.
    pub fn publish(&mut self) {
        if !self.events.is_empty() {
            self.shared.brisk.step(self.events.len());
        }
        self.shared.inbox.push_all(&mut self.events);
        let counters = &self.shared.counters;
        if self.received_bytes > 0 {
            Counters::add(&counters.bytes_received_total, std::mem::take(&mut self.received_bytes));
        }
        if self.sent_bytes > 0 {
            Counters::add(&counters.bytes_sent_total, std::mem::take(&mut self.sent_bytes));
        }
        let open = self.streams.len() as i64;
        if open != self.counted_open {
            counters.streams_open.fetch_add(open - self.counted_open, Ordering::Relaxed);
            self.counted_open = open;
        }
    }

    // --- requests -------------------------------------------------------------------------------------------

    /// A stream has been opened.
    pub fn accept(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Payload>, now: Instant) {
        let number = respond.stream_id().as_u32();
        if self.unsent.unsent_bytes() > self.shared.settings.max_unsent_bytes() {
            // Nothing has been done for it: the client may safely try again.
            respond.send_reset(Reason::REFUSED_STREAM);
            self.refused();
            self.stale = true;
            return;
        }
        let (parts, receiving) = request.into_parts();
        let stream = if grpc::is_grpc(&parts.headers) {
            self.open_grpc(number, &parts, respond, now)
        } else {
            Some(Self::open_http(parts, respond))
        };
        let Some(mut stream) = stream else { return };
        stream.receiving = Some(receiving);
        if let Some(deadline) = stream.deadline {
            self.deadlines.insert((deadline, number));
        }
        self.read_and_keep(number, stream);
    }

    fn open_grpc(
        &mut self,
        number: u32,
        parts: &Parts,
        respond: SendResponse<Payload>,
        now: Instant,
    ) -> Option<Stream> {
        let encoding = Encoding::of(&parts.headers);
        let gzip = encoding == Encoding::Gzip && grpc::accepts_gzip(&parts.headers);
        if parts.method != Method::POST {
            let text = format!(
                "Received a HEADERS frame with :method {:?} which should be POST",
                parts.method.as_str()
            );
            self.reject(respond, StatusCode::METHOD_NOT_ALLOWED, &Status::new(code::INTERNAL, text));
            return None;
        }
        let deadline =
            match parts.headers.get(grpc::GRPC_TIMEOUT).map(|value| grpc::parse_timeout(value.as_bytes())) {
                None => None,
                // A deadline too far away to be told in the clock's type is none.
                Some(Ok(timeout)) => now.checked_add(timeout),
                Some(Err(error)) => {
                    let status = Status::new(code::INTERNAL, format!("malformed grpc-timeout: {error}"));
                    self.reject(respond, StatusCode::BAD_REQUEST, &status);
                    return None;
                }
            };
        let method = match self.shared.methods.find(parts.uri.path()) {
            Ok(method) => method,
            Err(text) => {
                self.reject(respond, StatusCode::OK, &Status::new(code::UNIMPLEMENTED, text));
                return None;
            }
        };
        let mut metadata = self.metadata(&parts.headers);
        let many = method.kind == Kind::Many;
        if many {
            let id = id_of(self.connection, number);
            let (origin, metadata) = (Arc::clone(&self.origin), metadata.take());
            self.events.push(Event::Open { id, method: method.number, origin, metadata });
        }
        let role = Role::Grpc { method, metadata, decoder: Decoder::new(encoding), message: None, gzip };
        Some(Stream { deadline, announced: many, ..Stream::new(role, respond) })
    }

    fn open_http(parts: Parts, respond: SendResponse<Payload>) -> Stream {
        let is_head = parts.method == Method::HEAD;
        Stream::new(Role::Http { head: Some(Box::new(parts)), body: BytesMut::new(), is_head }, respond)
    }

    fn metadata(&self, headers: &HeaderMap) -> Metadata {
        let mut found = Vec::new();
        for (place, key) in self.shared.metadata_keys.iter().enumerate() {
            if let Some(value) = headers.get(key) {
                found.push((place, String::from_utf8_lossy(value.as_bytes()).into()));
            }
        }
        if found.is_empty() { None } else { Some(found.into_boxed_slice()) }
    }

    /// A frame has come for this stream.
    pub fn touch(&mut self, number: u32) {
        if let Some(mut stream) = self.streams.remove(&number) {
            if stream.receiving.is_none() && stream.is_reset() {
                self.cancel(number, &stream);
                return;
            }
            stream.held_bytes = self.release_hold(stream.held_bytes);
            self.read_and_keep(number, stream);
        }
    }

    fn release_hold(&mut self, held_bytes: usize) -> usize {
        self.held_bytes -= held_bytes;
        0
    }

    fn read_and_keep(&mut self, number: u32, mut stream: Stream) {
        if self.read(number, &mut stream) == Life::Over {
            self.forget(number, &stream);
            return;
        }
        if stream.receiving.is_some() {
            stream.held_bytes = stream.role.held_bytes();
            self.held_bytes += stream.held_bytes;
            if self.held_bytes > self.shared.settings.max_unfinished_bytes() {
                let status = Status::new(
                    code::RESOURCE_EXHAUSTED,
                    "too many bytes of unfinished requests on one connection",
                );
                self.fail(number, stream, &status);
                return;
            }
            if stream.is_reset() {
                self.cancel(number, &stream);
                return;
            }
        }
        self.streams.insert(number, stream);
    }

    /// Takes what has arrived of the request.
    fn read(&mut self, number: u32, stream: &mut Stream) -> Life {
        let mut cx = Context::from_waker(Waker::noop());
        while let Some(receiving) = &mut stream.receiving {
            match receiving.poll_data(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(data))) => {
                    self.released_bytes += data.len();
                    self.received_bytes += data.len() as u64;
                    if receiving.flow_control().release_capacity(data.len()).is_err() {
                        return self.lost(number, stream);
                    }
                    self.stale |= self.released_bytes >= Self::LAZY_RELEASE_BYTES;
                    if self.gather(number, stream, data) == Life::Over {
                        return Life::Over;
                    }
                }
                Poll::Ready(Some(Err(_))) => return self.lost(number, stream),
                Poll::Ready(None) => {
                    stream.receiving = None;
                    return self.finish_request(number, stream);
                }
            }
        }
        Life::On
    }

    fn gather(&mut self, number: u32, stream: &mut Stream, mut data: Bytes) -> Life {
        let settings = &self.shared.settings;
        let max_bytes = settings.max_message_bytes;
        match &mut stream.role {
            Role::Http { body, .. } => {
                if body.len() + data.len() > settings.max_http_body_bytes() {
                    self.refused();
                    stream.answer_http(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        HeaderMap::new(),
                        Bytes::new(),
                        &self.unsent,
                    );
                    self.stale = true;
                    return Life::Over;
                }
                body.extend_from_slice(&data);
            }
            Role::Grpc { method, decoder, message, .. } => {
                while !data.is_empty() {
                    let decoded = match decoder.decode(&mut data, max_bytes) {
                        Ok(None) => break,
                        Ok(Some(decoded)) => decoded,
                        Err(status) => return self.end_with(number, stream, &status),
                    };
                    if method.kind == Kind::Many {
                        self.events
                            .push(Event::Message { id: id_of(self.connection, number), message: decoded });
                    } else if message.replace(decoded).is_some() {
                        let text = "cardinality violation: received multiple request messages for \
                                    non-client-streaming RPC";
                        return self.end_with(number, stream, &Status::new(code::INTERNAL, text));
                    }
                }
            }
        }
        Life::On
    }

    /// The client has sent all it will.
    fn finish_request(&mut self, number: u32, stream: &mut Stream) -> Life {
        let id = id_of(self.connection, number);
        match &mut stream.role {
            Role::Http { head, body, .. } => {
                let Some(parts) = head.take() else { return Life::On };
                let request = Box::new(http_request(*parts, std::mem::take(body).freeze()));
                self.events.push(Event::Http { id, request, origin: Arc::clone(&self.origin) });
            }
            Role::Grpc { decoder, .. } if decoder.held_bytes() > 0 => {
                return self.end_with(number, stream, &Status::new(code::INTERNAL, "unexpected EOF"));
            }
            Role::Grpc { method, .. } if method.kind == Kind::Many => {
                self.events.push(Event::HalfClose { id })
            }
            Role::Grpc { method, metadata, message, .. } => {
                let Some(message) = message.take() else {
                    let text =
                        "cardinality violation: received no request message from non-client-streaming RPC";
                    return self.end_with(number, stream, &Status::new(code::INTERNAL, text));
                };
                let (method, origin) = (method.number, Arc::clone(&self.origin));
                self.events.push(Event::Call { id, method, message, origin, metadata: metadata.take() });
            }
        }
        stream.announced = true;
        Life::On
    }

    // --- ends that the wire itself makes --------------------------------------------------------------------

    /// Calls whose time is over are answered here; their owner is told.
    pub fn expire(&mut self, now: Instant) {
        while let Some((deadline, number)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, number));
            if let Some(stream) = self.streams.remove(&number) {
                self.release_hold(stream.held_bytes);
                self.fail(number, stream, &Status::new(code::DEADLINE_EXCEEDED, "context deadline exceeded"));
            }
        }
    }

    /// The connection is over: every stream is.
    pub fn end(&mut self) {
        for (number, stream) in std::mem::take(&mut self.streams) {
            if stream.announced {
                self.events.push(Event::Cancel { id: id_of(self.connection, number) });
            }
        }
        self.publish();
    }

    fn refused(&self) {
        Counters::add(&self.shared.counters.requests_refused_total, 1);
    }

    /// Ends a call of which nothing is known yet.
    fn reject(&mut self, mut respond: SendResponse<Payload>, http_status: StatusCode, status: &Status) {
        self.refused();
        let mut headers = grpc::response_headers(false);
        status.write(&mut headers);
        // It fails only when the client has given the stream up.
        let _ = respond.send_response(response(http_status, headers), true);
        self.stale = true;
    }

    fn fail(&mut self, number: u32, mut stream: Stream, status: &Status) {
        self.end_with(number, &mut stream, status);
        self.forget_without_hold(number, &stream);
    }

    fn end_with(&mut self, number: u32, stream: &mut Stream, status: &Status) -> Life {
        if status.code != code::DEADLINE_EXCEEDED {
            self.refused();
        }
        if matches!(stream.role, Role::Http { .. }) {
            stream.answer_http(StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new(), Bytes::new(), &self.unsent);
        } else {
            stream.end_grpc(status);
        }
        self.stale = true;
        self.lost(number, stream)
    }

    /// The owner, if it knows of the stream, is told that it is over.
    fn lost(&mut self, number: u32, stream: &Stream) -> Life {
        if stream.announced {
            self.events.push(Event::Cancel { id: id_of(self.connection, number) });
        }
        Life::Over
    }

    fn cancel(&mut self, number: u32, stream: &Stream) {
        self.lost(number, stream);
        self.forget(number, stream);
    }

    fn forget(&mut self, number: u32, stream: &Stream) {
        self.release_hold(stream.held_bytes);
        self.forget_without_hold(number, stream);
    }

    fn forget_without_hold(&mut self, number: u32, stream: &Stream) {
        if let Some(deadline) = stream.deadline {
            self.deadlines.remove(&(deadline, number));
        }
    }

    // --- answers --------------------------------------------------------------------------------------------

    /// Gives one answer of the owner to `h2`.
    pub fn apply(&mut self, number: u32, command: Command) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let is_grpc = matches!(stream.role, Role::Grpc { .. });
        let over = match command {
            Command::Reply { message } if is_grpc => {
                self.sent_bytes += (message.len() - grpc::PREFIX_BYTES) as u64;
                let gauge = stream.gauge.as_ref().unwrap_or(&self.unsent).clone();
                stream.send_message(message, &gauge);
                stream.finish(Some(grpc::ok_trailers()));
                true
            }
            Command::Fail { code, text } if is_grpc => {
                stream.end_grpc(&Status { code, text });
                true
            }
            Command::Deliver { message } if is_grpc => {
                self.sent_bytes += (message.len() - grpc::PREFIX_BYTES) as u64;
                let gauge = stream.gauge(&self.unsent);
                stream.send_message(message, &gauge);
                self.watched.push(number);
                false
            }
            Command::Respond { status, headers, body } if !is_grpc => {
                stream.answer_http(status, headers, body, &self.unsent);
                true
            }
            Command::Begin { status, headers } if !is_grpc => {
                stream.begin(http_response(status, headers));
                false
            }
            Command::Chunk { body } if !is_grpc => {
                let gauge = stream.gauge(&self.unsent);
                if !matches!(stream.role, Role::Http { is_head: true, .. }) && !body.is_empty() {
                    stream.send(body, &gauge, false);
                }
                self.watched.push(number);
                false
            }
            Command::Finish if !is_grpc => {
                stream.finish(None);
                true
            }
            // An answer of the other protocol is a fault of the owner's; the client must not wait for ever.
            _ => {
                if is_grpc {
                    stream.end_grpc(&Status::new(code::INTERNAL, "the answer does not fit the call"));
                } else {
                    stream.answer_http(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        HeaderMap::new(),
                        Bytes::new(),
                        &self.unsent,
                    );
                }
                true
            }
        };
        if over && let Some(stream) = self.streams.remove(&number) {
            self.forget(number, &stream);
        }
    }

    /// After `h2` has written what it could: which streams hold too much, and which no longer do.
    pub fn settle(&mut self) {
        let limit = self.shared.settings.stream_buffer_bytes;
        let mut watched = std::mem::take(&mut self.watched);
        watched.sort_unstable();
        watched.dedup();
        watched.retain(|number| {
            let Some(stream) = self.streams.get_mut(number) else { return false };
            let id = id_of(self.connection, *number);
            let unsent = stream.gauge.as_ref().map_or(0, |gauge| gauge.unsent_bytes());
            if !stream.paused && unsent > limit {
                stream.paused = true;
                self.events.push(Event::Paused { id });
            } else if stream.paused && unsent < limit / 2 {
                stream.paused = false;
                self.events.push(Event::Resumed { id });
            }
            stream.paused
        });
        self.watched = watched;
    }
}

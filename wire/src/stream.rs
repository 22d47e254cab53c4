//! One stream of an HTTP/2 connection: what its request is, how far it has come, and how it is answered.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Response, StatusCode};

use crate::event::{HttpRequest, Metadata};
use crate::grpc::{self, Decoder, Status, code};
use crate::limits::{Gauge, Payload};
use crate::settings::Method;

/// What a stream is for, and what of its request has been gathered.
pub enum Role {
    Grpc { method: Method, metadata: Metadata, decoder: Decoder, message: Option<Bytes>, gzip: bool },
    Http { head: Option<Box<Parts>>, body: BytesMut, is_head: bool },
}

/// A request whose owner may still answer it, or which is still being received.
pub struct Stream {
    pub role: Role,
    pub respond: SendResponse<Payload>,
    /// Present once the response's headers have been sent.
    pub sending: Option<SendStream<Payload>>,
    /// Absent once the whole request has been received.
    pub receiving: Option<RecvStream>,
    pub deadline: Option<Instant>,
    pub gauge: Option<Arc<Gauge>>,
    /// An event has been emitted, so the owner knows the stream.
    pub announced: bool,
    pub paused: bool,
    pub held_bytes: usize,
}

impl Role {
    /// Bytes kept of a request that is not whole.
    pub fn held_bytes(&self) -> usize {
        match self {
            Role::Grpc { decoder, message, .. } => {
                decoder.held_bytes() + message.as_ref().map_or(0, Bytes::len)
            }
            Role::Http { body, .. } => body.len(),
        }
    }
}

impl Stream {
    /// A stream that has just been opened.
    pub fn new(role: Role, respond: SendResponse<Payload>) -> Self {
        Stream {
            role,
            respond,
            sending: None,
            receiving: None,
            deadline: None,
            gauge: None,
            announced: false,
            paused: false,
            held_bytes: 0,
        }
    }

    /// The gauge of a stream that is sent more than one message.
    pub fn gauge(&mut self, connection: &Arc<Gauge>) -> Arc<Gauge> {
        self.gauge.get_or_insert_with(|| Gauge::child_of(connection)).clone()
    }

    /// True when the client, or `h2` for a fault of the client's, has reset the stream.
    pub fn is_reset(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match &mut self.sending {
            Some(sending) => sending.poll_reset(&mut cx).is_ready(),
            None => self.respond.poll_reset(&mut cx).is_ready(),
        }
    }

    // What `h2` refuses below, it refuses because the stream has been reset: the next look at the stream tells.

    /// Sends the response's headers, unless they have been.
    pub fn begin(&mut self, response: Response<()>) {
        if self.sending.is_none() {
            self.sending = self.respond.send_response(response, false).ok();
        }
    }

    /// Sends a piece of the response's body.
    pub fn send(&mut self, bytes: Bytes, gauge: &Arc<Gauge>, end: bool) {
        if let Some(sending) = &mut self.sending {
            let _ = sending.send_data(Payload::new(bytes, gauge), end);
        }
    }

    /// Ends the response, after its headers.
    pub fn finish(&mut self, trailers: Option<HeaderMap>) {
        if let Some(sending) = &mut self.sending {
            let _ = match trailers {
                Some(trailers) => sending.send_trailers(trailers),
                None => sending.send_data(Payload::new(Bytes::new(), &Arc::default()), true),
            };
        }
    }

    /// Sends one gRPC message, after the headers if they are still due.
    pub fn send_message(&mut self, message: Bytes, gauge: &Arc<Gauge>) {
        let gzip = matches!(self.role, Role::Grpc { gzip: true, .. });
        self.begin(response(StatusCode::OK, grpc::response_headers(gzip)));
        let message = if gzip { grpc::compress(&message) } else { message };
        self.send(message, gauge, false);
    }

    /// Ends a gRPC call; without headers sent before, in one frame.
    pub fn end_grpc(&mut self, status: &Status) {
        if self.sending.is_some() {
            let mut trailers = HeaderMap::with_capacity(2);
            status.write(&mut trailers);
            self.finish(Some(trailers));
            return;
        }
        let mut headers = grpc::response_headers(false);
        status.write(&mut headers);
        if status.code == code::UNIMPLEMENTED {
            headers.insert(grpc::GRPC_ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let _ = self.respond.send_response(response(StatusCode::OK, headers), true);
    }

    /// Sends a whole HTTP response.
    pub fn answer_http(
        &mut self,
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        gauge: &Arc<Gauge>,
    ) {
        if self.sending.is_some() {
            // The head is out; a body that stops short must not look whole.
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        if !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from(body.len()));
        }
        if body.is_empty() || matches!(self.role, Role::Http { is_head: true, .. }) {
            let _ = self.respond.send_response(http_response(status, headers), true);
        } else {
            self.begin(http_response(status, headers));
            self.send(body, gauge, true);
        }
    }
}

/// The head of a response, without the headers of HTTP/1.1 that HTTP/2 forbids (RFC 9113, section 8.2.2).
pub fn http_response(status: StatusCode, mut headers: HeaderMap) -> Response<()> {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    response(status, headers)
}

/// The head of a response.
pub fn response(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// A request as the owner sees it; HTTP/2's `:authority` stands as `host`.
pub fn http_request(parts: Parts, body: Bytes) -> HttpRequest {
    let Parts { method, uri, mut headers, .. } = parts;
    if let Some(authority) = uri.authority()
        && !headers.contains_key(HOST)
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, value);
    }
    let target = uri.path_and_query().map_or_else(|| uri.to_string(), |target| target.as_str().to_owned());
    HttpRequest { method: method.as_str().to_owned(), target, headers, body }
}

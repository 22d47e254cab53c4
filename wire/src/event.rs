//! What the wire tells its owner ([`Event`]) and what the owner answers ([`Command`]).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::peers::head::Headers;

/// A Python object that passes through the inbox unseen.
#[cfg(not(test))]
pub type Object = pyo3::Py<pyo3::PyAny>;
/// Unit tests know no Python.
#[cfg(test)]
pub type Object = u32;

/// Bits of an id that name the stream (or the HTTP/1.1 exchange) within its connection.
pub const STREAM_BITS: u32 = 31;

/// The connection's number in an id.
pub fn connection_of(id: u64) -> u64 {
    id >> STREAM_BITS
}

/// The stream's or exchange's number in an id.
pub fn stream_of(id: u64) -> u32 {
    (id & ((1 << STREAM_BITS) - 1)) as u32
}

/// The id of one stream of a connection. Neither number is ever used twice.
pub fn id_of(connection: u64, stream: u32) -> u64 {
    (connection << STREAM_BITS) | u64::from(stream)
}

/// Where a request came from; `object` keeps the Python tuple made of it.
pub struct Origin {
    pub listener: Arc<str>,
    pub peer: String,
    pub common_name: Option<String>,
    pub object: OnceLock<Object>,
}

/// Chosen metadata of a call: (place in `Shared::metadata_keys`, value).
pub type Metadata = Option<Box<[(usize, Box<str>)]>>;

/// A whole plain HTTP request.
pub struct HttpRequest {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One thing that has happened. `method` is a place in `Methods::paths`.
pub enum Event {
    Call { id: u64, method: u32, message: Bytes, origin: Arc<Origin>, metadata: Metadata },
    Open { id: u64, method: u32, origin: Arc<Origin>, metadata: Metadata },
    Message { id: u64, message: Bytes },
    HalfClose { id: u64 },
    Cancel { id: u64 },
    Http { id: u64, request: Box<HttpRequest>, origin: Arc<Origin> },
    Paused { id: u64 },
    Resumed { id: u64 },
    Posted(Object),
    LinkUp { link: u64, url: Arc<str> },
    LinkDown { link: u64, reason: String },
    LinkAsked { id: u64, hello: Headers, origin: Arc<Origin> },
    FrameIn { id: u64, frame: Bytes },
    FileSent { id: u64, error: String },
    FileAsked { id: u64, headers: Headers, origin: Arc<Origin> },
    FileReceived { id: u64, path: PathBuf, size: u64, sha256: String },
    FileFailed { id: u64, text: String },
}

impl Event {
    /// Memory that the event holds while it waits, roughly.
    pub fn size_bytes(&self) -> usize {
        const OVERHEAD_BYTES: usize = 256;
        match self {
            Event::Call { message, .. } | Event::Message { message, .. } => OVERHEAD_BYTES + message.len(),
            Event::FrameIn { frame, .. } => OVERHEAD_BYTES + frame.len(),
            Event::Http { request, .. } => {
                2 * OVERHEAD_BYTES + request.body.len() + request.target.len() + 64 * request.headers.len()
            }
            Event::Posted(_) => 0,
            _ => OVERHEAD_BYTES,
        }
    }
}

/// One answer. A `message` already carries its five bytes of gRPC framing.
#[derive(Debug, Clone)]
pub enum Command {
    Reply {
        message: Bytes,
    },
    Fail {
        code: u32,
        text: String,
    },
    Deliver {
        message: Bytes,
    },
    Respond {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    },
    Begin {
        status: StatusCode,
        headers: HeaderMap,
    },
    Chunk {
        body: Bytes,
    },
    Finish,
    LinkAccept,
    /// Of a link or a file.
    Refuse {
        status: u16,
        text: String,
    },
    FileAccept {
        path: PathBuf,
    },
    FileDone {
        status: u16,
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_both_numbers() {
        let id = id_of(12_345_678_901, (1 << 31) - 1);
        assert_eq!(connection_of(id), 12_345_678_901 & ((1 << 33) - 1));
        assert_eq!(stream_of(id), (1 << 31) - 1);
    }
}

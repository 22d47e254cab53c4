//! What the owner of a wire chooses, and the state that all its connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use fnv::{FnvHashMap, FnvHashSet};
use http::header::HeaderName;

use crate::brisk::Brisk;
use crate::inbox::Inbox;
use crate::peers::Peers;
use crate::registry::Registry;

/// Limits and times, as `Wire.__init__` documents them.
#[derive(Debug, Clone)]
pub struct Settings {
    pub max_message_bytes: usize,
    pub max_header_bytes: u32,
    pub max_concurrent_streams: u32,
    pub max_inbox_bytes: usize,
    pub stream_buffer_bytes: usize,
    pub keepalive_min_time: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub header_timeout: Duration,
    pub idle_http_timeout: Duration,
    pub max_frame_bytes: usize,
    pub link_ping: Duration,
    pub link_timeout: Duration,
}

impl Settings {
    /// Flow-control window of one HTTP/2 stream: a whole message fits, so one never waits for a window update.
    pub fn stream_window_bytes(&self) -> u32 {
        (self.max_message_bytes + 65_536).clamp(1 << 20, (1 << 31) - 1) as u32
    }

    /// Flow-control window of one HTTP/2 connection.
    pub fn connection_window_bytes(&self) -> u32 {
        self.stream_window_bytes().saturating_mul(2).clamp(8 << 20, (1 << 31) - 1)
    }

    /// The longest body of a plain HTTP request: a gateway's JSON carries bytes as base64, 4/3 as long, and wraps them.
    pub fn max_http_body_bytes(&self) -> usize {
        2 * self.max_message_bytes
    }

    /// Bytes of unfinished requests that one connection may make the wire hold.
    pub fn max_unfinished_bytes(&self) -> usize {
        (self.max_inbox_bytes / 4).max(2 * self.max_http_body_bytes())
    }

    /// Unsent bytes of a connection above which its new calls are refused: its client sends but does not read.
    pub fn max_unsent_bytes(&self) -> usize {
        (16 * self.stream_buffer_bytes).max(4 * self.max_message_bytes)
    }
}

/// How a gRPC method takes its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One message, gathered whole.
    One,
    /// A stream of messages.
    Many,
}

/// A known gRPC method; `number` is its place in [`Methods::paths`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub number: u32,
    pub kind: Kind,
}

/// The gRPC methods that are answered by the owner of the wire.
#[derive(Debug, Default)]
pub struct Methods {
    pub paths: Vec<String>,
    by_path: FnvHashMap<String, Method>,
    services: FnvHashSet<String>,
}

impl Methods {
    /// Adds "/package.Service/Method"; false when the path has another form.
    pub fn add(&mut self, path: &str, kind: Kind) -> bool {
        let Some((service, method)) = path.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')) else {
            return false;
        };
        if service.is_empty() || method.is_empty() {
            return false;
        }
        let number = self.paths.len() as u32;
        self.paths.push(path.to_owned());
        self.services.insert(service.to_owned());
        self.by_path.insert(path.to_owned(), Method { number, kind });
        true
    }

    /// The method of this path, or grpc-go's words for its absence (server.go, handleStream).
    pub fn find(&self, path: &str) -> Result<Method, String> {
        if let Some(method) = self.by_path.get(path) {
            return Ok(*method);
        }
        let bare = path.strip_prefix('/').unwrap_or(path);
        Err(match bare.rsplit_once('/') {
            None => format!("malformed method name: {path:?}"),
            Some((service, method)) if self.services.contains(service) => {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
        })
    }
}

/// Counters since the start; the two gauges may go down.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections_total: AtomicU64,
    pub connections_open: AtomicI64,
    pub streams_open: AtomicI64,
    pub bytes_received_total: AtomicU64,
    pub bytes_sent_total: AtomicU64,
    pub requests_refused_total: AtomicU64,
    pub goaways_sent_total: AtomicU64,
}

impl Counters {
    /// Adds to one of the counters without ordering anything else.
    pub fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}

/// What every connection needs to reach.
pub struct Shared {
    pub settings: Settings,
    pub methods: Methods,
    pub metadata_keys: Vec<HeaderName>,
    pub inbox: Inbox,
    pub registry: Registry,
    pub counters: Counters,
    pub brisk: Brisk,
    pub peers: Peers,
}

/// The shared state, by reference count.
pub type SharedRef = Arc<Shared>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_are_worded_as_grpc_go_does() {
        let mut methods = Methods::default();
        assert!(methods.add("/pkg.Svc/Get", Kind::One));
        assert!(methods.add("/pkg.Svc/Watch", Kind::Many));
        assert_eq!(methods.find("/pkg.Svc/Watch"), Ok(Method { number: 1, kind: Kind::Many }));
        assert_eq!(methods.find("/pkg.Svc/Put").unwrap_err(), "unknown method Put for service pkg.Svc");
        assert_eq!(methods.find("/other.Svc/Put").unwrap_err(), "unknown service other.Svc");
        assert_eq!(methods.find("/nothing").unwrap_err(), "malformed method name: \"/nothing\"");
    }

    #[test]
    fn malformed_paths_are_not_added() {
        let mut methods = Methods::default();
        for path in ["pkg.Svc/Get", "/Get", "//Get", "/pkg.Svc/", ""] {
            assert!(!methods.add(path, Kind::One), "{path}");
        }
    }
}

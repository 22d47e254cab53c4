//! What passes between members: links, which carry frames one way, and whole files.
//!
//! Both begin as a request of HTTP/1.1 on an ordinary listener, told by its first bytes
//! ([`crate::frames::protocol_of`]), so that a refusal is a status with a line of text, and the path says the version.
//! A link asks for an upgrade and becomes frames ([`frame`]); a file is the body of a POST that waits for
//! "100 Continue". While a request waits for its answer, "102 Processing" says that the peer still lives.
//!
//! The side that connects is [`outgoing`] with [`flow`], and [`send`]; the side that is connected to is [`incoming`] and [`receive`].

mod batch;
mod flow;
mod frame;
pub mod head;
mod incoming;
mod links;
pub mod outgoing;
pub mod queue;
mod receive;
pub mod send;
mod wait;

pub use incoming::{linger, serve};
pub use links::Peers;

use std::time::Duration;

/// Where a link is asked for.
pub const LINK_PATH: &str = "/etcd-py/link/1";
/// What a link's connection is upgraded to.
const LINK_PROTOCOL: &str = "etcd-py-link";
/// Where a file is sent to.
pub const FILE_PATH: &str = "/etcd-py/snapshot/1";
/// Requests that begin so are between members.
pub const REQUESTS: [&[u8]; 2] = [b"GET /etcd-py/link/", b"POST /etcd-py/snapshot/"];

/// How long a connection that we end waits for the peer to end it too.
const LINGER: Duration = Duration::from_secs(1);

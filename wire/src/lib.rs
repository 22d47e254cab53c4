//! Sockets, HTTP/1.1 and HTTP/2 on one port, and gRPC framing, for a server whose requests are answered in Python.
//!
//! The crate knows nothing of etcd: it parses no protobuf and holds no key. Requests leave it in batches through
//! [`inbox::Inbox`], answers enter it in batches through [`registry::Registry`]. Its threads never take the
//! Python interpreter lock: Rust events become Python objects inside `Wire.poll`, under the lock its caller holds.
//! The module `python` is the only one that knows Python; unit tests are compiled without it, so that they need no
//! interpreter to link with, and what only it uses looks dead to them.

#![cfg_attr(test, allow(dead_code))]

mod authority;
mod brisk;
mod calls;
mod event;
mod frames;
mod grpc;
mod http1;
mod http2;
mod inbox;
mod limits;
mod listener;
mod peers;
mod pipe;
#[cfg(not(test))]
mod python;
mod registry;
mod settings;
mod socket;
mod stream;

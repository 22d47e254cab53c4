//! Addresses, listening sockets, and the first bytes of a connection.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::event::Origin;
use crate::frames::{Protocol, protocol_of};
use crate::http1::Http1;
use crate::http2::Http2;
use crate::peers;
use crate::pipe::Pipe;
use crate::registry::Mailbox;
use crate::settings::{Counters, SharedRef};
use crate::socket::Socket;

const BACKLOG: u32 = 4096;
/// How long accepting rests after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that we end waits for the peer to end it too.
const LINGER: Duration = Duration::from_secs(1);

/// Where to listen or to connect, as a URL says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Address {
    /// Reads "http://host:port", "unix:///path" or "unix://path".
    pub fn parse(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("unix://") {
            if path.is_empty() {
                return Err(format!("{url:?}: a path was expected after unix://"));
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        if url.starts_with("https://") || url.starts_with("unixs://") {
            return Err(format!("{url:?}: TLS listeners are not supported"));
        }
        let expected = || format!("{url:?}: expected http://host:port, unix:///path or unix://path");
        let rest = url.strip_prefix("http://").ok_or_else(expected)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().map_err(|_| expected())?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains('/') || (host.contains(':') && !bracketed) {
            return Err(expected());
        }
        Ok(Address::Tcp { host: host.to_owned(), port })
    }

    /// The value of a request's `host` header.
    pub fn authority(&self) -> String {
        match self {
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// A socket that listens.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Opens the address, within a tokio runtime; returns the URL with the port that was chosen.
    pub fn open(address: &Address) -> io::Result<(Listener, String)> {
        match address {
            Address::Tcp { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
                for address in ipv4_first((bare, *port).to_socket_addrs()?.collect()) {
                    match open_tcp(address) {
                        Ok(listener) => {
                            let port = listener.local_addr()?.port();
                            let listener = TcpListener::from_std(listener)?;
                            return Ok((Listener::Tcp(listener), format!("http://{host}:{port}")));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let listener = StdUnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener)?;
                Ok((Listener::Unix(listener, path.clone()), format!("unix://{}", path.display())))
            }
        }
    }

    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::tcp(stream), peer.to_string()))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), String::new()))
            }
        }
    }

    /// Accepts connections until the task is aborted; each is served by a task of its own.
    pub async fn run(self, shared: SharedRef, name: Arc<str>) {
        loop {
            match self.accept().await {
                Ok((socket, peer)) => {
                    tokio::spawn(serve(Arc::clone(&shared), socket, Arc::clone(&name), peer));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // The file may have been removed by someone else already; nothing depends on it any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The order in which the addresses of a name are tried: as Go's, so that clients that take "localhost" for 127.0.0.1
/// find it where the resolver puts ::1 first.
fn ipv4_first(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses
}

fn open_tcp(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Removes the socket file of a process that is gone; one that is answered stays, and binding then fails.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && StdUnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// One connection from its first byte to its end.
async fn serve(shared: SharedRef, mut socket: Socket, listener: Arc<str>, peer: String) {
    let counters = &shared.counters;
    Counters::add(&counters.connections_total, 1);
    counters.connections_open.fetch_add(1, Ordering::Relaxed);
    let visit = Visit { shared: Arc::clone(&shared) };
    let first = tokio::time::timeout(shared.settings.header_timeout, recognise(&mut socket)).await;
    if let Ok(Some((protocol, first))) = first {
        let origin = Arc::new(Origin { listener, peer, common_name: None, object: OnceLock::new() });
        let (number, mailbox) = shared.registry.enter();
        let entry = Entry { shared: Arc::clone(&shared), number };
        if protocol == Protocol::Peer {
            // In a box, so that other connections do not carry its size.
            let serving = Box::pin(peers::serve(&shared, socket, first, origin, number, mailbox));
            let socket = serving.await;
            drop(entry);
            peers::linger(socket).await;
        } else {
            serve_http(&shared, socket, protocol, first, origin, mailbox, entry).await;
        }
    }
    drop(visit);
}

async fn serve_http(
    shared: &SharedRef,
    socket: Socket,
    protocol: Protocol,
    first: BytesMut,
    origin: Arc<Origin>,
    mailbox: Arc<Mailbox>,
    entry: Entry,
) {
    let (http2, number) = (protocol == Protocol::Http2, entry.number);
    let pipe = Pipe::new(Arc::clone(shared), socket, first.freeze(), http2);
    if http2 {
        Http2::new(Arc::clone(shared), Arc::clone(&pipe), origin, number, mailbox).await;
    } else {
        Http1::new(Arc::clone(shared), Arc::clone(&pipe), origin, number, mailbox).await;
    }
    // A peer that neither reads nor ends its side is not waited for longer.
    let finishing = poll_fn(|cx| pipe.poll_finish(cx));
    let finished = tokio::time::timeout(LINGER, finishing).await;
    drop(entry);
    if finished.is_ok() {
        let lingering = poll_fn(|cx| pipe.poll_linger(cx));
        let _ = tokio::time::timeout(LINGER, lingering).await;
    }
}

/// Reads until the protocol is known; None when the peer ends before that.
async fn recognise(socket: &mut Socket) -> Option<(Protocol, BytesMut)> {
    let mut first = BytesMut::with_capacity(4096);
    loop {
        if socket.read_buf(&mut first).await.ok()? == 0 {
            return None;
        }
        match protocol_of(&first) {
            Protocol::Unknown => {}
            protocol => return Some((protocol, first)),
        }
    }
}

/// Counts a connection as open until it is dropped.
struct Visit {
    shared: SharedRef,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.shared.counters.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's place in the registry, left when this is dropped.
struct Entry {
    shared: SharedRef,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.registry.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.to_owned(), port });
        assert_eq!(Address::parse("http://127.0.0.1:2379"), tcp("127.0.0.1", 2379));
        assert_eq!(Address::parse("http://localhost:0/"), tcp("localhost", 0));
        assert_eq!(Address::parse("http://[::1]:80"), tcp("[::1]", 80));
        assert_eq!(Address::parse("unix:///run/a.sock"), Ok(Address::Unix("/run/a.sock".into())));
        assert_eq!(Address::parse("unix://a.sock"), Ok(Address::Unix("a.sock".into())));
    }

    #[test]
    fn malformed_urls_are_named() {
        for url in
            ["", "127.0.0.1:80", "http://a", "http://:80", "http://a:b", "http://::1:80", "http://a/b:80"]
        {
            assert!(Address::parse(url).unwrap_err().contains("expected http://host:port"), "{url}");
        }
        assert!(Address::parse("unix://").is_err());
        assert!(Address::parse("https://a:1").unwrap_err().contains("TLS"));
    }

    #[test]
    fn a_name_means_its_ipv4_address_first() {
        let addresses = ["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"].map(|text| text.parse().unwrap());
        let ordered: Vec<_> = ipv4_first(addresses.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(ordered, ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"]);
    }
}

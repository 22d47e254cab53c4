//! One socket, shared by the task of a connection and by the protocol library that the task drives.
//!
//! Three things are done here that the libraries have no place for. Bytes read pass the [`FrameScanner`]. Nothing is
//! read while the inbox is full. And bytes written by `h2` are gathered until [`Link::flush`], so that the headers,
//! messages and trailers of a whole batch of answers leave in one system call. The socket wakes the connection's own
//! task, whatever waker the library hands down: `h2` is given one that does nothing, since it would otherwise wake
//! the very task that is running it for each answer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::frames::{FrameScanner, Seen};
use crate::settings::SharedRef;

/// A connected socket of any of the kinds listened on.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

struct State {
    socket: Socket,
    waker: Waker,
    /// Bytes read while the protocol was being recognised.
    first: Bytes,
    scanner: Option<FrameScanner>,
    out: BytesMut,
    /// The library wanted to write and could not: it may be within a frame.
    refused_write: bool,
    received: bool,
    failed: bool,
}

/// See the module.
pub struct Link {
    shared: SharedRef,
    state: Mutex<State>,
}

/// The end of a link that a protocol library owns.
pub struct LinkEnd(Arc<Link>);

/// What [`Link::look`] tells.
pub struct Look {
    pub seen: Seen,
    pub in_headers: bool,
    /// Some bytes have been received since the last look.
    pub received: bool,
}

impl Link {
    /// Unsent bytes above which the library has to wait.
    const MAX_OUT_BYTES: usize = 262_144;
    /// A larger buffer is given back once it is empty.
    const KEPT_OUT_BYTES: usize = 16_384;

    /// A link over `socket`, from which `first` has been read already. Only HTTP/2 is scanned and gathered.
    pub fn new(shared: SharedRef, socket: Socket, first: Bytes, http2: bool) -> Arc<Link> {
        let state = State {
            socket,
            waker: Waker::noop().clone(),
            first,
            scanner: http2.then(FrameScanner::default),
            out: BytesMut::new(),
            refused_write: false,
            received: false,
            failed: false,
        };
        Arc::new(Link { shared, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end for the library.
    pub fn end(self: &Arc<Link>) -> LinkEnd {
        LinkEnd(Arc::clone(self))
    }

    /// Whom the socket wakes from now on.
    pub fn wake_with(&self, waker: &Waker) {
        let mut state = self.lock();
        if !state.waker.will_wake(waker) {
            state.waker = waker.clone();
        }
    }

    /// What came since the last look; `streams` of it is exchanged with the list given, which must be empty.
    pub fn look(&self, streams: &mut Vec<u32>) -> Look {
        let mut state = self.lock();
        let received = std::mem::take(&mut state.received);
        let Some(scanner) = &mut state.scanner else {
            return Look { seen: Seen::default(), in_headers: false, received };
        };
        std::mem::swap(&mut scanner.seen.streams, streams);
        let pings = std::mem::take(&mut scanner.seen.pings);
        let in_headers = scanner.in_headers();
        Look { seen: Seen { streams: Vec::new(), pings }, in_headers, received }
    }

    /// Writes what has been gathered. True when the library had to wait and now need not: drive it again.
    pub fn flush(&self) -> bool {
        let mut state = self.lock();
        let unfinished = state.poll_out().is_pending();
        !unfinished && !state.failed && std::mem::take(&mut state.refused_write)
    }

    /// Appends a last frame of our own, if the library is not within one of its own.
    pub fn append(&self, make: impl FnOnce(u32) -> Vec<u8>) -> bool {
        let mut state = self.lock();
        if state.refused_write {
            return false;
        }
        let newest_stream = state.scanner.as_ref().map_or(0, FrameScanner::newest_stream);
        state.out.extend_from_slice(&make(newest_stream));
        true
    }

    /// Flushes, closes the sending side, and reads on until the peer has closed too: bytes left unread would make
    /// the kernel reset the connection, and what was sent last might be lost. The caller bounds the time.
    pub fn poll_linger(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake_with(cx.waker());
        let mut state = self.lock();
        if state.poll_out().is_pending() {
            return Poll::Pending;
        }
        let waker = state.waker.clone();
        let mut cx = Context::from_waker(&waker);
        if Pin::new(&mut state.socket).poll_shutdown(&mut cx).is_pending() {
            return Poll::Pending;
        }
        let mut waste = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut state.socket).poll_read(&mut cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }
}

impl State {
    fn poll_out(&mut self) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(&self.waker);
        while !self.out.is_empty() {
            match Pin::new(&mut self.socket).poll_write(&mut cx, &self.out) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 => self.out.advance(count),
                Poll::Ready(result) => {
                    self.out.clear();
                    self.failed = true;
                    return Poll::Ready(Err(result.err().unwrap_or(io::ErrorKind::WriteZero.into())));
                }
            }
        }
        if self.out.capacity() > Link::KEPT_OUT_BYTES {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for LinkEnd {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // The mailbox of the connection is woken when there is room again.
        if self.0.shared.inbox.is_full() {
            return Poll::Pending;
        }
        let mut state = self.0.lock();
        let State { socket, waker, first, scanner, received, .. } = &mut *state;
        let before = buf.filled().len();
        if first.is_empty() {
            let mut cx = Context::from_waker(waker);
            match Pin::new(socket).poll_read(&mut cx, buf) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        } else {
            let count = first.len().min(buf.remaining());
            buf.put_slice(&first.split_to(count));
        }
        *received = true;
        if let Some(scanner) = scanner {
            scanner.scan(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkEnd {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.scanner.is_none() {
            let State { socket, waker, .. } = &mut *state;
            return Pin::new(socket).poll_write(&mut Context::from_waker(waker), buf);
        }
        if state.out.len() >= Link::MAX_OUT_BYTES {
            if let Poll::Ready(Err(error)) = state.poll_out() {
                return Poll::Ready(Err(error));
            }
            if state.out.len() >= Link::MAX_OUT_BYTES {
                state.refused_write = true;
                return Poll::Pending;
            }
        }
        state.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if let Poll::Pending = state.poll_out()? {
            return Poll::Pending;
        }
        let State { socket, waker, .. } = &mut *state;
        Pin::new(socket).poll_shutdown(&mut Context::from_waker(waker))
    }
}

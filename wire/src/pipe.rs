//! One socket, shared by the task of a connection and by the protocol library that the task drives.
//!
//! Three things are done here that the libraries have no place for. Bytes read pass the [`FrameScanner`]. Nothing is
//! read while the inbox is full. And bytes written by `h2` are gathered until [`Pipe::flush`], so that the headers,
//! messages and trailers of a whole batch of answers leave in one system call. The socket wakes the connection's own
//! task, whatever waker the library hands down: `h2` is given one that does nothing, since it would otherwise wake
//! the very task that is running it for each answer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::authority::AuthorityFilter;
use crate::frames::{FrameScanner, Seen, SentScanner};
use crate::settings::SharedRef;
use crate::socket::Socket;

struct State {
    socket: Socket,
    waker: Waker,
    /// Bytes read while the protocol was being recognised.
    first: Bytes,
    scanner: Option<FrameScanner>,
    /// For HTTP/2, until the client is known to need none.
    filter: Option<AuthorityFilter>,
    out: BytesMut,
    sent: SentScanner,
    /// The library wanted to write and could not: it may be within a frame.
    refused_write: bool,
    received: bool,
    /// Bytes handed to the library since the task was last woken.
    turn_bytes: usize,
    failed: bool,
}

/// See the module.
pub struct Pipe {
    shared: SharedRef,
    state: Mutex<State>,
}

/// The end of a pipe that a protocol library owns.
pub struct PipeEnd(Arc<Pipe>);

/// What [`Pipe::look`] tells.
pub struct Look {
    pub seen: Seen,
    pub in_headers: bool,
    /// Some bytes have been received since the last look.
    pub received: bool,
}

impl Pipe {
    /// Unsent bytes above which the library has to wait.
    const MAX_OUT_BYTES: usize = 262_144;
    /// Bytes read in one turn of the task.
    const MAX_TURN_BYTES: usize = 262_144;
    /// A larger buffer is given back once it is empty.
    const KEPT_OUT_BYTES: usize = 16_384;

    /// A pipe over `socket`, from which `first` has been read already. Only HTTP/2 is scanned and gathered.
    pub fn new(shared: SharedRef, socket: Socket, first: Bytes, http2: bool) -> Arc<Pipe> {
        let state = State {
            socket,
            waker: Waker::noop().clone(),
            first,
            scanner: http2.then(FrameScanner::default),
            filter: http2.then(AuthorityFilter::default),
            out: BytesMut::new(),
            sent: SentScanner::default(),
            refused_write: false,
            received: false,
            turn_bytes: 0,
            failed: false,
        };
        Arc::new(Pipe { shared, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end for the library.
    pub fn end(self: &Arc<Pipe>) -> PipeEnd {
        PipeEnd(Arc::clone(self))
    }

    /// Whom the socket wakes from now on: the task's turn begins.
    pub fn wake_with(&self, waker: &Waker) {
        let mut state = self.lock();
        state.turn_bytes = 0;
        if !state.waker.will_wake(waker) {
            state.waker = waker.clone();
        }
    }

    /// What came since the last look; `streams` of it is exchanged with the list given, which must be empty.
    pub fn look(&self, streams: &mut Vec<u32>) -> Look {
        let mut state = self.lock();
        let received = std::mem::take(&mut state.received);
        let state = &mut *state;
        let Some(scanner) = &mut state.scanner else {
            return Look { seen: Seen::default(), in_headers: false, received };
        };
        std::mem::swap(&mut scanner.seen.streams, streams);
        let pings = std::mem::take(&mut scanner.seen.pings);
        let held_back = state.filter.as_ref().is_some_and(AuthorityFilter::holds_back);
        Look {
            seen: Seen { streams: Vec::new(), pings },
            in_headers: scanner.in_headers() || held_back,
            received,
        }
    }

    /// True when `h2` has written headers or data since this was last asked.
    pub fn take_sent_payload(&self) -> bool {
        self.lock().sent.take_payload()
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

    /// Writes what is left and closes the sending side.
    pub fn poll_finish(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake_with(cx.waker());
        let mut state = self.lock();
        if state.poll_out().is_pending() {
            return Poll::Pending;
        }
        let State { socket, waker, .. } = &mut *state;
        Pin::new(socket).poll_shutdown(&mut Context::from_waker(waker)).map(|_| ())
    }

    /// Reads on until the peer has closed too: bytes left unread would make the kernel reset the connection, and
    /// what was sent last might be lost with it.
    pub fn poll_linger(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake_with(cx.waker());
        let mut state = self.lock();
        let State { socket, waker, .. } = &mut *state;
        let mut cx = Context::from_waker(waker);
        let mut waste = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut *socket).poll_read(&mut cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }
}

impl State {
    fn read(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(&mut Context::from_waker(&self.waker), buf)
    }

    fn read_filtered(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 8192];
        loop {
            if let Some(filter) = self.filter.as_mut().filter(|filter| filter.is_ready()) {
                filter.take(buf.remaining(), |bytes| buf.put_slice(bytes));
                if filter.is_over() {
                    self.filter = None;
                }
                return Poll::Ready(Ok(()));
            }
            let mut chunk = ReadBuf::new(&mut chunk);
            std::task::ready!(self.read(&mut chunk))?;
            match &mut self.filter {
                Some(filter) if !chunk.filled().is_empty() => filter.put(chunk.filled()),
                // The end: what was held back stays unseen, and the connection ends within a frame.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

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
        if self.out.capacity() > Pipe::KEPT_OUT_BYTES {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // The mailbox of the connection is woken when there is room again.
        if self.0.shared.inbox.is_full() {
            return Poll::Pending;
        }
        let mut state = self.0.lock();
        if state.turn_bytes >= Pipe::MAX_TURN_BYTES {
            // Let what has come be published, and others have their turn.
            state.waker.wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if state.filter.is_none() {
            std::task::ready!(state.read(buf))?;
        } else {
            std::task::ready!(state.read_filtered(buf))?;
        }
        state.received = true;
        state.turn_bytes += buf.filled().len() - before;
        if let Some(scanner) = &mut state.scanner {
            scanner.scan(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.scanner.is_none() {
            let State { socket, waker, .. } = &mut *state;
            return Pin::new(socket).poll_write(&mut Context::from_waker(waker), buf);
        }
        if state.out.len() >= Pipe::MAX_OUT_BYTES {
            if let Poll::Ready(Err(error)) = state.poll_out() {
                return Poll::Ready(Err(error));
            }
            if state.out.len() >= Pipe::MAX_OUT_BYTES {
                state.refused_write = true;
                return Poll::Pending;
            }
        }
        state.sent.scan(buf);
        state.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.poll_out()?.is_pending() {
            return Poll::Pending;
        }
        let State { socket, waker, .. } = &mut *state;
        Pin::new(socket).poll_shutdown(&mut Context::from_waker(waker))
    }
}

//! A connected socket of any of the kinds that are listened on or connected to.
//!
//! TLS is to become further kinds of [`Socket`]: whoever reads and writes one knows no more of it than this.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::listener::Address;

const KEEPALIVE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// A TCP connection that has just been accepted or made: nothing waits for more to send, and the kernel asks a
    /// silent peer whether it still lives, as etcd's listeners do, whatever protocol is spoken.
    pub fn tcp(stream: TcpStream) -> Self {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
        // Either fails only on a connection that is broken already, which reading from it will tell.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Socket::Tcp(stream)
    }

    /// Connects to the first address of the host that answers.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
                for address in lookup_host((bare, *port)).await? {
                    match TcpStream::connect(address).await {
                        Ok(stream) => return Ok(Socket::tcp(stream)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Address::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Keeps what is not sent yet out of the kernel, but for this much: there it can be neither dropped nor overtaken.
    pub fn limit_unsent(&self, bytes: u32) {
        if let Socket::Tcp(stream) = self {
            // Without it more is buffered, which is slower to notice trouble and no worse.
            let _ = SockRef::from(stream).set_tcp_notsent_lowat(bytes);
        }
    }
}

impl Socket {
    /// A second handle to write with from another thread, without waiting; None where that cannot be had.
    pub fn direct(&self) -> Option<socket2::Socket> {
        match self {
            Socket::Tcp(stream) => SockRef::from(stream).try_clone().ok(),
            Socket::Unix(stream) => SockRef::from(stream).try_clone().ok(),
        }
    }

    /// Reads into the free capacity of `buffer`; 0 at the end.
    pub fn poll_read_into(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        let reading = self.read_buf(buffer);
        // A read that is given up has taken nothing.
        std::pin::pin!(reading).as_mut().poll(cx)
    }
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

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
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

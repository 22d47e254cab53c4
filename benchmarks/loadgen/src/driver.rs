//! Sockets and the one loop: reads what has arrived, lets the handler answer, writes what has gathered.
//!
//! One thread serves all connections. A connection is written once for everything that one read brought, as
//! any client with many requests under way does it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::http2::{Connection, Handler, Output};

const READ_BYTES: usize = 256 * 1024;

struct Link {
    socket: mio::net::TcpStream,
    connection: Connection,
    written: usize,
}

/// All connections to one server.
pub struct Driver {
    links: Vec<Link>,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
}

impl Driver {
    /// Opens connections to HOST:PORT.
    pub fn connect(address: &str, connections: usize) -> Result<Self, String> {
        let resolved: SocketAddr = address
            .to_socket_addrs()
            .map_err(|error| format!("--address {address}: {error}; expected HOST:PORT"))?
            .next()
            .ok_or_else(|| format!("--address {address}: no such host"))?;
        let poll = Poll::new().map_err(|error| error.to_string())?;
        let mut links = Vec::with_capacity(connections);
        for number in 0..connections {
            let open = || -> std::io::Result<mio::net::TcpStream> {
                let socket = TcpStream::connect_timeout(&resolved, Duration::from_secs(10))?;
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                let mut socket = mio::net::TcpStream::from_std(socket);
                poll.registry().register(
                    &mut socket,
                    Token(number),
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                Ok(socket)
            };
            let socket = open().map_err(|error| format!("cannot connect to {address}: {error}"))?;
            links.push(Link { socket, connection: Connection::new(address), written: 0 });
        }
        Ok(Driver { links, poll, events: Events::with_capacity(1024), buffer: vec![0; READ_BYTES] })
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// Where calls on a connection are opened; `run` sends them.
    pub fn output(&mut self, connection: usize) -> &mut Output {
        &mut self.links[connection].connection.output
    }

    /// Serves the connections until `done`, or says what is wrong when nothing arrives for `idle`.
    pub fn run<H: Handler>(
        &mut self,
        handler: &mut H,
        idle: Duration,
        mut done: impl FnMut(&H) -> bool,
    ) -> Result<(), String> {
        for link in &mut self.links {
            link.write()?;
        }
        let mut last_event = Instant::now();
        while !done(handler) {
            match self.poll.poll(&mut self.events, Some(Duration::from_millis(100))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.map_err(|error| error.to_string())?,
            }
            if self.events.is_empty() {
                if last_event.elapsed() > idle {
                    return Err(format!("nothing has arrived for {} s", idle.as_secs()));
                }
                continue;
            }
            last_event = Instant::now();
            for event in &self.events {
                let link = &mut self.links[event.token().0];
                if event.is_readable() {
                    link.read(&mut self.buffer, handler)?;
                }
                link.write()?;
            }
        }
        Ok(())
    }
}

impl Link {
    /// A read that does not fill the buffer has emptied the socket (epoll(7), edge-triggered).
    fn read(&mut self, buffer: &mut [u8], handler: &mut dyn Handler) -> Result<(), String> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(size) => {
                    self.connection.receive(&buffer[..size], handler)?;
                    if size < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot read from the server: {error}")),
            }
        }
    }

    fn write(&mut self) -> Result<(), String> {
        let bytes = &mut self.connection.output.bytes;
        while self.written < bytes.len() {
            match self.socket.write(&bytes[self.written..]) {
                Ok(size) => self.written += size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot write to the server: {error}")),
            }
        }
        bytes.clear();
        self.written = 0;
        Ok(())
    }
}

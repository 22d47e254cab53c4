//! Sending a file to a peer: from the disk to the socket, without passing through Python.
//!
//! The file is read by a thread that may block, a few chunks ahead of the socket. Meanwhile the peer's answers are read:
//! "100 Continue" begins the body, "102 Processing" says that the peer lives, any other is final.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

use super::wait::{First, first};
use super::{FILE_PATH, LINGER, head};
use crate::event::Event;
use crate::listener::Address;
use crate::settings::SharedRef;
use crate::socket::Socket;

/// Bytes read from the disk and written to the socket at once.
pub const CHUNK_BYTES: usize = 262_144;
/// Chunks that wait between a disk and a socket.
pub const CHUNKS_AHEAD: usize = 4;

/// A file, and where it is to go.
pub struct Parcel {
    pub urls: Vec<(Arc<str>, Address)>,
    pub path: PathBuf,
    pub headers: head::Headers,
}

/// Sends the file to the first address that can be connected to; the event that tells of it.
pub async fn run(shared: &SharedRef, id: u64, parcel: Parcel) -> Event {
    let error = deliver(shared, &parcel).await.err().unwrap_or_default();
    Event::FileSent { id, error }
}

async fn deliver(shared: &SharedRef, parcel: &Parcel) -> Result<(), String> {
    let unreadable = |error| format!("cannot read {}: {error}", parcel.path.display());
    let path = parcel.path.clone();
    let opening = tokio::task::spawn_blocking(move || open(&path));
    let (file, size) = opening.await.unwrap_or_else(|error| Err(error.into())).map_err(unreadable)?;
    let timeout = shared.settings.link_timeout;
    let mut failure = String::new();
    for (url, address) in &parcel.urls {
        let connecting = tokio::time::timeout(timeout, Socket::connect(address)).await;
        match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(socket) => return converse(parcel, socket, url, address, file, size, timeout).await,
            Err(error) => failure = format!("cannot connect to {url}: {error}"),
        }
    }
    Err(failure)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((file, metadata.len()))
}

/// When the peer last showed that it lives.
struct Pulse(Mutex<Instant>);

impl Pulse {
    fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns once there was no beat for `timeout`.
    async fn stopped(&self, timeout: Duration) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + timeout;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end.into()).await;
        }
    }
}

/// Why a body was not written.
enum Failure {
    File(String),
    Connection(String),
}

async fn converse(
    parcel: &Parcel,
    socket: Socket,
    url: &str,
    address: &Address,
    file: File,
    size: u64,
    timeout: Duration,
) -> Result<(), String> {
    let pulse = Pulse(Mutex::new(Instant::now()));
    let (mut reader, mut writer) = tokio::io::split(socket);
    let (begin, mut begun) = watch::channel(false);
    let answer = async {
        let mut buffer = BytesMut::with_capacity(4096);
        loop {
            let response = head::read_response(&mut reader, &mut buffer)
                .await
                .map_err(|error| format!("the connection to {url} was lost: {error}"))?;
            pulse.beat();
            match response.status {
                100 => {
                    begin.send_replace(true);
                }
                102 => {}
                200..300 => return Ok(()),
                status => {
                    let text = head::read_text(&mut reader, &mut buffer, &response).await;
                    return Err(format!("refused by {url} with status {status}: {text}"));
                }
            }
        }
    };
    let body = async {
        let fixed = format!("expect: 100-continue\r\nconnection: close\r\ncontent-length: {size}\r\n");
        let request = head::request("POST", FILE_PATH, &address.authority(), &fixed, &parcel.headers);
        let lost = |error| Failure::Connection(format!("the connection to {url} was lost: {error}"));
        let unreadable = |error| Failure::File(format!("cannot read {}: {error}", parcel.path.display()));
        writer.write_all(request.as_bytes()).await.map_err(lost)?;
        // It ends only together with the answer, which then says why.
        let _ = begun.wait_for(|begun| *begun).await;
        let mut chunks = read_ahead(file, size);
        while let Some(chunk) = chunks.recv().await {
            let mut chunk = chunk.map_err(unreadable)?;
            while !chunk.is_empty() {
                writer.write_buf(&mut chunk).await.map_err(lost)?;
                pulse.beat();
            }
        }
        // Now the answer is all that is waited for.
        std::future::pending::<Result<Infallible, Failure>>().await
    };
    let mut answer = std::pin::pin!(answer);
    let talking = async {
        match first(answer.as_mut(), body).await {
            First::One(answered) => answered,
            First::Other(Err(Failure::Connection(text))) => {
                // A peer that refused in the middle has perhaps said why before it closed.
                match tokio::time::timeout(LINGER, answer).await {
                    Ok(Err(refused)) if refused.starts_with("refused") => Err(refused),
                    _ => Err(text),
                }
            }
            First::Other(Err(Failure::File(text))) => Err(text),
        }
    };
    match first(talking, pulse.stopped(timeout)).await {
        First::One(result) => result,
        First::Other(()) => Err(format!("{url} has been silent for {timeout:?}")),
    }
}

/// The first `size` bytes of the file, read by a thread of its own until nobody wants more.
fn read_ahead(file: File, size: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut file = file.take(size);
        let mut left = size;
        while left > 0 {
            let mut chunk = vec![0; CHUNK_BYTES.min(left as usize)];
            let read = file.read_exact(&mut chunk).map(|()| Bytes::from(chunk)).map_err(|error| match error
                .kind()
            {
                io::ErrorKind::UnexpectedEof => io::Error::other("it has become shorter"),
                _ => error,
            });
            left -= CHUNK_BYTES.min(left as usize) as u64;
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

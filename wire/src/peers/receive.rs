//! Receiving a file from a peer: from the socket to the disk, without passing through Python.
//!
//! A thread that may block writes, hashes and syncs; the task of the connection hands it chunks, a few ahead. The
//! file is whole, synced and its name in the folder synced before the owner hears FILE_RECEIVED; half a file is removed
//! before it hears FILE_FAILED.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinError;

use super::head::{self, Answer, Request};
use super::incoming::hello;
use super::send::{CHUNK_BYTES, CHUNKS_AHEAD};
use super::wait::{First, Owner, Word, first};
use crate::event::{Command, Event, Origin};
use crate::settings::SharedRef;
use crate::socket::Socket;

const ALIVE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Asks the owner about a file, receives it, and gives the peer the owner's answer, as a refusal if it is one.
pub async fn run(
    shared: &SharedRef,
    socket: &mut Socket,
    buffer: BytesMut,
    origin: Arc<Origin>,
    mut owner: Owner,
    id: u64,
    request: Request,
) -> Option<Answer> {
    let size = head::value_of(&request.headers, "content-length").and_then(|value| value.parse().ok());
    let Some(size) = size else { return Some((411, "a file comes with its content-length".to_owned())) };
    let tell = |event| shared.inbox.push_all(&mut vec![event]);
    let (mut reader, mut writer) = tokio::io::split(socket);
    let ping = shared.settings.link_ping;

    tell(Event::FileAsked { id, headers: hello(request), origin });
    let asking = first(owner.word(), say_alive(&mut writer, ping));
    let path = match tokio::time::timeout(shared.settings.header_timeout, asking).await {
        Ok(First::One(Word::Command(Command::FileAccept { path }))) => path,
        Ok(First::One(Word::Command(Command::Refuse { status, text }))) => return Some((status, text)),
        outcome => {
            tell(Event::Cancel { id });
            return match outcome {
                Ok(First::One(Word::Command(_))) => {
                    Some((500, "the answer does not fit the question".to_owned()))
                }
                Ok(First::One(Word::End)) => Some((503, "the member is stopping".to_owned())),
                Ok(First::Other(())) => None,
                Err(_) => Some((503, "the member has not answered in time".to_owned())),
            };
        }
    };

    if writer.write_all(CONTINUE).await.is_err() {
        tell(Event::FileFailed { id, text: "the connection was lost".to_owned() });
        return None;
    }
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let target = path.clone();
    let mut writing = tokio::task::spawn_blocking(move || write(&target, size, chunks));
    let receiving = async {
        let read = hand_over(&mut reader, buffer, size, shared.settings.link_timeout, sender).await;
        result(read, (&mut writing).await)
    };
    let received = match first(first(owner.word(), receiving), say_alive(&mut writer, ping)).await {
        First::One(First::Other(received)) => received,
        interrupted => {
            // The writer notices that no more will come, and removes what there is.
            let _ = writing.await;
            match interrupted {
                First::One(First::One(Word::Command(Command::Refuse { status, text }))) => {
                    return Some((status, text));
                }
                First::One(First::One(Word::End)) => Err("the member is stopping".to_owned()),
                First::One(_) => Err("the answer does not fit the question".to_owned()),
                First::Other(()) => Err("the connection was lost".to_owned()),
            }
        }
    };
    match received {
        Ok(sha256) => tell(Event::FileReceived { id, path, size, sha256 }),
        Err(text) => {
            tell(Event::FileFailed { id, text: text.clone() });
            return Some((500, text));
        }
    }
    match first(owner.word(), say_alive(&mut writer, ping)).await {
        First::One(Word::Command(Command::FileDone { status, text })) => Some((status, text)),
        First::One(Word::Command(_)) => Some((500, "the answer does not fit the question".to_owned())),
        First::One(Word::End) => Some((503, "the member is stopping".to_owned())),
        // The owner has the file; that the sender is gone changes nothing for it.
        First::Other(()) => None,
    }
}

/// Says every so often that we live; returns when it cannot be said.
async fn say_alive(writer: &mut (impl AsyncWriteExt + Unpin), interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if writer.write_all(ALIVE).await.is_err() {
            return;
        }
    }
}

/// The hash of a file, or why there is none.
fn result(
    read: Result<(), String>,
    written: Result<Result<String, Trouble>, JoinError>,
) -> Result<String, String> {
    match (written, read) {
        (Ok(Ok(sha256)), Ok(())) => Ok(sha256),
        // That reading stopped is no news beside why the writer did.
        (Ok(Err(Trouble::Disk(text))), _) | (_, Err(text)) => Err(text),
        (Err(error), _) => Err(error.to_string()),
        (Ok(Err(Trouble::Unfinished)), _) => Err("the file is not whole".to_owned()),
    }
}

/// Reads the body, chunk by chunk, for the writer.
async fn hand_over(
    reader: &mut (impl AsyncReadExt + Unpin),
    buffer: BytesMut,
    size: u64,
    timeout: Duration,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut left = size;
    let mut chunk = buffer;
    loop {
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len()));
        left -= chunk.len() as u64;
        if !chunk.is_empty() && sender.send(chunk.split().freeze()).await.is_err() {
            return Err("the file cannot be written".to_owned());
        }
        if left == 0 {
            return Ok(());
        }
        chunk.reserve(CHUNK_BYTES);
        match tokio::time::timeout(timeout, reader.read_buf(&mut chunk)).await {
            Ok(Ok(0)) => return Err(format!("the connection was closed {left} bytes before the end")),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("the connection was lost: {error}")),
            Err(_) => return Err(format!("the sender has been silent for {timeout:?}")),
        }
    }
}

/// Why a file was not written.
enum Trouble {
    Disk(String),
    /// There came no more.
    Unfinished,
}

/// Writes the chunks to the file; its hash once it is synced. A file that is not whole is removed.
fn write(path: &Path, size: u64, chunks: mpsc::Receiver<Bytes>) -> Result<String, Trouble> {
    let disk = |error: io::Error| Trouble::Disk(format!("cannot write {}: {error}", path.display()));
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let file = options.open(path).map_err(disk)?;
    let written = write_all(&file, size, chunks)
        .and_then(|sha256| sync_folder_of(path).map_err(Some).map(|()| sha256))
        .map_err(|error| error.map_or(Trouble::Unfinished, disk));
    if written.is_err() {
        // Whoever finds it there all the same finds it shorter than it was promised.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// The name of a new file is safe only once its folder is.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_all(
    mut file: &File,
    size: u64,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<String, Option<io::Error>> {
    let mut hash = Sha256::new();
    let mut left = size;
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk)?;
        hash.update(&chunk);
        left -= chunk.len() as u64;
    }
    if left > 0 {
        return Err(None);
    }
    file.sync_all()?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

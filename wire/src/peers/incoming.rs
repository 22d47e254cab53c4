//! One connection of a peer's wire: its request is checked and put to the owner; a link that is accepted becomes
//! frames, a file is written by [`super::receive`].
//!
//! Invariant: an id that the owner was asked about leaves by the owner's refusal, or with a CANCEL (a file that was
//! accepted: by FILE_RECEIVED or FILE_FAILED).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Sleep;

use super::batch::Batch;
use super::frame::{self, Decoder, kind};
use super::head::{self, Answer, Request};
use super::wait::{First, Owner, Word, first};
use super::{FILE_PATH, LINGER, LINK_PATH, LINK_PROTOCOL, receive};
use crate::event::{Command, Event, Origin, id_of};
use crate::registry::{Mailbox, Phase};
use crate::settings::{Counters, SharedRef};
use crate::socket::Socket;

/// Bytes over an accepted link.
#[derive(Debug, Default)]
pub struct Received {
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
}

/// Serves a connection that begins with one of [`super::REQUESTS`]; what is left is to [`linger`] on its socket.
pub async fn serve(
    shared: &SharedRef,
    mut socket: Socket,
    mut buffer: BytesMut,
    origin: Arc<Origin>,
    number: u64,
    mailbox: Arc<Mailbox>,
) -> Socket {
    let owner = Owner::new(mailbox);
    let id = id_of(number, Owner::REQUEST);
    let max_bytes = shared.settings.max_header_bytes as usize;
    let reading = head::read_request(&mut socket, &mut buffer, max_bytes);
    let request = match tokio::time::timeout(shared.settings.header_timeout, reading).await {
        Ok(request) => request.and_then(check),
        Err(_) => Err((408, "the head of the request took too long".to_owned())),
    };
    let answer = match request {
        Ok(request) if request.method == "POST" => {
            receive::run(shared, &mut socket, buffer, origin, owner, id, request).await
        }
        Ok(request) => link(shared, &mut socket, buffer, origin, owner, id, request).await,
        Err(refusal) => Some(refusal),
    };
    if let Some((status, text)) = answer {
        if status >= 300 {
            Counters::add(&shared.counters.requests_refused_total, 1);
        }
        let _ = tokio::time::timeout(LINGER, head::respond(&mut socket, status, &text)).await;
    }
    socket
}

/// Closes the sending side, and reads on for a while until the peer has closed too: bytes left unread would make the
/// kernel reset the connection, and what was sent last might be lost with it.
pub async fn linger(mut socket: Socket) {
    let reading = async {
        socket.shutdown().await?;
        let mut waste = BytesMut::with_capacity(65_536);
        while socket.read_buf(&mut waste).await? > 0 {
            waste.clear();
        }
        std::io::Result::Ok(())
    };
    // A peer that neither reads nor ends its side is not waited for longer.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

fn check(request: Request) -> Result<Request, Answer> {
    let path = request.target.split('?').next().unwrap_or_default();
    let expected = if request.method == "POST" { FILE_PATH } else { LINK_PATH };
    if path != expected {
        return Err((404, format!("{path} is not spoken here: expected {expected}")));
    }
    if request.method == "POST" {
        if head::value_of(&request.headers, "transfer-encoding").is_some() {
            return Err((411, "a file comes with its content-length".to_owned()));
        }
        return Ok(request);
    }
    if head::value_of(&request.headers, "upgrade") != Some(LINK_PROTOCOL) {
        return Err((426, format!("a link is an upgrade to {LINK_PROTOCOL}")));
    }
    Ok(request)
}

/// Headers that are not the owner's business.
const HOP_BY_HOP: [&str; 4] = ["connection", "expect", "host", "upgrade"];

/// The headers that the owner sees.
pub fn hello(request: Request) -> head::Headers {
    let mut headers = request.headers;
    headers.retain(|(name, _)| !HOP_BY_HOP.contains(&name.as_str()));
    headers
}

/// Puts a link to the owner, and serves it if it is accepted; the answer that the peer is still to get.
async fn link(
    shared: &SharedRef,
    socket: &mut Socket,
    mut buffer: BytesMut,
    origin: Arc<Origin>,
    mut owner: Owner,
    id: u64,
    request: Request,
) -> Option<Answer> {
    // The owner may be about to stop, and then wants no new links; those accepted go on until it closes.
    owner.ends_at = Phase::Draining;
    shared.inbox.push_all(&mut vec![Event::LinkAsked { id, hello: hello(request), origin }]);
    let cancel = || shared.inbox.push_all(&mut vec![Event::Cancel { id }]);
    let gone = async {
        // A peer has nothing to say yet; what it says all the same is for later.
        while buffer.len() < 4096 && matches!(socket.read_buf(&mut buffer).await, Ok(1..)) {}
        if buffer.len() >= 4096 {
            std::future::pending::<()>().await;
        }
    };
    let asked = tokio::time::timeout(shared.settings.header_timeout, first(owner.word(), gone)).await;
    match asked {
        Ok(First::One(Word::Command(Command::LinkAccept))) => {}
        Ok(First::One(Word::Command(Command::Refuse { status, text }))) => return Some((status, text)),
        Ok(First::One(Word::Command(_))) => {
            cancel();
            return Some((500, "the answer does not fit the question".to_owned()));
        }
        Ok(First::One(Word::End)) => {
            cancel();
            return Some((503, "the member is stopping".to_owned()));
        }
        Ok(First::Other(())) => {
            cancel();
            return None;
        }
        Err(_) => {
            cancel();
            return Some((503, "the member has not answered in time".to_owned()));
        }
    }
    owner.ends_at = Phase::Closing;
    let received = Arc::new(Received::default());
    shared.peers.enter(id, &received);
    let entry = Entry { shared, id };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {LINK_PROTOCOL}\r\n\r\n"
    );
    let (end, mut unsent) = match socket.write_all(head.as_bytes()).await {
        Ok(()) => {
            let mut flow = Flow::new(shared, socket, buffer, owner, id, received);
            (poll_fn(|cx| flow.poll(cx)).await, flow.answers)
        }
        Err(_) => (End::Lost, Batch::default()),
    };
    drop(entry);
    let farewell = match &end {
        End::Lost => None,
        End::Silent => Some((408, format!("nothing came for {:?}", shared.settings.link_timeout))),
        End::Closed => Some((503, "the member has stopped".to_owned())),
        End::Refused(status, text) => Some((*status, text.clone())),
        End::Wrong(text) => Some((400, text.clone())),
    };
    if !matches!(end, End::Refused(..)) {
        cancel();
    }
    if let Some((status, text)) = farewell {
        unsent.add_control(kind::BYE, &frame::bye(status, &text));
        let writing = async {
            while !unsent.is_empty() && poll_fn(|cx| unsent.poll_write(cx, socket)).await.is_ok() {}
        };
        let _ = tokio::time::timeout(LINGER, writing).await;
    }
    None
}

/// An accepted link's place in the statistics.
struct Entry<'a> {
    shared: &'a SharedRef,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.shared.peers.leave(self.id);
    }
}

/// How an accepted link ended.
enum End {
    /// The peer has closed it.
    Lost,
    /// The peer has sent nothing for `link_timeout`.
    Silent,
    /// The wire closes.
    Closed,
    /// The owner wants no more of it.
    Refused(u16, String),
    /// The peer does not keep to the protocol.
    Wrong(String),
}

/// One accepted link.
struct Flow<'a> {
    shared: &'a SharedRef,
    socket: &'a mut Socket,
    decoder: Decoder,
    owner: Owner,
    id: u64,
    received: Arc<Received>,
    events: Vec<Event>,
    /// Answers to pings.
    answers: Batch,
    /// When the peer last sent something, or we last did not read.
    alive: Instant,
    next_sign: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Flow<'a> {
    /// Bytes read in one turn of the task, so that they are published and others have their turn.
    const MAX_TURN_BYTES: usize = 1 << 20;
    /// Unsent answers above which nothing is read: the peer pings but does not read.
    const MAX_ANSWER_BYTES: usize = 4_096;

    fn new(
        shared: &'a SharedRef,
        socket: &'a mut Socket,
        buffer: BytesMut,
        owner: Owner,
        id: u64,
        received: Arc<Received>,
    ) -> Self {
        let now = Instant::now();
        Flow {
            shared,
            socket,
            decoder: Decoder::new(buffer, shared.settings.max_frame_bytes),
            owner,
            id,
            received,
            events: Vec::new(),
            answers: Batch::default(),
            alive: now,
            next_sign: now,
            timer: Box::pin(tokio::time::sleep_until((now + shared.settings.link_timeout).into())),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let now = Instant::now();
        while let Poll::Ready(word) = self.owner.poll_word(cx) {
            match word {
                Word::End => return Poll::Ready(End::Closed),
                Word::Command(Command::Refuse { status, text }) => {
                    return Poll::Ready(End::Refused(status, text));
                }
                // A second acceptance changes nothing.
                Word::Command(_) => {}
            }
        }
        let read = self.read(cx, now);
        self.shared.inbox.push_all(&mut self.events);
        if let Poll::Ready(end) = read {
            return Poll::Ready(end);
        }
        let is_deaf = self.shared.inbox.is_full();
        if is_deaf {
            self.alive = now;
            if self.next_sign <= now && self.answers.is_empty() {
                self.next_sign = now + self.shared.settings.link_ping;
                self.answers.add_control(kind::PONG, &0u64.to_be_bytes());
            }
        }
        let was_held_up = self.is_held_up();
        while !self.answers.is_empty() {
            match self.answers.poll_write(cx, self.socket) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => {
                    self.received.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(End::Lost),
            }
        }
        if was_held_up && !self.is_held_up() {
            // Nothing else would make it read again.
            cx.waker().wake_by_ref();
        }
        self.wait(cx, now, is_deaf)
    }

    /// True while nothing is read because the peer does not take our answers.
    fn is_held_up(&self) -> bool {
        self.answers.bytes() > Self::MAX_ANSWER_BYTES
    }

    fn wait(&mut self, cx: &mut Context<'_>, now: Instant, is_deaf: bool) -> Poll<End> {
        let silent = self.alive + self.shared.settings.link_timeout;
        if silent <= now {
            return Poll::Ready(End::Silent);
        }
        // A timer that rings early is set anew then; this spares setting it for each read.
        let next = if is_deaf { silent.min(self.next_sign.max(now)) } else { silent };
        if self.timer.is_elapsed() || next < self.timer.deadline().into_std() {
            self.timer.as_mut().reset(next.into());
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<End> {
        let mut turn_bytes = 0;
        // What was read before the link was accepted is there already.
        if let Err(text) = self.take_frames() {
            return Poll::Ready(End::Wrong(text));
        }
        loop {
            if self.shared.inbox.is_full() || self.is_held_up() {
                return Poll::Pending;
            }
            if turn_bytes >= Self::MAX_TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let taken = match self.socket.poll_read_into(cx, self.decoder.space()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(taken)) if taken > 0 => taken,
                Poll::Ready(_) => return Poll::Ready(End::Lost),
            };
            turn_bytes += taken;
            self.alive = now;
            self.received.received_bytes.fetch_add(taken as u64, Ordering::Relaxed);
            if let Err(text) = self.take_frames() {
                return Poll::Ready(End::Wrong(text));
            }
        }
    }

    fn take_frames(&mut self) -> Result<(), String> {
        while let Some(frame) = self.decoder.next()? {
            match frame {
                frame::Received::Data(frame) => self.events.push(Event::FrameIn { id: self.id, frame }),
                frame::Received::Ping(stamp) => self.answers.add_control(kind::PONG, &stamp.to_be_bytes()),
                frame::Received::Pong(_) | frame::Received::Bye { .. } => {
                    return Err("a frame that only the side that was connected to may send".to_owned());
                }
            }
        }
        Ok(())
    }
}

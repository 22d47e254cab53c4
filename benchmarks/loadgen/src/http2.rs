//! The client's side of HTTP/2 and of gRPC framing, without a socket.
//!
//! Bytes of the server go into [`Connection::receive`]; bytes for it gather in [`Output`]. Only what a load
//! generator needs is here: no push, no priorities, no compression. Two things make it cheap. The server is told
//! to keep no header table (SETTINGS_HEADER_TABLE_SIZE 0), so that a header block means the same each time and
//! one seen before is looked up whole. Our own header blocks shrink to a few bytes after the first, because
//! every field is in the server's table then. Sources: RFC 9113, RFC 7541, gRPC over HTTP/2.

use fnv::FnvHashMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const WINDOW_BYTES: u32 = (1 << 31) - 1;
const REFILL_BYTES: u32 = 1 << 30;
const FRAME_HEADER_BYTES: usize = 9;
const GRPC_PREFIX_BYTES: usize = 5;
const MAX_REMEMBERED_BLOCKS: usize = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;

/// How a call ended: a gRPC status code and its message. 0 is success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The number of grpc-status.
    pub code: u32,
    /// The text of grpc-message.
    pub message: String,
}

/// What is told of the server's answers. `token` is what the call was opened with.
pub trait Handler {
    /// A whole gRPC message has arrived.
    fn message(&mut self, token: usize, body: &[u8], output: &mut Output);
    /// A call has ended.
    fn end(&mut self, token: usize, status: Status, output: &mut Output);
}

struct Stream {
    token: usize,
    /// A gRPC message, its prefix included, of which a part has arrived.
    partial: Vec<u8>,
    received_bytes: u32,
    send_window: i64,
}

struct Waiting {
    stream: u32,
    data: Vec<u8>,
    sent: usize,
    end: bool,
}

/// What goes to the server: calls and messages on them.
pub struct Output {
    /// Bytes to be written; the driver takes them out.
    pub bytes: Vec<u8>,
    streams: FnvHashMap<u32, Stream>,
    spare: Vec<Vec<u8>>,
    waiting: std::collections::VecDeque<Waiting>,
    next_stream: u32,
    send_window: i64,
    peer_window: i64,
    peer_frame_bytes: usize,
    authority: String,
    /// What we have put into the server's header table, oldest first.
    table: Vec<(&'static str, String)>,
    block: Vec<u8>,
}

impl Output {
    fn new(authority: &str) -> Self {
        let mut bytes = PREFACE.to_vec();
        let settings: [(u16, u32); 3] =
            [(HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW_BYTES)];
        frame_header(&mut bytes, settings.len() * 6, SETTINGS, 0, 0);
        for (name, value) in settings {
            bytes.extend_from_slice(&name.to_be_bytes());
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        window_update(&mut bytes, 0, WINDOW_BYTES - 65_535);
        Output {
            bytes,
            streams: FnvHashMap::default(),
            spare: Vec::new(),
            waiting: std::collections::VecDeque::new(),
            next_stream: 1,
            send_window: 65_535,
            peer_window: 65_535,
            peer_frame_bytes: 16_384,
            authority: authority.to_owned(),
            table: Vec::new(),
            block: Vec::new(),
        }
    }

    /// Opens a call with its first message; `end` when no other will follow. Returns its stream.
    pub fn call(&mut self, token: usize, path: &'static str, message: &[u8], end: bool) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.encode_headers(path);
        frame_header(&mut self.bytes, self.block.len(), HEADERS, END_HEADERS, stream);
        self.bytes.extend_from_slice(&self.block);
        let partial = self.spare.pop().unwrap_or_default();
        let send_window = self.peer_window;
        self.streams.insert(stream, Stream { token, partial, received_bytes: 0, send_window });
        self.send(stream, message, end);
        stream
    }

    /// Sends a message on an open call.
    pub fn send(&mut self, stream: u32, message: &[u8], end: bool) {
        let size = message.len() + GRPC_PREFIX_BYTES;
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let fits = size as i64 <= self.send_window.min(open.send_window) && size <= self.peer_frame_bytes;
        if fits && self.waiting.is_empty() {
            self.send_window -= size as i64;
            open.send_window -= size as i64;
            frame_header(&mut self.bytes, size, DATA, if end { END_STREAM } else { 0 }, stream);
            grpc_prefix(&mut self.bytes, message.len());
            self.bytes.extend_from_slice(message);
        } else {
            let mut data = Vec::with_capacity(size);
            grpc_prefix(&mut data, message.len());
            data.extend_from_slice(message);
            self.waiting.push_back(Waiting { stream, data, sent: 0, end });
            self.send_waiting();
        }
    }

    /// Sends what had to wait, as far as the server's windows allow it now.
    fn send_waiting(&mut self) {
        let mut blocked = std::collections::VecDeque::new();
        while let Some(mut item) = self.waiting.pop_front() {
            let Some(open) = self.streams.get_mut(&item.stream) else { continue };
            while item.sent < item.data.len() {
                let room = self.send_window.min(open.send_window).max(0) as usize;
                let size = room.min(self.peer_frame_bytes).min(item.data.len() - item.sent);
                if size == 0 {
                    break;
                }
                let last = item.end && item.sent + size == item.data.len();
                frame_header(&mut self.bytes, size, DATA, if last { END_STREAM } else { 0 }, item.stream);
                self.bytes.extend_from_slice(&item.data[item.sent..item.sent + size]);
                self.send_window -= size as i64;
                open.send_window -= size as i64;
                item.sent += size;
            }
            if item.sent < item.data.len() {
                blocked.push_back(item);
            }
        }
        self.waiting = blocked;
    }

    /// Fields go into the server's table the first time, and are one byte each after that.
    fn encode_headers(&mut self, path: &'static str) {
        self.block.clear();
        self.block.extend_from_slice(&[0x83, 0x86]); // :method POST, :scheme http
        self.field(4, None, ":path", path);
        let authority = std::mem::take(&mut self.authority);
        self.field(1, None, ":authority", &authority);
        self.authority = authority;
        self.field(31, None, "content-type", "application/grpc");
        self.field(0, Some("te"), "te", "trailers");
        self.field(0, Some("user-agent"), "user-agent", concat!("etcd-loadgen/", env!("CARGO_PKG_VERSION")));
    }

    /// One field: an index into the server's table, or a literal that goes into it.
    fn field(&mut self, name_index: u8, name: Option<&str>, key: &'static str, value: &str) {
        let known = self.table.iter().position(|(known, text)| *known == key && text == value);
        match known {
            // The newest field is at 62, the one before at 63, ...
            Some(nth) => self.block.push(0x80 | (61 + self.table.len() - nth) as u8),
            None => {
                insert_field(&mut self.block, name_index, name, value);
                self.table.push((key, value.to_owned()));
            }
        }
    }
}

/// One connection: what has arrived of frames, and the streams (in `output`).
pub struct Connection {
    /// Calls and bytes for the server.
    pub output: Output,
    input: Vec<u8>,
    header_block: Vec<u8>,
    known_blocks: FnvHashMap<Vec<u8>, Option<Status>>,
    received_bytes: u32,
}

impl Connection {
    /// A new connection to a server of this name.
    pub fn new(authority: &str) -> Self {
        Connection {
            output: Output::new(authority),
            input: Vec::new(),
            header_block: Vec::new(),
            known_blocks: FnvHashMap::default(),
            received_bytes: 0,
        }
    }

    /// Takes bytes of the server, and tells the handler of each message and each end in them.
    pub fn receive(&mut self, bytes: &[u8], handler: &mut dyn Handler) -> Result<(), String> {
        if self.input.is_empty() {
            let used = self.frames(bytes, handler)?;
            self.input.extend_from_slice(&bytes[used..]);
        } else {
            self.input.extend_from_slice(bytes);
            let input = std::mem::take(&mut self.input);
            let used = self.frames(&input, handler)?;
            self.input = input;
            self.input.drain(..used);
        }
        Ok(())
    }

    /// Handles all whole frames; returns how many bytes they were.
    fn frames(&mut self, bytes: &[u8], handler: &mut dyn Handler) -> Result<usize, String> {
        let mut at = 0;
        while bytes.len() - at >= FRAME_HEADER_BYTES {
            let head = &bytes[at..at + FRAME_HEADER_BYTES];
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let end = at + FRAME_HEADER_BYTES + size;
            if bytes.len() < end {
                break;
            }
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            self.frame(head[3], head[4], stream, &bytes[at + FRAME_HEADER_BYTES..end], handler)?;
            at = end;
        }
        Ok(at)
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        body: &[u8],
        handler: &mut dyn Handler,
    ) -> Result<(), String> {
        match kind {
            DATA => {
                self.count_received(stream, body.len() as u32);
                self.data(stream, unpadded(flags, body)?, handler)?;
                if flags & END_STREAM != 0 {
                    let status = Status { code: 2, message: "the call ended without a status".into() };
                    self.end(stream, status, handler);
                }
            }
            HEADERS | CONTINUATION => {
                if kind == HEADERS {
                    self.header_block.clear();
                    let skip = if flags & PRIORITY != 0 { 5 } else { 0 };
                    let block = unpadded(flags, body)?.get(skip..).ok_or("a cut HEADERS frame")?;
                    self.header_block.extend_from_slice(block);
                } else {
                    self.header_block.extend_from_slice(body);
                }
                // Only trailers carry a status, so a status is the end; END_STREAM need not be remembered.
                if flags & END_HEADERS != 0
                    && let Some(status) = self.status()?
                {
                    self.end(stream, status, handler);
                }
            }
            RST_STREAM => {
                let reason = word(body, 0)?;
                self.end(
                    stream,
                    Status { code: 13, message: format!("stream reset, reason {reason}") },
                    handler,
                );
            }
            SETTINGS if flags & ACK == 0 => self.settings(body)?,
            PING if flags & ACK == 0 => {
                frame_header(&mut self.output.bytes, body.len(), PING, ACK, 0);
                self.output.bytes.extend_from_slice(body);
            }
            WINDOW_UPDATE => {
                let increment = i64::from(word(body, 0)? & 0x7fff_ffff);
                if stream == 0 {
                    self.output.send_window += increment;
                } else if let Some(open) = self.output.streams.get_mut(&stream) {
                    open.send_window += increment;
                }
                if !self.output.waiting.is_empty() {
                    self.output.send_waiting();
                }
            }
            GOAWAY => {
                let text = String::from_utf8_lossy(body.get(8..).unwrap_or_default()).into_owned();
                return Err(format!("the server closed the connection: reason {} {text}", word(body, 4)?));
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives the windows back in large steps: half of them is always open.
    fn count_received(&mut self, stream: u32, size: u32) {
        self.received_bytes += size;
        if self.received_bytes >= REFILL_BYTES {
            window_update(&mut self.output.bytes, 0, self.received_bytes);
            self.received_bytes = 0;
        }
        if let Some(open) = self.output.streams.get_mut(&stream) {
            open.received_bytes += size;
            if open.received_bytes >= REFILL_BYTES {
                window_update(&mut self.output.bytes, stream, open.received_bytes);
                open.received_bytes = 0;
            }
        }
    }

    /// Cuts gRPC messages out of the data of a stream. A message that lies in one frame is not copied.
    fn data(&mut self, stream: u32, mut body: &[u8], handler: &mut dyn Handler) -> Result<(), String> {
        let Some(open) = self.output.streams.get_mut(&stream) else { return Ok(()) };
        let token = open.token;
        if !open.partial.is_empty() {
            open.partial.extend_from_slice(body);
            let partial = std::mem::take(&mut open.partial);
            let used = messages(&partial, token, &mut self.output, handler)?;
            if let Some(open) = self.output.streams.get_mut(&stream) {
                open.partial = partial;
                open.partial.drain(..used);
            }
            return Ok(());
        }
        body = &body[messages(body, token, &mut self.output, handler)?..];
        if !body.is_empty()
            && let Some(open) = self.output.streams.get_mut(&stream)
        {
            if let Some(size) = message_size(body) {
                open.partial.reserve(size + GRPC_PREFIX_BYTES);
            }
            open.partial.extend_from_slice(body);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, status: Status, handler: &mut dyn Handler) {
        if let Some(mut closed) = self.output.streams.remove(&stream) {
            closed.partial.clear();
            self.output.spare.push(closed.partial);
            handler.end(closed.token, status, &mut self.output);
        }
    }

    /// The status in the header block, if it is that of trailers. A failed HTTP status is turned into one.
    fn status(&mut self) -> Result<Option<Status>, String> {
        if let Some(known) = self.known_blocks.get(&self.header_block) {
            return Ok(known.clone());
        }
        let fields = loona_hpack::Decoder::new()
            .decode(&self.header_block)
            .map_err(|error| format!("cannot read a header block: {error:?}"))?;
        let field = |name: &[u8]| {
            fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let status = match (field(b"grpc-status"), field(b":status")) {
            (Some(code), _) => Some(Status {
                code: code.parse().map_err(|_| format!("grpc-status is not a number: {code}"))?,
                message: field(b"grpc-message").unwrap_or_default(),
            }),
            (None, Some(http)) if http != "200" => {
                Some(Status { code: 14, message: format!("HTTP status {http}") })
            }
            _ => None,
        };
        if self.known_blocks.len() < MAX_REMEMBERED_BLOCKS {
            self.known_blocks.insert(self.header_block.clone(), status.clone());
        }
        Ok(status)
    }

    fn settings(&mut self, body: &[u8]) -> Result<(), String> {
        for setting in body.chunks_exact(6) {
            let value = word(setting, 2)?;
            match u16::from_be_bytes([setting[0], setting[1]]) {
                INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.output.peer_window;
                    self.output.peer_window += change;
                    self.output.streams.values_mut().for_each(|open| open.send_window += change);
                }
                MAX_FRAME_SIZE => self.output.peer_frame_bytes = value as usize,
                HEADER_TABLE_SIZE if value < 4_096 => {
                    return Err(format!("the server's header table is too small: {value}"));
                }
                _ => {}
            }
        }
        frame_header(&mut self.output.bytes, 0, SETTINGS, ACK, 0);
        self.output.send_waiting();
        Ok(())
    }
}

/// Hands over all whole messages in `bytes`; returns how many bytes they were.
fn messages(
    bytes: &[u8],
    token: usize,
    output: &mut Output,
    handler: &mut dyn Handler,
) -> Result<usize, String> {
    let mut at = 0;
    while let Some(size) = message_size(&bytes[at..]) {
        let end = at + GRPC_PREFIX_BYTES + size;
        if bytes.len() < end {
            break;
        }
        if bytes[at] != 0 {
            return Err("the server sent a compressed message".into());
        }
        handler.message(token, &bytes[at + GRPC_PREFIX_BYTES..end], output);
        at = end;
    }
    Ok(at)
}

fn message_size(bytes: &[u8]) -> Option<usize> {
    bytes
        .get(1..GRPC_PREFIX_BYTES)
        .map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize)
}

fn grpc_prefix(bytes: &mut Vec<u8>, size: usize) {
    bytes.push(0);
    bytes.extend_from_slice(&(size as u32).to_be_bytes());
}

fn frame_header(bytes: &mut Vec<u8>, size: usize, kind: u8, flags: u8, stream: u32) {
    bytes.extend_from_slice(&(size as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
}

fn window_update(bytes: &mut Vec<u8>, stream: u32, increment: u32) {
    frame_header(bytes, 4, WINDOW_UPDATE, 0, stream);
    bytes.extend_from_slice(&increment.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> Result<u32, String> {
    let four = bytes.get(at..at + 4).ok_or("a cut frame")?;
    Ok(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

fn unpadded(flags: u8, body: &[u8]) -> Result<&[u8], String> {
    if flags & PADDED == 0 {
        return Ok(body);
    }
    let padding = usize::from(*body.first().ok_or("a cut frame")?);
    body.get(1..body.len() - padding).ok_or_else(|| "more padding than frame".into())
}

/// A literal field with incremental indexing: `name` is an index of the static table, or a name of its own.
fn insert_field(block: &mut Vec<u8>, index: u8, name: Option<&str>, value: &str) {
    block.push(0x40 | index);
    for text in name.into_iter().chain([value]) {
        assert!(text.len() < 127, "no header of a load generator is that long");
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Record {
        messages: Vec<(usize, Vec<u8>)>,
        ends: Vec<(usize, Status)>,
    }

    impl Handler for Record {
        fn message(&mut self, token: usize, body: &[u8], _: &mut Output) {
            self.messages.push((token, body.to_vec()));
        }

        fn end(&mut self, token: usize, status: Status, _: &mut Output) {
            self.ends.push((token, status));
        }
    }

    fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame_header(&mut bytes, body.len(), kind, flags, stream);
        bytes.extend_from_slice(body);
        bytes
    }

    fn grpc(message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        grpc_prefix(&mut bytes, message.len());
        bytes.extend_from_slice(message);
        bytes
    }

    fn trailers(status: &str) -> Vec<u8> {
        let mut block = Vec::new();
        insert_field(&mut block, 0, Some("grpc-status"), status);
        block
    }

    fn connection() -> Connection {
        let mut connection = Connection::new("host");
        connection.output.bytes.clear();
        connection
    }

    fn kinds(bytes: &[u8]) -> Vec<(u8, u32, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let size = u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]) as usize;
            found.push((bytes[at + 3], word(bytes, at + 5).unwrap(), size));
            at += 9 + size;
        }
        found
    }

    #[test]
    fn an_answer_is_put_together_from_any_pieces() {
        let mut answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
        answer.extend(frame(DATA, 0, 1, &grpc(b"first")));
        let long = grpc(b"the second comes in two frames");
        answer.extend(frame(DATA, 0, 1, &long[..7]));
        answer.extend(frame(DATA, PADDED, 1, &[&[2][..], &long[7..], &[0, 0]].concat()));
        answer.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers("0")));
        for size in 1..answer.len() {
            let (mut connection, mut record) = (connection(), Record::default());
            connection.output.call(7, "/a", b"question", true);
            answer.chunks(size).for_each(|piece| connection.receive(piece, &mut record).unwrap());
            let expected = vec![(7, b"first".to_vec()), (7, b"the second comes in two frames".to_vec())];
            assert_eq!(record.messages, expected, "pieces of {size} bytes");
            assert_eq!(record.ends, vec![(7, Status::default())]);
        }
    }

    #[test]
    fn errors_are_told_once() {
        let (mut connection, mut record) = (connection(), Record::default());
        connection.output.call(1, "/a", b"", true);
        connection.output.call(2, "/a", b"", true);
        connection.output.call(3, "/a", b"", true);
        connection
            .receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers("8")), &mut record)
            .unwrap();
        connection.receive(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 1]), &mut record).unwrap();
        connection.receive(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]), &mut record).unwrap();
        connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 5, &[0x8d]), &mut record).unwrap();
        let codes: Vec<_> = record.ends.iter().map(|(token, status)| (*token, status.code)).collect();
        assert_eq!(codes, vec![(1, 8), (2, 13), (3, 14)]);
        let goaway = frame(GOAWAY, 0, 0, &[&[0, 0, 0, 0, 0, 0, 0, 11][..], b"too_many_pings"].concat());
        assert!(connection.receive(&goaway, &mut record).unwrap_err().contains("too_many_pings"));
    }

    #[test]
    fn the_servers_windows_are_respected() {
        let (mut connection, mut record) = (connection(), Record::default());
        connection.output.call(1, "/a", &[1; 50_000], true);
        connection.output.call(2, "/a", &[2; 50_000], true);
        let sent = |bytes: &[u8]| -> usize {
            kinds(bytes).iter().filter(|(kind, ..)| *kind == DATA).map(|(.., size)| size).sum()
        };
        assert_eq!(sent(&connection.output.bytes), 65_535);
        assert!(kinds(&connection.output.bytes).iter().all(|(.., size)| *size <= 16_384));
        connection.receive(&frame(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes()), &mut record).unwrap();
        assert_eq!(sent(&connection.output.bytes), 100_010);
    }

    #[test]
    fn header_blocks_are_read_back_by_a_decoder() {
        let mut output = connection().output;
        let mut decoder = loona_hpack::Decoder::new();
        for path in ["/a", "/a", "/b", "/a", "/b", "/c", "/a"] {
            output.encode_headers(path);
            let fields = decoder.decode(&output.block).unwrap();
            let value = |name: &[u8]| fields.iter().find(|(key, _)| key == name).unwrap().1.clone();
            assert!(
                fields[..4].iter().all(|(key, _)| key[0] == b':') && fields.len() == 7,
                "pseudo-headers first"
            );
            assert_eq!(value(b":path"), path.as_bytes());
            assert_eq!(value(b":authority"), b"host");
            assert_eq!(value(b"te"), b"trailers");
            assert_eq!(value(b"content-type"), b"application/grpc");
        }
        output.encode_headers("/a");
        assert_eq!(output.block.len(), 7);
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let (mut connection, mut record) = (connection(), Record::default());
        connection.receive(&frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0x80, 0]), &mut record).unwrap();
        connection.receive(&frame(PING, 0, 0, &[7; 8]), &mut record).unwrap();
        assert_eq!(kinds(&connection.output.bytes), vec![(SETTINGS, 0, 0), (PING, 0, 8)]);
        assert_eq!(connection.output.peer_frame_bytes, 32_768);
    }
}

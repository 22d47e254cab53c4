//! A look at the HTTP/2 frames that a client sends, as they pass from the socket to `h2`.
//!
//! `h2` wakes a task for a whole connection and has no hook for PING. The scanner reads the nine bytes before each
//! frame and tells which streams something came for, so that a connection looks only at those; it counts pings;
//! and it knows when a block of headers has been begun but not ended. It judges nothing: that is for `h2`.

use crate::peers;

/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER_BYTES: usize = 9;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const PING: u8 = 6;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

const FLAG_ACK: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;

/// What has been seen since it was last taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Streams, other than new ones, for which a frame came; neighbours are not repeated.
    pub streams: Vec<u32>,
    /// PING frames that ask for an answer.
    pub pings: u32,
}

/// See the module. Starts at the first byte of the preface.
#[derive(Debug)]
pub struct FrameScanner {
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes of payload, or of the preface, still to pass.
    skip: usize,
    newest_stream: u32,
    /// The frame that is passing ends a block of headers.
    ends_headers: bool,
    /// The stream that the frame that is passing is for, if it is to be told.
    touches: Option<u32>,
    in_headers: bool,
    pub seen: Seen,
}

impl Default for FrameScanner {
    fn default() -> Self {
        FrameScanner {
            header: [0; HEADER_BYTES],
            have: 0,
            skip: PREFACE.len(),
            newest_stream: 0,
            ends_headers: false,
            touches: None,
            in_headers: false,
            seen: Seen::default(),
        }
    }
}

impl FrameScanner {
    /// Looks at the next bytes of the connection.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len());
                self.skip -= step;
                bytes = &bytes[step..];
                self.end_frame();
                continue;
            }
            let step = (HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEADER_BYTES {
                self.have = 0;
                self.begin_frame();
                self.end_frame();
            }
        }
    }

    /// True while a block of headers has begun and not ended: the client owes the rest.
    pub fn in_headers(&self) -> bool {
        self.in_headers
    }

    /// The highest number of a stream that the client has opened.
    pub fn newest_stream(&self) -> u32 {
        self.newest_stream
    }

    /// Once the last byte has passed, and not before, `h2` acts on a frame, and there is something to look at.
    fn end_frame(&mut self) {
        if self.skip > 0 {
            return;
        }
        if std::mem::take(&mut self.ends_headers) {
            self.in_headers = false;
        }
        if let Some(stream) = self.touches.take()
            && self.seen.streams.last() != Some(&stream)
        {
            self.seen.streams.push(stream);
        }
    }

    fn begin_frame(&mut self) {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        match kind {
            kind::HEADERS | kind::CONTINUATION => {
                self.in_headers = true;
                self.ends_headers = flags & FLAG_END_HEADERS != 0;
                if stream > self.newest_stream {
                    self.newest_stream = stream;
                } else {
                    self.touches = Some(stream);
                }
            }
            kind::DATA | kind::RST_STREAM => self.touches = Some(stream),
            kind::WINDOW_UPDATE if stream != 0 => self.touches = Some(stream),
            kind::PING if flags & FLAG_ACK == 0 => self.seen.pings += 1,
            _ => {}
        }
    }
}

/// A GOAWAY frame (RFC 9113, section 6.8).
pub fn goaway(last_stream: u32, code: u32, debug: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + 8 + debug.len());
    frame.extend_from_slice(&(8 + debug.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(debug);
    frame
}

/// Which protocol the first bytes of a connection speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// A request of another member's wire.
    Peer,
    /// More bytes are needed.
    Unknown,
}

/// Tells HTTP/2 by its preface and members by what they ask for; whatever else it is, HTTP/1.1 answers it.
pub fn protocol_of(first: &[u8]) -> Protocol {
    let known = [
        (&PREFACE[..], Protocol::Http2),
        (peers::REQUESTS[0], Protocol::Peer),
        (peers::REQUESTS[1], Protocol::Peer),
    ];
    for (beginning, protocol) in known {
        let length = first.len().min(beginning.len());
        if first[..length] == beginning[..length] {
            return if length == beginning.len() { protocol } else { Protocol::Unknown };
        }
    }
    Protocol::Http1
}

/// Looks at the frames that this side sends, for one thing: whether headers or data are among them.
#[derive(Default)]
pub struct SentScanner {
    header: [u8; HEADER_BYTES],
    have: usize,
    skip: usize,
    payload: bool,
}

impl SentScanner {
    /// Looks at the next bytes that are sent.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let step = (HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEADER_BYTES {
                self.have = 0;
                let [l0, l1, l2, kind, ..] = self.header;
                self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
                self.payload |= matches!(kind, kind::HEADERS | kind::CONTINUATION | kind::DATA);
            }
        }
    }

    /// True when headers or data have been sent since this was last asked.
    pub fn take_payload(&mut self) -> bool {
        std::mem::take(&mut self.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn conversation() -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(kind::HEADERS, FLAG_END_HEADERS, 1, b"abc"));
        bytes.extend(frame(kind::DATA, 0, 1, b"hello"));
        bytes.extend(frame(kind::DATA, 1, 1, b""));
        bytes.extend(frame(kind::PING, 0, 0, b"12345678"));
        bytes.extend(frame(kind::PING, FLAG_ACK, 0, b"12345678"));
        bytes.extend(frame(kind::HEADERS, FLAG_END_HEADERS, 3, b"abc"));
        bytes.extend(frame(kind::WINDOW_UPDATE, 0, 0, b"1234"));
        bytes.extend(frame(kind::WINDOW_UPDATE, 0, 3, b"1234"));
        bytes.extend(frame(kind::RST_STREAM, 0, 3, b"1234"));
        bytes
    }

    #[test]
    fn any_cut_of_the_bytes_is_seen_alike() {
        let bytes = conversation();
        for size in 1..=bytes.len() {
            let mut scanner = FrameScanner::default();
            bytes.chunks(size).for_each(|chunk| scanner.scan(chunk));
            assert_eq!(scanner.seen, Seen { streams: vec![1, 3], pings: 1 }, "cut at {size}");
            assert!(!scanner.in_headers());
            assert_eq!(scanner.newest_stream(), 3);
        }
    }

    #[test]
    fn a_stream_is_told_when_its_frame_is_whole() {
        let data = frame(kind::DATA, 1, 1, b"hello");
        for cut in 0..data.len() {
            let mut scanner = FrameScanner::default();
            scanner.scan(PREFACE);
            scanner.scan(&data[..cut]);
            assert_eq!(scanner.seen.streams, [], "cut at {cut}");
            scanner.scan(&data[cut..]);
            assert_eq!(scanner.seen.streams, [1], "cut at {cut}");
        }
    }

    #[test]
    fn headers_are_open_until_their_last_byte() {
        let mut scanner = FrameScanner::default();
        scanner.scan(PREFACE);
        let headers = frame(kind::HEADERS, 0, 1, b"abc");
        scanner.scan(&headers[..HEADER_BYTES]);
        assert!(scanner.in_headers());
        scanner.scan(&headers[HEADER_BYTES..]);
        assert!(scanner.in_headers());
        let continuation = frame(kind::CONTINUATION, FLAG_END_HEADERS, 1, b"de");
        scanner.scan(&continuation[..HEADER_BYTES + 1]);
        assert!(scanner.in_headers());
        scanner.scan(&continuation[HEADER_BYTES + 1..]);
        assert!(!scanner.in_headers());
        scanner.scan(&frame(kind::HEADERS, FLAG_END_HEADERS, 3, b""));
        assert!(!scanner.in_headers());
    }

    #[test]
    fn the_preface_tells_the_protocol() {
        assert_eq!(protocol_of(b""), Protocol::Unknown);
        assert_eq!(protocol_of(b"P"), Protocol::Unknown);
        assert_eq!(protocol_of(b"POST / HTTP/1.1"), Protocol::Http1);
        assert_eq!(protocol_of(&PREFACE[..23]), Protocol::Unknown);
        assert_eq!(protocol_of(PREFACE), Protocol::Http2);
        assert_eq!(protocol_of(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"), Protocol::Http1);
        assert_eq!(protocol_of(b"\x16\x03\x01"), Protocol::Http1);
    }

    #[test]
    fn goaway_is_a_frame_of_its_own() {
        let frame = goaway(5, 11, b"too_many_pings");
        assert_eq!(frame[..9], [0, 0, 22, 7, 0, 0, 0, 0, 0]);
        assert_eq!(frame[9..17], [0, 0, 0, 5, 0, 0, 0, 11]);
        assert_eq!(&frame[17..], b"too_many_pings");
    }

    #[test]
    fn what_is_sent_is_payload_or_not_wherever_it_is_cut() {
        let frame = |kind: u8, length: u8| {
            let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
            frame.resize(HEADER_BYTES + usize::from(length), kind::DATA);
            frame
        };
        let control = [frame(kind::PING, 8), frame(4, 0), frame(8, 4)].concat();
        let answer = [frame(kind::HEADERS, 3), frame(kind::DATA, 200), frame(kind::HEADERS, 1)].concat();
        for size in 1..20 {
            let mut scanner = SentScanner::default();
            control.chunks(size).for_each(|chunk| scanner.scan(chunk));
            assert!(!scanner.take_payload(), "cut at {size}");
            answer.chunks(size).for_each(|chunk| scanner.scan(chunk));
            assert!(scanner.take_payload(), "cut at {size}");
            control.chunks(size).for_each(|chunk| scanner.scan(chunk));
            assert!(!scanner.take_payload(), "cut at {size}");
        }
    }
}

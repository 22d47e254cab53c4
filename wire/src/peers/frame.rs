//! Frames as they lie on the connection of a link: one byte of kind, four of length (big-endian), the payload.
//!
//! DATA goes from the side that connected to the other; of the rest, PING, which the other side answers with a PONG
//! of the same eight bytes, measures the round trip. A PONG of zero bits says only that its sender lives (it does
//! not read while its inbox is full). BYE is the last frame of a side that ends the link: a status and a text.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before each payload.
pub const HEADER_BYTES: usize = 5;

/// The kinds of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const PING: u8 = 1;
    pub const PONG: u8 = 2;
    pub const BYE: u8 = 3;
}

const STAMP_BYTES: usize = 8;
const MAX_BYE_BYTES: usize = 4096;

/// The header of a frame.
pub fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [kind, a, b, c, d]
}

/// What a BYE carries.
pub fn bye(status: u16, text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_BYE_BYTES - 2);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = status.to_be_bytes().to_vec();
    payload.extend_from_slice(&text.as_bytes()[..end]);
    payload
}

/// A frame that has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Data(Bytes),
    Ping(u64),
    Pong(u64),
    Bye { status: u16, text: String },
}

/// Cuts what a connection brings into frames. A frame shares the memory it was read into.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_frame_bytes: usize,
}

impl Decoder {
    /// Memory set aside for one read.
    const READ_BYTES: usize = 262_144;

    /// A decoder that has `buffer` already.
    pub fn new(buffer: BytesMut, max_frame_bytes: usize) -> Self {
        Decoder { buffer, max_frame_bytes }
    }

    /// Where the next bytes are to be read into. Memory grows with what has come, not as a length promises.
    pub fn space(&mut self) -> &mut BytesMut {
        let held = self.buffer.len();
        if self.buffer.capacity() - held < Self::READ_BYTES / 4 {
            self.buffer.reserve(held.max(Self::READ_BYTES));
        }
        &mut self.buffer
    }

    /// Bytes that are not a whole frame yet, or have not been looked at.
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame; the error says what is wrong with the bytes.
    pub fn next(&mut self) -> Result<Option<Received>, String> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let kind = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let (low, high) = match kind {
            kind::DATA => (0, self.max_frame_bytes),
            kind::PING | kind::PONG => (STAMP_BYTES, STAMP_BYTES),
            kind::BYE => (2, MAX_BYE_BYTES),
            other => return Err(format!("a frame of kind {other}: expected 0 to 3")),
        };
        if !(low..=high).contains(&length) {
            return Err(format!("a frame of kind {kind} and {length} bytes: expected {low} to {high} bytes"));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let mut payload = self.buffer.split_to(length).freeze();
        Ok(Some(match kind {
            kind::DATA => Received::Data(payload),
            kind::PING => Received::Ping(payload.get_u64()),
            kind::PONG => Received::Pong(payload.get_u64()),
            _ => {
                let status = payload.get_u16();
                Received::Bye { status, text: String::from_utf8_lossy(&payload).into_owned() }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&header(kind, payload.len()), payload].concat()
    }

    fn conversation() -> Vec<u8> {
        [
            framed(kind::DATA, b""),
            framed(kind::PING, &7u64.to_be_bytes()),
            framed(kind::DATA, &[5; 300]),
            framed(kind::PONG, &0u64.to_be_bytes()),
            framed(kind::BYE, &bye(410, "gone: é")),
        ]
        .concat()
    }

    #[test]
    fn frames_survive_any_cut() {
        let bytes = conversation();
        for cut in 1..=bytes.len() {
            let mut decoder = Decoder::new(BytesMut::new(), 300);
            let mut frames = Vec::new();
            for chunk in bytes.chunks(cut) {
                decoder.space().extend_from_slice(chunk);
                while let Some(frame) = decoder.next().unwrap() {
                    frames.push(frame);
                }
            }
            let expected = [
                Received::Data(Bytes::new()),
                Received::Ping(7),
                Received::Data(Bytes::from(vec![5; 300])),
                Received::Pong(0),
                Received::Bye { status: 410, text: "gone: é".to_owned() },
            ];
            assert_eq!(frames, expected, "cut {cut}");
            assert!(decoder.buffer.is_empty());
        }
    }

    #[test]
    fn wrong_frames_are_named_by_their_header_alone() {
        for (header, words) in [
            (header(kind::DATA, 301), "a frame of kind 0 and 301 bytes: expected 0 to 300 bytes"),
            (header(kind::PING, 7), "a frame of kind 1 and 7 bytes: expected 8 to 8 bytes"),
            (header(kind::BYE, 1), "a frame of kind 3 and 1 bytes: expected 2 to 4096 bytes"),
            (*b"GET /", "a frame of kind 71: expected 0 to 3"),
        ] {
            let mut decoder = Decoder::new(BytesMut::from(&header[..]), 300);
            assert_eq!(decoder.next().unwrap_err(), words);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let payload = bye(400, &"é".repeat(4000));
        assert!(payload.len() <= MAX_BYE_BYTES);
        assert!(std::str::from_utf8(&payload[2..]).is_ok());
    }
}

//! Makes the `:authority` of clients on unix sockets acceptable to `h2`.
//!
//! gRPC clients name a unix socket by its path: etcdctl sends `/run/etcd.sock` as the authority, grpcio
//! `%2Frun%2Fetcd.sock`. Servers written in Go take it; `h2` resets the stream, as an authority holds neither '/' nor
//! '%'. So on unix sockets, and only there, these become '-' before `h2` sees them. The replacement has as many bits
//! in HPACK's Huffman code as what it replaces (RFC 7541, appendix B): no length changes, nor does the size of an
//! entry of the dynamic table, so client and server agree on the table as before.

use bytes::{Buf, BytesMut};

use crate::frames::PREFACE;

const HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// The place of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
/// A larger frame is refused by `h2` anyway.
const MAX_FRAME_BYTES: usize = 16_384;

/// Holds a HEADERS frame back until it is whole; all else passes at once.
#[derive(Debug)]
pub struct AuthorityFilter {
    bytes: BytesMut,
    /// Of `bytes`, how many may pass.
    ready: usize,
    /// Bytes to come that pass unseen.
    skip: usize,
}

impl Default for AuthorityFilter {
    fn default() -> Self {
        AuthorityFilter { bytes: BytesMut::new(), ready: 0, skip: PREFACE.len() }
    }
}

impl AuthorityFilter {
    /// Takes what was read from the socket.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        loop {
            let passing = self.skip.min(self.bytes.len() - self.ready);
            self.ready += passing;
            self.skip -= passing;
            let rest = &mut self.bytes[self.ready..];
            let Some(header) = rest.first_chunk::<HEADER_BYTES>() else { return };
            let [l0, l1, l2, kind, flags, ..] = *header;
            let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
            let whole = HEADER_BYTES + length;
            if kind != HEADERS || length > MAX_FRAME_BYTES {
                self.skip = whole;
            } else if rest.len() < whole {
                return;
            } else {
                repair_headers(&mut rest[HEADER_BYTES..whole], flags);
                self.ready += whole;
            }
        }
    }

    /// Gives what may pass, at most `max` bytes.
    pub fn take(&mut self, max: usize, give: impl FnOnce(&[u8])) {
        let count = self.ready.min(max);
        give(&self.bytes[..count]);
        self.bytes.advance(count);
        self.ready -= count;
    }

    /// True when something may pass.
    pub fn is_ready(&self) -> bool {
        self.ready > 0
    }

    /// True while the beginning of a frame is held back.
    pub fn holds_back(&self) -> bool {
        self.bytes.len() > self.ready
    }
}

/// Finds the authority in the payload of a HEADERS frame. What cannot be read is left for `h2` to judge.
fn repair_headers(payload: &mut [u8], flags: u8) {
    let mut place = 0;
    if flags & FLAG_PADDED != 0 {
        place += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        place += 5;
    }
    while let Some(field) = next_field(payload, &mut place) {
        if let Some((value, huffman)) = field {
            if huffman {
                repair_huffman(&mut payload[value]);
            } else {
                repair_plain(&mut payload[value]);
            }
            return;
        }
    }
}

type Value = (std::ops::Range<usize>, bool);

/// Steps over one field of a header block (RFC 7541, section 6); the place of its value when it is the authority's.
fn next_field(block: &[u8], place: &mut usize) -> Option<Option<Value>> {
    let first = *block.get(*place)?;
    let prefix_bits = match first {
        0x80.. => {
            integer(block, place, 7)?;
            return Some(None);
        }
        0x40.. => 6,
        0x20.. => {
            integer(block, place, 5)?;
            return Some(None);
        }
        _ => 4,
    };
    let name = integer(block, place, prefix_bits)?;
    let mut is_authority = name == AUTHORITY;
    if name == 0 {
        let (name, _) = string(block, place)?;
        is_authority = &block[name] == b":authority";
    }
    let value = string(block, place)?;
    Some(is_authority.then_some(value))
}

fn integer(block: &[u8], place: &mut usize, prefix_bits: u32) -> Option<usize> {
    let mask = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*block.get(*place)?) & mask;
    *place += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(*place)?);
        *place += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(block: &[u8], place: &mut usize) -> Option<Value> {
    let huffman = block.get(*place)? & 0x80 != 0;
    let length = integer(block, place, 7)?;
    let begin = *place;
    *place = begin.checked_add(length).filter(|end| *end <= block.len())?;
    Some((begin..*place, huffman))
}

fn repair_plain(value: &mut [u8]) {
    for byte in value {
        if matches!(*byte, b'/' | b'%' | b' ' | b'=') {
            *byte = b'-';
        }
    }
}

/// The Huffman code is canonical, and all characters of a usual path have five to eight bits, so the length of a
/// code follows from its first bits. The characters to replace have six, as '-' has.
fn repair_huffman(value: &mut [u8]) {
    const DASH: u16 = 0x16;
    const REPLACED: [u16; 4] = [0x14, 0x15, 0x18, 0x20]; // ' ', '%', '/', '='
    let bits = value.len() * 8;
    let mut at = 0;
    while bits - at >= 5 {
        let window = window_of(value, at);
        let length = match window {
            0..0x50 => 5,
            0x50..0xb8 => 6,
            0xb8..0xf8 => 7,
            0xf8..0xfe => 8,
            // A rarer character, or the padding.
            _ => return,
        };
        if length == 6 && REPLACED.contains(&(window >> 2)) && at + 6 <= bits {
            for bit in 0..6 {
                let mask = 0x80 >> ((at + bit) % 8);
                let byte = &mut value[(at + bit) / 8];
                *byte = if DASH >> (5 - bit) & 1 == 1 { *byte | mask } else { *byte & !mask };
            }
        }
        at += length;
        if at > bits {
            return;
        }
    }
}

/// Eight bits from the bit `at` on, filled with ones as the end of a string is.
fn window_of(value: &[u8], at: usize) -> u16 {
    let two = u16::from_be_bytes([value[at / 8], value.get(at / 8 + 1).copied().unwrap_or(0xff)]);
    (two >> (8 - at % 8)) & 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    /// ":method: POST", ":path: /a/b", then the authority in one of HPACK's forms.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = b"\x83\x44\x04/a/b".to_vec();
        block.extend(authority);
        block.extend(b"\x00\x01x\x03/%/");
        block
    }

    fn filtered(bytes: &[u8], cut: usize) -> Vec<u8> {
        let mut filter = AuthorityFilter::default();
        let mut out = Vec::new();
        for chunk in bytes.chunks(cut) {
            filter.put(chunk);
            while filter.is_ready() {
                filter.take(7, |bytes| out.extend_from_slice(bytes));
            }
        }
        out
    }

    #[test]
    fn only_the_authority_is_changed_whatever_the_cut() {
        let conversation = |authority: &[u8]| {
            let mut bytes = PREFACE.to_vec();
            bytes.extend(frame(4, 0, b"\x01\x01/run"));
            bytes.extend(frame(HEADERS, 4, &block(authority)));
            bytes.extend(frame(0, 1, b"\x01\x04/run"));
            bytes
        };
        for (authority, repaired) in [
            (&b"\x41\x06/run/x"[..], &b"\x41\x06-run-x"[..]),
            (b"\x01\x06%2Frun", b"\x01\x06-2Frun"),
            (b"\x11\x04a.=b", b"\x11\x04a.-b"),
            (b"\x00\x0a:authority\x02/a", b"\x00\x0a:authority\x02-a"),
            (b"\x41\x0elocalhost:2379", b"\x41\x0elocalhost:2379"),
        ] {
            let bytes = conversation(authority);
            for cut in 1..bytes.len() {
                assert_eq!(filtered(&bytes, cut), conversation(repaired), "cut at {cut}");
            }
        }
    }

    #[test]
    fn huffman_strings_keep_their_length() {
        // "/tmp/w.sock" and "-tmp-w.sock", as the Huffman code of RFC 7541 has them.
        let encode = |text: &str| {
            let mut bits = String::new();
            for character in text.chars() {
                bits.push_str(match character {
                    '/' => "011000",
                    '-' => "010110",
                    't' => "01001",
                    'm' => "101001",
                    'p' => "101011",
                    'w' => "1111000",
                    '.' => "010111",
                    's' => "01000",
                    'o' => "00111",
                    'c' => "00100",
                    'k' => "1110101",
                    _ => unreachable!(),
                });
            }
            while !bits.len().is_multiple_of(8) {
                bits.push('1');
            }
            let bytes = bits.as_bytes().chunks(8);
            bytes
                .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
                .collect::<Vec<u8>>()
        };
        for (path, repaired) in [("/tmp/w.sock", "-tmp-w.sock"), ("sock", "sock"), ("w/", "w-"), ("//", "--")]
        {
            let mut value = encode(path);
            repair_huffman(&mut value);
            assert_eq!(value, encode(repaired), "{path}");
        }
    }

    #[test]
    fn any_bytes_are_borne() {
        for first in 0..=255u8 {
            for second in [0, 1, 0x7f, 0x80, 0xff] {
                let mut payload = [first, second, 0xff, 0x81, 0x41, first, second, 0x7f];
                repair_headers(&mut payload, first & 0x28);
                repair_huffman(&mut [first, second, first]);
            }
        }
    }

    #[test]
    fn a_frame_held_back_is_known() {
        let mut filter = AuthorityFilter::default();
        filter.put(PREFACE);
        assert!(!filter.holds_back());
        filter.put(&frame(HEADERS, 4, b"\x83\x86")[..10]);
        assert!(filter.holds_back());
    }
}

//! Makes the `:authority` of some clients acceptable to `h2`.
//!
//! gRPC clients name a unix socket by its path: etcdctl sends `/run/etcd.sock` as the authority, grpcio
//! `%2Frun%2Fetcd.sock`. And etcdctl 3.4 sends the whole URL, `http://host:port`, to members that it has learnt of from
//! another (`--cluster`). Servers written in Go take all of these; `h2` resets the stream, as an authority holds no '/'
//! and no '%', and one ':' at most. So '/' and '%' become '-' before `h2` sees them, and a ':' before a '/' becomes
//! 'x'. The replacement has as many bits in HPACK's Huffman code as what it replaces (RFC 7541, appendix B): no length
//! changes, nor does the size of an entry of the dynamic table, so client and server agree on the table as before, and
//! a later reference to the entry finds the repaired name.
//!
//! A client is recognised by the first request of its connection: where that is in order, all that follows passes
//! unseen, and the filter is not needed any more.

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
    client: Client,
}

/// What is known of the one who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// It has made no request yet.
    Unknown,
    /// Its requests are looked at.
    Repaired,
    /// Its requests are left alone.
    Sound,
}

impl Default for AuthorityFilter {
    fn default() -> Self {
        AuthorityFilter { bytes: BytesMut::new(), ready: 0, skip: PREFACE.len(), client: Client::Unknown }
    }
}

impl AuthorityFilter {
    /// Takes what was read from the socket.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while self.client != Client::Sound {
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
                let repaired = repair_headers(&mut rest[HEADER_BYTES..whole], flags);
                self.ready += whole;
                if self.client == Client::Unknown {
                    self.client = if repaired { Client::Repaired } else { Client::Sound };
                }
            }
        }
        self.ready = self.bytes.len();
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

    /// True when everything has passed and all that is still to come may pass, too.
    pub fn is_over(&self) -> bool {
        self.client == Client::Sound && self.bytes.is_empty()
    }

    /// True while the beginning of a frame is held back.
    pub fn holds_back(&self) -> bool {
        self.bytes.len() > self.ready
    }
}

/// Finds the authority in the payload of a HEADERS frame; whether it had to be changed. What cannot be read is left
/// for `h2` to judge.
fn repair_headers(payload: &mut [u8], flags: u8) -> bool {
    let mut place = 0;
    if flags & FLAG_PADDED != 0 {
        place += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        place += 5;
    }
    while let Some(field) = next_field(payload, &mut place) {
        if let Some((value, huffman)) = field {
            let value = &mut payload[value];
            return if huffman { repair_huffman(value) } else { repair_plain(value) };
        }
    }
    false
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

fn repair_plain(value: &mut [u8]) -> bool {
    let mut repaired = false;
    for at in 0..value.len() {
        if matches!(value[at], b'/' | b'%' | b' ' | b'=') {
            if value[at] == b'/' && at > 0 && value[at - 1] == b':' {
                value[at - 1] = b'x';
            }
            value[at] = b'-';
            repaired = true;
        }
    }
    repaired
}

/// The Huffman code is canonical, and all characters of a usual path or URL have five to eight bits, so the length of
/// a code follows from its first bits. The characters to replace have six, as '-' has; ':' has seven, as 'x' has.
fn repair_huffman(value: &mut [u8]) -> bool {
    const DASH: u16 = 0x16;
    const SLASH: u16 = 0x18;
    const REPLACED: [u16; 4] = [0x14, 0x15, SLASH, 0x20]; // ' ', '%', '/', '='
    const COLON: u16 = 0x5c;
    const X: u16 = 0x79;
    let bits = value.len() * 8;
    let mut at = 0;
    let mut repaired = false;
    let mut after_colon = false;
    while bits - at >= 5 {
        let window = window_of(value, at);
        let length = match window {
            0..0x50 => 5,
            0x50..0xb8 => 6,
            0xb8..0xf8 => 7,
            0xf8..0xfe => 8,
            // A rarer character, or the padding.
            _ => break,
        };
        let next = at + length;
        if next > bits {
            break;
        }
        let code = window >> (8 - length);
        if length == 6 && REPLACED.contains(&code) {
            if after_colon && code == SLASH {
                write_bits(value, at - 7, 7, X);
            }
            write_bits(value, at, 6, DASH);
            repaired = true;
        }
        after_colon = length == 7 && code == COLON;
        at = next;
    }
    repaired
}

/// Puts the lower `count` bits of `code` in the place of those from the bit `at` on.
fn write_bits(value: &mut [u8], at: usize, count: usize, code: u16) {
    for bit in 0..count {
        let mask = 0x80 >> ((at + bit) % 8);
        let byte = &mut value[(at + bit) / 8];
        *byte = if code >> (count - 1 - bit) & 1 == 1 { *byte | mask } else { *byte & !mask };
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
            (b"\x41\x0ahttp://a:1", b"\x41\x0ahttpx--a:1"),
            (b"\x41\x0chttp://[::1]", b"\x41\x0chttpx--[::1]"),
            (b"\x41\x02:a", b"\x41\x02:a"),
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
                    'h' => "100111",
                    'x' => "1111001",
                    ':' => "1011100",
                    '1' => "00001",
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
        for (path, repaired) in [
            ("/tmp/w.sock", "-tmp-w.sock"),
            ("sock", "sock"),
            ("w/", "w-"),
            ("//", "--"),
            ("http://co:11", "httpx--co:11"),
            (":/", "x-"),
            (":t/", ":t-"),
            ("co:1", "co:1"),
        ] {
            let mut value = encode(path);
            assert_eq!(repair_huffman(&mut value), path != repaired);
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

    /// What etcdctl 3.4.23 sends for `endpoint status --cluster` to a member whose URL is "http://127.0.0.1:16311": its
    /// preface, its settings, a request and an empty message.
    const ETCDCTL: &str = concat!(
        "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a000000040000000000000000040100000000",
        "0000770104000000018386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f",
        "41909d29aee30c044eae05c0b86e05c6421f5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb2ca",
        "ecff40027465864d833505b11f40899acac8b24d494f6a7f860befbed36edb408d25062d495875996ee5",
        "b1063d5f03332e340000050001000000010000000000",
    );
    /// "http://127.0.0.1:16311" in Huffman's code, and "httpx--127.0.0.1:16311".
    const URL: &str = "9d29aee30c044eae05c0b86e05c6421f";
    const REPAIRED_URL: &str = "9d29afcacb044eae05c0b86e05c6421f";

    fn unhex(text: &str) -> Vec<u8> {
        let pairs = text.as_bytes().chunks(2);
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn etcdctls_own_bytes_are_repaired() {
        let captured = unhex(ETCDCTL);
        let repaired = unhex(&ETCDCTL.replace(URL, REPAIRED_URL));
        assert_ne!(captured, repaired);
        for cut in 1..captured.len() {
            assert_eq!(filtered(&captured, cut), repaired, "cut at {cut}");
        }
    }

    /// The authorities of the first requests that `h2` hands over, or the reason for which it refuses to go on.
    fn seen_by_h2(conversation: &[u8], requests: usize) -> Vec<Result<String, Option<h2::Reason>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            tokio::io::AsyncWriteExt::write_all(&mut client, conversation).await.unwrap();
            let mut connection = h2::server::handshake(server).await.unwrap();
            let mut seen = Vec::new();
            for _ in 0..requests {
                let request = connection.accept().await.unwrap();
                let authority = request.map(|(request, _)| request.uri().authority().unwrap().to_string());
                seen.push(authority.map_err(|error| error.reason()));
            }
            seen
        })
    }

    #[test]
    fn h2_takes_what_was_repaired_and_the_table_stays_one() {
        // The second request names its authority by the entry that the first has made (after which came five of its
        // nine fields, so index 62 + 5); the third spells it out again, and the fourth names that.
        let mut conversation = unhex(ETCDCTL);
        let mut add = |stream: u8, block: &[u8]| {
            let mut bytes = frame(HEADERS, 5, block);
            bytes[8] = stream;
            conversation.extend(bytes);
        };
        let spelt_out = [b"\x41\x90", &unhex(URL)[..]].concat();
        add(3, &[b"\x83\x86\x84", &[0x80 | 67][..]].concat());
        add(5, &[b"\x83\x86\x84", &spelt_out[..]].concat());
        add(7, b"\x83\x86\x84\xbe");
        let name = Ok("httpx--127.0.0.1:16311".to_owned());
        let seen = seen_by_h2(&filtered(&conversation, 50), 4);
        assert_eq!(seen, [name.clone(), name.clone(), name.clone(), name]);
    }

    #[test]
    fn who_is_sound_is_left_alone_at_once() {
        let mut filter = AuthorityFilter::default();
        filter.put(PREFACE);
        filter.put(&frame(4, 0, b""));
        assert!(!filter.is_over());
        let mut sound = frame(HEADERS, 4, &block(b"\x41\x01a"));
        sound.extend(frame(HEADERS, 4, &block(b"\x41\x01/")));
        // The beginning of another frame is not held back any more, either.
        sound.extend(&frame(HEADERS, 4, &block(b"\x41\x01/"))[..12]);
        filter.put(&sound);
        assert!(filter.is_ready() && !filter.holds_back());
        let mut passed = Vec::new();
        filter.take(usize::MAX, |bytes| passed.extend_from_slice(bytes));
        assert_eq!(passed[PREFACE.len() + HEADER_BYTES..], sound);
        assert!(filter.is_over());
    }

    #[test]
    fn who_was_repaired_is_looked_at_to_the_end() {
        let request = frame(HEADERS, 4, &block(b"\x41\x01/"));
        let sound = frame(HEADERS, 4, &block(b"\x41\x01a"));
        let bytes = [PREFACE, &request[..], &sound[..], &request[..]].concat();
        let repaired = frame(HEADERS, 4, &block(b"\x41\x01-"));
        let expected = [PREFACE, &repaired[..], &sound[..], &repaired[..]].concat();
        for cut in 1..bytes.len() {
            assert_eq!(filtered(&bytes, cut), expected, "cut at {cut}");
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

//! The gRPC protocol over HTTP/2, as far as it needs no socket: message framing, time-outs, status, compression.
//!
//! The words of every status are grpc-go's, which clients of etcd know
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>; grpc-go: rpc_util.go, http_util.go).

use std::io::{Read, Write};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Bytes before each message: one flag and a length of four.
pub const PREFIX_BYTES: usize = 5;

/// The numbers of gRPC statuses that the wire itself gives.
pub mod code {
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub text: String,
}

impl Status {
    /// A status of this code and text.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Status { code, text: text.into() }
    }

    /// The status as trailers.
    pub fn write(&self, trailers: &mut HeaderMap) {
        trailers.insert(GRPC_STATUS, HeaderValue::from(self.code));
        if !self.text.is_empty()
            && let Ok(value) = HeaderValue::from_str(&percent_encode(&self.text))
        {
            trailers.insert(GRPC_MESSAGE, value);
        }
    }
}

/// Headers that begin every answer.
pub fn response_headers(gzip: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if gzip {
        headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers
}

/// Trailers of a call that went well.
pub fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// True for "application/grpc" with or without a subtype or parameters.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const BASE: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    value.len() >= BASE.len()
        && value[..BASE.len()].eq_ignore_ascii_case(BASE)
        && matches!(value.get(BASE.len()), None | Some(b'+' | b';'))
}

/// The `grpc-message` form of a text: bytes outside of printable ASCII, and '%', as %XX.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The value of a `grpc-timeout` header; the error is grpc-go's text.
pub fn parse_timeout(value: &[u8]) -> Result<Duration, String> {
    let text = String::from_utf8_lossy(value);
    if value.len() < 2 {
        return Err(format!("transport: timeout string is too short: {text:?}"));
    }
    if value.len() > 9 {
        return Err(format!("transport: timeout string is too long: {text:?}"));
    }
    let (digits, unit) = value.split_at(value.len() - 1);
    let unit_ns: u64 = match unit[0] {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return Err(format!("transport: timeout unit is not recognized: {text:?}")),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(format!("transport: timeout is not a number: {text:?}"));
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Ok(Duration::from_nanos(number.saturating_mul(unit_ns)))
}

/// A `grpc-encoding` header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Identity,
    Gzip,
    /// One that is not installed here.
    Other(Box<str>),
}

impl Encoding {
    /// What the request's headers say.
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(GRPC_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Encoding::Identity,
            Some(b"gzip") => Encoding::Gzip,
            Some(other) => Encoding::Other(String::from_utf8_lossy(other).into()),
        }
    }
}

/// Whether the client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(GRPC_ACCEPT_ENCODING).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"gzip"))
    })
}

/// A message with its five bytes before it.
pub fn frame(message: &[u8]) -> Bytes {
    static EMPTY: [u8; PREFIX_BYTES] = [0; PREFIX_BYTES];
    if message.is_empty() {
        return Bytes::from_static(&EMPTY);
    }
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.push(0);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    Bytes::from(framed)
}

/// A framed message, compressed and framed anew.
pub fn compress(framed: &Bytes) -> Bytes {
    let mut out = Vec::with_capacity(framed.len() / 2 + 32);
    out.extend_from_slice(&[1, 0, 0, 0, 0]);
    let mut encoder = GzEncoder::new(out, Compression::fast());
    let written = encoder.write_all(&framed[PREFIX_BYTES..]).and_then(|()| encoder.finish());
    match written {
        Ok(mut out) => {
            let length = (out.len() - PREFIX_BYTES) as u32;
            out[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
            Bytes::from(out)
        }
        // Writing to memory does not fail; were it to, the plain message is right too.
        Err(_) => framed.clone(),
    }
}

fn decompress(message: &[u8], max_bytes: usize) -> Result<Bytes, Status> {
    let mut plain = Vec::with_capacity((4 * message.len()).min(max_bytes));
    let mut reader = MultiGzDecoder::new(message).take(max_bytes as u64 + 1);
    reader.read_to_end(&mut plain).map_err(|error| {
        Status::new(code::INTERNAL, format!("grpc: failed to decompress the received message: {error}"))
    })?;
    if plain.len() > max_bytes {
        let text = format!("grpc: received message after decompression larger than max {max_bytes}");
        return Err(Status::new(code::RESOURCE_EXHAUSTED, text));
    }
    Ok(Bytes::from(plain))
}

/// Cuts the data of a stream into messages. A message that arrives whole is not copied.
#[derive(Debug, Default)]
pub struct Decoder {
    encoding: Encoding,
    partial: BytesMut,
}

impl Decoder {
    /// Memory is set aside for a message as it comes, not as its length promises.
    const RESERVE_BYTES: usize = 65_536;

    /// A decoder of messages in this encoding.
    pub fn new(encoding: Encoding) -> Self {
        Decoder { encoding, partial: BytesMut::new() }
    }

    /// Bytes held of a message that is not whole yet.
    pub fn held_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Takes the next message out of `data`, or the beginning of one, which is kept.
    pub fn decode(&mut self, data: &mut Bytes, max_bytes: usize) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty() {
            let Some(length) = message_length(data, max_bytes)? else {
                self.keep(data, data.len());
                return Ok(None);
            };
            let whole = PREFIX_BYTES + length;
            if data.len() < whole {
                self.keep(data, data.len());
                return Ok(None);
            }
            let mut framed = data.split_to(whole);
            let flag = framed[0];
            framed.advance(PREFIX_BYTES);
            return self.plain(flag, framed, max_bytes).map(Some);
        }
        if self.partial.len() < PREFIX_BYTES {
            self.keep(data, PREFIX_BYTES - self.partial.len());
        }
        let Some(length) = message_length(&self.partial, max_bytes)? else { return Ok(None) };
        let whole = PREFIX_BYTES + length;
        self.keep(data, whole - self.partial.len());
        if self.partial.len() < whole {
            return Ok(None);
        }
        let mut framed = std::mem::take(&mut self.partial).freeze();
        let flag = framed[0];
        framed.advance(PREFIX_BYTES);
        self.plain(flag, framed, max_bytes).map(Some)
    }

    fn keep(&mut self, data: &mut Bytes, count: usize) {
        let count = count.min(data.len());
        if self.partial.capacity() - self.partial.len() < count {
            self.partial.reserve(count.max(self.partial.len().min(Self::RESERVE_BYTES)));
        }
        self.partial.put(data.split_to(count));
    }

    fn plain(&self, flag: u8, message: Bytes, max_bytes: usize) -> Result<Bytes, Status> {
        match (flag, &self.encoding) {
            (0, _) => Ok(message),
            (1, Encoding::Gzip) => decompress(&message, max_bytes),
            (1, Encoding::Identity) => {
                Err(Status::new(code::INTERNAL, "grpc: compressed flag set with identity or empty encoding"))
            }
            (1, Encoding::Other(name)) => Err(Status::new(
                code::UNIMPLEMENTED,
                format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"),
            )),
            (other, _) => {
                let text = format!("grpc: received unexpected payload format {other}");
                Err(Status::new(code::INTERNAL, text))
            }
        }
    }
}

/// The length of the message that begins here, once its prefix is whole.
fn message_length(data: &[u8], max_bytes: usize) -> Result<Option<usize>, Status> {
    let Some(prefix) = data.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > max_bytes {
        let text = format!("grpc: received message larger than max ({length} vs. {max_bytes})");
        return Err(Status::new(code::RESOURCE_EXHAUSTED, text));
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1000;

    fn decode_all(decoder: &mut Decoder, bytes: &[u8], cut: usize) -> Result<Vec<Bytes>, Status> {
        let mut messages = Vec::new();
        for chunk in bytes.chunks(cut) {
            let mut data = Bytes::copy_from_slice(chunk);
            while let Some(message) = decoder.decode(&mut data, MAX)? {
                messages.push(message);
                if data.is_empty() {
                    break;
                }
            }
            assert!(data.is_empty());
        }
        Ok(messages)
    }

    #[test]
    fn messages_survive_any_cut() {
        let messages: [&[u8]; 4] = [b"", b"a", &[7; 300], b"end"];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        for cut in 1..=bytes.len() {
            let mut decoder = Decoder::new(Encoding::Identity);
            assert_eq!(decode_all(&mut decoder, &bytes, cut).unwrap(), messages, "cut {cut}");
            assert_eq!(decoder.held_bytes(), 0);
        }
    }

    #[test]
    fn a_part_is_held() {
        let mut decoder = Decoder::default();
        assert_eq!(decode_all(&mut decoder, &frame(b"hello")[..7], 3).unwrap(), Vec::<Bytes>::new());
        assert_eq!(decoder.held_bytes(), 7);
    }

    #[test]
    fn too_large_is_refused_by_its_length_alone() {
        let prefix = [0, 0, 0, 3, 233];
        let error = decode_all(&mut Decoder::default(), &prefix, 2).unwrap_err();
        assert_eq!(error.code, code::RESOURCE_EXHAUSTED);
        assert_eq!(error.text, "grpc: received message larger than max (1001 vs. 1000)");
    }

    #[test]
    fn gzip_goes_both_ways() {
        let message = b"abc".repeat(200);
        let compressed = compress(&frame(&message));
        assert!(compressed.len() < 100 && compressed[0] == 1);
        assert_eq!(decode_all(&mut Decoder::new(Encoding::Gzip), &compressed, 9).unwrap(), [message]);
    }

    #[test]
    fn a_gzip_bomb_is_stopped() {
        let bomb = compress(&frame(&vec![0; MAX + 1]));
        let error = decode_all(&mut Decoder::new(Encoding::Gzip), &bomb, 4096).unwrap_err();
        assert_eq!(error.text, "grpc: received message after decompression larger than max 1000");
    }

    #[test]
    fn compression_that_cannot_be_undone_is_named() {
        let mut flagged = frame(b"hello").to_vec();
        flagged[0] = 1;
        let refusal =
            |encoding, framed: &[u8]| decode_all(&mut Decoder::new(encoding), framed, 99).unwrap_err();
        assert_eq!(
            refusal(Encoding::Identity, &flagged).text,
            "grpc: compressed flag set with identity or empty encoding"
        );
        let other = refusal(Encoding::Other("snappy".into()), &flagged);
        assert_eq!(other.code, code::UNIMPLEMENTED);
        assert_eq!(other.text, "grpc: Decompressor is not installed for grpc-encoding \"snappy\"");
        let gzip = refusal(Encoding::Gzip, &flagged);
        assert!(gzip.text.starts_with("grpc: failed to decompress the received message"));
        flagged[0] = 2;
        assert_eq!(refusal(Encoding::Gzip, &flagged).text, "grpc: received unexpected payload format 2");
    }

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout(b"5S"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_timeout(b"1H"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_timeout(b"2M"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_timeout(b"99999999m"), Ok(Duration::from_millis(99_999_999)));
        assert_eq!(parse_timeout(b"10u"), Ok(Duration::from_micros(10)));
        assert_eq!(parse_timeout(b"7n"), Ok(Duration::from_nanos(7)));
        assert!(parse_timeout(b"99999999H").is_ok());
        assert_eq!(parse_timeout(b"S").unwrap_err(), "transport: timeout string is too short: \"S\"");
        assert_eq!(
            parse_timeout(b"123456789S").unwrap_err(),
            "transport: timeout string is too long: \"123456789S\""
        );
        assert_eq!(parse_timeout(b"5x").unwrap_err(), "transport: timeout unit is not recognized: \"5x\"");
        assert!(parse_timeout(b"-5S").is_err());
        assert!(parse_timeout(b"S\xffS").is_err());
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("plain text, ~"), "plain text, ~");
        assert_eq!(percent_encode("100%"), "100%25");
        assert_eq!(percent_encode("é\n"), "%C3%A9%0A");
    }

    #[test]
    fn content_types() {
        let is = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            is_grpc(&headers)
        };
        assert!(is("application/grpc") && is("application/grpc+proto") && is("Application/gRPC;x"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is(""));
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_found_in_a_list() {
        let mut headers = HeaderMap::new();
        assert!(!accepts_gzip(&headers));
        headers.append(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        assert!(!accepts_gzip(&headers));
        headers.append(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("deflate, gzip"));
        assert!(accepts_gzip(&headers));
    }
}

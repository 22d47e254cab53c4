//! Heads of HTTP/1.1 requests and responses between members: written as text, read with `httparse`.

use bytes::{Buf, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::socket::Socket;

/// Names, in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// Headers that the protocol itself needs.
const RESERVED: [&str; 6] =
    ["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"];
const MAX_HEADERS: usize = 64;
/// Bytes of headers that an owner may send; receivers take more than this by default.
const MAX_OWN_BYTES: usize = 8_192;
/// The longest head of a response, and the longest text of a refusal that is read.
const MAX_RESPONSE_BYTES: usize = 8_192;

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Headers,
}

/// The head of a response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
}

/// The value of a header, if there is one.
pub fn value_of<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// What is wrong with headers that an owner wants to send.
pub fn check_headers(headers: &Headers) -> Result<(), String> {
    for (name, value) in headers {
        let is_name =
            HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| !RESERVED.contains(&name.as_str()));
        let is_value = value.trim() == value && HeaderValue::from_bytes(value.as_bytes()).is_ok();
        if !is_name || !is_value {
            return Err(format!("header {name:?}: {value:?} cannot be sent"));
        }
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if headers.len() > MAX_HEADERS - RESERVED.len() || bytes > MAX_OWN_BYTES {
        return Err(format!(
            "{} headers of {bytes} bytes: expected at most {} of {MAX_OWN_BYTES} bytes",
            headers.len(),
            MAX_HEADERS - RESERVED.len()
        ));
    }
    Ok(())
}

/// The head of a request; `fixed` are whole lines.
pub fn request(method: &str, path: &str, host: &str, fixed: &str, headers: &Headers) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{fixed}");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head
}

/// A whole response that ends its connection.
pub fn response(status: u16, text: &str) -> String {
    let reason = reason(status);
    let length = text.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{text}"
    )
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Other")
}

/// Sends a whole response that ends its connection.
pub async fn respond(socket: &mut Socket, status: u16, text: &str) {
    // A peer that does not take the answer has ended the connection already.
    let _ = socket.write_all(response(status, text).as_bytes()).await;
}

/// The last answer of a connection: status and text.
pub type Answer = (u16, String);

fn headers_of(parsed: &[httparse::Header<'_>]) -> Headers {
    parsed
        .iter()
        .map(|header| {
            (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned())
        })
        .collect()
}

fn parse_request(bytes: &[u8]) -> Result<Option<(usize, Request)>, Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed.parse(bytes).map_err(|error| (400, format!("not a request of HTTP/1.1: {error}")))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers: headers_of(parsed.headers),
    };
    Ok(Some((length, request)))
}

fn parse_response(bytes: &[u8]) -> Result<Option<(usize, Response)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let status = parsed.parse(bytes).map_err(|error| format!("no answer of HTTP/1.1: {error}"))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    Ok(Some((length, Response { status: parsed.code.unwrap_or(0), headers: headers_of(parsed.headers) })))
}

/// Reads the head of a request, of which `buffer` holds the beginning; what follows it stays in `buffer`.
pub async fn read_request(
    socket: &mut Socket,
    buffer: &mut BytesMut,
    max_bytes: usize,
) -> Result<Request, Answer> {
    loop {
        if let Some((length, request)) = parse_request(buffer)? {
            buffer.advance(length);
            return Ok(request);
        }
        if buffer.len() >= max_bytes {
            return Err((431, format!("the head of the request is longer than {max_bytes} bytes")));
        }
        match socket.read_buf(buffer).await {
            Ok(1..) => {}
            _ => return Err((400, "half a request".to_owned())),
        }
    }
}

/// Reads the head of a response.
pub async fn read_response(
    socket: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut BytesMut,
) -> Result<Response, String> {
    loop {
        if let Some((length, response)) = parse_response(buffer)? {
            buffer.advance(length);
            return Ok(response);
        }
        if buffer.len() >= MAX_RESPONSE_BYTES {
            return Err(format!("the head of the answer is longer than {MAX_RESPONSE_BYTES} bytes"));
        }
        match socket.read_buf(buffer).await {
            Ok(0) => return Err("closed by the peer before it answered".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Reads the text of a response, as much of it as a person would.
pub async fn read_text(
    socket: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut BytesMut,
    response: &Response,
) -> String {
    let length = value_of(&response.headers, "content-length").and_then(|value| value.parse().ok());
    let length = length.unwrap_or(MAX_RESPONSE_BYTES).min(MAX_RESPONSE_BYTES);
    while buffer.len() < length {
        match socket.read_buf(buffer).await {
            Ok(1..) => {}
            // Half a text is better than none.
            _ => break,
        }
    }
    let text = String::from_utf8_lossy(&buffer[..buffer.len().min(length)]);
    text.trim().replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let own = headers(&[("x-etcd-cluster-id", "cdf8"), ("x-text", "é 世")]);
        let text = request("GET", "/etcd-py/link/1", "a:1", "upgrade: x\r\n", &own);
        assert_eq!(parse_request(&text.as_bytes()[..text.len() - 1]), Ok(None));
        let (length, parsed) = parse_request(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        assert_eq!((parsed.method.as_str(), parsed.target.as_str()), ("GET", "/etcd-py/link/1"));
        assert_eq!(parsed.headers[..2], headers(&[("host", "a:1"), ("upgrade", "x")]));
        assert_eq!(parsed.headers[2..], own);
    }

    #[test]
    fn a_response_is_read_as_it_was_written() {
        let text = response(412, "cluster ID mismatch");
        let (length, parsed) = parse_response(text.as_bytes()).unwrap().unwrap();
        assert_eq!((parsed.status, &text[length..]), (412, "cluster ID mismatch"));
        assert_eq!(value_of(&parsed.headers, "content-length"), Some("19"));
        assert!(response(299, "").starts_with("HTTP/1.1 299 Other\r\n"));
    }

    #[test]
    fn rubbish_is_named() {
        assert_eq!(parse_request(b"GET /etcd-py/link/1 HTTP/9\r\n\r\n").unwrap_err().0, 400);
        assert!(parse_response(b"SSH-2.0-x\r\n").unwrap_err().starts_with("no answer of HTTP/1.1: "));
    }

    #[test]
    fn headers_that_cannot_be_sent_are_named() {
        assert_eq!(check_headers(&headers(&[("x-a", "1"), ("x-b", "")])), Ok(()));
        for (name, value) in [("x a", "1"), ("", "1"), ("x-a", "1\r\nx-b: 2"), ("Host", "h"), ("x-a", " 1")] {
            let error = check_headers(&headers(&[(name, value)])).unwrap_err();
            assert_eq!(error, format!("header {name:?}: {value:?} cannot be sent"));
        }
        let long = "a".repeat(5000);
        assert!(check_headers(&headers(&[("x-a", &long), ("x-b", &long)])).is_err());
    }
}

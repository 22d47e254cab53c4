//! What the owner wants sent, read out of the tuples that are given to `Wire.send`.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::event::Command;
use crate::grpc;
use crate::peers::queue::Frame;

/// The numbers of the operations, as `_wire.pyi` names them.
pub const OPERATIONS: [(&str, u8); 13] = [
    ("REPLY", operations::REPLY),
    ("FAIL", operations::FAIL),
    ("DELIVER", operations::DELIVER),
    ("RESPOND", operations::RESPOND),
    ("BEGIN", operations::BEGIN),
    ("CHUNK", operations::CHUNK),
    ("FINISH", operations::FINISH),
    ("FRAME_OUT", operations::FRAME_OUT),
    ("LINK_ACCEPT", operations::LINK_ACCEPT),
    ("LINK_REFUSE", operations::LINK_REFUSE),
    ("FILE_ACCEPT", operations::FILE_ACCEPT),
    ("FILE_REFUSE", operations::FILE_REFUSE),
    ("FILE_DONE", operations::FILE_DONE),
];

mod operations {
    pub const REPLY: u8 = 1;
    pub const FAIL: u8 = 2;
    pub const DELIVER: u8 = 3;
    pub const RESPOND: u8 = 4;
    pub const BEGIN: u8 = 5;
    pub const CHUNK: u8 = 6;
    pub const FINISH: u8 = 7;
    pub const FRAME_OUT: u8 = 8;
    pub const LINK_ACCEPT: u8 = 9;
    pub const LINK_REFUSE: u8 = 10;
    pub const FILE_ACCEPT: u8 = 11;
    pub const FILE_REFUSE: u8 = 12;
    pub const FILE_DONE: u8 = 13;
}

/// What one tuple given to `send` asks for.
pub enum Order {
    Command(u64, Command),
    Frame(u64, Frame),
}

/// One tuple given to `send`.
pub fn order(reply: &Bound<'_, PyAny>, max_frame_bytes: usize) -> PyResult<Order> {
    let tuple = reply.cast::<PyTuple>()?;
    let size = tuple.len();
    if size < 2 {
        return Err(PyValueError::new_err("a reply has an operation and an id at least"));
    }
    let kind: u8 = tuple.get_borrowed_item(0)?.extract()?;
    let id: u64 = tuple.get_borrowed_item(1)?.extract()?;
    let expected = match kind {
        operations::FINISH | operations::LINK_ACCEPT => 2,
        operations::REPLY | operations::DELIVER | operations::CHUNK | operations::FILE_ACCEPT => 3,
        operations::FAIL
        | operations::BEGIN
        | operations::FRAME_OUT
        | operations::LINK_REFUSE
        | operations::FILE_REFUSE
        | operations::FILE_DONE => 4,
        operations::RESPOND => 5,
        other => return Err(PyValueError::new_err(format!("{other} is not an operation of send"))),
    };
    if size != expected {
        return Err(PyValueError::new_err(format!("operation {kind} has {expected} items, not {size}")));
    }
    let command = match kind {
        operations::REPLY => Command::Reply { message: framed(tuple)? },
        operations::DELIVER => Command::Deliver { message: framed(tuple)? },
        operations::FAIL => Command::Fail {
            code: tuple.get_borrowed_item(2)?.extract()?,
            text: tuple.get_borrowed_item(3)?.extract()?,
        },
        operations::RESPOND => {
            let (status, headers) = head(tuple)?;
            let body = Bytes::copy_from_slice(tuple.get_borrowed_item(4)?.cast::<PyBytes>()?.as_bytes());
            Command::Respond { status, headers, body }
        }
        operations::BEGIN => {
            let (status, headers) = head(tuple)?;
            Command::Begin { status, headers }
        }
        operations::CHUNK => {
            let body = Bytes::copy_from_slice(tuple.get_borrowed_item(2)?.cast::<PyBytes>()?.as_bytes());
            Command::Chunk { body }
        }
        operations::FRAME_OUT => return Ok(Order::Frame(id, frame(tuple, max_frame_bytes)?)),
        operations::LINK_ACCEPT => Command::LinkAccept,
        operations::LINK_REFUSE | operations::FILE_REFUSE => {
            let (status, text) = verdict(tuple, 300)?;
            Command::Refuse { status, text }
        }
        operations::FILE_ACCEPT => Command::FileAccept { path: tuple.get_borrowed_item(2)?.extract()? },
        operations::FILE_DONE => {
            let (status, text) = verdict(tuple, 200)?;
            Command::FileDone { status, text }
        }
        _ => Command::Finish,
    };
    Ok(Order::Command(id, command))
}

fn frame(tuple: &Bound<'_, PyTuple>, max_bytes: usize) -> PyResult<Frame> {
    let item = tuple.get_borrowed_item(2)?;
    let payload = item.cast::<PyBytes>()?;
    let payload = payload.as_bytes();
    if payload.len() > max_bytes {
        let text = format!("a frame of {} bytes: expected at most {max_bytes}", payload.len());
        return Err(PyValueError::new_err(text));
    }
    let droppable = tuple.get_borrowed_item(3)?.extract()?;
    Ok(Frame { payload: Bytes::copy_from_slice(payload), droppable })
}

/// The status and text of a refusal or another last answer.
fn verdict(tuple: &Bound<'_, PyTuple>, low: u16) -> PyResult<(u16, String)> {
    let status: u16 = tuple.get_borrowed_item(2)?.extract()?;
    if !(low..600).contains(&status) {
        return Err(PyValueError::new_err(format!("{status} is not a status from {low} to 599")));
    }
    Ok((status, tuple.get_borrowed_item(3)?.extract()?))
}

fn framed(tuple: &Bound<'_, PyTuple>) -> PyResult<Bytes> {
    let item = tuple.get_borrowed_item(2)?;
    let message = item.cast::<PyBytes>()?;
    let message = message.as_bytes();
    if message.len() > u32::MAX as usize {
        return Err(PyValueError::new_err("a message is longer than gRPC can tell"));
    }
    Ok(grpc::frame(message))
}

fn head(tuple: &Bound<'_, PyTuple>) -> PyResult<(StatusCode, HeaderMap)> {
    let number: u16 = tuple.get_borrowed_item(2)?.extract()?;
    let status = StatusCode::from_u16(number)
        .ok()
        .filter(|status| !status.is_informational())
        .ok_or_else(|| PyValueError::new_err(format!("{number} is not a final HTTP status")))?;
    let mut headers = HeaderMap::new();
    for item in tuple.get_borrowed_item(3)?.cast::<PyList>()?.iter() {
        let (name, value): (String, String) =
            item.extract().map_err(|_| PyTypeError::new_err("headers are a list of (str, str)"))?;
        let wrong = || PyValueError::new_err(format!("header {name:?}: {value:?} cannot be sent"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        headers.append(key, HeaderValue::from_str(&value).map_err(|_| wrong())?);
    }
    Ok((status, headers))
}

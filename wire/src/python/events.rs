//! Events as the tuples that `Wire.poll` returns.
//!
//! What many events share is made once: the `str` of each method path and metadata key when the wire is made, the
//! tuple of a connection with its first event.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::event::{Event, Metadata, Origin};

/// The numbers of the kinds of events, as `_wire.pyi` names them.
pub const KINDS: [(&str, u8); 17] = [
    ("CALL", kinds::CALL),
    ("OPEN", kinds::OPEN),
    ("MESSAGE", kinds::MESSAGE),
    ("HALF_CLOSE", kinds::HALF_CLOSE),
    ("CANCEL", kinds::CANCEL),
    ("HTTP", kinds::HTTP),
    ("PAUSED", kinds::PAUSED),
    ("RESUMED", kinds::RESUMED),
    ("POSTED", kinds::POSTED),
    ("LINK_UP", kinds::LINK_UP),
    ("LINK_DOWN", kinds::LINK_DOWN),
    ("LINK_ASKED", kinds::LINK_ASKED),
    ("FRAME_IN", kinds::FRAME_IN),
    ("FILE_SENT", kinds::FILE_SENT),
    ("FILE_ASKED", kinds::FILE_ASKED),
    ("FILE_RECEIVED", kinds::FILE_RECEIVED),
    ("FILE_FAILED", kinds::FILE_FAILED),
];

mod kinds {
    pub const CALL: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const MESSAGE: u8 = 3;
    pub const HALF_CLOSE: u8 = 4;
    pub const CANCEL: u8 = 5;
    pub const HTTP: u8 = 6;
    pub const PAUSED: u8 = 7;
    pub const RESUMED: u8 = 8;
    pub const POSTED: u8 = 9;
    pub const LINK_UP: u8 = 10;
    pub const LINK_DOWN: u8 = 11;
    pub const LINK_ASKED: u8 = 12;
    pub const FRAME_IN: u8 = 13;
    pub const FILE_SENT: u8 = 14;
    pub const FILE_ASKED: u8 = 15;
    pub const FILE_RECEIVED: u8 = 16;
    pub const FILE_FAILED: u8 = 17;
}

/// Strings that many events share.
pub struct Words {
    pub paths: Vec<Py<PyString>>,
    pub keys: Vec<Py<PyString>>,
}

impl Words {
    /// The tuple of an event.
    pub fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyTuple>> {
        match event {
            Event::Call { id, method, message, origin, metadata } => (
                kinds::CALL,
                id,
                self.paths[method as usize].bind(py),
                PyBytes::new(py, &message),
                connection(py, &origin)?,
                self.metadata(py, metadata)?,
            )
                .into_pyobject(py),
            Event::Open { id, method, origin, metadata } => (
                kinds::OPEN,
                id,
                self.paths[method as usize].bind(py),
                connection(py, &origin)?,
                self.metadata(py, metadata)?,
            )
                .into_pyobject(py),
            Event::Message { id, message } => {
                (kinds::MESSAGE, id, PyBytes::new(py, &message)).into_pyobject(py)
            }
            Event::HalfClose { id } => (kinds::HALF_CLOSE, id).into_pyobject(py),
            Event::Cancel { id } => (kinds::CANCEL, id).into_pyobject(py),
            Event::Http { id, request, origin } => {
                let headers = PyList::empty(py);
                for (name, value) in &request.headers {
                    headers.append((name.as_str(), String::from_utf8_lossy(value.as_bytes())))?;
                }
                let body = PyBytes::new(py, &request.body);
                (kinds::HTTP, id, request.method, request.target, headers, body, connection(py, &origin)?)
                    .into_pyobject(py)
            }
            Event::Paused { id } => (kinds::PAUSED, id).into_pyobject(py),
            Event::Resumed { id } => (kinds::RESUMED, id).into_pyobject(py),
            Event::Posted(object) => (kinds::POSTED, object).into_pyobject(py),
            Event::FrameIn { id, frame } => (kinds::FRAME_IN, id, PyBytes::new(py, &frame)).into_pyobject(py),
            Event::LinkUp { link, url } => (kinds::LINK_UP, link, &*url).into_pyobject(py),
            Event::LinkDown { link, reason } => (kinds::LINK_DOWN, link, reason).into_pyobject(py),
            Event::LinkAsked { id, hello, origin } => {
                (kinds::LINK_ASKED, id, hello, connection(py, &origin)?).into_pyobject(py)
            }
            Event::FileSent { id, error } => (kinds::FILE_SENT, id, error).into_pyobject(py),
            Event::FileAsked { id, headers, origin } => {
                (kinds::FILE_ASKED, id, headers, connection(py, &origin)?).into_pyobject(py)
            }
            Event::FileReceived { id, path, size, sha256 } => {
                (kinds::FILE_RECEIVED, id, path.as_os_str(), size, sha256).into_pyobject(py)
            }
            Event::FileFailed { id, text } => (kinds::FILE_FAILED, id, text).into_pyobject(py),
        }
    }

    fn metadata<'py>(&self, py: Python<'py>, metadata: Metadata) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(metadata) = metadata else { return Ok(None) };
        let dict = PyDict::new(py);
        for (place, value) in &metadata {
            dict.set_item(&self.keys[*place], &**value)?;
        }
        Ok(Some(dict))
    }
}

fn connection<'py>(py: Python<'py>, origin: &Origin) -> PyResult<Bound<'py, PyAny>> {
    if let Some(object) = origin.object.get() {
        return Ok(object.bind(py).clone());
    }
    let tuple =
        (&*origin.listener, &origin.peer, origin.common_name.as_deref()).into_pyobject(py)?.into_any();
    Ok(origin.object.get_or_init(|| tuple.unbind()).bind(py).clone())
}

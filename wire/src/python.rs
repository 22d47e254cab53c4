//! The Python face: the class `Wire`, and the only code that makes or reads Python objects.
//!
//! A batch pays for the interpreter lock once in either direction. What many events share is made once: the `str`
//! of each method path and metadata key when the wire is made, the tuple of a connection with its first event.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use crate::brisk::Brisk;
use crate::event::{Command, Event, Metadata, Object, Origin};
use crate::grpc;
use crate::inbox::Inbox;
use crate::listener::{Address, Listener};
use crate::peers::Peers;
use crate::peers::head::{Headers, check_headers};
use crate::peers::outgoing::Config;
use crate::peers::queue::Frame;
use crate::peers::send::Parcel;
use crate::registry::{Phase, Registry};
use crate::settings::{Counters, Kind, Methods, Settings, Shared, SharedRef};

create_exception!(
    etcd_server.transport._wire,
    WireError,
    PyException,
    "A listener could not be opened or a setting is wrong."
);

/// The numbers of `_wire.pyi`, by name.
const CONSTANTS: [(&str, u8); 32] = [
    ("CALL", events::CALL),
    ("OPEN", events::OPEN),
    ("MESSAGE", events::MESSAGE),
    ("HALF_CLOSE", events::HALF_CLOSE),
    ("CANCEL", events::CANCEL),
    ("HTTP", events::HTTP),
    ("PAUSED", events::PAUSED),
    ("RESUMED", events::RESUMED),
    ("POSTED", events::POSTED),
    ("LINK_UP", events::LINK_UP),
    ("LINK_DOWN", events::LINK_DOWN),
    ("LINK_ASKED", events::LINK_ASKED),
    ("FRAME_IN", events::FRAME_IN),
    ("FILE_SENT", events::FILE_SENT),
    ("FILE_ASKED", events::FILE_ASKED),
    ("FILE_RECEIVED", events::FILE_RECEIVED),
    ("FILE_FAILED", events::FILE_FAILED),
    ("REPLY", replies::REPLY),
    ("FAIL", replies::FAIL),
    ("DELIVER", replies::DELIVER),
    ("RESPOND", replies::RESPOND),
    ("BEGIN", replies::BEGIN),
    ("CHUNK", replies::CHUNK),
    ("FINISH", replies::FINISH),
    ("FRAME_OUT", replies::FRAME_OUT),
    ("LINK_ACCEPT", replies::LINK_ACCEPT),
    ("LINK_REFUSE", replies::LINK_REFUSE),
    ("FILE_ACCEPT", replies::FILE_ACCEPT),
    ("FILE_REFUSE", replies::FILE_REFUSE),
    ("FILE_DONE", replies::FILE_DONE),
    ("ONE", 1),
    ("MANY", 2),
];

mod events {
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

mod replies {
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

/// See `_wire.pyi`.
#[pyclass(frozen, module = "etcd_server.transport._wire")]
struct Wire {
    shared: SharedRef,
    paths: Vec<Py<PyString>>,
    keys: Vec<Py<PyString>>,
    runtime: Mutex<Option<Runtime>>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
}

#[pymethods]
impl Wire {
    #[new]
    #[pyo3(signature = (methods, *, metadata_keys = Vec::new(), worker_threads = 1, max_message_bytes = 2_097_152,
        max_header_bytes = 16_384, max_concurrent_streams = 4096, max_inbox_bytes = 268_435_456,
        stream_buffer_bytes = 4_194_304, keepalive_min_time_s = 5.0, keepalive_interval_s = 7200.0,
        keepalive_timeout_s = 20.0, header_timeout_s = 10.0, idle_http_timeout_s = 300.0,
        max_frame_bytes = 67_108_864, link_ping_s = 1.0, link_timeout_s = 5.0))]
    #[allow(clippy::too_many_arguments)] // The face of Python, all by keyword.
    fn new(
        py: Python<'_>,
        methods: HashMap<String, u8>,
        metadata_keys: Vec<String>,
        worker_threads: usize,
        max_message_bytes: usize,
        max_header_bytes: u32,
        max_concurrent_streams: u32,
        max_inbox_bytes: usize,
        stream_buffer_bytes: usize,
        keepalive_min_time_s: f64,
        keepalive_interval_s: f64,
        keepalive_timeout_s: f64,
        header_timeout_s: f64,
        idle_http_timeout_s: f64,
        max_frame_bytes: usize,
        link_ping_s: f64,
        link_timeout_s: f64,
    ) -> PyResult<Self> {
        for (name, value) in [
            ("worker_threads", worker_threads),
            ("max_message_bytes", max_message_bytes),
            ("max_header_bytes", max_header_bytes as usize),
            ("max_concurrent_streams", max_concurrent_streams as usize),
            ("max_inbox_bytes", max_inbox_bytes),
            ("stream_buffer_bytes", stream_buffer_bytes),
        ] {
            if value == 0 || value > 1 << 40 {
                return Err(WireError::new_err(format!("{name} is {value}: expected a positive number")));
            }
        }
        if max_frame_bytes == 0 || max_frame_bytes >= 1 << 32 {
            let text = format!("max_frame_bytes is {max_frame_bytes}: expected 1 to 4294967295");
            return Err(WireError::new_err(text));
        }
        if link_ping_s <= 0.0 || link_timeout_s <= link_ping_s {
            let text = format!(
                "link_ping_s is {link_ping_s} and link_timeout_s {link_timeout_s}: expected seconds, the latter more"
            );
            return Err(WireError::new_err(text));
        }
        let settings = Settings {
            max_message_bytes,
            max_header_bytes,
            max_concurrent_streams,
            max_inbox_bytes,
            stream_buffer_bytes,
            keepalive_min_time: seconds("keepalive_min_time_s", keepalive_min_time_s)?,
            keepalive_interval: seconds("keepalive_interval_s", keepalive_interval_s)?,
            keepalive_timeout: seconds("keepalive_timeout_s", keepalive_timeout_s)?,
            header_timeout: seconds("header_timeout_s", header_timeout_s)?,
            idle_http_timeout: seconds("idle_http_timeout_s", idle_http_timeout_s)?,
            max_frame_bytes,
            link_ping: seconds("link_ping_s", link_ping_s)?,
            link_timeout: seconds("link_timeout_s", link_timeout_s)?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(worker_threads)
            .thread_name("wire")
            .enable_all()
            .build()
            .map_err(|error| {
                WireError::new_err(format!("the threads of the wire cannot be started: {error}"))
            })?;
        let methods = read_methods(&methods)?;
        let intern = |text: &String| PyString::intern(py, text).unbind();
        let wire = Wire {
            paths: methods.paths.iter().map(intern).collect(),
            keys: metadata_keys.iter().map(intern).collect(),
            shared: Arc::new(Shared {
                inbox: Inbox::new(settings.max_inbox_bytes),
                settings,
                methods,
                metadata_keys: read_keys(&metadata_keys)?,
                registry: Registry::default(),
                counters: Counters::default(),
                brisk: Brisk::default(),
                peers: Peers::default(),
            }),
            runtime: Mutex::new(Some(runtime)),
            listeners: Mutex::new(Vec::new()),
        };
        let shared = Arc::clone(&wire.shared);
        if let Some(runtime) = wire.runtime.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            runtime.spawn(async move { shared.brisk.run().await });
        }
        Ok(wire)
    }

    fn listen(&self, py: Python<'_>, url: &str, name: &str) -> PyResult<String> {
        let address = Address::parse(url).map_err(WireError::new_err)?;
        py.detach(|| {
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            let runtime = runtime.as_ref().ok_or_else(|| "the wire has been closed".to_owned())?;
            let _context = runtime.enter();
            let (listener, bound) =
                Listener::open(&address).map_err(|error| format!("cannot listen on {url}: {error}"))?;
            let task = runtime.spawn(listener.run(Arc::clone(&self.shared), Arc::from(name)));
            self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(task);
            Ok(bound)
        })
        .map_err(|text: String| WireError::new_err(text))
    }

    fn poll<'py>(&self, py: Python<'py>, timeout_s: f64, max: usize) -> PyResult<Bound<'py, PyList>> {
        let timeout = seconds("timeout_s", timeout_s)?;
        if max == 0 {
            return Err(PyValueError::new_err("max is 0: expected a positive number"));
        }
        let taken = py.detach(|| {
            let taken = self.shared.inbox.take(timeout, max);
            if taken.room_again {
                self.shared.registry.wake_all();
            }
            taken
        });
        let list = PyList::empty(py);
        for event in taken.events {
            list.append(self.event(py, event)?)?;
        }
        Ok(list)
    }

    fn send(&self, replies: &Bound<'_, PyList>) -> PyResult<()> {
        let mut commands = Vec::with_capacity(replies.len());
        let mut frames = Vec::new();
        for reply in replies.iter() {
            match order(&reply, self.shared.settings.max_frame_bytes)? {
                Order::Command(id, command) => commands.push((id, command)),
                Order::Frame(link, frame) => frames.push((link, frame)),
            }
        }
        // Without letting go of the interpreter lock: taking it again would cost more than this does.
        if !commands.is_empty() {
            self.shared.brisk.step(commands.len());
            self.shared.registry.dispatch(commands);
        }
        if !frames.is_empty() {
            self.shared.peers.push(frames);
        }
        Ok(())
    }

    #[pyo3(signature = (link, urls, hello, queue_bytes = 67_108_864))]
    fn open_link(
        &self,
        link: u64,
        urls: Vec<String>,
        hello: Vec<(String, String)>,
        queue_bytes: usize,
    ) -> PyResult<()> {
        if queue_bytes == 0 {
            return Err(WireError::new_err("queue_bytes is 0: expected a positive number"));
        }
        let (urls, hello) = (read_urls(&urls)?, read_headers(hello)?);
        let runtime = self.runtime()?;
        Peers::open(&self.shared, &runtime, link, Config { urls, hello }, queue_bytes);
        Ok(())
    }

    fn close_link(&self, link: u64) {
        self.shared.peers.close(link, Instant::now() + self.shared.settings.link_timeout);
    }

    fn link_statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (number, line) in self.shared.peers.statistics() {
            let round_trip_s = line.round_trip.map(|time| time.as_secs_f64());
            let tuple = (
                line.is_up,
                line.sent_bytes,
                line.received_bytes,
                line.dropped_frames,
                line.failures,
                round_trip_s,
            );
            dict.set_item(number, tuple)?;
        }
        Ok(dict)
    }

    fn send_file(
        &self,
        id: u64,
        urls: Vec<String>,
        path: PathBuf,
        headers: Vec<(String, String)>,
    ) -> PyResult<()> {
        let parcel = Parcel { urls: read_urls(&urls)?, path, headers: read_headers(headers)? };
        if !Peers::send_file(&self.shared, &self.runtime()?, id, parcel) {
            return Err(WireError::new_err(format!("a file of id {id} is being sent already")));
        }
        Ok(())
    }

    fn post(&self, object: Object) {
        self.shared.inbox.push_all(&mut vec![Event::Posted(object)]);
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        use std::sync::atomic::Ordering::Relaxed;
        let counters = &self.shared.counters;
        let dict = PyDict::new(py);
        dict.set_item("connections_total", counters.connections_total.load(Relaxed))?;
        dict.set_item("connections_open", counters.connections_open.load(Relaxed))?;
        dict.set_item("streams_open", counters.streams_open.load(Relaxed))?;
        dict.set_item("bytes_received_total", counters.bytes_received_total.load(Relaxed))?;
        dict.set_item("bytes_sent_total", counters.bytes_sent_total.load(Relaxed))?;
        dict.set_item("requests_refused_total", counters.requests_refused_total.load(Relaxed))?;
        dict.set_item("goaways_sent_total", counters.goaways_sent_total.load(Relaxed))?;
        dict.set_item("inbox_events", self.shared.inbox.len())?;
        Ok(dict)
    }

    fn stop_accepting(&self, py: Python<'_>) {
        py.detach(|| self.drain());
    }

    fn close(&self, py: Python<'_>, grace_s: f64) -> PyResult<()> {
        let grace = seconds("grace_s", grace_s)?;
        py.detach(|| {
            let deadline = Instant::now() + grace;
            self.drain();
            let registry = &self.shared.registry;
            registry.advance(Phase::Closing);
            self.shared.peers.close_all(deadline);
            let grace = deadline.saturating_duration_since(Instant::now());
            if !registry.wait_empty(grace) {
                registry.advance(Phase::Ending);
                registry.wait_empty(Self::ENDING);
            }
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(runtime) = runtime {
                runtime.shutdown_timeout(Self::ENDING);
            }
        });
        Ok(())
    }
}

impl Wire {
    /// How long connections and threads that were told to end may take.
    const ENDING: Duration = Duration::from_secs(2);

    fn runtime(&self) -> PyResult<Handle> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = runtime.as_ref().ok_or_else(|| WireError::new_err("the wire has been closed"))?;
        Ok(runtime.handle().clone())
    }

    /// Closes the listeners, which is done when this returns, and tells all connections.
    fn drain(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(runtime) = &*runtime {
            listeners.iter().for_each(JoinHandle::abort);
            for listener in listeners {
                // It ends as cancelled, which is what was asked for.
                let _ = runtime.block_on(listener);
            }
        }
        self.shared.registry.advance(Phase::Draining);
    }

    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyTuple>> {
        match event {
            Event::Call { id, method, message, origin, metadata } => (
                events::CALL,
                id,
                self.paths[method as usize].bind(py),
                PyBytes::new(py, &message),
                connection(py, &origin)?,
                self.metadata(py, metadata)?,
            )
                .into_pyobject(py),
            Event::Open { id, method, origin, metadata } => (
                events::OPEN,
                id,
                self.paths[method as usize].bind(py),
                connection(py, &origin)?,
                self.metadata(py, metadata)?,
            )
                .into_pyobject(py),
            Event::Message { id, message } => {
                (events::MESSAGE, id, PyBytes::new(py, &message)).into_pyobject(py)
            }
            Event::HalfClose { id } => (events::HALF_CLOSE, id).into_pyobject(py),
            Event::Cancel { id } => (events::CANCEL, id).into_pyobject(py),
            Event::Http { id, request, origin } => {
                let headers = PyList::empty(py);
                for (name, value) in &request.headers {
                    headers.append((name.as_str(), String::from_utf8_lossy(value.as_bytes())))?;
                }
                let body = PyBytes::new(py, &request.body);
                (events::HTTP, id, request.method, request.target, headers, body, connection(py, &origin)?)
                    .into_pyobject(py)
            }
            Event::Paused { id } => (events::PAUSED, id).into_pyobject(py),
            Event::Resumed { id } => (events::RESUMED, id).into_pyobject(py),
            Event::Posted(object) => (events::POSTED, object).into_pyobject(py),
            Event::FrameIn { id, frame } => {
                (events::FRAME_IN, id, PyBytes::new(py, &frame)).into_pyobject(py)
            }
            Event::LinkUp { link, url } => (events::LINK_UP, link, &*url).into_pyobject(py),
            Event::LinkDown { link, reason } => (events::LINK_DOWN, link, reason).into_pyobject(py),
            Event::LinkAsked { id, hello, origin } => {
                (events::LINK_ASKED, id, hello, connection(py, &origin)?).into_pyobject(py)
            }
            Event::FileSent { id, error } => (events::FILE_SENT, id, error).into_pyobject(py),
            Event::FileAsked { id, headers, origin } => {
                (events::FILE_ASKED, id, headers, connection(py, &origin)?).into_pyobject(py)
            }
            Event::FileReceived { id, path, size, sha256 } => {
                (events::FILE_RECEIVED, id, path.as_os_str(), size, sha256).into_pyobject(py)
            }
            Event::FileFailed { id, text } => (events::FILE_FAILED, id, text).into_pyobject(py),
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

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
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

const CENTURY_S: f64 = 3.2e9;

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    // A century is as good as any longer time, and adds to every clock without overflow.
    Duration::try_from_secs_f64(if value > CENTURY_S { CENTURY_S } else { value })
        .map_err(|_| WireError::new_err(format!("{name} is {value}: expected seconds, not negative")))
}

fn read_methods(methods: &HashMap<String, u8>) -> PyResult<Methods> {
    let mut known = Methods::default();
    for (path, kind) in methods {
        let kind = match kind {
            1 => Kind::One,
            2 => Kind::Many,
            other => {
                return Err(WireError::new_err(format!("method {path:?} is {other}: expected ONE or MANY")));
            }
        };
        if !known.add(path, kind) {
            return Err(WireError::new_err(format!("method {path:?}: expected /package.Service/Method")));
        }
    }
    Ok(known)
}

fn read_keys(keys: &[String]) -> PyResult<Vec<HeaderName>> {
    keys.iter()
        .map(|key| {
            HeaderName::from_bytes(key.as_bytes()).map_err(|_| {
                WireError::new_err(format!("metadata key {key:?}: expected the name of a header"))
            })
        })
        .collect()
}

/// What one tuple given to `send` asks for.
enum Order {
    Command(u64, Command),
    Frame(u64, Frame),
}

/// One tuple given to `send`.
fn order(reply: &Bound<'_, PyAny>, max_frame_bytes: usize) -> PyResult<Order> {
    let tuple = reply.cast::<PyTuple>()?;
    let size = tuple.len();
    if size < 2 {
        return Err(PyValueError::new_err("a reply has an operation and an id at least"));
    }
    let kind: u8 = tuple.get_borrowed_item(0)?.extract()?;
    let id: u64 = tuple.get_borrowed_item(1)?.extract()?;
    let expected = match kind {
        replies::FINISH | replies::LINK_ACCEPT => 2,
        replies::REPLY | replies::DELIVER | replies::CHUNK | replies::FILE_ACCEPT => 3,
        replies::FAIL
        | replies::BEGIN
        | replies::FRAME_OUT
        | replies::LINK_REFUSE
        | replies::FILE_REFUSE
        | replies::FILE_DONE => 4,
        replies::RESPOND => 5,
        other => return Err(PyValueError::new_err(format!("{other} is not an operation of send"))),
    };
    if size != expected {
        return Err(PyValueError::new_err(format!("operation {kind} has {expected} items, not {size}")));
    }
    let command = match kind {
        replies::REPLY => Command::Reply { message: framed(tuple)? },
        replies::DELIVER => Command::Deliver { message: framed(tuple)? },
        replies::FAIL => Command::Fail {
            code: tuple.get_borrowed_item(2)?.extract()?,
            text: tuple.get_borrowed_item(3)?.extract()?,
        },
        replies::RESPOND => {
            let (status, headers) = head(tuple)?;
            let body = Bytes::copy_from_slice(tuple.get_borrowed_item(4)?.cast::<PyBytes>()?.as_bytes());
            Command::Respond { status, headers, body }
        }
        replies::BEGIN => {
            let (status, headers) = head(tuple)?;
            Command::Begin { status, headers }
        }
        replies::CHUNK => {
            let body = Bytes::copy_from_slice(tuple.get_borrowed_item(2)?.cast::<PyBytes>()?.as_bytes());
            Command::Chunk { body }
        }
        replies::FRAME_OUT => return Ok(Order::Frame(id, frame(tuple, max_frame_bytes)?)),
        replies::LINK_ACCEPT => Command::LinkAccept,
        replies::LINK_REFUSE | replies::FILE_REFUSE => {
            let (status, text) = verdict(tuple, 300)?;
            Command::Refuse { status, text }
        }
        replies::FILE_ACCEPT => Command::FileAccept { path: tuple.get_borrowed_item(2)?.extract()? },
        replies::FILE_DONE => {
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

fn read_urls(urls: &[String]) -> PyResult<Vec<(Arc<str>, Address)>> {
    if urls.is_empty() {
        return Err(WireError::new_err("no URL to connect to"));
    }
    urls.iter()
        .map(|url| Ok((Arc::from(url.as_str()), Address::parse(url).map_err(WireError::new_err)?)))
        .collect()
}

fn read_headers(headers: Vec<(String, String)>) -> PyResult<Headers> {
    check_headers(&headers).map_err(WireError::new_err)?;
    Ok(headers)
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

/// The module `etcd_server.transport._wire`.
#[pymodule]
fn _wire(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for (name, value) in CONSTANTS {
        module.add(name, value)?;
    }
    module.add("WireError", module.py().get_type::<WireError>())?;
    module.add_class::<Wire>()
}

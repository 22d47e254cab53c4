//! The Python face: the class `Wire`, and the only code that makes or reads Python objects.
//!
//! A batch pays for the interpreter lock once in either direction.

mod arguments;
mod events;
mod orders;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use self::arguments::{WireError, read_headers, read_keys, read_methods, read_urls, seconds};
use self::events::{KINDS, Words};
use self::orders::{OPERATIONS, Order, order};
use crate::brisk::{Brisk, Room};
use crate::event::{Event, Object};
use crate::inbox::Inbox;
use crate::listener::{Address, Listener};
use crate::peers::Peers;
use crate::peers::outgoing::Config;
use crate::peers::send::Parcel;
use crate::registry::{Phase, Registry};
use crate::settings::{Counters, Settings, Shared, SharedRef};

/// See `_wire.pyi`.
#[pyclass(frozen, module = "etcd_server.transport._wire")]
struct Wire {
    shared: SharedRef,
    words: Words,
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
        let room = Arc::new(Room::default());
        let wire = Wire {
            words: Words {
                paths: methods.paths.iter().map(intern).collect(),
                keys: metadata_keys.iter().map(intern).collect(),
            },
            shared: Arc::new(Shared {
                inbox: Inbox::new(settings.max_inbox_bytes, Arc::clone(&room)),
                settings,
                methods,
                metadata_keys: read_keys(&metadata_keys)?,
                registry: Registry::default(),
                counters: Counters::default(),
                brisk: Brisk::new(room),
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
            list.append(self.words.event(py, event)?)?;
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
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
    }
}

/// The module `etcd_server.transport._wire`.
#[pymodule]
fn _wire(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for (name, value) in KINDS.into_iter().chain(OPERATIONS).chain([("ONE", 1), ("MANY", 2)]) {
        module.add(name, value)?;
    }
    module.add("WireError", module.py().get_type::<WireError>())?;
    module.add_class::<Wire>()
}

//! Arguments of the methods of `Wire`, checked, with a line for the user about what is wrong.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::listener::Address;
use crate::peers::head::{Headers, check_headers};
use crate::settings::{Kind, Methods};

create_exception!(
    etcd_server.transport._wire,
    WireError,
    PyException,
    "A listener or link could not be opened, or a setting is wrong."
);

const CENTURY_S: f64 = 3.2e9;

/// A time; a century is as good as any longer one.
pub fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    // A century is as good as any longer time, and adds to every clock without overflow.
    Duration::try_from_secs_f64(if value > CENTURY_S { CENTURY_S } else { value })
        .map_err(|_| WireError::new_err(format!("{name} is {value}: expected seconds, not negative")))
}

/// The known gRPC methods.
pub fn read_methods(methods: &HashMap<String, u8>) -> PyResult<Methods> {
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

/// The metadata that the owner wants to see.
pub fn read_keys(keys: &[String]) -> PyResult<Vec<HeaderName>> {
    keys.iter()
        .map(|key| {
            HeaderName::from_bytes(key.as_bytes()).map_err(|_| {
                WireError::new_err(format!("metadata key {key:?}: expected the name of a header"))
            })
        })
        .collect()
}

/// Addresses to connect to, at least one.
pub fn read_urls(urls: &[String]) -> PyResult<Vec<(Arc<str>, Address)>> {
    if urls.is_empty() {
        return Err(WireError::new_err("no URL to connect to"));
    }
    urls.iter()
        .map(|url| Ok((Arc::from(url.as_str()), Address::parse(url).map_err(WireError::new_err)?)))
        .collect()
}

/// Headers of a request of the owner's.
pub fn read_headers(headers: Vec<(String, String)>) -> PyResult<Headers> {
    check_headers(&headers).map_err(WireError::new_err)?;
    Ok(headers)
}

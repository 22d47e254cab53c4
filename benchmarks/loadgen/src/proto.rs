//! The few messages of etcd's API that the workloads need, written and read field by field.
//!
//! Field numbers are those of etcd's rpc.proto and kv.proto. Writers append to a buffer; nested messages are
//! written to a buffer of their own first. Readers look for single fields and skip the rest.

/// Appends a varint.
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a number field; 0 is not written.
pub fn number(out: &mut Vec<u8>, field: u8, value: i64) {
    if value != 0 {
        out.push(field << 3);
        varint(out, value as u64);
    }
}

/// Appends a field of bytes, text or a nested message; written even when it is empty.
pub fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// PutRequest.
pub fn put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    bytes(out, 1, key);
    bytes(out, 2, value);
}

/// RangeRequest; an empty `range_end` asks for one key.
pub fn range(out: &mut Vec<u8>, key: &[u8], range_end: &[u8], serializable: bool) {
    bytes(out, 1, key);
    if !range_end.is_empty() {
        bytes(out, 2, range_end);
    }
    number(out, 7, i64::from(serializable));
}

/// TxnRequest: if the key's mod_revision is `mod_revision`, put the value.
pub fn compare_and_put(out: &mut Vec<u8>, key: &[u8], mod_revision: i64, value: &[u8]) {
    const MOD: i64 = 2;
    let mut compare = Vec::with_capacity(key.len() + 16);
    number(&mut compare, 2, MOD);
    bytes(&mut compare, 3, key);
    // The field is part of a oneof, and so is written even when it is 0.
    compare.push(6 << 3);
    varint(&mut compare, mod_revision as u64);
    bytes(out, 1, &compare);
    put_operation(out, key, value);
}

/// One `success` operation of a TxnRequest: a put.
pub fn put_operation(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let mut request = Vec::with_capacity(key.len() + value.len() + 12);
    put(&mut request, key, value);
    let mut operation = Vec::with_capacity(request.len() + 8);
    bytes(&mut operation, 2, &request);
    bytes(out, 2, &operation);
}

/// WatchRequest with a WatchCreateRequest.
pub fn watch_create(out: &mut Vec<u8>, key: &[u8], range_end: &[u8]) {
    let mut create = Vec::new();
    bytes(&mut create, 1, key);
    if !range_end.is_empty() {
        bytes(&mut create, 2, range_end);
    }
    bytes(out, 1, &create);
}

/// LeaseGrantRequest.
pub fn lease_grant(out: &mut Vec<u8>, ttl_s: i64) {
    number(out, 1, ttl_s);
}

/// LeaseKeepAliveRequest.
pub fn lease_keep_alive(out: &mut Vec<u8>, id: i64) {
    number(out, 1, id);
}

/// One field of a message.
pub enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Bytes, text or a nested message.
    Bytes(&'a [u8]),
}

/// The fields of a message in their order; ends at the end, or where the message is cut.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = read_varint(&mut self.0)?;
        let value = match key & 7 {
            0 => Value::Number(read_varint(&mut self.0)?),
            2 => {
                let size = read_varint(&mut self.0)? as usize;
                let (value, rest) = self.0.split_at_checked(size)?;
                self.0 = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        Some(((key >> 3) as u32, value))
    }
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

/// A number field of a message; 0 when it is absent.
pub fn find_number(message: &[u8], field: u32) -> i64 {
    Fields(message)
        .find_map(|found| match found {
            (number, Value::Number(value)) if number == field => Some(value as i64),
            _ => None,
        })
        .unwrap_or(0)
}

/// A bytes field of a message; empty when it is absent.
pub fn find_bytes(message: &[u8], field: u32) -> &[u8] {
    Fields(message)
        .find_map(|found| match found {
            (number, Value::Bytes(value)) if number == field => Some(value),
            _ => None,
        })
        .unwrap_or(&[])
}

/// ResponseHeader.revision of any response.
pub fn revision(response: &[u8]) -> i64 {
    find_number(find_bytes(response, 1), 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut request = Vec::new();
        compare_and_put(&mut request, b"key", 0, &[7; 300]);
        let compare = find_bytes(&request, 1);
        assert_eq!((find_number(compare, 2), find_bytes(compare, 3)), (2, &b"key"[..]));
        let put = find_bytes(find_bytes(&request, 2), 2);
        assert_eq!((find_bytes(put, 1), find_bytes(put, 2).len()), (&b"key"[..], 300));
        assert_eq!(find_number(&request, 9), 0);
    }

    #[test]
    fn a_cut_message_ends_early() {
        let mut request = Vec::new();
        put(&mut request, b"key", b"value");
        (0..request.len()).for_each(|size| assert!(Fields(&request[..size]).count() < 2));
    }
}

//! The safetensors header: eight bytes of length, a JSON object of tensors, then their bytes without a gap.
//!
//! ```text
//! 0        8            8 + n                                  end
//! | n: u64 | JSON, n B  | tensor a | tensor b | tensor c | ... |
//! {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "b": ..., "__metadata__": {...}}
//! ```
//! Offsets count from the end of the header. As in the reference reader, the tensors must cover the rest of the
//! file exactly: no overlap, no hole, nothing missing.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::error::shown;
use crate::stored::{StoredTensor, StoredType, elements, refuse_duplicates};
use crate::{ElementType, Error};

/// Longest header that the reference reader takes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of a safetensors file whose bytes are `file`; `path` is for messages.
///
/// Errors: a header that is no JSON of the right form, or tensors that do not cover the file exactly.
pub fn read_header(path: &Path, file: &[u8]) -> Result<Vec<StoredTensor>, Error> {
    let (json, data_start) = split_header(path, file)?;
    let header: Header = serde_json::from_slice(json).map_err(|e| {
        Error::malformed(path, format!("the safetensors header is no valid JSON ({e}); fetch the file again"))
    })?;
    let data_len = file.len() - data_start;
    let mut tensors = Vec::new();
    for (name, entry) in header.0 {
        tensors.push(locate(path, name, entry, data_start, data_len)?);
    }
    refuse_duplicates(path, &tensors)?;
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    check_cover(path, &tensors, data_start, file.len())?;
    Ok(tensors)
}

/// The JSON of the header, and where the data begins.
fn split_header<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], usize), Error> {
    let Some((len, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::malformed(path, "too short for a safetensors file; fetch it again"));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER_BYTES || len > rest.len() as u64 {
        let problem = format!("its safetensors header claims {len} bytes of a file of {}; fetch it again", file.len());
        return Err(Error::malformed(path, problem));
    }
    Ok((&rest[..len as usize], 8 + len as usize))
}

/// Checks one entry of the header against the length of the data.
fn locate(path: &Path, name: String, entry: Entry, data_start: usize, data_len: usize) -> Result<StoredTensor, Error> {
    let wrong = |problem: String| Err(Error::malformed(path, format!("tensor {}: {problem}", shown(&name))));
    let [begin, end] = entry.data_offsets;
    if begin > end || end > data_len as u64 {
        return wrong(format!(
            "its bytes {begin} to {end} are not within the {data_len} there are; fetch the file again"
        ));
    }
    let Some(elements) = elements(&entry.shape) else {
        return wrong("its shape is too large for any file; fetch the file again".into());
    };
    let (element_type, bits) = dtype(&entry.dtype);
    if let Some(bits) = bits
        && elements.checked_mul(bits).map(|bits| bits.div_ceil(8)) != Some(end - begin)
    {
        let (shape, dtype) = (&entry.shape, shown(&entry.dtype));
        return wrong(format!("{} bytes do not hold shape {shape:?} of {dtype}; fetch the file again", end - begin));
    }
    let bytes = data_start + begin as usize..data_start + end as usize;
    Ok(StoredTensor { name, element_type, shape: entry.shape, bytes })
}

/// The element type of a safetensors dtype, and the bits of an element where we know them.
fn dtype(name: &str) -> (StoredType, Option<u64>) {
    let known =
        |element_type: ElementType| (StoredType::Known(element_type), Some(8 * element_type.block_bytes() as u64));
    let foreign = |bits| (StoredType::Foreign(name.to_owned()), bits);
    match name {
        "F32" => known(ElementType::F32),
        "F16" => known(ElementType::F16),
        "BF16" => known(ElementType::BF16),
        "F64" | "I64" | "U64" => foreign(Some(64)),
        "I32" | "U32" => foreign(Some(32)),
        "I16" | "U16" => foreign(Some(16)),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => foreign(Some(8)),
        _ => foreign(None),
    }
}

/// Checks that the tensors, sorted by offset, cover the data without gap or overlap.
fn check_cover(path: &Path, tensors: &[StoredTensor], data_start: usize, file_len: usize) -> Result<(), Error> {
    let mut at = data_start;
    for tensor in tensors {
        if tensor.bytes.start != at {
            let what = if tensor.bytes.start < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let problem =
                format!("tensor {} {what} at byte {at}; the file is damaged, fetch it again", shown(&tensor.name));
            return Err(Error::malformed(path, problem));
        }
        at = tensor.bytes.end;
    }
    if at != file_len {
        let problem = format!("its tensors end at byte {at} of {file_len}; the file is damaged, fetch it again");
        return Err(Error::malformed(path, problem));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in file order, repeated names and all, so that we can refuse them.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(json: &str, data: usize) -> Result<Vec<StoredTensor>, String> {
        read_header(Path::new("m.safetensors"), &file(json, data)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_header_names_types_shapes_and_bytes() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#;
        let tensors = read(json, 20).unwrap();
        let start = 8 + json.len();
        assert_eq!(tensors[0].name, "a");
        assert_eq!(tensors[0].element_type, StoredType::Foreign("I64".into()));
        assert_eq!(tensors[1].element_type, StoredType::Known(ElementType::BF16));
        assert_eq!((tensors[1].shape.as_slice(), tensors[1].bytes.clone()), ([2, 3].as_slice(), start + 8..start + 20));
    }

    #[test]
    fn broken_headers_are_refused_with_their_reason() {
        let f32s = |offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        let big = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,8]}}"#;
        let twice = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
        let over = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let dims = format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(100_000));
        let cases = [
            (f32s("[0,16]"), 8, "not within"),
            (f32s("[8,0]"), 8, "not within"),
            (f32s("[0,4]"), 4, "do not hold"),
            (f32s("[0,8]"), 12, "end at byte"),
            (f32s("[4,12]"), 12, "gap"),
            (f32s("[-1,8]"), 8, "JSON"),
            (big.into(), 8, "too large"),
            (dims, 4, "too large"),
            (twice.into(), 16, "twice"),
            (over.into(), 12, "overlaps"),
            ("[".repeat(100_000), 0, "JSON"),
        ];
        for (json, data, reason) in cases {
            let message = read(&json, data).unwrap_err();
            assert!(message.contains(reason) && message.len() < 300, "{reason}: {message}");
        }
    }
}

//! GGUF, llama.cpp's file format: typed key/values, tensor descriptions, then aligned tensor data.
//!
//! ```text
//! "GGUF" | version u32 | n_tensors u64 | n_keys u64 | keys and values | tensor descriptions | padding | data
//! ```
//! Versions 2 and 3, little endian. [`File`] is the plain reader; what the keys mean for Mixtral is in `llama`.

mod bytes;
pub(crate) mod llama;
mod metadata;
pub(crate) mod split;

use std::path::{Path, PathBuf};

use bytes::Bytes;
pub use metadata::{Array, Metadata, Value};

use crate::error::shown;
use crate::mapping::Mapping;
use crate::stored::{StoredTensor, StoredType, elements, refuse_duplicates, refuse_overlaps};
use crate::{ElementType, Error};

/// Alignment of tensor data where the file does not say another.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor, as in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// One GGUF file, mapped, its header read and checked against the file's length.
#[derive(Debug)]
pub struct File {
    mapping: Mapping,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<StoredTensor>,
}

impl File {
    /// Opens one file (of a split model: that part alone).
    ///
    /// Errors: not GGUF, a version or byte order we do not read, a header that breaks the format's rules, tensors
    /// that overlap or reach past the end of the file.
    pub fn open(path: &Path) -> Result<File, Error> {
        let mapping = Mapping::open(path)?;
        let header = Header::read(path, &mapping)?;
        let Header { version, alignment, metadata, tensors } = header;
        Ok(File { mapping, version, alignment, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What every tensor's offset in the data is a multiple of, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The bytes of one of this file's tensors.
    pub fn bytes(&self, tensor: &StoredTensor) -> &[u8] {
        &self.mapping[tensor.bytes.clone()]
    }

    pub(crate) fn into_parts(self) -> (Mapping, Metadata, Vec<StoredTensor>) {
        (self.mapping, self.metadata, self.tensors)
    }
}

/// What stands before the data of a GGUF file whose bytes are `file`; `path` is for messages.
///
/// Errors: as those of [`File::open`].
pub fn read_header(path: &Path, file: &[u8]) -> Result<Header, Error> {
    Header::read(path, file)
}

/// What stands before the data.
#[derive(Debug)]
pub struct Header {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<StoredTensor>,
}

impl Header {
    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    fn read(path: &Path, file: &[u8]) -> Result<Header, Error> {
        let mut bytes = Bytes::new(path, file);
        let version = read_version(path, &mut bytes)?;
        let n_tensors = bytes.u64("the number of tensors")?;
        let n_keys = bytes.u64("the number of keys")?;
        let metadata = Metadata::read(path, &mut bytes, n_keys)?;
        let alignment = read_alignment(path, &metadata)?;
        let mut described = Vec::new();
        for _ in 0..n_tensors {
            described.push(Description::read(path, &mut bytes)?);
        }
        let data_start = bytes.position().next_multiple_of(alignment);
        let locate = |tensor: Description| tensor.locate(path, data_start, alignment, file.len() as u64);
        let tensors = described.into_iter().map(locate).collect::<Result<Vec<_>, Error>>()?;
        refuse_duplicates(path, &tensors)?;
        refuse_overlaps(path, &tensors)?;
        Ok(Header { version, alignment, metadata, tensors })
    }
}

/// Reads magic and version, naming the older formats for what they are.
fn read_version(path: &Path, bytes: &mut Bytes<'_>) -> Result<u32, Error> {
    const NEWER: &str = "get a newer GGUF of the model, or convert from its safetensors";
    match bytes.take(4, "the magic number")? {
        b"GGUF" => {}
        b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            return Err(Error::unsupported(path, "a GGML file from before GGUF (August 2023)", NEWER));
        }
        _ => {
            return Err(Error::malformed(path, "is no GGUF file (its first four bytes are not `GGUF`)"));
        }
    }
    match bytes.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(Error::unsupported(path, "GGUF version 1", NEWER)),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(Error::unsupported(path, "a big-endian GGUF", "get the little-endian file of the model"))
        }
        version => Err(Error::unsupported(path, format!("GGUF version {version}"), "Octet reads versions 2 and 3")),
    }
}

fn read_alignment(path: &Path, metadata: &Metadata) -> Result<u64, Error> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_u64() {
            Some(n) if n.is_power_of_two() && (8..=1 << 20).contains(&n) => Ok(n),
            _ => Err(Error::key(path, KEY, "is no power of two from 8 to 1048576; the file is damaged")),
        },
    }
}

/// A tensor's entry in the header.
struct Description {
    name: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    type_id: u32,
    /// From the start of the data.
    offset: u64,
}

impl Description {
    fn read(path: &Path, bytes: &mut Bytes<'_>) -> Result<Description, Error> {
        let name = bytes.name("a tensor's name")?;
        let n_dimensions = bytes.u32("a tensor's number of dimensions")?;
        if n_dimensions > MAX_DIMENSIONS {
            let problem =
                format!("tensor {} claims {n_dimensions} dimensions, more than 4; the file is damaged", shown(&name));
            return Err(Error::malformed(path, problem));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            shape.push(bytes.u64("a tensor's shape")?);
        }
        shape.reverse();
        let type_id = bytes.u32("a tensor's type")?;
        let offset = bytes.u64("a tensor's offset")?;
        Ok(Description { name, shape, type_id, offset })
    }

    /// Turns the claim into a range of the file, or says why it cannot be.
    fn locate(self, path: &Path, data_start: u64, alignment: u64, file_len: u64) -> Result<StoredTensor, Error> {
        let wrong = |problem: String| Error::malformed(path, format!("tensor {}: {problem}", shown(&self.name)));
        let Some(element_type) = ElementType::from_gguf_id(self.type_id) else {
            let what = format!("tensor {} of type {}", shown(&self.name), type_name(self.type_id));
            return Err(Error::unsupported(path, what, "get the model in another quantization, such as Q4_K_M"));
        };
        let too_large = || wrong(format!("shape {:?} is too large for any file; the file is damaged", self.shape));
        let elements = elements(&self.shape).ok_or_else(too_large)?;
        let cols = self.shape.last().copied().unwrap_or(1);
        if elements == 0 || !cols.is_multiple_of(element_type.block_len() as u64) {
            return Err(wrong(format!(
                "shape {:?} cannot be stored as {element_type}; the file is damaged",
                self.shape
            )));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(wrong(format!("offset {} is no multiple of {alignment}; the file is damaged", self.offset)));
        }
        let blocks = elements / element_type.block_len() as u64;
        let len = blocks.checked_mul(element_type.block_bytes() as u64).ok_or_else(too_large)?;
        let end = data_start.checked_add(self.offset).and_then(|start| start.checked_add(len));
        match end {
            Some(end) if end <= file_len => {
                let bytes = (end - len) as usize..end as usize;
                let element_type = StoredType::Known(element_type);
                Ok(StoredTensor { name: self.name, element_type, shape: self.shape, bytes })
            }
            _ => Err(wrong(format!(
                "its {len} bytes at offset {} reach past the end of the file ({file_len} bytes); the download was cut short, fetch it again",
                self.offset
            ))),
        }
    }
}

/// The field's name of a type that Octet does not read.
fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        19 => "IQ1_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}

/// The paths of a model's parts, in order; one for a model in one file.
pub(crate) fn parts(path: &Path) -> Result<Vec<PathBuf>, Error> {
    split::parts(path)
}

//! Safetensors files that commands take numbers from and write numbers to.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use safetensors::{Dtype, SafeTensors, View};

/// A file that was read.
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Whole numbers of a file.
pub struct Integers {
    /// Row after row.
    pub values: Vec<i64>,
    shape: Vec<usize>,
    /// The file and the tensor, for messages.
    what: String,
}

/// Reads a safetensors file.
pub fn read(path: &Path) -> anyhow::Result<TensorFile> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    SafeTensors::deserialize(&bytes).map_err(|e| anyhow::anyhow!("{} is no safetensors file: {e}", path.display()))?;
    Ok(TensorFile { path: path.to_owned(), bytes })
}

impl TensorFile {
    /// Whether it holds a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).is_ok_and(|file| file.tensor(name).is_ok())
    }

    /// A tensor of type I64 or I32.
    pub fn integers(&self, name: &str) -> anyhow::Result<Integers> {
        let path = self.path.display();
        let file = SafeTensors::deserialize(&self.bytes)?;
        let tensor = file.tensor(name).map_err(|_| anyhow::anyhow!("{path} holds no tensor `{name}`"))?;
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
            }
            Dtype::I32 => {
                data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four bytes")).into()).collect()
            }
            other => bail!("{path}: `{name}` has type {other:?}; it has to be I64 or I32"),
        };
        Ok(Integers { values, shape: tensor.shape().to_vec(), what: format!("{path}: `{name}`") })
    }
}

impl Integers {
    /// Both sizes of a tensor [B,T] that is not empty.
    pub fn two_dimensions(&self) -> anyhow::Result<(usize, usize)> {
        match self.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
            [_, _] => bail!("{} has shape {:?}, so there is nothing to compute", self.what, self.shape),
            _ => bail!("{} has shape {:?}; it has to be [B,T]", self.what, self.shape),
        }
    }

    /// Refuses another shape than that of `other`.
    pub fn like(self, other: &Integers) -> anyhow::Result<Integers> {
        match self.shape == other.shape {
            true => Ok(self),
            false => bail!("{} has shape {:?}, but {} has {:?}", self.what, self.shape, other.what, other.shape),
        }
    }

    /// Refuses another number of values.
    pub fn of_length(self, length: usize) -> anyhow::Result<Integers> {
        match self.values.len() == length {
            true => Ok(self),
            false => bail!("{} holds {} numbers; it has to be {length}", self.what, self.values.len()),
        }
    }
}

/// A tensor about to be written.
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Of type F32.
    pub fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Of type I64.
    pub fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes beside the target and renames, so that the file is there whole or not at all.
pub fn write(path: &Path, tensors: Vec<(String, Tensor)>) -> anyhow::Result<()> {
    let bytes = safetensors::serialize(tensors, None).context("cannot lay out the output")?;
    crate::whole_file::write(path, &bytes)
}

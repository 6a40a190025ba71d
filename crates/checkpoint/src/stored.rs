//! A tensor as its file describes it, before anyone asks what it means.

use std::ops::Range;
use std::path::Path;

use crate::error::shown;
use crate::{ElementType, Error};

/// Most dimensions that any tensor of these formats has.
pub(crate) const MAX_DIMENSIONS: usize = 8;

/// The type of a stored tensor's elements: one that we compute with, or only the file's word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// A type that weights can have.
    Known(ElementType),
    /// Another type, by the file's name for it, such as `I64`.
    Foreign(String),
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoredType::Known(element_type) => element_type.fmt(f),
            StoredType::Foreign(name) => f.write_str(&shown(name)),
        }
    }
}

/// A tensor of a file: what it is called, its type, its shape, and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The name in the file.
    pub name: String,
    /// The type of its elements.
    pub element_type: StoredType,
    /// The shape, outermost dimension first (GGUF writes it the other way round).
    pub shape: Vec<u64>,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

impl StoredTensor {
    /// Elements of the tensor.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Elements of a shape; `None` where there are too many dimensions or the product overflows.
pub(crate) fn elements(shape: &[u64]) -> Option<u64> {
    if shape.len() > MAX_DIMENSIONS {
        return None;
    }
    shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
}

/// Refuses two tensors of one name; `tensors` may be in any order.
pub(crate) fn refuse_duplicates(path: &Path, tensors: &[StoredTensor]) -> Result<(), Error> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(Error::malformed(path, format!("tensor {} is there twice; fetch the file again", shown(pair[0]))))
        }
        None => Ok(()),
    }
}

/// Refuses tensors that share bytes; the way out is the same for every format.
pub(crate) fn refuse_overlaps(path: &Path, tensors: &[StoredTensor]) -> Result<(), Error> {
    let mut by_start: Vec<&StoredTensor> = tensors.iter().filter(|tensor| !tensor.bytes.is_empty()).collect();
    by_start.sort_unstable_by_key(|tensor| tensor.bytes.start);
    match by_start.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        Some(pair) => {
            let (a, b) = (shown(&pair[0].name), shown(&pair[1].name));
            Err(Error::malformed(
                path,
                format!("tensors {a} and {b} overlap in the file; it is damaged, fetch it again"),
            ))
        }
        None => Ok(()),
    }
}

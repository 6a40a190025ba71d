//! Torch's `.pth` and `.pt` files.
use std::path::Path;

use crate::Error;
use crate::stored::StoredTensor;

/// The tensors of a torch file whose bytes are `file`; `path` is for messages.
pub fn read_tensors(path: &Path, _file: &[u8]) -> Result<Vec<StoredTensor>, Error> {
    Err(Error::unsupported(path, "a torch file", "coming"))
}

//! Torch's `.pth` and `.pt` files: a zip archive of stored (never compressed) entries, of which one is a pickle.
//!
//! ```text
//! consolidated.00/data.pkl    a program that builds {"norm.weight": tensor(storage "1", offset, shape, strides), ...}
//! consolidated.00/byteorder   "little"
//! consolidated.00/data/1      the numbers of storage "1"
//! ```
//! The pickle is read by a machine that knows the few instructions torch needs and can build nothing but names,
//! numbers and tensors: nothing is ever executed. The numbers stay where they lie in the file.

mod machine;
mod pickle;
mod zip;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

pub use pickle::{PickledTensor, read_pickle};

use crate::Error;
use crate::error::shown;
use crate::stored::StoredTensor;

/// The tensors of a torch file whose bytes are `file`; `path` is for messages.
///
/// Errors: no zip archive or a compressed one, a pickle that asks for anything but tensors, a tensor that reaches
/// out of its storage or is not contiguous.
pub fn read_tensors(path: &Path, file: &[u8]) -> Result<Vec<StoredTensor>, Error> {
    const OLD_FORMAT: &[u8] = &[0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9];
    if file.starts_with(OLD_FORMAT) {
        let what = "torch's format from before version 1.6";
        return Err(Error::unsupported(path, what, "load it with torch and save it again"));
    }
    let archive = Archive::new(zip::read_entries(path, file)?, path)?;
    archive.check_byte_order(path, file)?;
    let pickled = read_pickle(path, &file[archive.pickle.clone()])?;
    let tensors: Vec<_> = pickled.into_iter().map(|tensor| archive.locate(path, tensor)).collect::<Result<_, _>>()?;
    crate::stored::refuse_duplicates(path, &tensors)?;
    Ok(tensors)
}

/// The entries of a torch archive.
struct Archive {
    pickle: Range<usize>,
    byte_order: Option<Range<usize>>,
    /// By storage key.
    storages: HashMap<String, Range<usize>>,
}

impl Archive {
    fn new(entries: Vec<zip::Entry>, path: &Path) -> Result<Archive, Error> {
        let pickles = || entries.iter().filter_map(|entry| Some((entry.name.strip_suffix("data.pkl")?, entry)));
        let is_folder = |folder: &str| folder.is_empty() || folder.ends_with('/');
        let Some((folder, pickle)) = pickles().find(|(folder, _)| is_folder(folder)) else {
            return Err(Error::malformed(path, "is a zip archive without data.pkl, so no torch file"));
        };
        let mut byte_order = None;
        let mut storages = HashMap::new();
        for entry in &entries {
            match entry.name.strip_prefix(folder) {
                Some("byteorder") => byte_order = Some(entry.bytes.clone()),
                Some(name) => {
                    if let Some(key) = name.strip_prefix("data/") {
                        storages.insert(key.to_owned(), entry.bytes.clone());
                    }
                }
                None => {}
            }
        }
        Ok(Archive { pickle: pickle.bytes.clone(), byte_order, storages })
    }

    fn check_byte_order(&self, path: &Path, file: &[u8]) -> Result<(), Error> {
        match self.byte_order.clone().map(|bytes| &file[bytes]) {
            None | Some(b"little") => Ok(()),
            Some(_) => {
                Err(Error::unsupported(path, "a byte order other than little", "save it on a little-endian machine"))
            }
        }
    }

    /// Finds a pickled tensor's bytes in its storage.
    fn locate(&self, path: &Path, tensor: PickledTensor) -> Result<StoredTensor, Error> {
        let name = || shown(&tensor.name);
        let Some(storage) = self.storages.get(&tensor.storage) else {
            let problem = format!(
                "tensor {}: its storage data/{} is not in the archive; fetch the file again",
                name(),
                shown(&tensor.storage)
            );
            return Err(Error::malformed(path, problem));
        };
        let size = tensor.element_bytes;
        let start = tensor.offset.checked_mul(size);
        let len = tensor.elements().and_then(|elements| elements.checked_mul(size));
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= storage.len() as u64 => {
                let bytes = storage.start + start as usize..storage.start + end as usize;
                Ok(StoredTensor { name: tensor.name, element_type: tensor.element_type, shape: tensor.shape, bytes })
            }
            _ => {
                let problem = format!(
                    "tensor {} of shape {:?} reaches out of its storage of {} bytes; the file is damaged, fetch it again",
                    name(),
                    tensor.shape,
                    storage.len()
                );
                Err(Error::malformed(path, problem))
            }
        }
    }
}

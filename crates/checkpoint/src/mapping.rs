//! Files as memory: the one place of this crate with `unsafe`.
//!
//! A map shows the file's pages without copying them. The price: should somebody cut the file short while we
//! read, the process dies of SIGBUS; should somebody write to it, we read what they write. Every format here is
//! checked once when opened and its offsets kept, so changed bytes can change numbers but not break memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::Error;

/// What stands in place of a large file where a repository was cloned without Git LFS.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/";

/// A file mapped for reading.
#[derive(Debug)]
pub(crate) struct Mapping {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps the whole file; an empty one or a folder is an error.
    pub(crate) fn open(path: &Path) -> Result<Mapping, Error> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            return Err(Error::not_found(path, "is not a file"));
        }
        if meta.len() == 0 {
            return Err(Error::malformed(path, "the file is empty; fetch it again"));
        }
        // SAFETY: the map is read-only and private to this struct; what a change of the file under us can do is
        // said at the head of this module, and every program that maps weights lives with it.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        if map.starts_with(LFS_POINTER) {
            return Err(Error::malformed(
                path,
                "is a pointer of Git LFS in place of the file; run `git lfs pull` there",
            ));
        }
        Ok(Mapping { path: path.to_owned(), map })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system that these bytes will not be needed soon: their pages leave our resident memory, and
    /// come back from the file when read again.
    pub(crate) fn forget(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        {
            let len = bytes.end.min(self.map.len()).saturating_sub(bytes.start);
            if len == 0 {
                return;
            }
            // SAFETY: DONTNEED on a shared map of a file loses nothing: the pages are clean, and read anew on the
            // next access. A refusal costs only memory, so it is not an error.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, len) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

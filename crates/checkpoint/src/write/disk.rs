//! How much room there is, and how to make what was written last.

use std::fs::File;
use std::path::Path;

use crate::Error;

/// Refuses to begin where `needed` bytes do not fit the file system of `folder`; `out` is for the message.
///
/// Where the system does not say how much is free, the writing itself will.
pub(super) fn check_room(out: &Path, folder: &Path, needed: u64) -> Result<(), Error> {
    match free_bytes(folder) {
        Some(free) if free < needed => Err(Error::NoRoom { path: out.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write to the file system of `folder`.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
pub fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// Bytes that a file takes on disk: less than its length while it has holes.
#[cfg(unix)]
pub(super) fn allocated_bytes(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map_or(0, |meta| meta.blocks() * 512)
}

#[cfg(not(unix))]
pub(super) fn allocated_bytes(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.len())
}

/// Makes the names in a folder last, as syncing a file does its bytes. Systems that cannot sync a folder need not.
pub(super) fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// An error of writing to `path`: a full disk is named with what the output needs.
pub(super) fn write_error(path: &Path, needed: u64, source: std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => Error::DiskFull { path: path.to_owned(), needed, source },
        _ => Error::io(path, source),
    }
}

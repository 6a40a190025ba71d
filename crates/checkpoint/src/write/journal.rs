//! How far a job came, so that a killed run goes on where it stopped.
//!
//! The first line says what the output is made from; each later line counts the tensors that are safely on disk. A
//! torn last line is of no account.
//!
//! ```text
//! {"octet":"0.1.0","plan":"9a0c...","made_from":["model.gguf 98000000 bytes ..."]}
//! 12
//! 40
//! ```

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::Error;

/// Longest journal that is read back: far more than any job writes.
const MAX_JOURNAL_BYTES: u64 = 16 << 20;

/// The journal of a job, locked against a second run of the same output.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    text: String,
}

/// What an existing journal says about this job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// There was none.
    None,
    /// It is of the same output from the same input: this many tensors are done.
    Same(usize),
    /// It is of something else.
    Other,
}

impl Journal {
    /// Opens or makes the journal at `path`. Errors: another process is at work on it.
    pub(super) fn open(path: &Path) -> Result<Journal, Error> {
        let io = |e| Error::io(path, e);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let mut bytes = Vec::new();
        (&mut file).take(MAX_JOURNAL_BYTES).read_to_end(&mut bytes).map_err(io)?;
        Ok(Journal { path: path.to_owned(), file, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// Compares what is there with `identity`, a single line.
    pub(super) fn past(&self, identity: &str) -> Past {
        if self.text.is_empty() {
            return Past::None;
        }
        // A line counts only with its end: a torn "12" must not be read as 1.
        let mut lines = self.text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        if lines.next() != Some(identity) {
            return Past::Other;
        }
        Past::Same(lines.filter_map(|line| line.parse().ok()).next_back().unwrap_or(0))
    }

    /// Begins anew: the identity and nothing done.
    pub(super) fn begin(&mut self, identity: &str) -> Result<(), Error> {
        self.write(|file| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{identity}")
        })
    }

    /// Records that the first `n_tensors` tensors are on disk.
    pub(super) fn record(&mut self, n_tensors: usize) -> Result<(), Error> {
        self.write(|file| {
            file.seek(SeekFrom::End(0))?;
            file.write_all(format!("{n_tensors}\n").as_bytes())
        })
    }

    fn write(&mut self, put: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), Error> {
        put(&mut self.file).and_then(|()| self.file.sync_data()).map_err(|e| super::disk::write_error(&self.path, 0, e))
    }

    /// Removes the journal.
    pub(super) fn remove(self) {
        // Left behind it is harmless: without the partial output beside it, it counts for nothing.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(text: &str) -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        std::fs::write(&path, text).unwrap();
        let journal = Journal::open(&path).unwrap();
        (folder, journal)
    }

    #[test]
    fn a_torn_line_is_of_no_account() {
        assert_eq!(journal("").1.past("id"), Past::None);
        assert_eq!(journal("id\n").1.past("id"), Past::Same(0));
        assert_eq!(journal("id\n3\n12").1.past("id"), Past::Same(3));
        assert_eq!(journal("id\n3\n12\n").1.past("id"), Past::Same(12));
        assert_eq!(journal("i").1.past("id"), Past::Other);
        assert_eq!(journal("other\n3\n").1.past("id"), Past::Other);
    }

    #[test]
    fn a_second_run_is_kept_out() {
        let (_folder, journal) = journal("id\n");
        assert!(matches!(Journal::open(&journal.path), Err(Error::Busy { .. })));
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let (_folder, mut first) = journal("other\n99\n");
        first.begin("id").unwrap();
        first.record(1).unwrap();
        first.record(7).unwrap();
        let path = first.path.clone();
        drop(first);
        assert_eq!(Journal::open(&path).unwrap().past("id"), Past::Same(7));
    }
}

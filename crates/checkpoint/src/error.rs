//! What can be wrong with a checkpoint, said in one line that names the file, the tensor or key, and the way out.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to open, map or list something.
    #[error("{}: {}", path.display(), remedied(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes break the rules of their format.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and where, and what to do.
        problem: String,
    },
    /// The file is in order, but Octet does not do what it asks for.
    #[error("{}: {what} is not supported; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, by the name that the file gives it.
        what: String,
        /// The way out.
        remedy: &'static str,
    },
    /// A configuration key is missing or has a value that makes no sense.
    #[error("{}: `{key}` {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no checkpoint at this path.
    #[error("{}: {problem}", path.display())]
    NotFound {
        /// The file or folder.
        path: PathBuf,
        /// What was looked for.
        problem: String,
    },
    /// A folder holds more than one checkpoint.
    #[error("{}: holds two checkpoints, {} and {}; give the path of the one you mean", folder.display(), first.display(), second.display())]
    Ambiguous {
        /// The folder.
        folder: PathBuf,
        /// A file of one checkpoint.
        first: PathBuf,
        /// A file of the other.
        second: PathBuf,
    },
    /// A tensor that the model needs is in none of the files.
    #[error("{}: tensor {tensor} of shape {expected:?} is missing; the download may be incomplete, fetch the checkpoint again", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name under which it was looked for.
        tensor: String,
        /// The shape that the configuration asks for, outermost dimension first.
        expected: Vec<u64>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {tensor} has shape {found:?}, but the configuration asks for {expected:?}; weights and configuration are not of the same model", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor, by its name in the file.
        tensor: String,
        /// The shape in the file, outermost dimension first.
        found: Vec<u64>,
        /// The shape that the configuration asks for, outermost dimension first.
        expected: Vec<u64>,
    },
    /// The name of an output is taken.
    #[error("{}: {remedy}", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
        /// What it is, and the way out.
        remedy: &'static str,
    },
    /// Another process is writing the same output.
    #[error("{}: another run is writing this output; let it end, or stop it", path.display())]
    Busy {
        /// The journal that the other one holds.
        path: PathBuf,
    },
    /// The output will not fit its disk.
    #[error("{}: the disk has {} free and the output needs {}; make room or write elsewhere", path.display(), gigabytes(*free), gigabytes(*needed))]
    NoRoom {
        /// The output.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The disk filled up while we wrote.
    #[error("{}: {source}; the output needs {} in all: make room and run again", path.display(), gigabytes(*needed))]
    DiskFull {
        /// The partial output, which is removed.
        path: PathBuf,
        /// Bytes of the whole output.
        needed: u64,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the system said, and what to do where that is plain.
fn remedied(source: &std::io::Error) -> String {
    match source.kind() {
        ErrorKind::NotFound => format!("{source}; check the path"),
        ErrorKind::PermissionDenied => format!("{source}; change its permissions, or run as another user"),
        _ => source.to_string(),
    }
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Error {
        Error::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, remedy: &'static str) -> Error {
        Error::Unsupported { path: path.to_owned(), what: what.into(), remedy }
    }

    pub(crate) fn key(path: &Path, key: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Key { path: path.to_owned(), key: key.into(), problem: problem.into() }
    }

    pub(crate) fn not_found(path: &Path, problem: impl Into<String>) -> Error {
        Error::NotFound { path: path.to_owned(), problem: problem.into() }
    }
}

/// A size for a message.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Most characters of a name out of a file that a message repeats.
const SHOWN_CHARS: usize = 96;

/// A name out of a file, fit for one line of a message: control characters escaped, long ones cut.
pub(crate) fn shown(name: &str) -> String {
    let mut out: String = name.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_on_one_line() {
        let text = shown(&"a\nb\u{1b}".repeat(10_000));
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 1000, "{text}");
    }
}

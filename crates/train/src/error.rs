//! What can go wrong in training.

use std::path::PathBuf;

/// An error of training: each message says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read as asked.
    #[error(transparent)]
    Checkpoint(#[from] octet_checkpoint::Error),
    /// The configuration, or a token id, does not fit the model.
    #[error(transparent)]
    Model(#[from] octet_model::Error),
    /// A file of an adapter cannot be used.
    #[error("{path}: {problem}", path = path.display())]
    Adapter {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// What was asked for cannot be trained.
    #[error("{0}")]
    Options(String),
}

//! What can go wrong in training.

/// An error of training: each message says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read as asked.
    #[error(transparent)]
    Checkpoint(#[from] octet_checkpoint::Error),
    /// The configuration, or a token id, does not fit the model.
    #[error(transparent)]
    Model(#[from] octet_model::Error),
    /// What was asked for cannot be trained.
    #[error("{0}")]
    Options(String),
}

//! What can go wrong between a checkpoint and its logits.

/// An error of the model: each message says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read as asked.
    #[error(transparent)]
    Checkpoint(#[from] octet_checkpoint::Error),
    /// The key-value cache cannot be made.
    #[error(transparent)]
    Kernels(#[from] octet_kernels::Error),
    /// A tensor that cannot be quantized.
    #[error("{tensor} holds {value}, which no quantized type can: `octet verify` tells what else is broken")]
    NotFinite {
        /// Its name in the file.
        tensor: String,
        /// Infinity or NaN.
        value: f32,
    },
    /// The configuration describes no model that we can run.
    #[error("{0}")]
    Config(String),
    /// A token id beyond the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab_size}; was it made by another model's tokenizer?")]
    TokenOutsideVocabulary {
        /// The id at fault.
        id: u32,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },
    /// A file of an adapter cannot be used.
    #[error("{}: {problem}", path.display())]
    Adapter {
        /// The file at fault.
        path: std::path::PathBuf,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// [`Record::is_wanted`](crate::Record::is_wanted) said no.
    #[error("the pass was given up: nobody waits for it any more")]
    GivenUp,
    /// More tokens than the key-value cache has room for.
    #[error(
        "the KV cache is full: {asked} more tokens asked, room for {free}; use a shorter prompt or a larger context"
    )]
    CacheFull {
        /// Tokens that were to be added.
        asked: usize,
        /// Tokens that still fit.
        free: usize,
    },
}

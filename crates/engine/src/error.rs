//! What can go wrong with a request.

/// An error of the engine: each message says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be opened or run.
    #[error(transparent)]
    Model(#[from] octet_model::Error),
    /// The tokenizer cannot be opened.
    #[error(transparent)]
    Tokenizer(#[from] octet_tokenizer::Error),
    /// A setting out of its range.
    #[error("{0}")]
    Setting(String),
    /// A prompt that leaves no room for an answer.
    #[error("the prompt has {prompt} tokens and the context only {context}; shorten it or raise --context")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of context.
        context: usize,
    },
    /// A text too short to score.
    #[error("{tokens} tokens are too few for a window of {context}; give a longer text or a shorter --context")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Too many requests wait already.
    #[error("{waiting} requests wait already, which is the limit; try again later")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
    },
    /// The engine takes no more requests.
    #[error("the engine is shutting down and takes no more requests")]
    ShuttingDown,
    /// A constraint that cannot be enforced.
    #[error("{0}")]
    Constraint(String),
    /// A fault of our own; the request is lost, the engine goes on.
    #[error("this should not have happened, please report it: {0}")]
    Internal(String),
}

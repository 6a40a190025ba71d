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
}

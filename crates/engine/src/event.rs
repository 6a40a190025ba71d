//! What an engine reports of a request, as it happens.

use crate::Error;

/// Takes the events of a request, on the engine's thread: it must not wait. [`Flow::Stop`] says that nobody listens any
/// more, which ends the request. It is dropped after the last event.
pub type Sink = Box<dyn FnMut(Event) -> Flow + Send>;

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End the answer here.
    Stop,
}

/// Something that happened to a request. First [`Event::Started`], then progress, then tokens; each choice ends with
/// [`Event::Finished`], unless the whole request ends with [`Event::Failed`].
#[derive(Debug)]
pub enum Event {
    /// The request left the queue.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that need not be computed.
        cached_tokens: usize,
    },
    /// A chunk of the prompt has been read.
    PromptProgress {
        /// Tokens read so far.
        done: usize,
        /// Tokens in all.
        total: usize,
    },
    /// Log-probabilities of prompt tokens `first..`, in order.
    PromptLogprobs {
        /// Position of the first of them in the prompt; at least 1.
        first: usize,
        /// One a token.
        tokens: Vec<Logprobs>,
    },
    /// The pooled hidden state `[dim]` after the last norm, not normalised.
    Hidden(Vec<f32>),
    /// Which experts worked on some tokens.
    Routing(Routed),
    /// A token was drawn.
    Token {
        /// Which of the `n` answers.
        choice: usize,
        /// Its id.
        id: u32,
        /// Text that is now certain; may be empty while a character or a stop string is incomplete.
        text: String,
        /// If asked for.
        logprobs: Option<Logprobs>,
    },
    /// An answer has ended.
    Finished {
        /// Which of the `n` answers.
        choice: usize,
        /// Why.
        reason: StopReason,
        /// The stop string that ended it.
        stop_string: Option<String>,
        /// Text that had been held back and is part of the answer.
        text: String,
        /// What it took.
        usage: Usage,
    },
    /// The request cannot be answered; no more events come.
    Failed(Error),
}

/// How likely a token was, as natural logarithms of the model's own probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens by likelihood; 0 is the likeliest.
    pub rank: usize,
    /// The likeliest tokens, best first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// The experts of consecutive tokens of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// Which of the `n` answers; 0 while the prompt is read.
    pub choice: usize,
    /// Position of the first of these tokens in the sequence, prompt included.
    pub first_position: usize,
    /// Number of tokens.
    pub n_tokens: usize,
    /// Experts of a token and layer.
    pub per_token: usize,
    /// `[layers, n_tokens, per_token]`, best first.
    pub experts: Vec<u32>,
    /// Their weights, in the same order.
    pub weights: Vec<f32>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model's own end of text.
    EndOfText,
    /// One of [`Stop::token_ids`](crate::Stop).
    StopToken(u32),
    /// A stop string.
    StopString,
    /// The constraint allows nothing more: the answer is complete.
    ConstraintComplete,
    /// The limit on tokens.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The deadline has passed.
    Deadline,
    /// The caller asked.
    Cancelled,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that need not be computed.
    pub cached_tokens: usize,
    /// Tokens drawn, without the end of text.
    pub completion_tokens: usize,
}

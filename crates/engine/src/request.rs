//! What is asked of an engine, owned so that it can travel to the engine's thread.

use std::time::Instant;

use crate::{Sampling, Stop};

/// A prompt and how it is to be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// What the answer's text joins on to.
    pub start: TextStart,
    /// How tokens are chosen. Choice `i` of several draws with seed `seed + i`.
    pub sampling: Sampling,
    /// When an answer ends. `max_tokens` of 0 only reads the prompt.
    pub stop: Stop,
    /// Answers to this prompt, which is read once for all of them; at least 1.
    pub n: usize,
    /// Report each token's log-probability, and those of this many likeliest alternatives: of the model itself, before
    /// bias, penalties, constraint and temperature.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt, the first one aside ([`Event::PromptLogprobs`](crate::Event)).
    pub prompt_logprobs: Option<usize>,
    /// What the answer's text has to match.
    pub constraint: Option<Constraint>,
    /// Higher goes first; equals go by arrival.
    pub priority: i32,
    /// The answer ends here, finished or not.
    pub deadline: Option<Instant>,
    /// Experts for each token; `None` for the engine's setting.
    pub experts_per_token: Option<usize>,
    /// Name of the adapter to answer with; `None` for the model alone.
    pub adapter: Option<String>,
    /// Report which experts worked on each token ([`Event::Routing`](crate::Event)).
    pub record_routing: bool,
    /// Report the prompt's last hidden states, pooled ([`Event::Hidden`](crate::Event)): an embedding.
    pub hidden: Option<Pooling>,
}

impl Request {
    /// A greedy request for one answer.
    pub fn new(prompt: Vec<u32>, start: TextStart) -> Request {
        Request {
            prompt,
            start,
            sampling: Sampling::default(),
            stop: Stop::default(),
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
            priority: 0,
            deadline: None,
            experts_per_token: None,
            adapter: None,
            record_routing: false,
            hidden: None,
        }
    }
}

/// What the text of an answer joins on to: some vocabularies write a space before every word, which an answer of its own
/// must not begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStart {
    /// The answer is a text of its own, as in a chat.
    Fresh,
    /// The answer goes on where the prompt ends.
    Continued,
}

/// What an answer's text has to match, as a whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    Json,
    /// JSON of this schema; a keyword that cannot be enforced is refused by name.
    JsonSchema(String),
    /// A regular expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// How the hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

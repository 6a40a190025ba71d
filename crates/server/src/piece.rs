//! An answer as it comes, in no dialect; and the same put together.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::refusal::Refusal;
use crate::tool_calls::Call;

/// A piece of an answer. Choices are counted over all prompts: `prompt * n + i`.
#[derive(Clone, Debug)]
pub enum Piece {
    /// The prompt is being read: tokens so far and in all.
    Reading {
        /// Of all prompts together.
        done: usize,
        /// Of all prompts together.
        total: usize,
    },
    /// The prompt of a choice, where `echo` asked for it; comes before its text.
    Prompt {
        /// Whose.
        choice: usize,
        /// Each of its tokens; the choices of one prompt share them.
        tokens: Arc<[Token]>,
    },
    /// Text of a choice, and the tokens drawn for it (text and tokens may be apart: a character can need several).
    Text {
        /// Whose.
        choice: usize,
        /// May be empty.
        text: String,
        /// May be empty.
        tokens: Vec<Token>,
    },
    /// A call of a tool.
    Call {
        /// Whose.
        choice: usize,
        /// Counted within the choice.
        index: usize,
        /// Name and arguments.
        call: Call,
    },
    /// Something that the reader should know, such as a call that did not parse.
    Warning(String),
    /// Which experts worked on some tokens of a choice, in the form that the API gives.
    Routing(Value),
    /// A choice is over.
    End {
        /// Which.
        choice: usize,
        /// Why.
        end: End,
    },
    /// All choices are over.
    Done(Usage),
    /// The answer broke off.
    Failed(Refusal),
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model's own end of text, or a stop token.
    Eos,
    /// This stop string.
    StopString(String),
    /// The limit on tokens.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The deadline passed.
    Deadline,
    /// It calls tools, and was free or obliged to.
    Calls,
    /// It calls the tool that it was told to call.
    NamedCall,
}

impl End {
    /// Whether something else than the model ended it.
    pub fn is_cut(&self) -> bool {
        matches!(self, End::MaxTokens | End::ContextFull | End::Deadline)
    }
}

/// A token and its probability.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its bytes as text, with U+FFFD for what is no UTF-8.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Log of its probability before temperature and filters; `None` for the first token of a prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob: Option<f32>,
    /// The most likely tokens at this place, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

/// A token that might have been.
#[derive(Clone, Debug, Serialize)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// As [`Token::text`].
    pub text: String,
    /// As [`Token::bytes`].
    pub bytes: Vec<u8>,
    /// Log of its probability.
    pub logprob: f32,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Those that did not have to be read again.
    pub cached_tokens: usize,
    /// Tokens of all choices.
    pub completion_tokens: usize,
    /// Until the request's turn came.
    pub queued: Duration,
    /// From then to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generation_time: Duration,
}

impl Usage {
    /// Times and rates for people.
    pub fn timings(&self) -> Value {
        let rate = |tokens: usize, time: Duration| (!time.is_zero()).then(|| tokens as f64 / time.as_secs_f64());
        serde_json::json!({
            "queued_ms": self.queued.as_secs_f64() * 1e3,
            "prompt_ms": self.prompt_time.as_secs_f64() * 1e3,
            "generation_ms": self.generation_time.as_secs_f64() * 1e3,
            "prompt_per_second": rate(self.prompt_tokens - self.cached_tokens.min(self.prompt_tokens), self.prompt_time),
            "generated_per_second": rate(self.completion_tokens.saturating_sub(1), self.generation_time),
        })
    }
}

/// A whole choice.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The prompt's tokens, where `echo` asked for them.
    pub prompt: Arc<[Token]>,
    /// Its text, without calls and stop string.
    pub text: String,
    /// What was drawn.
    pub tokens: Vec<Token>,
    /// Calls of tools.
    pub calls: Vec<Call>,
    /// Why it ended; `None` only if the answer broke off.
    pub end: Option<End>,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// All choices.
    pub choices: Vec<Choice>,
    /// What it took.
    pub usage: Usage,
    /// What the reader should know.
    pub warnings: Vec<String>,
    /// Which experts worked.
    pub routing: Vec<Value>,
}

impl Whole {
    /// An answer of so many choices, of which nothing is there yet.
    pub fn of(choices: usize) -> Whole {
        Whole { choices: vec![Choice::default(); choices], ..Whole::default() }
    }

    /// Adds a piece.
    pub fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Prompt { choice, tokens } => self.choices[choice].prompt = tokens,
            Piece::Text { choice, text, tokens } => {
                self.choices[choice].text.push_str(&text);
                self.choices[choice].tokens.extend(tokens);
            }
            Piece::Call { choice, call, .. } => self.choices[choice].calls.push(call),
            Piece::End { choice, end } => self.choices[choice].end = Some(end),
            Piece::Done(usage) => self.usage = usage,
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::Routing(routing) => self.routing.push(routing),
            Piece::Reading { .. } | Piece::Failed(_) => {}
        }
    }
}

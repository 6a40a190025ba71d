//! What every dialect translates to: one request, checked, before the engine sees it.

use std::time::Duration;

use octet_engine::{Sampling, TextStart};
use serde_json::Value;

use crate::messages::ToolChoice;
use crate::refusal::Refusal;
use crate::tool_calls::CallStyle;

/// A request of any dialect.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Token ids; several prompts are answered side by side.
    pub prompts: Vec<Vec<u32>>,
    /// What the answers' text joins on to.
    pub start: TextStart,
    /// Answers to each prompt.
    pub n: usize,
    /// How tokens are chosen. Answer `i` draws with `seed + i`.
    pub sampling: Sampling,
    /// When an answer ends.
    pub ending: Ending,
    /// Report each token's probability, and those of so many others.
    pub logprobs: Option<usize>,
    /// Report the prompt's tokens too, with probabilities if those are asked for.
    pub echo: bool,
    /// What the answer has to look like.
    pub constraint: Option<Constraint>,
    /// Look for calls of tools.
    pub calls: Option<Calls>,
    /// Experts for each token, in place of the model's own number.
    pub experts_per_token: Option<usize>,
    /// Higher goes first.
    pub priority: i32,
    /// The answer ends then, with what there is.
    pub deadline: Option<Duration>,
    /// What else to report.
    pub wants: Wants,
}

/// When an answer ends, besides the model's own end of text.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Texts.
    pub strings: Vec<String>,
    /// Ids.
    pub token_ids: Vec<u32>,
    /// Most tokens; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// The model's end of text cannot come before so many.
    pub min_tokens: usize,
    /// The model's end of text is a token like others.
    pub ignore_eos: bool,
}

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// Text of this grammar, in llguidance's Lark.
    Grammar(String),
}

/// How calls of tools are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// How the model writes them.
    pub style: CallStyle,
    /// Whether it may, must, or must call a certain one; decides the reason for ending.
    pub choice: ToolChoice,
    /// One call at most.
    pub single: bool,
}

/// What a client wants to know besides the answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// Each token by itself, even without probabilities.
    pub tokens: bool,
    /// Each token's experts.
    pub routing: bool,
    /// The exact prompt.
    pub prompt: bool,
    /// Times and rates.
    pub timings: bool,
}

/// Most answers to one prompt.
pub const MAX_N: usize = 128;

impl Ask {
    /// A greedy request for one answer to this prompt.
    pub fn new(prompt: Vec<u32>, start: TextStart) -> Ask {
        Ask {
            prompts: vec![prompt],
            start,
            n: 1,
            sampling: Sampling::default(),
            ending: Ending::default(),
            logprobs: None,
            echo: false,
            constraint: None,
            calls: None,
            experts_per_token: None,
            priority: 0,
            deadline: None,
            wants: Wants::default(),
        }
    }

    /// Sets how many answers are wanted.
    ///
    /// # Errors
    /// None, or more than [`MAX_N`].
    pub fn set_n(&mut self, n: Option<usize>) -> Result<(), Refusal> {
        self.n = n.unwrap_or(1);
        if (1..=MAX_N).contains(&self.n) {
            return Ok(());
        }
        Err(Refusal::field("n", format!("n is {}; it has to be 1 to {MAX_N}", self.n)))
    }

    /// Choices of the whole answer: `n` for each prompt.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }
}

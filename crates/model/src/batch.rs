//! A ragged batch: the next tokens of any number of sequences, in one list.

use crate::{AdapterId, SequenceId};

/// Consecutive tokens of one sequence within a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose tokens these are. A batch holds at most one run of a sequence.
    pub sequence: SequenceId,
    /// Number of tokens.
    pub n_tokens: usize,
    /// The adapter that works on them.
    pub adapter: Option<AdapterId>,
}

/// The tokens of one forward pass.
///
/// With runs of 3, 1 and 2 tokens: `tokens = [a0 a1 a2 b0 c0 c1]`, and `logit_rows = [2, 3, 5]` asks for the
/// logits after the last token of each.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All tokens, run by run.
    pub tokens: Vec<u32>,
    /// Who owns them, in the same order; the lengths add up to `tokens.len()`.
    pub runs: Vec<Run>,
    /// Rows (indices into `tokens`) whose logits are wanted.
    pub logit_rows: Vec<usize>,
    /// Experts for each token of this batch; `None` for the model's own number.
    pub experts_per_token: Option<usize>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.runs.clear();
        self.logit_rows.clear();
        self.experts_per_token = None;
    }

    /// Adds a run of `tokens`; asks for logits after the last of them if `wanted` says so.
    pub fn push(&mut self, sequence: SequenceId, tokens: &[u32], wanted: Logits) {
        self.push_adapted(sequence, None, tokens, wanted);
    }

    /// The same with an adapter. All tokens of a sequence have to have the same one.
    pub fn push_adapted(&mut self, sequence: SequenceId, adapter: Option<AdapterId>, tokens: &[u32], wanted: Logits) {
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.runs.push(Run { sequence, n_tokens: tokens.len(), adapter });
        match wanted {
            Logits::None => {}
            Logits::Last => self.logit_rows.extend(self.tokens.len().checked_sub(1)),
            Logits::All => self.logit_rows.extend(first..self.tokens.len()),
        }
    }
}

/// Which rows of a run need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a chunk of a prompt that goes on.
    None,
    /// The last row: the next token is wanted.
    Last,
    /// Every row: a prompt is being scored.
    All,
}

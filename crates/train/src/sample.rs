//! From an example to tokens of which some are to be learned.
//!
//! Conversations are written by the format that serves the model, with its folding, so training and serving see the same
//! ids. What is learned of a conversation is what serving would let the model say:
//!
//! ```text
//! prompt   = render(messages before the answer)        <s>[INST] Hi [/INST]
//! whole    = render_whole(messages up to the answer)   <s>[INST] Hi [/INST] Hello</s>
//! learned  = whole without prompt, up to the token that ends an answer:  Hello</s>
//! ```
//!
//! An earlier answer is learned in the same sample if the conversation up to it is a beginning of the whole. Formats that
//! write the past in another way than the present (v2 and v3 put the system text at the last user turn) give a sample of
//! its own for each answer.

use crate::dataset::{Example, Origin, Pair, Row};
use octet_tokenizer::{ChatFormat, Conversation, Message, Role, Tokenizer};

/// A sequence of tokens; nothing in it sees another sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Ids.
    pub tokens: Vec<u32>,
    /// `[tokens]`: whether the token is to be predicted from those before it. The first never is.
    pub learned: Vec<bool>,
    /// The row that it was made of.
    pub origin: Origin,
}

impl Sample {
    /// How many tokens are learned.
    pub fn n_learned(&self) -> usize {
        self.learned.iter().filter(|&&learned| learned).count()
    }
}

/// The two samples of a pair: the same prompt, another answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairSample {
    /// With the better answer.
    pub chosen: Sample,
    /// With the worse answer.
    pub rejected: Sample,
}

/// What is done with a sample that is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// The run does not start.
    Refuse,
    /// Its end is cut off; if nothing to learn is left, it is dropped.
    CutEnd,
    /// It is left out.
    Drop,
}

/// How samples are made.
pub struct SampleMaker<'a> {
    tokenizer: &'a Tokenizer,
    /// `None` if nothing tells how the model wants conversations written.
    format: Option<&'a ChatFormat>,
    max_tokens: usize,
    too_long: TooLong,
    /// Samples that were longer than the limit.
    pub n_too_long: usize,
    /// Samples of which nothing to learn was left, or that were left out for their length.
    pub n_dropped: usize,
}

impl<'a> SampleMaker<'a> {
    /// Samples of at most `max_tokens` tokens, at least 2.
    pub fn new(
        tokenizer: &'a Tokenizer,
        format: Option<&'a ChatFormat>,
        max_tokens: usize,
        too_long: TooLong,
    ) -> SampleMaker<'a> {
        assert!(max_tokens >= 2, "one token predicts nothing");
        SampleMaker { tokenizer, format, max_tokens, too_long, n_too_long: 0, n_dropped: 0 }
    }

    /// The samples of a text or a conversation. A text longer than the limit becomes several samples of which nothing is
    /// lost.
    ///
    /// # Errors
    /// What is wrong with the row, in one line that names it.
    pub fn samples(&mut self, row: &Row) -> Result<Vec<Sample>, String> {
        let samples = match &row.example {
            Example::Text(text) => return Ok(self.text(text, &row.origin)),
            Example::Chat(chat) => self.answers(chat, 0, &row.origin)?,
            Example::Pair(_) => return Err(format!("{}: is a preference pair; --method dpo learns those", row.origin)),
        };
        let mut kept = Vec::with_capacity(samples.len());
        for sample in samples {
            kept.extend(self.fit(sample)?);
        }
        Ok(kept)
    }

    /// The two samples of a pair; `None` if it is dropped.
    ///
    /// # Errors
    /// As [`Self::samples`].
    pub fn pair(&mut self, row: &Row) -> Result<Option<PairSample>, String> {
        let Example::Pair(Pair { prompt, chosen, rejected }) = &row.example else {
            let shape = row.example.shape();
            return Err(format!("{}: is {shape}; --method dpo needs `prompt`, `chosen` and `rejected`", row.origin));
        };
        let mut of = |answer: &[Message]| {
            let messages = prompt.messages.iter().chain(answer).cloned().collect();
            let whole = Conversation { messages, tools: prompt.tools.clone() };
            let mut samples = self.answers(&whole, prompt.messages.len(), &row.origin)?;
            let last = samples.pop().expect("a pair has an answer, which the reader has checked");
            self.fit(last)
        };
        let (chosen, rejected) = (of(chosen)?, of(rejected)?);
        Ok(chosen.zip(rejected).map(|(chosen, rejected)| PairSample { chosen, rejected }))
    }

    fn text(&self, text: &str, origin: &Origin) -> Vec<Sample> {
        let mut tokens = Vec::new();
        tokens.extend(self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos()));
        self.tokenizer.encode_into(text, &mut tokens);
        tokens.extend(self.tokenizer.eos());
        let pieces = tokens.chunks(self.max_tokens).filter(|piece| piece.len() > 1);
        pieces
            .map(|piece| {
                let mut learned = vec![true; piece.len()];
                learned[0] = false;
                Sample { tokens: piece.to_vec(), learned, origin: origin.clone() }
            })
            .collect()
    }

    /// Applies the rule for samples that are too long.
    fn fit(&mut self, mut sample: Sample) -> Result<Option<Sample>, String> {
        let length = sample.tokens.len();
        if length > self.max_tokens {
            self.n_too_long += 1;
            match self.too_long {
                TooLong::Refuse => {
                    let (origin, limit) = (&sample.origin, self.max_tokens);
                    return Err(format!(
                        "{origin}: has {length} tokens and --max-length is {limit}; raise it, or choose --too-long cut or drop"
                    ));
                }
                TooLong::CutEnd => {
                    sample.tokens.truncate(self.max_tokens);
                    sample.learned.truncate(self.max_tokens);
                }
                TooLong::Drop => {
                    self.n_dropped += 1;
                    return Ok(None);
                }
            }
        }
        if sample.n_learned() == 0 {
            self.n_dropped += 1;
            return Ok(None);
        }
        Ok(Some(sample))
    }

    /// Samples in which the answers from message `first` on are learned, in the order of the conversation.
    fn answers(&self, chat: &Conversation, first: usize, origin: &Origin) -> Result<Vec<Sample>, String> {
        let format = self.format.ok_or_else(|| {
            format!("{origin}: is a conversation, and nothing tells how this model writes those; choose --format or --template")
        })?;
        let mut samples: Vec<Sample> = Vec::new();
        for (start, end) in runs_of_answers(&chat.messages).into_iter().rev().filter(|run| run.0 >= first) {
            let span = self.span(format, chat, (start, end)).map_err(|problem| format!("{origin}: {problem}"))?;
            match samples.last_mut() {
                Some(later) if later.tokens.starts_with(&span.tokens[..span.end]) => {
                    later.learned[span.start..span.end].fill(true);
                }
                _ => {
                    let mut learned = vec![false; span.tokens.len()];
                    learned[span.start..span.end].fill(true);
                    samples.push(Sample { tokens: span.tokens, learned, origin: origin.clone() });
                }
            }
        }
        samples.reverse();
        Ok(samples)
    }

    /// What is learned of the answer in messages `start..end`.
    fn span(&self, format: &ChatFormat, chat: &Conversation, (start, end): (usize, usize)) -> Result<Span, String> {
        let part = |end: usize| Conversation { messages: chat.messages[..end].to_vec(), tools: chat.tools.clone() };
        let prompt = format.render(&part(start)).map_err(|error| error.to_string())?.ids;
        let mut tokens = format.render_whole(&part(end)).map_err(|error| error.to_string())?.ids;
        let start = prompt.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        // The last token of the prompt may have grown together with the answer; more than that is another text.
        if start == 0 || start + 1 < prompt.len() {
            return Err(
                "the format writes this conversation in another way once it is answered, so the answer cannot be told \
                        from the prompt"
                    .into(),
            );
        }
        let ends = |id: &u32| self.tokenizer.is_end_of_generation(*id);
        // What follows the end of the answer (a line break, in ChatML) is the format's and not the model's.
        let end = tokens[start..].iter().rposition(ends).map_or(tokens.len(), |at| start + at + 1);
        tokens.truncate(end);
        Ok(Span { tokens, start: start.max(1), end })
    }
}

/// Tokens up to the end of an answer, and where it begins.
struct Span {
    tokens: Vec<u32>,
    start: usize,
    end: usize,
}

/// Assistant messages in a row, as `start..end`; those that say nothing are no answers.
fn runs_of_answers(messages: &[Message]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
        let says_something = !message.content.is_empty() || !message.tool_calls.is_empty();
        match runs.last_mut() {
            Some(run) if run.1 == i => run.1 += 1,
            _ if says_something => runs.push((i, i + 1)),
            _ => {}
        }
    }
    runs
}

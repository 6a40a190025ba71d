//! One answer in the making: its tokens so far, where their keys and values are, and how the next token is drawn.
//!
//! There is no difference between reading a prompt and writing an answer: a sequence has tokens that have not been
//! computed yet (a whole prompt, or the one drawn last), and once they all are, the next one is drawn. So a sequence
//! whose pages were taken away simply has more to compute.

use std::sync::{Arc, PoisonError};

use octet_model::SequenceId;
use octet_tokenizer::{DecodeStream, Tokenizer};

use crate::grammar::{GrammarState, Mask};
use crate::job::Job;
use crate::lookup::Lookup;
use crate::prefix_cache::{NodeId, Variant};
use crate::{Event, Sampler, StopMatcher, StopReason, TextStart, Usage};

/// One of a job's answers.
pub(crate) struct Sequence {
    pub(crate) job: Arc<Job>,
    pub(crate) choice: usize,
    /// Prompt and answer.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    /// Prompt tokens that did not have to be computed; `None` until the sequence first ran.
    pub(crate) cached_tokens: Option<usize>,
    pub(crate) place: Option<Place>,
    pub(crate) started: bool,
    pub(crate) ended: bool,
    /// More of its pages are being read from disk.
    pub(crate) loading: bool,
    /// Tokens whose log-probabilities and routing have been told.
    pub(crate) reported: usize,
    /// Sum of hidden states of the prompt, and how many.
    pub(crate) hidden: (Vec<f32>, usize),
    /// Experts of the last computed token, `[layers, per_token]`, and the position that follows it.
    pub(crate) tail: (usize, Vec<u32>),
    /// Where the answer is in its grammar; away while its mask is being worked out.
    pub(crate) grammar: Option<GrammarState>,
    /// What the grammar allows next.
    pub(crate) mask: Option<Mask>,
    pub(crate) lookup: Lookup,
    /// Tokens guessed for this step.
    pub(crate) guess: Vec<u32>,
    sampler: Sampler,
    /// `None` once the answer is over.
    decoder: Option<DecodeStream>,
    matcher: StopMatcher,
}

/// Where the keys and values of a running sequence are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) kv: SequenceId,
    pub(crate) variant: Variant,
    /// The node of its last page that the prefix cache knows.
    pub(crate) node: NodeId,
    /// Pages down to that node.
    pub(crate) n_indexed: usize,
}

impl Sequence {
    pub(crate) fn new(job: Arc<Job>, choice: usize, tokenizer: &Tokenizer) -> Sequence {
        let request = &job.request;
        let mut sampling = request.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(choice as u64);
        Sequence {
            choice,
            tokens: request.prompt.clone(),
            prompt_tokens: request.prompt.len(),
            cached_tokens: None,
            place: None,
            started: false,
            ended: false,
            loading: false,
            reported: 0,
            hidden: (Vec::new(), 0),
            tail: (0, Vec::new()),
            grammar: job.grammar.as_ref().map(|g| g.lock().unwrap_or_else(PoisonError::into_inner).copy()),
            mask: None,
            lookup: Lookup::default(),
            guess: Vec::new(),
            sampler: Sampler::new(sampling),
            decoder: Some(match request.start {
                TextStart::Fresh => DecodeStream::new(tokenizer),
                TextStart::Continued => DecodeStream::continuing(tokenizer),
            }),
            matcher: StopMatcher::new(&request.stop.strings),
            job,
        }
    }

    /// The next answer to the same prompt, which has just been read.
    pub(crate) fn sibling(&self, choice: usize, place: Place, tokenizer: &Tokenizer) -> Sequence {
        let Sequence { cached_tokens, started, reported, .. } = *self;
        Sequence {
            cached_tokens,
            started,
            reported,
            mask: self.mask.clone(),
            place: Some(place),
            ..Sequence::new(self.job.clone(), choice, tokenizer)
        }
    }

    /// Tokens of the answer so far.
    pub(crate) fn n_drawn(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Answers that it counts for: the first one stands for all others until its prompt has been read.
    pub(crate) fn answers(&self) -> usize {
        if self.choice == 0 && self.n_drawn() == 0 { self.job.request.n } else { 1 }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.n_drawn(),
        }
    }

    /// Draws the token after all others from `logits [vocab_size]`. `ends` are the tokens by which the model ends an answer,
    /// `scratch` is memory for logits that are changed first.
    pub(crate) fn draw(&mut self, logits: &[f32], ends: &[u32], scratch: &mut Vec<f32>) -> u32 {
        let stop = &self.job.request.stop;
        let early = self.n_drawn() < stop.min_tokens;
        if !early && self.mask.is_none() {
            return self.sampler.sample(logits, &self.tokens);
        }
        scratch.clear();
        scratch.extend_from_slice(logits);
        if let Some(mask) = self.mask.take() {
            forbid(scratch, mask.as_slice());
        }
        // Where the grammar leaves nothing but the end, it goes before the least length.
        let ends = ends.iter().chain(&stop.token_ids);
        let goes_on = |id: usize| scratch[id] > f32::NEG_INFINITY && ends.clone().all(|&end| end as usize != id);
        if early && (0..scratch.len()).any(goes_on) {
            ends.for_each(|&id| scratch[id as usize] = f32::NEG_INFINITY);
        }
        self.sampler.sample(scratch, &self.tokens)
    }

    /// Adds a drawn token to the answer and tells of it; gives a reason if the answer ends with (or before) it.
    pub(crate) fn take(&mut self, token: u32, logits: &[f32], tokenizer: &Tokenizer) -> Option<StopReason> {
        let Sequence { job, tokens, decoder, matcher, grammar, .. } = self;
        let stop = &job.request.stop;
        if tokenizer.is_end_of_generation(token) && !(stop.ignore_eos && grammar.is_none()) {
            return Some(StopReason::EndOfText);
        }
        if stop.token_ids.contains(&token) {
            return Some(StopReason::StopToken(token));
        }
        let complete = match grammar.as_mut().map_or(Ok(false), |grammar| grammar.accept(token)) {
            Ok(complete) => complete,
            Err(error) => {
                self.ended = true;
                job.fail(error);
                return None;
            }
        };
        tokens.push(token);
        let decoded = decoder.as_mut().map_or(String::new(), |decoder| decoder.push(token));
        let (text, stopped) = matcher.push(&decoded);
        let logprobs = job.request.logprobs.map(|top| crate::logprobs::logprobs(logits, token, top));
        job.send(Event::Token { choice: self.choice, id: token, text, logprobs });
        if stopped {
            Some(StopReason::StopString)
        } else if complete {
            Some(StopReason::ConstraintComplete)
        } else if stop.max_tokens.is_some_and(|max| self.n_drawn() >= max) {
            Some(StopReason::MaxTokens)
        } else {
            None
        }
    }

    /// Ends the answer and tells so.
    pub(crate) fn end(&mut self, mut reason: StopReason) {
        self.ended = true;
        let mut text = String::new();
        if reason != StopReason::StopString {
            let rest = self.decoder.take().map_or(String::new(), DecodeStream::finish);
            let (whole, stopped) = self.matcher.push(&rest);
            text = whole;
            if stopped {
                reason = StopReason::StopString;
            } else {
                text.push_str(&self.matcher.finish());
            }
        }
        let stop_string = (reason == StopReason::StopString).then(|| self.matcher.found().unwrap_or_default().into());
        let (choice, usage) = (self.choice, self.usage());
        self.job.send(Event::Finished { choice, reason, stop_string, text, usage });
    }
}

/// Forbids the tokens whose bit is not set, 32 to a word.
fn forbid(logits: &mut [f32], allowed: &[u32]) {
    for (logits, &word) in logits.chunks_mut(32).zip(allowed) {
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word & (1 << bit) == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_without_their_bit_are_forbidden() {
        let mut logits = vec![1.0; 40];
        forbid(&mut logits, &[u32::MAX, 0b10]);
        let allowed: Vec<usize> = (0..40).filter(|&i| logits[i] == 1.0).collect();
        assert_eq!(allowed, (0..32).chain([33]).collect::<Vec<_>>());
    }
}

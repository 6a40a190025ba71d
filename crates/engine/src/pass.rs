//! One forward pass: the slots become a batch, the batch becomes logits, the logits become tokens.

use std::time::Instant;

use octet_model::{Logits, Record};

use crate::core::Core;
use crate::masks::Masks;
use crate::observer::{Both, Neighbours, Part};
use crate::scheduler::Slot;
use crate::sequence::{Place, Sequence};
use crate::stats::{Counters, add};
use crate::{Error, Event, StopReason};

impl Core {
    /// Runs the slots.
    pub(crate) fn run(&mut self, record: &mut dyn Record) {
        self.fill_batch();
        self.begin_masks();
        let mut workspace = std::mem::take(&mut self.workspace);
        let mut both = Both(&mut self.observer, record);
        let result = self.model.forward(&self.batch, &mut self.cache, &mut workspace, &mut both);
        // A job that ends has to be gone with its sequence: that closes its listener's channel.
        self.observer.jobs.clear();
        finish_masks(&mut self.masks, &mut self.sequences, &self.shared.counters);
        match result {
            Ok(logits) => self.settle(logits),
            // Whoever it was for has gone; the next step ends them.
            Err(octet_model::Error::GivenUp) => {}
            Err(error) => self.fail(&error.to_string()),
        }
        self.workspace = workspace;
    }

    /// Has the masks of the tokens worked out that this step will draw.
    fn begin_masks(&mut self) {
        for slot in &self.slots {
            let sequence = &mut self.sequences[slot.sequence];
            if slot.logits != Logits::None
                && let Some(state) = sequence.grammar.take()
            {
                self.masks.begin(slot.sequence, state);
            }
        }
    }

    fn fill_batch(&mut self) {
        self.batch.clear();
        (self.observer.wants_routing, self.observer.wants_hidden) = (false, false);
        self.observer.neighbours.clear();
        let mut first_row = 0;
        for slot in &self.slots {
            let sequence = &mut self.sequences[slot.sequence];
            let request = &sequence.job.request;
            let kv = sequence.place.expect("who runs has a place").kv;
            let from = self.cache.len(kv);
            self.joined.clear();
            self.joined.extend_from_slice(&sequence.tokens[from..from + slot.n_tokens - slot.guesses]);
            self.joined.extend_from_slice(&sequence.guess[..slot.guesses]);
            let variant = sequence.place.map(|place| place.variant);
            self.batch.push_adapted(kv, variant.and_then(|v| v.adapter), &self.joined, slot.logits);
            self.batch.experts_per_token = variant.map(|v| v.experts_per_token);
            self.observer.wants_routing |= request.record_routing;
            self.observer.wants_hidden |= request.hidden.is_some();
            // Of guesses nobody knows yet whether they follow each other.
            let n_tokens = if slot.guesses > 0 { 0 } else { slot.n_tokens };
            let (position, tail) = std::mem::take(&mut sequence.tail);
            self.observer.neighbours.push(Neighbours { first_row, n_tokens, has_tail: position == from, tail });
            first_row += slot.n_tokens;
        }
        if !self.observer.wants_all_rows() && self.batch.logit_rows.len() < self.batch.tokens.len() {
            // Of rows that leave before the last layer's experts the choices there are not known.
            for of in &mut self.observer.neighbours {
                of.n_tokens = 0;
                of.tail.clear();
            }
        }
        if self.slots.iter().any(|slot| slot.reads) {
            self.observer.jobs.extend(self.slots.iter().map(|slot| self.sequences[slot.sequence].job.clone()));
        }
    }

    /// Takes the results of a pass, slot by slot.
    fn settle(&mut self, logits: &[f32]) {
        let vocab_size = self.model.config().vocab_size;
        let (mut first_row, mut rest) = (0, logits);
        for i in 0..self.slots.len() {
            let slot = self.slots[i];
            self.keep_tail(i, slot);
            let n_rows = match slot.logits {
                Logits::None => 0,
                Logits::Last => 1,
                Logits::All => slot.n_tokens,
            };
            let (own, after) = rest.split_at(n_rows * vocab_size);
            if slot.guesses > 0 {
                self.settle_guess(slot, first_row, own);
            } else {
                self.settle_one(slot, first_row, own);
            }
            (first_row, rest) = (first_row + slot.n_tokens, after);
        }
    }

    /// Gives the choices of its last token back to a sequence.
    fn keep_tail(&mut self, index: usize, slot: Slot) {
        let sequence = &mut self.sequences[slot.sequence];
        let next = sequence.place.map_or(0, |place| self.cache.len(place.kv));
        let position = if slot.guesses > 0 { usize::MAX } else { next };
        sequence.tail = (position, std::mem::take(&mut self.observer.neighbours[index].tail));
    }

    fn settle_one(&mut self, slot: Slot, first_row: usize, logits: &[f32]) {
        let sequence = &self.sequences[slot.sequence];
        let mut place = sequence.place.expect("who runs has a place");
        let (done, total) = (self.cache.len(place.kv), sequence.tokens.len());
        self.index(slot.sequence, &mut place);
        if slot.awaited && done == total {
            self.index_part(slot.sequence, place);
        }
        let sequence = &mut self.sequences[slot.sequence];
        sequence.place = Some(place);
        let n_tokens = slot.n_tokens;
        self.observer.report(sequence, Part { first_position: done - n_tokens, first_row, n_tokens }, logits);
        if slot.reads && sequence.n_drawn() == 0 {
            sequence.job.send(Event::PromptProgress { done, total });
        }
        if done == total {
            self.draw(slot.sequence, logits);
        }
    }

    /// Draws tokens for as long as the guesses agree, and forgets the rest of them.
    fn settle_guess(&mut self, slot: Slot, first_row: usize, logits: &[f32]) {
        let vocab_size = self.model.config().vocab_size;
        let guess = std::mem::take(&mut self.sequences[slot.sequence].guess);
        let first_position = self.sequences[slot.sequence].tokens.len() - 1;
        let mut accepted = 0;
        for row in logits.chunks_exact(vocab_size) {
            self.draw_one(slot.sequence, row);
            let sequence = &self.sequences[slot.sequence];
            if sequence.ended || accepted == guess.len() || sequence.tokens.last() != Some(&guess[accepted]) {
                break;
            }
            accepted += 1;
        }
        let sequence = &mut self.sequences[slot.sequence];
        let mut place = sequence.place.expect("who runs has a place");
        self.cache.truncate(place.kv, first_position + 1 + accepted);
        sequence.lookup.learn(guess.len(), accepted);
        sequence.guess = guess;
        add(&self.shared.counters.accepted_tokens, accepted);
        self.observer.report(sequence, Part { first_position, first_row, n_tokens: 1 + accepted }, &[]);
        self.index(slot.sequence, &mut place);
        self.sequences[slot.sequence].place = Some(place);
    }

    /// Draws the next token of a sequence whose tokens are all computed; after a prompt, of all its answers.
    fn draw(&mut self, index: usize, logits: &[f32]) {
        let vocab_size = self.model.config().vocab_size;
        let last = &logits[logits.len() - vocab_size..];
        let sequence = &self.sequences[index];
        let (place, n) = (sequence.place.expect("who runs has a place"), sequence.job.request.n);
        if sequence.choice == 0 && sequence.n_drawn() == 0 {
            for choice in 1..n {
                let place = Place { kv: self.cache.fork(place.kv), ..place };
                self.sequences.push(self.sequences[index].sibling(choice, place, &self.shared.tokenizer));
                self.draw_one(self.sequences.len() - 1, last);
            }
        }
        self.draw_one(index, last);
    }

    fn draw_one(&mut self, index: usize, logits: &[f32]) {
        let Core { shared, sequences, ends, scratch, .. } = self;
        let sequence = &mut sequences[index];
        let reason = if sequence.job.request.stop.max_tokens == Some(0) {
            Some(StopReason::MaxTokens)
        } else {
            let token = sequence.draw(logits, ends, scratch);
            add(&shared.counters.completion_tokens, 1);
            let reason = sequence.take(token, logits, &shared.tokenizer);
            reason.or_else(|| (sequence.tokens.len() >= shared.info.context).then_some(StopReason::ContextFull))
        };
        if let Some(reason) = reason {
            sequence.end(reason);
            add(&shared.counters.finished, 1);
        } else if sequence.ended {
            add(&shared.counters.failed, 1);
        }
    }

    /// Ends everything that was to run: only a fault of our own leads here.
    fn fail(&mut self, message: &str) {
        for slot in &self.slots {
            let sequence = &mut self.sequences[slot.sequence];
            sequence.job.fail(Error::Internal(message.into()));
            sequence.ended = true;
            add(&self.shared.counters.failed, 1);
        }
    }
}

/// Gives the masks to their sequences, and counts how long the step had to wait for them.
fn finish_masks(masks: &mut Masks, sequences: &mut [Sequence], counters: &Counters) {
    let start = Instant::now();
    while let Some(work) = masks.finish() {
        let sequence = &mut sequences[work.sequence];
        (sequence.grammar, sequence.mask) = (Some(work.state), work.mask);
    }
    add(&counters.mask_ns, start.elapsed().as_nanos() as usize);
}

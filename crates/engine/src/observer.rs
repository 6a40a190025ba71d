//! What the engine writes down of a forward pass: how often each expert worked, and, where a request asks for it, who
//! worked on its tokens and their last hidden states.

use std::sync::Arc;
use std::time::Instant;

use octet_checkpoint::LayerTensor;
use octet_model::{Record, Routing};

use crate::job::Job;
use crate::logprobs::logprobs;
use crate::sequence::Sequence;
use crate::stats::{Counters, add};
use crate::{Event, Pooling, Routed};

/// Watches the passes of an engine, beside another record that the caller may have.
pub(crate) struct Observer {
    pub(crate) counters: Arc<Counters>,
    pub(crate) n_layers: usize,
    pub(crate) dim: usize,
    /// Set before a pass whose routing, or last hidden states, are wanted.
    pub(crate) wants_routing: bool,
    pub(crate) wants_hidden: bool,
    /// `[layer][tokens, per_token]` of the last pass.
    pub(crate) experts: Vec<Vec<u32>>,
    /// The weights, in the same order.
    pub(crate) weights: Vec<Vec<f32>>,
    pub(crate) per_token: usize,
    /// After the last norm, `[tokens, dim]`.
    pub(crate) hidden: Vec<f32>,
    /// Whose pass it is: once all of them have ended it is given up. Empty for a pass that is too short to bother.
    pub(crate) jobs: Vec<Arc<Job>>,
    /// The sequences of the pass that is about to run.
    pub(crate) neighbours: Vec<Neighbours>,
}

/// Rows of one sequence in a pass, whose choices are held against those of the tokens before them.
#[derive(Default)]
pub(crate) struct Neighbours {
    pub(crate) first_row: usize,
    pub(crate) n_tokens: usize,
    /// Whether `tail` is of the token just before.
    pub(crate) has_tail: bool,
    /// Choices of the last token that was computed, `[layers, per_token]`.
    pub(crate) tail: Vec<u32>,
}

impl Observer {
    pub(crate) fn new(counters: Arc<Counters>, n_layers: usize, dim: usize) -> Observer {
        Observer {
            counters,
            n_layers,
            dim,
            wants_routing: false,
            wants_hidden: false,
            experts: vec![Vec::new(); n_layers],
            weights: vec![Vec::new(); n_layers],
            per_token: 0,
            hidden: Vec::new(),
            jobs: Vec::new(),
            neighbours: Vec::new(),
        }
    }
}

/// The part of a sequence in a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Position of its first token in the sequence.
    pub(crate) first_position: usize,
    /// Row of that token in the pass.
    pub(crate) first_row: usize,
    pub(crate) n_tokens: usize,
}

impl Observer {
    /// Tells what a sequence wanted to know of a pass. `logits` are those of all its tokens where the prompt is scored.
    pub(crate) fn report(&self, sequence: &mut Sequence, part: Part, logits: &[f32]) {
        let request = &sequence.job.request;
        let Part { first_position, n_tokens, .. } = part;
        let end = first_position + n_tokens;
        // After a preemption tokens are computed again, but told once.
        let new = sequence.reported.clamp(first_position, end);
        if let Some(top) = request.prompt_logprobs.filter(|_| sequence.n_drawn() == 0) {
            let rows = logits.chunks_exact(logits.len() / n_tokens);
            let targets = sequence.tokens[first_position + 1..].iter();
            let tokens = rows.zip(targets).skip(new - first_position).map(|(row, &id)| logprobs(row, id, top));
            sequence.job.send(Event::PromptLogprobs { first: new + 1, tokens: tokens.collect() });
        }
        if request.record_routing && new < end {
            sequence.job.send(Event::Routing(self.routed(sequence.choice, part, new)));
        }
        sequence.reported = sequence.reported.max(end);
        if let Some(pooling) = request.hidden.filter(|_| first_position < sequence.prompt_tokens) {
            self.pool(sequence, pooling, part);
        }
    }

    fn routed(&self, choice: usize, part: Part, first_position: usize) -> Routed {
        let rows = part.first_row + (first_position - part.first_position)..part.first_row + part.n_tokens;
        let (k, n_tokens) = (self.per_token, rows.len());
        let cut = rows.start * k..rows.end * k;
        let experts = self.experts.iter().flat_map(|layer| &layer[cut.clone()]).copied().collect();
        let weights = self.weights.iter().flat_map(|layer| &layer[cut.clone()]).copied().collect();
        Routed { choice, first_position, n_tokens, per_token: k, experts, weights }
    }

    /// Counts how often a token has the same experts in a layer as the one before it: a few comparisons a token, beside
    /// millions of multiplications.
    fn compare_neighbours(&mut self, layer: usize, routing: &Routing) {
        let (k, length) = (routing.per_token, self.n_layers * routing.per_token);
        let (mut first, mut any, mut pairs) = (0, 0, 0);
        for of in self.neighbours.iter_mut().filter(|of| of.n_tokens > 0) {
            of.has_tail &= of.tail.len() == length;
            of.tail.resize(length, 0);
            let tail = &mut of.tail[layer * k..][..k];
            let mut compare = |a: &[u32], b: &[u32]| {
                pairs += 1;
                first += usize::from(a[0] == b[0]);
                any += usize::from(a.iter().any(|expert| b.contains(expert)));
            };
            let mut before = None;
            for chosen in routing.experts[of.first_row * k..].chunks_exact(k).take(of.n_tokens) {
                match before.replace(chosen) {
                    Some(before) => compare(before, chosen),
                    None if of.has_tail => compare(tail, chosen),
                    None => {}
                }
            }
            if let Some(last) = before {
                tail.copy_from_slice(last);
            }
        }
        let counters = &self.counters;
        add(&counters.repeats_first[layer], first);
        add(&counters.repeats_any[layer], any);
        if layer == 0 {
            add(&counters.neighbours, pairs);
        }
    }

    /// Adds up hidden states, and tells the result at the prompt's end.
    fn pool(&self, sequence: &mut Sequence, pooling: Pooling, part: Part) {
        let (sum, n) = &mut sequence.hidden;
        let dim = self.dim;
        sum.resize(dim, 0.0);
        for row in self.hidden[part.first_row * dim..].chunks_exact(dim).take(part.n_tokens) {
            match pooling {
                Pooling::Mean => sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x),
                Pooling::Last => sum.copy_from_slice(row),
            }
            *n += 1;
        }
        if part.first_position + part.n_tokens == sequence.prompt_tokens {
            let scale = if pooling == Pooling::Mean { 1.0 / *n as f32 } else { 1.0 };
            let pooled = sum.iter().map(|x| x * scale).collect();
            sequence.job.send(Event::Hidden(pooled));
        }
    }
}

impl Record for Observer {
    fn is_wanted(&mut self) -> bool {
        let now = Instant::now();
        self.jobs.is_empty() || self.jobs.iter().any(|job| job.interrupted(now).is_none())
    }

    fn wants_all_rows(&self) -> bool {
        self.wants_routing || self.wants_hidden
    }

    fn hidden(&mut self, index: usize, x: &[f32]) {
        if self.wants_hidden && index == self.n_layers {
            self.hidden.clear();
            self.hidden.extend_from_slice(x);
        }
    }

    fn routing(&mut self, layer: usize, routing: &Routing) {
        let counts = &self.counters.experts[layer * routing.num_experts..][..routing.num_experts];
        routing.experts.iter().for_each(|&expert| add(&counts[expert as usize], 1));
        if routing.num_experts > 1 {
            self.compare_neighbours(layer, routing);
        }
        if self.wants_routing {
            self.per_token = routing.per_token;
            self.experts[layer].clone_from(&routing.experts);
            self.weights[layer].clone_from(&routing.weights);
        }
    }
}

/// Two records of one pass.
pub(crate) struct Both<'a>(pub(crate) &'a mut dyn Record, pub(crate) &'a mut dyn Record);

impl Record for Both<'_> {
    fn is_wanted(&mut self) -> bool {
        self.0.is_wanted() && self.1.is_wanted()
    }

    fn wants_all_rows(&self) -> bool {
        self.0.wants_all_rows() || self.1.wants_all_rows()
    }

    fn hidden(&mut self, index: usize, x: &[f32]) {
        self.0.hidden(index, x);
        self.1.hidden(index, x);
    }

    fn routing(&mut self, layer: usize, routing: &Routing) {
        self.0.routing(layer, routing);
        self.1.routing(layer, routing);
    }

    fn input(&mut self, layer: usize, tensor: LayerTensor, x: &[f32], cols: usize) {
        self.0.input(layer, tensor, x, cols);
        self.1.input(layer, tensor, x, cols);
    }

    fn head_input(&mut self, x: &[f32]) {
        self.0.head_input(x);
        self.1.head_input(x);
    }
}

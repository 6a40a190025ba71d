//! The account of one answer: metrics, its key's tokens, and one line of log, however it ends.

use std::sync::Arc;
use std::time::Instant;

use crate::caller::Caller;
use crate::limits::Place;
use crate::metrics::{Labels, Metrics};
use crate::octet::journal::{Entry, Journal};
use crate::piece::Usage;
use crate::refusal::Refusal;

/// Writes the account when dropped.
pub struct Track {
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    caller: Caller,
    labels: Labels,
    started: Instant,
    first_token: Option<Instant>,
    /// What there is of an answer that breaks off.
    so_far: Usage,
    tokens: usize,
    usage: Option<Usage>,
    fault: Option<Refusal>,
    /// Among the key's running requests.
    _place: Place,
}

impl Track {
    /// The account of a request, from its arrival.
    pub fn new(metrics: Arc<Metrics>, journal: Arc<Journal>, caller: &Caller, model: &str, place: Place) -> Track {
        let labels = Labels { model: model.into(), dialect: caller.dialect.name(), key: caller.name().into() };
        metrics.running.get_or_create(&labels).inc();
        Track {
            metrics,
            journal,
            caller: caller.clone(),
            labels,
            started: caller.started,
            first_token: None,
            so_far: Usage::default(),
            tokens: 0,
            usage: None,
            fault: None,
            _place: place,
        }
    }

    /// So many tokens of the prompts have been read, of which the prefix cache had `cached`.
    pub fn read(&mut self, tokens: usize, cached: usize) {
        (self.so_far.prompt_tokens, self.so_far.cached_tokens) = (tokens, cached);
    }

    /// A token came, `previous` being the time of the one before in the same choice.
    pub fn token(&mut self, previous: Option<Instant>, now: Instant) {
        self.tokens += 1;
        let (since, histogram, watch) = match (previous, self.first_token) {
            (Some(previous), _) => (previous, &self.metrics.inter_token, &self.metrics.inter_tokens),
            (None, None) => (self.started, &self.metrics.first_token, &self.metrics.first_tokens),
            // Of another choice the first: the client has had its first token, and waits for none of this one.
            (None, Some(_)) => return,
        };
        histogram.observe((now - since).as_secs_f64());
        watch.add(now - since);
        self.first_token.get_or_insert(now);
    }

    /// The answer is whole.
    pub fn done(&mut self, usage: &Usage) {
        self.usage = Some(*usage);
    }

    /// The answer broke off.
    pub fn failed(&mut self, refusal: &Refusal) {
        self.fault = Some(refusal.clone());
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        let (outcome, fault) = match (&self.usage, &self.fault) {
            (Some(_), _) => ("done", None),
            (None, Some(refusal)) => ("failed", Some(refusal.message.as_str())),
            (None, None) => ("cancelled", None),
        };
        // What was read before an answer broke off took its time too.
        let usage = self.usage.unwrap_or(self.so_far);
        self.metrics.running.get_or_create(&self.labels).dec();
        self.metrics.count_answer(&self.labels, outcome, &usage, self.tokens);
        if let Some(key) = &self.caller.key {
            key.meter.take_tokens(usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens) + self.tokens);
        }
        let total_ms = self.started.elapsed().as_millis() as u64;
        let first_ms = self.first_token.map(|first| (first - self.started).as_millis() as u64);
        tracing::info!(
            request_id = &*self.caller.request_id,
            key = self.caller.name(),
            model = self.labels.model,
            outcome,
            fault,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = self.tokens,
            first_token_ms = first_ms,
            total_ms,
            "answer"
        );
        let entry = Entry::Answer {
            model: self.labels.model.clone(),
            outcome,
            fault: fault.map(str::to_owned),
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: self.tokens,
            first_token_ms: first_ms,
            ms: total_ms,
            request_id: self.caller.request_id.to_string(),
        };
        self.journal.add(self.caller.name(), entry);
    }
}

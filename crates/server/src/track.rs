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
    tokens: usize,
    usage: Option<Usage>,
    fault: Option<Refusal>,
    /// Among the key's running requests.
    _place: Place,
}

impl Track {
    /// The account of a request that begins now.
    pub fn new(metrics: Arc<Metrics>, journal: Arc<Journal>, caller: &Caller, model: &str, place: Place) -> Track {
        let labels = Labels { model: model.into(), dialect: caller.dialect.name(), key: caller.name().into() };
        metrics.running.get_or_create(&labels).inc();
        Track {
            metrics,
            journal,
            caller: caller.clone(),
            labels,
            started: Instant::now(),
            first_token: None,
            tokens: 0,
            usage: None,
            fault: None,
            _place: place,
        }
    }

    /// A token came, `previous` being the time of the one before.
    pub fn token(&mut self, previous: Option<Instant>, now: Instant) {
        self.tokens += 1;
        let (since, histogram, watch) = match previous {
            Some(previous) => (previous, &self.metrics.inter_token, &self.metrics.inter_tokens),
            None => (self.started, &self.metrics.first_token, &self.metrics.first_tokens),
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
        let usage = self.usage.unwrap_or_default();
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

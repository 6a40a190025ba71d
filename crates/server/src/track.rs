//! The account of one answer: metrics, its key's tokens, and one line of log, however it ends.

use std::sync::Arc;
use std::time::Instant;

use crate::caller::Caller;
use crate::limits::Place;
use crate::metrics::{Labels, Metrics};
use crate::piece::Usage;
use crate::refusal::Refusal;

/// Writes the account when dropped.
pub struct Track {
    metrics: Arc<Metrics>,
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
    pub fn new(metrics: Arc<Metrics>, caller: &Caller, model: &str, place: Place) -> Track {
        let labels = Labels { model: model.into(), dialect: caller.dialect.name(), key: caller.name().into() };
        metrics.running.get_or_create(&labels).inc();
        Track {
            metrics,
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
        match previous {
            Some(previous) => self.metrics.inter_token.observe((now - previous).as_secs_f64()),
            None => self.metrics.first_token.observe((now - self.started).as_secs_f64()),
        }
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
            total_ms = self.started.elapsed().as_millis() as u64,
            "answer"
        );
    }
}

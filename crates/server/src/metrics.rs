//! What Prometheus scrapes: counts, queues, times and the load of the experts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

use crate::engine_metrics::Engines;
use crate::models::Models;
use crate::octet::history::Stopwatch;
use crate::piece::Usage;

/// Whose request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Labels {
    /// The model's name.
    pub model: String,
    /// The dialect's name.
    pub dialect: &'static str,
    /// The key's name.
    pub key: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    dialect: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    model: String,
    dialect: &'static str,
    key: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

/// All of them.
pub struct Metrics {
    registry: Mutex<Registry>,
    http: Family<HttpLabels, Counter>,
    answers: Family<OutcomeLabels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    cached_tokens: Family<Labels, Counter>,
    completion_tokens: Family<Labels, Counter>,
    embedded_tokens: Family<ModelLabel, Counter>,
    /// Answers being written.
    pub running: Family<Labels, Gauge>,
    /// Seconds from a request's arrival to its first token.
    pub first_token: Histogram,
    /// Seconds between two tokens of an answer.
    pub inter_token: Histogram,
    /// The same two since the last sample of [`crate::octet::history`].
    pub first_tokens: Stopwatch,
    /// Between two tokens.
    pub inter_tokens: Stopwatch,
}

/// Seconds: from a tenth of a millisecond to two minutes.
const TIMES_S: [f64; 20] = [
    0.000_1, 0.000_3, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 15.0,
    45.0, 120.0,
];

impl Metrics {
    /// Of a server with these models.
    pub fn new(models: Arc<Models>) -> Metrics {
        let times = || Histogram::new(TIMES_S);
        let metrics = Metrics {
            registry: Mutex::default(),
            http: Family::default(),
            answers: Family::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            completion_tokens: Family::default(),
            embedded_tokens: Family::default(),
            running: Family::default(),
            first_token: times(),
            inter_token: times(),
            first_tokens: Stopwatch::default(),
            inter_tokens: Stopwatch::default(),
        };
        metrics.register();
        metrics.registry().register_collector(Box::new(Engines(models)));
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry();
        registry.register("octet_http_responses", "Responses by status", self.http.clone());
        registry.register("octet_requests", "Answers by how they ended", self.answers.clone());
        registry.register("octet_prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        registry.register(
            "octet_cached_tokens",
            "Tokens of prompts that were not read again",
            self.cached_tokens.clone(),
        );
        registry.register("octet_completion_tokens", "Tokens of answers", self.completion_tokens.clone());
        registry.register("octet_embedded_tokens", "Tokens of embedded texts", self.embedded_tokens.clone());
        registry.register("octet_requests_running", "Answers being written, waiting ones too", self.running.clone());
        registry.register("octet_first_token_seconds", "Arrival to first token", self.first_token.clone());
        registry.register("octet_inter_token_seconds", "Between two tokens of an answer", self.inter_token.clone());
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a response.
    pub fn count_http(&self, dialect: &'static str, status: u16) {
        self.http.get_or_create(&HttpLabels { dialect, status }).inc();
    }

    /// Counts an answer that is over.
    pub fn count_answer(&self, labels: &Labels, outcome: &'static str, usage: &Usage, completion_tokens: usize) {
        let Labels { model, dialect, key } = labels.clone();
        self.answers.get_or_create(&OutcomeLabels { model, dialect, key, outcome }).inc();
        self.prompt_tokens.get_or_create(labels).inc_by(usage.prompt_tokens as u64);
        self.cached_tokens.get_or_create(labels).inc_by(usage.cached_tokens as u64);
        self.completion_tokens.get_or_create(labels).inc_by(completion_tokens as u64);
    }

    /// Counts embedded texts.
    pub fn count_embedding(&self, model: &str, tokens: usize) {
        self.embedded_tokens.get_or_create(&ModelLabel { model: model.into() }).inc_by(tokens as u64);
    }

    /// Everything in Prometheus's text form.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry()).expect("a String takes all text");
        text
    }
}

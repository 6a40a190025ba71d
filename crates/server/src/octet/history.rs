//! `/octet/history`: load, throughput and latency of the last minutes, for the page to draw.
//!
//! A sample every two seconds holds what the engines' counters gained since the one before, and the times of tokens in
//! between. What it costs is to read some counters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Query, State};
use octet_engine::Stats;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::{App, Shared};
use crate::ids;
use crate::models::Slot;

/// Between two samples.
const EVERY: Duration = Duration::from_secs(2);
/// Samples that are kept: half an hour.
const MOST: usize = 900;

/// The last samples.
#[derive(Default)]
pub struct Samples(Mutex<VecDeque<Arc<Sample>>>);

/// How the server was at a time.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// Milliseconds since 1970.
    at_ms: u64,
    /// From requests to their first tokens.
    first_token: Option<Times>,
    /// Between two tokens of an answer.
    inter_token: Option<Times>,
    /// By model.
    models: BTreeMap<String, Load>,
}

/// Times since the last sample, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    mean_ms: f64,
    worst_ms: f64,
}

/// What a model had to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Load {
    waiting: u64,
    running: u64,
    /// Tokens a second since the last sample; those of prompts without cached ones.
    prompt_per_s: f64,
    generated_per_s: f64,
    /// Shares of all pages.
    kv_used: f64,
    kv_cached: f64,
}

/// Times of one kind since somebody last looked.
#[derive(Debug, Default)]
pub struct Stopwatch {
    count: AtomicU64,
    sum_us: AtomicU64,
    worst_us: AtomicU64,
}

impl Stopwatch {
    /// Adds a time.
    pub fn add(&self, time: Duration) {
        let us = time.as_micros() as u64;
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        self.worst_us.fetch_max(us, Relaxed);
    }

    /// What came together; then it begins anew.
    pub fn take(&self) -> Option<Times> {
        let [count, sum, worst] = [&self.count, &self.sum_us, &self.worst_us].map(|number| number.swap(0, Relaxed));
        (count > 0).then(|| Times { mean_ms: sum as f64 / count as f64 / 1e3, worst_ms: worst as f64 / 1e3 })
    }
}

impl Load {
    fn of(stats: &Stats, before: Option<&Counted>, seconds: f64) -> Load {
        let read = |stats: &Stats| stats.prompt_tokens.saturating_sub(stats.cached_tokens);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let pages = stats.pages_total.max(1) as f64;
        // A model that has just been opened has all its counters to show.
        let before = before.copied().unwrap_or_default();
        Load {
            waiting: stats.waiting,
            running: stats.running,
            prompt_per_s: rate(read(stats), before.read),
            generated_per_s: rate(stats.completion_tokens, before.drawn),
            kv_used: stats.pages_used as f64 / pages,
            kv_cached: stats.pages_cached as f64 / pages,
        }
    }
}

/// Counters of a model at the last sample.
#[derive(Clone, Copy, Default)]
struct Counted {
    read: u64,
    drawn: u64,
}

/// Takes samples for as long as the server is there.
pub async fn watch(app: Weak<App>) {
    let mut counted = BTreeMap::new();
    let mut last = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Some(app) = app.upgrade() else { return };
        let seconds = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
        let sample = sample(&app, &mut counted, seconds);
        let mut samples = app.samples.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if samples.len() == MOST {
            samples.pop_front();
        }
        samples.push_back(Arc::new(sample));
    }
}

fn sample(app: &App, counted: &mut BTreeMap<String, Counted>, seconds: f64) -> Sample {
    let mut models = BTreeMap::new();
    for entry in app.models.list() {
        let Slot::Ready(model) = entry.slot else {
            counted.remove(&entry.name);
            continue;
        };
        let stats = model.engine.stats();
        models.insert(entry.name.clone(), Load::of(&stats, counted.get(&entry.name), seconds));
        let read = stats.prompt_tokens.saturating_sub(stats.cached_tokens);
        counted.insert(entry.name, Counted { read, drawn: stats.completion_tokens });
    }
    let metrics = &app.metrics;
    Sample {
        at_ms: ids::unix_ms(),
        first_token: metrics.first_tokens.take(),
        inter_token: metrics.inter_tokens.take(),
        models,
    }
}

/// What of it is wanted.
#[derive(Deserialize)]
pub struct Asked {
    /// Samples after this time only, milliseconds since 1970.
    #[serde(default)]
    after_ms: u64,
}

/// The last half hour.
pub async fn history(State(app): State<Shared>, Query(Asked { after_ms }): Query<Asked>) -> Json<Value> {
    let samples = app.samples.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let newer: Vec<Arc<Sample>> = samples.iter().filter(|sample| sample.at_ms > after_ms).cloned().collect();
    drop(samples);
    let samples: Vec<&Sample> = newer.iter().map(Arc::as_ref).collect();
    Json(json!({"every_ms": EVERY.as_millis() as u64, "samples": samples}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gathered_and_begin_anew() {
        let watch = Stopwatch::default();
        assert_eq!(watch.take(), None);
        [10, 30].into_iter().for_each(|ms| watch.add(Duration::from_millis(ms)));
        assert_eq!(watch.take(), Some(Times { mean_ms: 20.0, worst_ms: 30.0 }));
        assert_eq!(watch.take(), None);
    }
}

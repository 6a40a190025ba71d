//! The engines' own numbers, read where they stand at the moment of a scrape.

use std::sync::Arc;

use octet_engine::{STEP_BUCKETS_MS, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::models::{Models, Slot};

/// Collects from all loaded models.
#[derive(Debug)]
pub struct Engines(pub Arc<Models>);

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list().iter().map(|entry| &entry.name)).finish()
    }
}

/// Reads one number.
type Read = fn(&Stats) -> u64;

const GAUGES: [(&str, &str, Read); 5] = [
    ("octet_queue_requests", "Requests that wait for their turn", |s| s.waiting),
    ("octet_running_sequences", "Sequences that run", |s| s.running),
    ("octet_kv_pages_used", "KV pages in use", |s| s.pages_used),
    ("octet_kv_pages_cached", "KV pages that only the prefix cache holds", |s| s.pages_cached),
    ("octet_kv_pages", "KV pages in all", |s| s.pages_total),
];

const COUNTERS: [(&str, &str, Read); 9] = [
    ("octet_engine_prompt_tokens", "Tokens of prompts, cached ones too", |s| s.prompt_tokens),
    ("octet_engine_cached_tokens", "Tokens of prompts found in the cache", |s| s.cached_tokens),
    ("octet_engine_disk_tokens", "Tokens of prompts found in the cache on disk", |s| s.disk_tokens),
    ("octet_engine_completion_tokens", "Tokens drawn", |s| s.completion_tokens),
    ("octet_drafted_tokens", "Tokens guessed ahead", |s| s.drafted_tokens),
    ("octet_accepted_tokens", "Guesses that were right", |s| s.accepted_tokens),
    ("octet_preemptions", "Sequences that gave their pages to others", |s| s.preemptions),
    ("octet_cancelled", "Answers whose reader went away", |s| s.cancelled),
    ("octet_steps", "Forward passes", |s| s.steps),
];

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let loaded = self.0.list().into_iter().filter_map(|entry| match entry.slot {
            Slot::Ready(model) => Some((entry.name, model.engine.stats())),
            _ => None,
        });
        let loaded: Vec<(String, Stats)> = loaded.collect();
        for (name, help, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (model, stats) in &loaded {
                ConstGauge::new(read(stats) as i64).encode(family.encode_family(&[("model", model.as_str())])?)?;
            }
        }
        for (name, help, read) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, stats) in &loaded {
                ConstCounter::new(read(stats)).encode(family.encode_family(&[("model", model.as_str())])?)?;
            }
        }
        steps(&loaded, &mut encoder)?;
        experts(&loaded, &mut encoder)
    }
}

/// Steps by the time that they took.
fn steps(loaded: &[(String, Stats)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor("octet_steps_by_time", "Passes by time", None, MetricType::Counter)?;
    for (model, stats) in loaded {
        for (bucket, &count) in stats.step_buckets.iter().enumerate() {
            let under = STEP_BUCKETS_MS.get(bucket).map_or("+Inf".to_owned(), u64::to_string);
            let labels = [("model", model.as_str()), ("under_ms", under.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Tokens that each expert has seen.
fn experts(loaded: &[(String, Stats)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor("octet_expert_tokens", "Tokens by expert", None, MetricType::Counter)?;
    for (model, stats) in loaded.iter().filter(|(_, stats)| stats.num_experts > 1) {
        for (index, &count) in stats.experts.iter().enumerate() {
            let (layer, expert) = ((index / stats.num_experts).to_string(), (index % stats.num_experts).to_string());
            let labels = [("model", model.as_str()), ("layer", layer.as_str()), ("expert", expert.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

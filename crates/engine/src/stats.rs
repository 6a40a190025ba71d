//! Numbers about an engine at work, for a metrics page: written by its thread, read by any other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets of step times, in milliseconds; the last bucket takes the rest.
pub const STEP_BUCKETS_MS: [u64; 11] = [2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000];

/// The counters themselves.
pub(crate) struct Counters {
    pub(crate) started: Instant,
    pub(crate) waiting: AtomicU64,
    pub(crate) running: AtomicU64,
    pub(crate) pages_used: AtomicU64,
    pub(crate) pages_cached: AtomicU64,
    pub(crate) pages_total: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) disk_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) drafted_tokens: AtomicU64,
    pub(crate) accepted_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) step_ns: AtomicU64,
    pub(crate) mask_ns: AtomicU64,
    pub(crate) step_buckets: [AtomicU64; STEP_BUCKETS_MS.len() + 1],
    /// Nanoseconds since `started` at which the last step ended, or an idle engine got something to do.
    pub(crate) last_step_ns: AtomicU64,
    /// `[layers, num_experts]`.
    pub(crate) experts: Vec<AtomicU64>,
    /// `[layers]`: pairs of neighbours whose first choice is the same, and those with an expert in common.
    pub(crate) repeats_first: Vec<AtomicU64>,
    pub(crate) repeats_any: Vec<AtomicU64>,
    pub(crate) neighbours: AtomicU64,
}

impl Counters {
    pub(crate) fn new(n_layers: usize, num_experts: usize) -> Counters {
        let zero = AtomicU64::default;
        Counters {
            started: Instant::now(),
            waiting: zero(),
            running: zero(),
            pages_used: zero(),
            pages_cached: zero(),
            pages_total: zero(),
            requests: zero(),
            finished: zero(),
            cancelled: zero(),
            failed: zero(),
            preemptions: zero(),
            prompt_tokens: zero(),
            cached_tokens: zero(),
            disk_tokens: zero(),
            completion_tokens: zero(),
            drafted_tokens: zero(),
            accepted_tokens: zero(),
            steps: zero(),
            step_ns: zero(),
            mask_ns: zero(),
            step_buckets: Default::default(),
            last_step_ns: zero(),
            experts: (0..n_layers * num_experts).map(|_| zero()).collect(),
            repeats_first: (0..n_layers).map(|_| zero()).collect(),
            repeats_any: (0..n_layers).map(|_| zero()).collect(),
            neighbours: zero(),
        }
    }

    pub(crate) fn step(&self, took: Duration) {
        let bucket = STEP_BUCKETS_MS.iter().position(|&ms| took.as_millis() < u128::from(ms));
        add(&self.step_buckets[bucket.unwrap_or(STEP_BUCKETS_MS.len())], 1);
        add(&self.steps, 1);
        add(&self.step_ns, took.as_nanos() as usize);
        self.alive();
    }

    /// A request more waits.
    pub(crate) fn enqueued(&self) {
        if self.waiting.load(Relaxed) + self.running.load(Relaxed) == 0 {
            // Until now there was no step to make: an engine that rested for an hour does not hang.
            self.alive();
        }
        add(&self.waiting, 1);
    }

    fn alive(&self) {
        self.last_step_ns.store(self.started.elapsed().as_nanos() as u64, Relaxed);
    }

    pub(crate) fn snapshot(&self, num_experts: usize) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let uptime = self.started.elapsed();
        let last = Duration::from_nanos(get(&self.last_step_ns));
        Stats {
            uptime,
            waiting: get(&self.waiting),
            running: get(&self.running),
            pages_used: get(&self.pages_used),
            pages_cached: get(&self.pages_cached),
            pages_total: get(&self.pages_total),
            requests: get(&self.requests),
            finished: get(&self.finished),
            cancelled: get(&self.cancelled),
            failed: get(&self.failed),
            preemptions: get(&self.preemptions),
            prompt_tokens: get(&self.prompt_tokens),
            cached_tokens: get(&self.cached_tokens),
            disk_tokens: get(&self.disk_tokens),
            completion_tokens: get(&self.completion_tokens),
            drafted_tokens: get(&self.drafted_tokens),
            accepted_tokens: get(&self.accepted_tokens),
            steps: get(&self.steps),
            step_time: Duration::from_nanos(get(&self.step_ns)),
            mask_time: Duration::from_nanos(get(&self.mask_ns)),
            step_buckets: std::array::from_fn(|i| get(&self.step_buckets[i])),
            since_last_step: uptime.saturating_sub(last),
            num_experts,
            experts: self.experts.iter().map(get).collect(),
            repeats_first: self.repeats_first.iter().map(get).collect(),
            repeats_any: self.repeats_any.iter().map(get).collect(),
            neighbours: get(&self.neighbours),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

pub(crate) fn set(counter: &AtomicU64, n: usize) {
    counter.store(n as u64, Relaxed);
}

/// A snapshot: gauges as they are, counters since the engine began.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Since the engine began.
    pub uptime: Duration,
    /// Requests in the queue now.
    pub waiting: u64,
    /// Sequences that run now.
    pub running: u64,
    /// KV pages in use by sequences now.
    pub pages_used: u64,
    /// KV pages that only the prefix cache holds now; they are given up as sequences need them.
    pub pages_cached: u64,
    /// KV pages in all.
    pub pages_total: u64,
    /// Requests that were taken.
    pub requests: u64,
    /// Answers that ended on their own.
    pub finished: u64,
    /// Answers that were cancelled, or whose listener went away.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Sequences that gave their pages to others and were resumed later.
    pub preemptions: u64,
    /// Prompt tokens of started requests, cached ones included.
    pub prompt_tokens: u64,
    /// Those of them found in the prefix cache, in memory or on disk.
    pub cached_tokens: u64,
    /// Those of them read from disk.
    pub disk_tokens: u64,
    /// Tokens drawn.
    pub completion_tokens: u64,
    /// Tokens guessed ahead.
    pub drafted_tokens: u64,
    /// Guesses that were right.
    pub accepted_tokens: u64,
    /// Forward passes.
    pub steps: u64,
    /// Time of all steps.
    pub step_time: Duration,
    /// Time that steps waited for masks of constrained answers, within `step_time`.
    pub mask_time: Duration,
    /// Steps by time; see [`STEP_BUCKETS_MS`]. Not cumulative.
    pub step_buckets: [u64; STEP_BUCKETS_MS.len() + 1],
    /// Since the last step ended, or an idle engine got something to do. Large while something runs or waits means that the engine hangs.
    pub since_last_step: Duration,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Tokens that each expert has seen, `[layers, num_experts]`: in the last layer, of a prompt, only those that need logits.
    pub experts: Vec<u64>,
    /// Tokens whose predecessor's experts are known, in each layer: generated ones, and prompts whose routing was asked for.
    /// Steps that check guesses are left out.
    pub neighbours: u64,
    /// Those of them whose first choice is their predecessor's, `[layers]`.
    pub repeats_first: Vec<u64>,
    /// Those that have an expert in common with it, `[layers]`.
    pub repeats_any: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_rested_does_not_hang_when_a_request_comes() {
        let counters = Counters::new(1, 1);
        let rested = counters.snapshot(1);
        assert_eq!(rested.since_last_step, rested.uptime);
        counters.enqueued();
        let stats = counters.snapshot(1);
        assert!(stats.waiting == 1 && stats.since_last_step < stats.uptime);
        let last = counters.last_step_ns.load(Relaxed);
        counters.enqueued();
        assert_eq!(counters.last_step_ns.load(Relaxed), last, "one that waits behind another is no sign of life");
    }
}

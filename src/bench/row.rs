//! A result: llama-bench's fields in JSON, a line of a table for people.

use std::path::Path;
use std::time::SystemTime;

use octet_checkpoint::Checkpoint;
use octet_model::Transformer;
use serde::Serialize;

use super::limits::Limits;
use super::measure::{Sample, Setting, Test};
use crate::format::three_digits;
use crate::{machine, stdout};

/// One row of the result.
#[derive(Serialize)]
pub struct Row {
    build_number: &'static str,
    cpu_info: String,
    kernels: &'static str,
    model_filename: String,
    model_type: String,
    /// Bytes of weights in memory.
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_ubatch: usize,
    n_threads: usize,
    type_k: &'static str,
    type_v: &'static str,
    n_experts_per_token: usize,
    test_time: u64,
    #[serde(flatten)]
    test: Figures,
    /// Bytes of weights that a token reads, and of keys and values that it leaves.
    active_bytes: u64,
    kv_bytes_per_token: u64,
    /// Memory that the process holds after the test, bytes, less what the limits are measured with.
    resident_bytes: Option<u64>,
    /// Weights read per second in generation by one sequence, bytes; absent for others.
    weights_bandwidth: Option<f64>,
    /// What the machine reads at best, bytes per second.
    read_bandwidth: f64,
    /// Multiply-adds per second with the layers' weights; absent for generation by one sequence.
    multiply_adds: Option<f64>,
    /// What the machine does at best with 8-bit integers in registers, multiply-adds per second.
    multiply_adds_peak: Option<f64>,
}

/// The figures of a test, by the names of the program that measures the like.
#[derive(Serialize)]
#[serde(untagged)]
enum Figures {
    /// llama-bench's.
    Single {
        n_prompt: usize,
        n_gen: usize,
        n_depth: usize,
        avg_ns: u64,
        stddev_ns: u64,
        avg_ts: f64,
        stddev_ts: f64,
        samples_ns: Vec<u64>,
        samples_ts: Vec<f64>,
    },
    /// llama-batched-bench's: times in seconds and speeds are means, `n_kv` the tokens in the cache at the end.
    Batched {
        pp: usize,
        tg: usize,
        pl: usize,
        n_kv: usize,
        t_pp: f64,
        speed_pp: f64,
        t_tg: f64,
        speed_tg: f64,
        t: f64,
        speed: f64,
        samples_pp: Vec<f64>,
        samples_tg: Vec<f64>,
    },
}

impl Figures {
    fn new(test: Test, samples: &[Sample]) -> Figures {
        match test {
            Test::Single { depth, n_prompt, n_gen } => {
                let samples_ns: Vec<u64> =
                    samples.iter().map(|s| (s.prompt + s.generation).as_nanos() as u64).collect();
                let samples_ts: Vec<f64> =
                    samples_ns.iter().map(|&ns| (n_prompt + n_gen) as f64 * 1e9 / ns as f64).collect();
                let (avg_ns, stddev_ns) = mean_and_deviation(&samples_ns.iter().map(|&n| n as f64).collect::<Vec<_>>());
                let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
                let (avg_ns, stddev_ns) = (avg_ns as u64, stddev_ns as u64);
                Figures::Single {
                    n_prompt,
                    n_gen,
                    n_depth: depth,
                    avg_ns,
                    stddev_ns,
                    avg_ts,
                    stddev_ts,
                    samples_ns,
                    samples_ts,
                }
            }
            Test::Batched { pp, tg, pl } => {
                let speeds = |tokens: usize, time: fn(&Sample) -> f64| -> Vec<f64> {
                    samples.iter().map(|s| if tokens == 0 { 0.0 } else { tokens as f64 / time(s) }).collect()
                };
                let mean = |time: fn(&Sample) -> f64| samples.iter().map(time).sum::<f64>() / samples.len() as f64;
                let prompt: fn(&Sample) -> f64 = |s| s.prompt.as_secs_f64();
                let generation: fn(&Sample) -> f64 = |s| s.generation.as_secs_f64();
                let (samples_pp, samples_tg) = (speeds(pl * pp, prompt), speeds(pl * tg, generation));
                let (t_pp, t_tg) = (mean(prompt), mean(generation));
                Figures::Batched {
                    pp,
                    tg,
                    pl,
                    n_kv: pl * (pp + tg),
                    t_pp,
                    speed_pp: mean_and_deviation(&samples_pp).0,
                    t_tg,
                    speed_tg: mean_and_deviation(&samples_tg).0,
                    t: t_pp + t_tg,
                    speed: (pl * (pp + tg)) as f64 / (t_pp + t_tg),
                    samples_pp,
                    samples_tg,
                }
            }
        }
    }

    /// Tokens per second that a prompt or several sequences make, and those that one sequence generates.
    fn speeds(&self) -> (Option<f64>, Option<f64>) {
        match *self {
            Figures::Single { n_prompt: 0, avg_ts, .. } => (None, Some(avg_ts)),
            Figures::Single { avg_ts, .. } => (Some(avg_ts), None),
            Figures::Batched { pl: 1, speed_tg, .. } => (None, Some(speed_tg)),
            Figures::Batched { speed_tg, .. } => (Some(speed_tg), None),
        }
    }
}

impl Row {
    /// The result of a test.
    pub fn new(
        path: &Path,
        checkpoint: &Checkpoint,
        model: &Transformer,
        setting: &Setting,
        limits: &Limits,
        resident_bytes: Option<u64>,
        samples: &[Sample],
    ) -> Row {
        let per_token = setting.experts_per_token;
        let test = Figures::new(setting.test, samples);
        let (many, one) = test.speeds();
        let active_bytes = model.active_bytes(per_token) as u64;
        let params = checkpoint.params();
        Row {
            build_number: env!("CARGO_PKG_VERSION"),
            cpu_info: machine::cpu_name().unwrap_or_else(|| "unknown".into()),
            kernels: octet_kernels::cpu::features(),
            model_filename: path.display().to_string(),
            model_type: format!("{} {} layers", params.architecture.name(), params.n_layers),
            model_size: model.weights_bytes() as u64,
            model_n_params: params.n_parameters(),
            n_batch: setting.batch_size,
            n_ubatch: setting.batch_size,
            n_threads: model.pool().threads(),
            type_k: setting.kv.name(),
            type_v: setting.kv.name(),
            n_experts_per_token: per_token,
            test_time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            test,
            active_bytes,
            kv_bytes_per_token: crate::footprint::kv_bytes_per_token(params, setting.kv),
            resident_bytes,
            weights_bandwidth: one.map(|speed| speed * active_bytes as f64),
            read_bandwidth: limits.read_bandwidth(),
            multiply_adds: many.map(|speed| speed * layer_weights(model, per_token, setting.test.logits_per_token())),
            multiply_adds_peak: limits.multiply_adds(),
        }
    }
}

/// Weights of all layers that a token is multiplied with in the mean, where `logits` of the tokens go to the end: the others
/// leave after the last layer's attention. The head aside: a prompt needs it for its last token alone.
fn layer_weights(model: &Transformer, per_token: usize, logits: f64) -> f64 {
    let config = model.config();
    let attention = 2 * config.dim * (config.q_dim() + config.kv_dim());
    let router = if config.routed { config.dim * config.num_experts } else { 0 };
    let feed_forward = router + per_token * 3 * config.dim * config.hidden_dim;
    let layers = config.n_layers as f64;
    layers * attention as f64 + (layers - 1.0 + logits) * feed_forward as f64
}

/// Prints a row, after the head of the table if it is the first.
pub fn print(row: &Row, first: bool) -> anyhow::Result<()> {
    if first {
        stdout::print(&head(row))?;
    }
    let speed = |mean: f64, deviation: f64| format!("{} ± {}", three_digits(mean), three_digits(deviation));
    let (what, speed) = match &row.test {
        Figures::Single { n_prompt, n_gen, n_depth, avg_ts, stddev_ts, .. } => {
            let what = if *n_gen == 0 { format!("prompt {n_prompt}") } else { format!("generate {n_gen}") };
            let depth = if *n_depth == 0 { String::new() } else { format!(" at depth {n_depth}") };
            (what + &depth, speed(*avg_ts, *stddev_ts))
        }
        Figures::Batched { pp, tg, pl, speed_tg, samples_tg, .. } => {
            (format!("{pl} × generate {tg} after {pp}"), speed(*speed_tg, mean_and_deviation(samples_tg).1))
        }
    };
    let (threads, experts) = (row.n_threads, row.n_experts_per_token);
    stdout::print(&format!("{threads:>8} {experts:>8}   {what:<32} {speed:>16}   {}\n", share(row)))
}

fn head(row: &Row) -> String {
    let peak = row
        .multiply_adds_peak
        .map_or(String::new(), |peak| format!(", multiplies {} G 8-bit integers/s", three_digits(peak / 1e9)));
    let reads = three_digits(row.read_bandwidth / 1e9);
    let labels = format!("{:>8} {:>8}   {:<32} {:>16}   reached", "threads", "experts", "test", "tokens/s");
    format!("{} · {} · reads {reads} GB/s{peak}\n{labels}\n", row.cpu_info, row.kernels)
}

/// What a speed is of the machine's limit.
fn share(row: &Row) -> String {
    let of = |value: f64, limit: f64| format!("{:.0}% of the machine's", 100.0 * value / limit);
    match (row.weights_bandwidth, row.multiply_adds, row.multiply_adds_peak) {
        (Some(bandwidth), _, _) => {
            format!("{} GB/s, {}", three_digits(bandwidth / 1e9), of(bandwidth, row.read_bandwidth))
        }
        (None, Some(speed), Some(peak)) => {
            format!("{} G multiply-adds/s, {}", three_digits(speed / 1e9), of(speed, peak))
        }
        (None, Some(speed), None) => format!("{} G multiply-adds/s", three_digits(speed / 1e9)),
        (None, None, _) => String::new(),
    }
}

/// Mean and standard deviation, which is 0 of a single sample.
pub(super) fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

//! `octet bench`: prompt processing and generation, measured as llama-bench does.
//!
//! Each test is run once to warm up and then `-r` times; what is timed is the forward passes alone, on random tokens, so
//! that the answer's own course does not matter.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use octet_checkpoint::Checkpoint;
use octet_engine::Random;
use octet_kernels::KvType;
use octet_kernels::limits::read_bandwidth;
use octet_model::{Batch, KvCache, LoadOptions, Logits, Nothing, Transformer, Workspace};
use serde::Serialize;

use crate::format::three_digits;
use crate::model_options::kv_type;
use crate::progress::Progress;
use crate::stdout;

/// Measure prompt processing and generation
///
/// Options and JSON fields mean what they mean to llama-bench. Beside each speed of generation stands the memory bandwidth
/// that it reaches, and what this machine reads at best, measured in the same run.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: std::path::PathBuf,
    /// Tokens of a prompt; several as 64,512; 0 for no such test
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens that are in the KV cache before the test begins
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Threads [default: as many as this process may use]
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, default_value_t = 5)]
    repetitions: usize,
    /// Tokens of a prompt that run in one pass
    #[arg(short = 'b', long, default_value_t = 512)]
    batch_size: usize,
    /// Type of the KV cache: f16, q8_0 or f32
    #[arg(long, default_value = "f16", value_parser = kv_type)]
    kv: KvType,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One row of the result, with llama-bench's field names.
#[derive(Serialize)]
struct Row {
    build_number: &'static str,
    cpu_info: String,
    kernels: &'static str,
    model_filename: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_ubatch: usize,
    n_threads: usize,
    type_k: String,
    type_v: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: u64,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    /// Weights read per second in generation, bytes; absent for prompts.
    weights_bandwidth: Option<f64>,
    /// What the machine reads at best, bytes per second.
    read_bandwidth: f64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.repetitions == 0 || args.batch_size == 0 || args.threads.contains(&0) {
        bail!("--repetitions, --batch-size and --threads have to be 1 or more");
    }
    let threads =
        if args.threads.is_empty() { vec![octet_kernels::cpu::available_threads()] } else { args.threads.clone() };
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let n_parameters = checkpoint.params().n_parameters();
    let mut rows = Vec::new();
    for &threads in &threads {
        let progress = Progress::new("loading");
        let mut report = |done, total| progress.at(done, total);
        let options = LoadOptions { progress: Some(&mut report), ..Default::default() };
        let model = Transformer::load(checkpoint.clone(), threads, options)?;
        progress.finish();
        let limit = read_bandwidth(model.pool(), 3);
        for &depth in &args.n_depth {
            let tests = args.n_prompt.iter().map(|&p| (p, 0)).chain(args.n_gen.iter().map(|&n| (0, n)));
            for (n_prompt, n_gen) in tests.filter(|&(p, n)| p + n > 0) {
                let times = measure(&model, &args, depth, n_prompt, n_gen)?;
                rows.push(row(&model, n_parameters, &args, limit, (depth, n_prompt, n_gen), &times));
                if !args.json {
                    print_row(rows.last().expect("a row has just been added"), rows.len() == 1)?;
                }
            }
        }
    }
    if args.json { stdout::print_json(&rows) } else { Ok(()) }
}

/// Times of the repetitions, after one that is not counted.
fn measure(
    model: &Transformer,
    args: &Args,
    depth: usize,
    n_prompt: usize,
    n_gen: usize,
) -> anyhow::Result<Vec<Duration>> {
    let mut bench = Bench {
        model,
        cache: KvCache::new(
            model.config(),
            args.kv,
            (depth + n_prompt + n_gen).next_multiple_of(KvCache::PAGE_TOKENS),
        )?,
        workspace: Workspace::default(),
        batch: Batch::default(),
        random: Random::new(1),
        chunk: args.batch_size,
    };
    let sequence = bench.cache.add_sequence();
    bench.prompt(sequence, depth)?;
    let mut times = Vec::new();
    for repetition in 0..=args.repetitions {
        bench.cache.truncate(sequence, depth);
        let start = Instant::now();
        bench.prompt(sequence, n_prompt)?;
        for _ in 0..n_gen {
            bench.step(sequence, 1, Logits::Last)?;
        }
        if repetition > 0 {
            times.push(start.elapsed());
        }
    }
    Ok(times)
}

struct Bench<'a> {
    model: &'a Transformer,
    cache: KvCache,
    workspace: Workspace,
    batch: Batch,
    random: Random,
    chunk: usize,
}

impl Bench<'_> {
    fn prompt(&mut self, sequence: octet_model::SequenceId, n_tokens: usize) -> anyhow::Result<()> {
        let mut left = n_tokens;
        while left > 0 {
            let n = left.min(self.chunk);
            left -= n;
            self.step(sequence, n, if left == 0 { Logits::Last } else { Logits::None })?;
        }
        Ok(())
    }

    fn step(&mut self, sequence: octet_model::SequenceId, n_tokens: usize, wanted: Logits) -> anyhow::Result<()> {
        let vocab_size = self.model.config().vocab_size as u64;
        let tokens: Vec<u32> = (0..n_tokens).map(|_| (self.random.bits() % vocab_size) as u32).collect();
        self.batch.clear();
        self.batch.push(sequence, &tokens, wanted);
        self.model.forward(&self.batch, &mut self.cache, &mut self.workspace, &mut Nothing)?;
        Ok(())
    }
}

fn row(
    model: &Transformer,
    model_n_params: u64,
    args: &Args,
    limit: f64,
    (n_depth, n_prompt, n_gen): (usize, usize, usize),
    times: &[Duration],
) -> Row {
    let samples_ns: Vec<u64> = times.iter().map(|t| t.as_nanos() as u64).collect();
    let samples_ts: Vec<f64> = times.iter().map(|t| (n_prompt + n_gen) as f64 / t.as_secs_f64()).collect();
    let (avg_ns, stddev_ns) = mean_and_deviation(&samples_ns.iter().map(|&n| n as f64).collect::<Vec<_>>());
    let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
    let kv = format!("{:?}", args.kv).to_lowercase();
    Row {
        build_number: env!("CARGO_PKG_VERSION"),
        cpu_info: crate::machine::cpu_name().unwrap_or_else(|| "unknown".into()),
        kernels: octet_kernels::cpu::features(),
        model_filename: args.model.display().to_string(),
        model_size: model.weights_bytes() as u64,
        model_n_params,
        n_batch: args.batch_size,
        n_ubatch: args.batch_size,
        n_threads: model.pool().threads(),
        type_k: kv.clone(),
        type_v: kv,
        n_prompt,
        n_gen,
        n_depth,
        test_time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        avg_ns: avg_ns as u64,
        stddev_ns: stddev_ns as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
        weights_bandwidth: (n_gen > 0).then(|| model.active_bytes() as f64 * avg_ts),
        read_bandwidth: limit,
    }
}

fn print_row(row: &Row, first: bool) -> anyhow::Result<()> {
    if first {
        stdout::print(&format!(
            "{} · {} · machine reads {} GB/s\n{:>8} {:>8} {:>8} {:>8} {:>18}   bandwidth\n",
            row.cpu_info,
            row.kernels,
            three_digits(row.read_bandwidth / 1e9),
            "threads",
            "depth",
            "prompt",
            "generate",
            "tokens/s"
        ))?;
    }
    let speed = format!("{} ± {}", three_digits(row.avg_ts), three_digits(row.stddev_ts));
    let bandwidth = row.weights_bandwidth.map_or(String::new(), |b| {
        format!("{} GB/s, {:.0}% of the machine's", three_digits(b / 1e9), 100.0 * b / row.read_bandwidth)
    });
    let (threads, depth, prompt, generate) = (row.n_threads, row.n_depth, row.n_prompt, row.n_gen);
    stdout::print(&format!("{threads:>8} {depth:>8} {prompt:>8} {generate:>8} {speed:>18}   {bandwidth}\n"))
}

fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

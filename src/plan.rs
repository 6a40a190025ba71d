//! `octet plan`: memory and speed before loading, and the check that every command makes before it loads a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use octet_checkpoint::mix::Mix;
use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Params, TensorName};
use octet_engine::OpenOptions;
use octet_kernels::limits::ReadTest;
use octet_kernels::{Activations, KvType, PackedMatrix, Product, Reads, ThreadPool, matmul};
use serde::Serialize;
use serde_json::json;

use crate::finetune::forecast::Forecast;
use crate::footprint::{self, Footprint, Use};
use crate::format;
use crate::machine::{self, Memory};
use crate::model_options::kv_type;
use crate::stdout;
use crate::synth::shape_names;
use tune::TuneOptions;

mod tune;

/// Context that a model has to have at least, for anything useful.
const LEAST_CONTEXT: usize = 2048;
/// Share of the memory's bandwidth that generation reaches (bench/RESULTS.md), and of one kernel's speed that a prompt does.
const GENERATION_SHARE: f64 = 0.75;
const PROMPT_SHARE: f64 = 0.8;

/// Predict memory and speed before loading
///
/// Memory is what will be resident once the context is full. Speeds are what this machine's memory and kernels, measured
/// for a second, allow. With --tune also what fine-tuning takes, of which some layers and the output head are tried.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, or its params.json or config.json alone; or a published shape: mixtral-8x7b,
    /// mixtral-8x22b, llama-2-70b or mistral-7b
    model: PathBuf,
    /// Predict for the file that `octet quantize` would write, such as Q4_K_M [default: the model as it is]
    #[arg(long, value_name = "MIX", value_parser = crate::type_choice::mix)]
    quantize: Option<Mix>,
    /// Tokens of context for each user [default: the model's own, at most 32768]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Type of the KV cache: f16, q8_0 or f32
    #[arg(long, default_value = "f16", value_parser = kv_type)]
    kv: KvType,
    /// Conversations at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    users: u32,
    /// Threads [default: as many as this process may use]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tuning: TuneOptions,
}

/// What will be needed, and what to expect.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    quantize: Option<String>,
    users: usize,
    kv: &'static str,
    threads: usize,
    memory: Option<Memory>,
    fit: Fit,
    speed: Speed,
    /// Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuning: Option<Forecast>,
}

/// Whether a model fits the memory that is free.
#[derive(Serialize)]
pub struct Fit {
    /// Tokens of context of each user.
    pub context: usize,
    /// What the model takes once all contexts are full.
    pub footprint: Footprint,
    /// `None` where the system does not tell its memory.
    pub fits: Option<bool>,
    /// What would fit instead.
    pub advice: Option<String>,
}

/// Tokens per second to expect, and what was measured for it.
#[derive(Serialize)]
struct Speed {
    /// Bytes per second that all threads together read from memory.
    read_bandwidth: f64,
    /// Multiplications of a weight and an activation per second, in the type of the experts.
    multiply_adds: f64,
    /// Bytes of weights that one token reads.
    active_bytes: u64,
    /// All users together, with their contexts half full.
    generate: f64,
    prompt: f64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let is_json = args.json;
    let read = read(&args.model)?;
    let report = report(args, read, Measured::of)?;
    if is_json { stdout::print_json(&report) } else { stdout::print(&describe(&report)) }
}

/// The same for a request in JSON: `model` is a path or a shape's name, such as mixtral-8x7b, the others as on the command
/// line. Without a request, what can be asked for.
///
/// # Errors
/// A field that is wrong, or a model that cannot be read.
pub fn report_of(request: serde_json::Value) -> anyhow::Result<serde_json::Value> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        model: PathBuf,
        quantize: Option<String>,
        context: Option<u32>,
        kv: Option<String>,
        users: Option<u32>,
        tuning: Option<tune::Asked>,
    }
    if request.is_null() {
        let mixes: Vec<&str> = Mix::all().map(Mix::name).collect();
        return Ok(json!({"shapes": shape_names(), "mixes": mixes, "kv": ["f16", "q8_0", "f32"]}));
    }
    let asked: Asked = serde_json::from_value(request)?;
    let wrong = anyhow::Error::msg;
    let args = Args {
        quantize: asked.quantize.as_deref().map(crate::type_choice::mix).transpose().map_err(wrong)?,
        context: asked.context.filter(|&n| n > 0),
        kv: kv_type(asked.kv.as_deref().unwrap_or("f16")).map_err(wrong)?,
        users: asked.users.unwrap_or(1).clamp(1, 4096),
        threads: None,
        json: true,
        tuning: asked.tuning.map_or_else(|| Ok(TuneOptions::default()), TuneOptions::try_from).map_err(wrong)?,
        model: asked.model,
    };
    let read = read(&args.model)?;
    Ok(serde_json::to_value(report(args, read, measured_once)?)?)
}

/// A model by its path, or by the name of a published shape.
fn read(model: &Path) -> anyhow::Result<(Params, Option<Checkpoint>)> {
    match model.to_str().and_then(crate::synth::params_of).filter(|_| !model.exists()) {
        Some(params) => Ok((params, None)),
        None => Ok(footprint::read(model)?),
    }
}

fn report(args: Args, (params, checkpoint): (Params, Option<Checkpoint>), measure: Measure) -> anyhow::Result<Report> {
    let stored = |name| checkpoint.as_ref().and_then(|c| c.find(name)).map_or(ElementType::BF16, |t| t.element_type());
    let element_type = |name| args.quantize.map_or_else(|| stored(name), |mix| mix.element_type(name, &params));
    let threads = args.threads.map_or_else(octet_kernels::cpu::available_threads, usize::from);
    let usage = Use {
        context: args.context.map_or_else(|| footprint::default_context(&params), |n| n as usize),
        users: args.users as usize,
        kv: args.kv,
        chunk: OpenOptions::default().chunk,
    };
    let memory = machine::memory();
    Ok(Report {
        model: args.model,
        quantize: args.quantize.map(|mix| mix.name().to_owned()),
        users: usage.users,
        kv: usage.kv.name(),
        threads,
        memory,
        fit: fit(&params, element_type, &usage, memory),
        speed: speed(&params, element_type, &usage, |kind, dim| measure(threads, kind, dim)),
        tuning: args.tuning.forecast(&params, &element_type, threads, memory)?,
    })
}

/// Refuses to load what will not fit; says so where it fits, but not with its whole context.
///
/// # Errors
/// A checkpoint that needs more memory than is free: with what would fit instead.
pub fn check_fits(checkpoint: &Checkpoint, options: &OpenOptions) -> anyhow::Result<()> {
    let Some(memory) = machine::memory() else { return Ok(()) };
    let params = checkpoint.params();
    let element_type = footprint::types_of(checkpoint, options.quantize);
    let wanted = options.context.unwrap_or_else(|| footprint::default_context(params));
    let usage = Use { context: wanted, users: 1, kv: options.kv, chunk: options.chunk };
    let whole = fit(params, &element_type, &usage, Some(memory));
    if whole.fits != Some(false) {
        return Ok(());
    }
    // Memory of the cache is taken as it is used, so a context that nobody asked for may be too long.
    let room = longest_context(params, &element_type, &usage, memory);
    if options.context.is_none() && room >= LEAST_CONTEXT {
        let [room, wanted] = [room, wanted].map(|n| format::count(n as u64));
        eprintln!("octet: free memory will do for {room} of {wanted} tokens of context; --context sets a limit");
        return Ok(());
    }
    let advice = whole.advice.unwrap_or_default();
    Err(DoesNotFit(format!(
        "{} needs {}, but {} are free; {advice}",
        checkpoint.path().display(),
        whole.footprint,
        format::bytes(memory.available)
    ))
    .into())
}

/// A model that is predicted not to fit in memory, in words; it may be tried anyway.
#[derive(Debug)]
pub struct DoesNotFit(pub String);

impl std::fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; --load-anyway tries", self.0)
    }
}

impl std::error::Error for DoesNotFit {}

/// Whether the model fits `memory`, and what would.
pub fn fit(
    params: &Params,
    element_type: impl Fn(TensorName) -> ElementType,
    usage: &Use,
    memory: Option<Memory>,
) -> Fit {
    let footprint = Footprint::new(params, &element_type, usage);
    let fits = memory.map(|memory| footprint.total() <= memory.available);
    let advice = memory.filter(|_| fits == Some(false)).map(|memory| advice(params, element_type, usage, memory));
    Fit { context: usage.context, footprint, fits, advice }
}

/// The least loss that fits: a shorter context if it is half of what was asked for, else the finest smaller mix, else a
/// context as long as there is room for, else both.
fn advice(params: &Params, element_type: impl Fn(TensorName) -> ElementType, usage: &Use, memory: Memory) -> String {
    let room = longest_context(params, &element_type, usage, memory);
    let shorter = format!("with --context {room} it would");
    if room >= LEAST_CONTEXT && room >= usage.context / 2 {
        return shorter;
    }
    let own = Footprint::new(params, element_type, usage).weights;
    let finest = |context: usize| {
        Mix::all().find(|mix| {
            let quantized = Footprint::new(params, |name| mix.element_type(name, params), &Use { context, ..*usage });
            quantized.weights < own && quantized.total() <= memory.available
        })
    };
    if let Some(mix) = finest(usage.context) {
        return format!("quantized to {} it would", mix.name());
    }
    if room >= LEAST_CONTEXT {
        return shorter;
    }
    match finest(usage.context.min(LEAST_CONTEXT)) {
        Some(mix) => format!("quantized to {} and --context {LEAST_CONTEXT} it would", mix.name()),
        None => "no quantization of it would".into(),
    }
}

/// The longest context for each user that fits, in whole pages of 64 tokens; 0 if the weights alone do not.
fn longest_context(
    params: &Params,
    element_type: impl Fn(TensorName) -> ElementType,
    usage: &Use,
    memory: Memory,
) -> usize {
    let empty = Footprint { kv_cache: 0, ..Footprint::new(params, element_type, usage) };
    let free = memory.available.saturating_sub(empty.total());
    let per_token = footprint::kv_bytes_per_token(params, usage.kv).max(1).saturating_mul(usage.users as u64);
    ((free / per_token) as usize).min(usage.context) / 64 * 64
}

/// What this machine was measured to do.
#[derive(Clone, Copy)]
struct Measured {
    read_bandwidth: f64,
    multiply_adds: f64,
}

/// Measures with so many threads, for weights of a type in rows of a length.
type Measure = fn(usize, ElementType, usize) -> Measured;

impl Measured {
    fn of(threads: usize, kind: ElementType, dim: usize) -> Measured {
        let pool = ThreadPool::new(threads);
        Measured { read_bandwidth: ReadTest::new().bandwidth(&pool, 3), multiply_adds: multiply_adds(&pool, kind, dim) }
    }
}

/// The same, remembered: a server that answers has better to do than to measure at every question.
fn measured_once(threads: usize, kind: ElementType, dim: usize) -> Measured {
    static KNOWN: Mutex<BTreeMap<(usize, ElementType, usize), Measured>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry((threads, kind, dim)).or_insert_with(|| Measured::of(threads, kind, dim))
}

fn speed(
    params: &Params,
    element_type: impl Fn(TensorName) -> ElementType,
    usage: &Use,
    measure: impl Fn(ElementType, usize) -> Measured,
) -> Speed {
    let expert = element_type(TensorName::Layer(0, LayerTensor::Expert(0, ExpertMatrix::W1)));
    let Measured { read_bandwidth, multiply_adds } = measure(expert, params.dim);
    let active_bytes = footprint::active_bytes(params, &element_type, 1);
    let half_full = (usage.users * usage.context / 2) as u64;
    let kv_bytes = half_full.saturating_mul(footprint::kv_bytes_per_token(params, usage.kv));
    let step_bytes = footprint::active_bytes(params, &element_type, usage.users).saturating_add(kv_bytes);
    let embeddings = (params.vocab_size * params.dim) as u64;
    Speed {
        read_bandwidth,
        multiply_adds,
        active_bytes,
        generate: GENERATION_SHARE * usage.users as f64 * read_bandwidth / step_bytes as f64,
        prompt: PROMPT_SHARE * multiply_adds / (params.n_active_parameters() - embeddings).max(1) as f64,
    }
}

/// Weights times activations per second: a matrix of this type with 64 rows of activations, the best of three.
fn multiply_adds(pool: &ThreadPool, kind: ElementType, dim: usize) -> f64 {
    const ROWS: usize = 4096;
    const TOKENS: usize = 64;
    // A row of any length is multiplied at the same speed from some length on, and there is no bound to what a file may say.
    const MAX_DIM: usize = 1 << 14;
    let dim = dim.min(MAX_DIM);
    let matrix = PackedMatrix::pack(pool, kind, ROWS, dim, &|_: std::ops::Range<usize>, out: &mut [u8]| out.fill(0));
    let mut activations = Activations::new();
    activations.set(pool, &vec![1.0; TOKENS * dim], dim, Reads::of([&matrix]));
    let mut y = vec![0.0; TOKENS * ROWS];
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        matmul(pool, &mut [Product { w: &matrix, x: &activations, y: &mut y }]);
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    (ROWS * TOKENS * dim) as f64 / seconds
}

impl Fit {
    /// One line for people.
    pub fn describe(&self) -> String {
        let verdict = match (self.fits, &self.advice) {
            (Some(true), _) => "fits".to_owned(),
            (Some(false), Some(advice)) => format!("does not fit; {advice}"),
            (Some(false), None) => "does not fit".to_owned(),
            (None, _) => "this system does not tell its memory".to_owned(),
        };
        format!("{}, with {} tokens of context: {verdict}", self.footprint, format::count(self.context as u64))
    }
}

fn describe(report: &Report) -> String {
    let speed = &report.speed;
    let users = if report.users == 1 { String::new() } else { format!(" for {} users together", report.users) };
    let mut text = format!("{}\n", report.model.display());
    let mut line = |label: &str, value: String| text += &format!("  {label:<14}{value}\n");
    if let Some(mix) = &report.quantize {
        line("quantized", mix.clone());
    }
    line("memory", report.fit.describe());
    if let Some(memory) = report.memory {
        line("free", format!("{} of {}", format::bytes(memory.available), format::bytes(memory.total)));
    }
    line("generation", format!("about {}{users}, contexts half full", format::rate(speed.generate)));
    line("prompt", format!("about {}", format::rate(speed.prompt)));
    line(
        "measured",
        format!(
            "{} threads read {} GB/s and multiply {} G weights/s; a token reads {}",
            report.threads,
            format::three_digits(speed.read_bandwidth / 1e9),
            format::three_digits(speed.multiply_adds / 1e9),
            format::bytes(speed.active_bytes)
        ),
    );
    if let Some(tuning) = &report.tuning {
        line("tuning reads", tuning.describe_work());
        line("trains", format!("{} numbers", format::count(tuning.trained)));
        line("takes", tuning.describe_memory());
        line("for", tuning.describe_time());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuning_is_planned_where_a_request_asks_for_it() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mixtral-8x2");
        let plain = report_of(json!({"model": model, "context": 64})).unwrap();
        assert!(plain.get("tuning").is_none(), "{plain}");
        let tuning = json!({"tokens": 1000, "length": 50, "batch": 10, "targets": ["attention"]});
        let report = report_of(json!({"model": model, "context": 64, "tuning": tuning})).unwrap();
        assert_eq!((&report["tuning"]["steps"], &report["tuning"]["tokens"]), (&json!(2), &json!(1000)), "{report}");
        assert!(report["tuning"]["seconds"].as_f64().unwrap() > 0.0, "{report}");
        for (wrong, named) in [
            (json!({"tokens": 1000, "lenght": 50}), "lenght"),
            (json!({"all": true}), "tokens"),
            (json!({"tokens": 1000, "rank": 5000}), "4096"),
        ] {
            let error = report_of(json!({"model": model, "context": 64, "tuning": wrong})).unwrap_err();
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
    }
}

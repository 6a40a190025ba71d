//! `octet inspect`: what a model is, how large, and whether it fits this machine. Reads headers only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use octet_checkpoint::mix::{self, Mix};
use octet_checkpoint::{Checkpoint, ElementType, Params, TensorName};
use octet_kernels::KvType;
use serde::Serialize;

use crate::footprint::{self, Footprint, Use};
use crate::format;
use crate::machine::{self, Memory};
use crate::plan::{self, Fit};
use crate::stdout;

/// Tell what a model is, how large, and whether it fits this machine
///
/// A params.json or config.json alone is enough for the counts and sizes.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, or its params.json or config.json alone
    model: PathBuf,
    /// List every tensor of the files with its type and shape
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that there is to tell.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    /// `None` for a configuration alone.
    layout: Option<&'static str>,
    files: Vec<FileSize>,
    /// The name that the model gives itself.
    name: Option<String>,
    architecture: &'static str,
    parameters: u64,
    active_parameters: u64,
    shape: Shape,
    types: BTreeMap<String, TypeTotal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorLine>>,
    /// Bytes of the weights as they are stored.
    stored_bytes: Option<u64>,
    sizes: Vec<MixSize>,
    kv_cache: Vec<KvSize>,
    machine: Machine,
    fit: Fit,
    /// What is known to be wrong with this file's mix of types.
    faults: Vec<String>,
}

#[derive(Serialize)]
struct FileSize {
    path: PathBuf,
    bytes: u64,
}

/// The model's dimensions, by Mistral's names.
#[derive(Serialize)]
struct Shape {
    dim: usize,
    n_layers: usize,
    head_dim: usize,
    hidden_dim: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
    norm_eps: f32,
    rope_theta: f32,
    sliding_window: Option<usize>,
    context_length: Option<usize>,
    tied_embeddings: bool,
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
}

#[derive(Default, Serialize)]
struct TypeTotal {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    #[serde(rename = "type")]
    element_type: String,
    shape: Vec<u64>,
    file: PathBuf,
}

#[derive(Serialize)]
struct MixSize {
    mix: String,
    bytes: u64,
    bits_per_weight: f64,
    /// With the context of the model's fit, in the memory that is free now.
    fits: Option<bool>,
}

#[derive(Serialize)]
struct KvSize {
    #[serde(rename = "type")]
    kind: &'static str,
    bytes_per_token: u64,
    bytes_at_32k: u64,
}

#[derive(Serialize)]
struct Machine {
    memory: Option<Memory>,
    free_disk: Option<u64>,
    threads: usize,
    kernels: &'static str,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let report = match footprint::read(&args.model)? {
        (params, None) => of_configuration(&args, &params),
        (_, Some(checkpoint)) => of_checkpoint(&args, &checkpoint),
    };
    if args.json { stdout::print_json(&report) } else { stdout::print(&describe(&report)) }
}

/// A configuration alone: sizes as if the weights were stored in bfloat16, as Mistral publishes them.
fn of_configuration(args: &Args, params: &Params) -> Report {
    report(args, params, |_| ElementType::BF16)
}

fn of_checkpoint(args: &Args, checkpoint: &Checkpoint) -> Report {
    let params = checkpoint.params();
    let mut report = report(args, params, footprint::types_of(checkpoint, None));
    report.layout = Some(checkpoint.layout().name());
    let size = |path: &PathBuf| FileSize { path: path.clone(), bytes: path.metadata().map_or(0, |m| m.len()) };
    report.files = checkpoint.files().iter().map(size).collect();
    report.name = checkpoint.gguf().and_then(|keys| keys.str("general.name")).map(str::to_owned);
    for (_, tensor) in checkpoint.stored() {
        let total = report.types.entry(tensor.element_type.to_string()).or_default();
        total.tensors += 1;
        total.parameters += tensor.elements();
        total.bytes += tensor.bytes.len() as u64;
    }
    report.stored_bytes = Some(report.types.values().map(|total| total.bytes).sum());
    report.tensors = args.tensors.then(|| tensor_lines(checkpoint));
    report.faults = mix::faults(checkpoint);
    report
}

fn tensor_lines(checkpoint: &Checkpoint) -> Vec<TensorLine> {
    let line = |(path, tensor): (&Path, &octet_checkpoint::StoredTensor)| TensorLine {
        name: tensor.name.clone(),
        element_type: tensor.element_type.to_string(),
        shape: tensor.shape.clone(),
        file: path.to_owned(),
    };
    checkpoint.stored().map(line).collect()
}

/// What follows from the shape and the types of the tensors.
fn report(args: &Args, params: &Params, element_type: impl Fn(TensorName) -> ElementType) -> Report {
    let memory = machine::memory();
    let usage = Use { context: footprint::default_context(params), users: 1, kv: KvType::F16, chunk: 512 };
    let fit = plan::fit(params, &element_type, &usage, memory);
    let sizes = Mix::all().map(|mix| mix_size(mix, params, &usage, memory)).collect();
    let kv_size = |kind: KvType| {
        let bytes_per_token = footprint::kv_bytes_per_token(params, kind);
        KvSize { kind: kind.name(), bytes_per_token, bytes_at_32k: bytes_per_token.saturating_mul(32_768) }
    };
    Report {
        model: args.model.clone(),
        layout: None,
        files: Vec::new(),
        name: None,
        architecture: params.architecture.name(),
        parameters: params.n_parameters(),
        active_parameters: params.n_active_parameters(),
        shape: shape(params),
        types: BTreeMap::new(),
        tensors: None,
        stored_bytes: None,
        sizes,
        kv_cache: [KvType::F16, KvType::Q8_0, KvType::F32].map(kv_size).into(),
        machine: Machine {
            memory,
            free_disk: machine::free_disk(&args.model),
            threads: octet_kernels::cpu::available_threads(),
            kernels: octet_kernels::cpu::features(),
        },
        fit,
        faults: Vec::new(),
    }
}

fn shape(params: &Params) -> Shape {
    Shape {
        dim: params.dim,
        n_layers: params.n_layers,
        head_dim: params.head_dim,
        hidden_dim: params.hidden_dim,
        n_heads: params.n_heads,
        n_kv_heads: params.n_kv_heads,
        vocab_size: params.vocab_size,
        norm_eps: params.norm_eps,
        rope_theta: params.rope_theta,
        sliding_window: params.sliding_window,
        context_length: params.context_length,
        tied_embeddings: params.tied_embeddings,
        num_experts: params.moe.map(|moe| moe.num_experts),
        num_experts_per_tok: params.moe.map(|moe| moe.num_experts_per_tok),
    }
}

/// The model as `octet quantize` would write it.
fn mix_size(mix: Mix, params: &Params, usage: &Use, memory: Option<Memory>) -> MixSize {
    let element_type = |name| mix.element_type(name, params);
    let bytes = footprint::file_bytes(params, element_type);
    let needed = Footprint::new(params, element_type, usage).total();
    MixSize {
        mix: mix.name().to_owned(),
        bytes,
        bits_per_weight: 8.0 * bytes as f64 / params.n_parameters() as f64,
        fits: memory.map(|memory| needed <= memory.available),
    }
}

fn describe(report: &Report) -> String {
    let mut text = format!("{}\n", report.model.display());
    let mut line = |label: &str, value: String| text += &format!("  {label:<14}{value}\n");
    if let Some(layout) = report.layout {
        let bytes = report.files.iter().map(|file| file.bytes).sum();
        line("files", format!("{layout}, {} of {}", plural(report.files.len(), "file"), format::bytes(bytes)));
    }
    if let Some(name) = &report.name {
        line("name", name.escape_debug().to_string());
    }
    line("architecture", architecture(report));
    let [all, active] = [report.parameters, report.active_parameters].map(format::count);
    line(
        "parameters",
        if report.shape.num_experts.is_some() { format!("{all}, of which {active} work on a token") } else { all },
    );
    line("context", context(&report.shape));
    if let Some(bytes) = report.stored_bytes {
        let bits = 8.0 * bytes as f64 / report.parameters as f64;
        line("weights", format!("{}, {} bits each", format::bytes(bytes), format::three_digits(bits)));
        line("types", types(&report.types));
    }
    let kv = report.kv_cache.iter().map(|kv| {
        format!(
            "{} {} a token, {} at 32,768",
            kv.kind,
            format::bytes(kv.bytes_per_token),
            format::bytes(kv.bytes_at_32k)
        )
    });
    line("KV cache", kv.collect::<Vec<_>>().join("; "));
    line("machine", machine_line(&report.machine));
    line("fit", report.fit.describe());
    for fault in &report.faults {
        line("known fault", fault.escape_debug().to_string());
    }
    text += "\n  quantized to      size  bits a weight  fits\n";
    for size in &report.sizes {
        let fits = size.fits.map_or("", |fits| if fits { "yes" } else { "no" });
        let [bytes, bits] = [format::bytes(size.bytes), format::three_digits(size.bits_per_weight)];
        text += &format!("  {:<11}{bytes:>11}  {bits:>13}  {fits}\n", size.mix);
    }
    if let Some(tensors) = &report.tensors {
        text.push('\n');
        for tensor in tensors {
            text += &format!(
                "  {:<8}{:<20}{}\n",
                tensor.element_type,
                format!("{:?}", tensor.shape),
                tensor.name.escape_debug()
            );
        }
    }
    text
}

fn architecture(report: &Report) -> String {
    let s = &report.shape;
    let ffn = match (s.num_experts, s.num_experts_per_tok) {
        (Some(experts), Some(active)) => format!("{active} of {experts} experts of width {}", s.hidden_dim),
        _ => format!("one expert of width {}", s.hidden_dim),
    };
    format!(
        "{}, {} layers of width {}, {} heads over {} of width {}, {ffn}, vocabulary {}",
        report.architecture,
        s.n_layers,
        s.dim,
        s.n_heads,
        s.n_kv_heads,
        s.head_dim,
        format::count(s.vocab_size as u64)
    )
}

fn context(shape: &Shape) -> String {
    let made_for = shape.context_length.map_or("not said".into(), |n| format!("{} tokens", format::count(n as u64)));
    let window = shape.sliding_window.map_or("none".into(), |n| format!("{} tokens", format::count(n as u64)));
    format!("{made_for}; sliding window {window}; rotary base {}", format::count(shape.rope_theta as u64))
}

fn types(types: &BTreeMap<String, TypeTotal>) -> String {
    let mut types: Vec<_> = types.iter().collect();
    types.sort_by_key(|(_, total)| std::cmp::Reverse(total.bytes));
    let each = |(name, total): &(&String, &TypeTotal)| {
        format!("{} in {} ({})", name, plural(total.tensors as usize, "tensor"), format::bytes(total.bytes))
    };
    types.iter().map(each).collect::<Vec<_>>().join(", ")
}

fn machine_line(machine: &Machine) -> String {
    let mut parts = Vec::new();
    if let Some(memory) = machine.memory {
        parts.push(format!("{} of memory, {} free", format::bytes(memory.total), format::bytes(memory.available)));
    }
    if let Some(bytes) = machine.free_disk {
        parts.push(format!("{} of disk free", format::bytes(bytes)));
    }
    parts.push(plural(machine.threads, "thread"));
    parts.push(format!("{} kernels", machine.kernels));
    parts.join(", ")
}

/// `1 file`, `2 files`.
fn plural(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", format::count(n as u64), if n == 1 { "" } else { "s" })
}

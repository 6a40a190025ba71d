//! `octet synth`: a GGUF of a real model's exact shapes with random weights, to measure speed on.
//!
//! Random numbers are made and encoded once for each type, a pool of some millions, and every tensor is filled from another
//! place in it. So a file of any size is limited by the disk, and the same seed gives the same file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use octet_checkpoint::gguf::{Array, Value};
use octet_checkpoint::mix::Mix;
use octet_checkpoint::write::{self, NewTensor, Outline, outlines};
use octet_checkpoint::{Architecture, ElementType, Layout, Moe, Params};
use octet_kernels::quantize::quantize_row;

use crate::output::OutputOptions;
use crate::random_weights::normal;
use crate::type_choice::{self, Override};

/// Spread of all weights: activations stay finite, and the router picks varied experts.
const SPREAD: f32 = 0.02;

/// Write a GGUF of a real model's shapes with random weights
///
/// The vocabulary is made up. What such a model says is nonsense; what it costs is the truth.
#[derive(clap::Args)]
pub struct Args {
    /// GGUF to write
    out: PathBuf,
    /// Mix of types, such as Q4_K_M
    #[arg(long, value_name = "MIX", value_parser = type_choice::mix, default_value = "Q4_K_M")]
    mix: Mix,
    /// Another type for one role, such as ffn_down=Q6_K or output=Q8_0; may be given several times
    #[arg(long = "set", value_name = "ROLE=TYPE", value_parser = type_choice::override_)]
    overrides: Vec<Override>,
    /// Layers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    layers: u16,
    /// Model whose shapes it has: mixtral-8x7b, mixtral-8x22b, dense-12.9b, llama-2-70b or mistral-7b
    #[arg(long, value_parser = shape, default_value = "mixtral-8x7b")]
    shape: Shape,
    /// Tokens of context that the file claims [default: the model's own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut params = args.shape.params();
    params.n_layers = args.layers.into();
    params.context_length = args.context.map(|tokens| tokens as usize).or(params.context_length);
    let tensors = tensors(&args, &params)?;
    let plan = write::gguf::plan(&keys(&args, &params), tensors);
    let made_from = format!("synth, seed {}, {:?}", args.seed, args.overrides);
    args.output.write(&args.out, &plan, vec![made_from])
}

fn tensors(args: &Args, params: &Params) -> anyhow::Result<Vec<NewTensor<'static>>> {
    let mut pools = Pools { seed: args.seed, threads: args.output.threads()?, of_type: BTreeMap::new() };
    let tensor = |(number, outline): (usize, Outline)| {
        if outline.shape.len() == 1 {
            return Ok(norm(outline));
        }
        let element_type = type_choice::element_type(args.mix, &args.overrides, &outline, params)?;
        Ok(from_pool(pools.of(element_type), number, outline, element_type))
    };
    outlines(Layout::Gguf, params).into_iter().enumerate().map(tensor).collect()
}

/// A model's name with its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    name: &'static str,
    architecture: Architecture,
    n_layers: usize,
    dim: usize,
    hidden_dim: usize,
    n_heads: usize,
    vocab_size: usize,
    context_length: usize,
    rope_theta: u32,
}

const MIXTRAL_8X7B: Shape = Shape {
    name: "mixtral-8x7b",
    architecture: Architecture::Mixtral,
    n_layers: 32,
    dim: 4096,
    hidden_dim: 14336,
    n_heads: 32,
    vocab_size: 32000,
    context_length: 32768,
    rope_theta: 1_000_000,
};

const SHAPES: [Shape; 5] = [
    MIXTRAL_8X7B,
    Shape {
        name: "mixtral-8x22b",
        n_layers: 56,
        dim: 6144,
        hidden_dim: 16384,
        n_heads: 48,
        vocab_size: 32768,
        context_length: 65536,
        ..MIXTRAL_8X7B
    },
    // As many weights as a token of Mixtral 8x7B meets: one expert of twice the width.
    Shape { name: "dense-12.9b", architecture: Architecture::Llama, hidden_dim: 28672, ..MIXTRAL_8X7B },
    Shape {
        name: "llama-2-70b",
        architecture: Architecture::Llama,
        n_layers: 80,
        dim: 8192,
        hidden_dim: 28672,
        n_heads: 64,
        context_length: 4096,
        rope_theta: 10_000,
        ..MIXTRAL_8X7B
    },
    Shape { name: "mistral-7b", architecture: Architecture::Mistral, ..MIXTRAL_8X7B },
];

impl Shape {
    fn params(&self) -> Params {
        let is_mixture = self.architecture == Architecture::Mixtral;
        Params {
            architecture: self.architecture,
            dim: self.dim,
            n_layers: self.n_layers,
            head_dim: 128,
            hidden_dim: self.hidden_dim,
            n_heads: self.n_heads,
            n_kv_heads: 8,
            vocab_size: self.vocab_size,
            norm_eps: 1e-5,
            rope_theta: self.rope_theta as f32,
            sliding_window: None,
            context_length: Some(self.context_length),
            tied_embeddings: false,
            moe: is_mixture.then_some(Moe { num_experts: 8, num_experts_per_tok: 2 }),
            router_aux_loss_coef: None,
            bos_id: Some(1),
            eos_id: Some(2),
        }
    }
}

/// Names of the known models.
pub fn shape_names() -> [&'static str; SHAPES.len()] {
    SHAPES.map(|shape| shape.name)
}

/// The shape of a known model; `None` for other names.
pub fn params_of(name: &str) -> Option<Params> {
    shape(name).ok().map(|shape| shape.params())
}

fn shape(name: &str) -> Result<Shape, String> {
    let none = || format!("there are {}", shape_names().join(", "));
    SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(none)
}

/// Encoded random weights of each type that is needed.
struct Pools {
    seed: u64,
    threads: usize,
    of_type: BTreeMap<ElementType, Arc<Vec<u8>>>,
}

/// Blocks of a pool. As a prime it shares no factor with the blocks of a row, so that rows begin at every block in turn and
/// no two of fewer rows than this are alike: no two tokens have the same logit.
const POOL_BLOCKS: usize = 65_537;

impl Pools {
    fn of(&mut self, kind: ElementType) -> Arc<Vec<u8>> {
        let make = || Arc::new(pool(kind, self.seed, self.threads));
        self.of_type.entry(kind).or_insert_with(make).clone()
    }
}

fn pool(kind: ElementType, seed: u64, threads: usize) -> Vec<u8> {
    /// Blocks that are made at a time.
    const PART: usize = 256;
    let mut bytes = vec![0; POOL_BLOCKS * kind.block_bytes()];
    let mut parts: Vec<(usize, &mut [u8])> = bytes.chunks_mut(PART * kind.block_bytes()).enumerate().collect();
    let share = parts.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for parts in parts.chunks_mut(share) {
            scope.spawn(move || {
                for (part, out) in parts {
                    let n_weights = out.len() / kind.block_bytes() * kind.block_len();
                    let weight = |i| SPREAD * normal(seed, [kind.gguf_id() as usize, *part, i]);
                    let weights: Vec<f32> = (0..n_weights).map(weight).collect();
                    quantize_row(kind, &weights, None, out);
                }
            });
        }
    });
    bytes
}

/// A tensor whose rows follow each other in the pool, from a place that depends on its number in the file.
fn from_pool(pool: Arc<Vec<u8>>, number: usize, outline: Outline, kind: ElementType) -> NewTensor<'static> {
    let cols = *outline.shape.last().expect("a matrix has columns") as usize;
    let row_blocks = cols / kind.block_len();
    let fill = move |rows: Range<usize>, out: &mut [u8]| {
        // Any step that is no round number: tensors of a like shape must not begin alike.
        let first = (number * 40_503 + rows.start * row_blocks) % POOL_BLOCKS;
        copy_around(&pool, first * kind.block_bytes(), out);
        Ok(())
    };
    NewTensor::new(outline.name, kind, outline.shape, Box::new(fill))
}

/// Fills `out` from `pool`, beginning at `at` and going on at its start after its end.
fn copy_around(pool: &[u8], mut at: usize, mut out: &mut [u8]) {
    while !out.is_empty() {
        let n = out.len().min(pool.len() - at);
        let (now, later) = out.split_at_mut(n);
        now.copy_from_slice(&pool[at..at + n]);
        (out, at) = (later, 0);
    }
}

/// The weight of a norm: ones.
fn norm(outline: Outline) -> NewTensor<'static> {
    let fill = |_: Range<usize>, out: &mut [u8]| {
        out.as_chunks_mut().0.fill(1f32.to_le_bytes());
        Ok(())
    };
    NewTensor::new(outline.name, ElementType::F32, outline.shape, Box::new(fill))
}

fn keys(args: &Args, params: &Params) -> Vec<(String, Value)> {
    let name = format!("synthetic {}, {} layers, {}", args.shape.name, args.layers, args.mix);
    let (tokens, kinds) = vocabulary(params.vocab_size);
    let scores = (0..tokens.len()).map(|id| if id < FIRST_PIECE { 0.0 } else { (FIRST_PIECE as f32) - id as f32 });
    let own = [
        ("general.name", Value::String(name)),
        ("general.file_type", Value::U32(args.mix.file_type())),
        ("general.quantization_version", Value::U32(2)),
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores.collect()))),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
    ];
    let mut keys = write::gguf::shape_keys(params);
    keys.extend(own.map(|(key, value)| (key.to_owned(), value)));
    keys
}

/// GGUF's kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// The first token that is neither control nor byte.
const FIRST_PIECE: usize = 259;

/// SentencePiece tokens with their kinds: unknown, control, all bytes, then signs and made-up words of up to three letters.
fn vocabulary(size: usize) -> (Vec<String>, Vec<i32>) {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![UNKNOWN, CONTROL, CONTROL];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.resize(FIRST_PIECE, BYTE);
    let letters = || "etaoinshrdlucmfwypvbgkqjxz".chars();
    let two = || letters().flat_map(move |a| letters().map(move |b| format!("{a}{b}")));
    let three = || two().flat_map(move |ab| letters().map(move |c| format!("{ab}{c}")));
    let signs = ('!'..='~').map(String::from);
    let words = letters().map(String::from).chain(two()).chain(three()).map(|word| format!("\u{2581}{word}"));
    let pieces = ["\u{2581}".to_owned()].into_iter().chain(signs).chain(two()).chain(words).chain(three());
    tokens.extend(pieces.take(size - FIRST_PIECE));
    kinds.resize(tokens.len(), NORMAL);
    (tokens, kinds)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;
    use octet_checkpoint::Checkpoint;
    use octet_checkpoint::TensorName;
    use octet_kernels::blocks::dequantize_row;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// A small mixture, written by two threads or one.
    fn write_small(folder: &tempfile::TempDir, name: &str, options: &[&str]) -> PathBuf {
        let out = folder.path().join(name);
        let line = ["synth", out.to_str().unwrap()].into_iter().chain(options.iter().copied());
        let mut args = Line::parse_from(line).args;
        args.shape = Shape { dim: 512, hidden_dim: 256, n_heads: 16, vocab_size: 700, ..MIXTRAL_8X7B };
        run(args).unwrap();
        out
    }

    #[test]
    fn shapes_are_those_of_the_models() {
        let counts = [
            ("mixtral-8x7b", 46_702_792_704),
            ("mixtral-8x22b", 140_630_071_296),
            // Mixtral's active weights without the routers.
            ("dense-12.9b", 12_879_925_248 - 32 * 8 * 4096),
            ("llama-2-70b", 68_976_648_192),
            ("mistral-7b", 7_241_732_096),
        ];
        for (name, n_parameters) in counts {
            let params = shape(name).unwrap().params();
            assert_eq!(params.n_parameters(), n_parameters, "{name}");
        }
    }

    #[test]
    fn a_vocabulary_names_every_token_once() {
        for size in [32000, 32768] {
            let (tokens, kinds) = vocabulary(size);
            assert_eq!((tokens.len(), kinds.len()), (size, size));
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), size);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_file_on_any_threads() {
        let folder = tempfile::tempdir().unwrap();
        let options = ["--mix", "q3_k_m", "--layers", "2", "--set", "attn_q=Q4_0"];
        let write = |name: &str, more: &[&str]| {
            std::fs::read(write_small(&folder, name, &[&options[..], more].concat())).unwrap()
        };
        let first = write("a.gguf", &["--threads", "1"]);
        assert!(first == write("b.gguf", &["--threads", "3"]), "another file");
        assert!(first != write("c.gguf", &["--seed", "2"]), "the same file");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "only the files themselves are left");
    }

    #[test]
    fn weights_have_the_types_asked_for_and_their_spread() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_small(&folder, "a.gguf", &["--layers", "2", "--set", "attn_q=Q4_0", "--context", "1234"]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let params = checkpoint.params().clone();
        assert_eq!((params.n_layers, params.context_length), (2, Some(1234)));
        for name in params.tensors() {
            let tensor = checkpoint.tensor(name).unwrap();
            let is_q = tensor.stored_name().ends_with("attn_q.weight");
            let wanted = if is_q { ElementType::Q4_0 } else { Mix::Q4_K_M.element_type(name, &params) };
            assert_eq!(tensor.element_type(), wanted, "{name}");
            let (mut bytes, mut rows) = (vec![0; tensor.row_bytes()], HashSet::new());
            let mut square = 0.0f64;
            for row in 0..tensor.rows() {
                tensor.read_rows(row..row + 1, &mut bytes);
                let mut values = vec![0.0; tensor.cols()];
                dequantize_row(tensor.element_type(), &bytes, &mut values);
                square += values.iter().map(|x| f64::from(x * x)).sum::<f64>();
                rows.insert(bytes.clone());
            }
            assert_eq!(rows.len(), tensor.rows(), "{name} has a row twice");
            let spread = (square / (tensor.rows() * tensor.cols()) as f64).sqrt();
            let is_norm = tensor.rows() == 1;
            // At least 4096 weights: their spread is known within 1.1%, of which five times are allowed.
            let (wanted, tolerance) = if is_norm { (1.0, 0.0) } else { (f64::from(SPREAD), 0.055 * f64::from(SPREAD)) };
            assert!((spread - wanted).abs() <= tolerance, "{name} has spread {spread}");
        }
        assert!(checkpoint.find(TensorName::Output).is_some());
    }
}

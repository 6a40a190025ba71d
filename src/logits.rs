//! `octet logits`: what the model computes for given token ids, to be held against another implementation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::Checkpoint;
use octet_engine::OpenOptions;
use octet_kernels::KvType;
use octet_model::{Batch, KvCache, LoadOptions, Logits, Record, Routing, Transformer, Workspace};

use crate::tensor_file::{self, Tensor};

/// Write logits, hidden states and routing for given token ids
///
/// IN holds `input_ids` [B,T]. OUT gets `logits` [B,T,V]; `hidden.0` to `hidden.L` [B,T,D], 0 being the embeddings and L
/// what follows the last norm; and for each layer N of a mixture of experts `router_logits.N` [B*T,E], `experts.N` [B*T,k]
/// (best first) and `expert_weights.N` [B*T,k].
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// Safetensors file with `input_ids` [B,T], of type I64 or I32
    #[arg(long, value_name = "IN")]
    input: PathBuf,
    /// Safetensors file to write
    #[arg(long, value_name = "OUT")]
    output: PathBuf,
    /// Feed this many tokens at a time [default: each sequence at once]
    #[arg(long)]
    chunk: Option<usize>,
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Type of the KV cache: f32, f16 or q8_0
    #[arg(long, default_value = "f32", value_parser = crate::model_options::kv_type)]
    kv: KvType,
    /// Experts that work on each token, in place of the model's own number
    #[arg(long, value_name = "K")]
    experts_per_token: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (ids, batch, length) = read_ids(&args.input)?;
    for (flag, value) in [("--chunk", args.chunk), ("--threads", args.threads)] {
        if value == Some(0) {
            bail!("{flag} is 0; it has to be 1 or more");
        }
    }
    let threads = args.threads.unwrap_or_else(octet_kernels::cpu::available_threads);
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let model = Transformer::load(checkpoint, threads, LoadOptions::default())
        .with_context(|| format!("cannot open {}", args.model.display()))?;
    if length > OpenOptions::DEFAULT_CONTEXT * 4 {
        bail!(
            "{}: sequences of {length} tokens; the limit is {}",
            args.input.display(),
            OpenOptions::DEFAULT_CONTEXT * 4
        );
    }
    let mut collected = Collected::default();
    let mut cache = KvCache::new(model.config(), args.kv, length.next_multiple_of(KvCache::PAGE_TOKENS))?;
    let mut workspace = Workspace::default();
    for tokens in ids.chunks_exact(length) {
        let sequence = cache.add_sequence();
        for chunk in tokens.chunks(args.chunk.unwrap_or(length)) {
            let mut batch = Batch { experts_per_token: args.experts_per_token, ..Default::default() };
            batch.push(sequence, chunk, Logits::All);
            let logits = model.forward(&batch, &mut cache, &mut workspace, &mut collected)?;
            collected.logits.extend_from_slice(logits);
        }
        cache.remove_sequence(sequence);
    }
    tensor_file::write(&args.output, collected.tensors(batch, length, &model))
}

/// The ids and their shape.
fn read_ids(path: &Path) -> anyhow::Result<(Vec<u32>, usize, usize)> {
    let name = path.display();
    let ids = tensor_file::read(path)?.integers("input_ids")?;
    let (batch, length) = ids.two_dimensions()?;
    let ids = (ids.values.into_iter())
        .map(|id| u32::try_from(id).map_err(|_| anyhow::anyhow!("{name}: token id {id} is outside any vocabulary")))
        .collect::<Result<_, _>>()?;
    Ok((ids, batch, length))
}

/// Everything that was computed, token after token.
#[derive(Default)]
struct Collected {
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    router_logits: Vec<Vec<f32>>,
    experts: Vec<Vec<i64>>,
    expert_weights: Vec<Vec<f32>>,
    per_token: usize,
    num_experts: usize,
}

/// The list of layer `index`, made if it is not there yet.
fn at<T>(lists: &mut Vec<Vec<T>>, index: usize) -> &mut Vec<T> {
    if lists.len() <= index {
        lists.resize_with(index + 1, Vec::new);
    }
    &mut lists[index]
}

impl Record for Collected {
    fn hidden(&mut self, index: usize, x: &[f32]) {
        at(&mut self.hidden, index).extend_from_slice(x);
    }

    fn routing(&mut self, layer: usize, routing: &Routing) {
        if routing.logits.is_empty() {
            return; // a dense model has no router
        }
        (self.per_token, self.num_experts) = (routing.per_token, routing.num_experts);
        at(&mut self.router_logits, layer).extend_from_slice(&routing.logits);
        at(&mut self.experts, layer).extend(routing.experts.iter().map(|&e| i64::from(e)));
        at(&mut self.expert_weights, layer).extend_from_slice(&routing.weights);
    }
}

impl Collected {
    fn tensors(self, batch: usize, length: usize, model: &Transformer) -> Vec<(String, Tensor)> {
        let config = model.config();
        let tokens = batch * length;
        let mut out = vec![("logits".to_string(), Tensor::floats(&[batch, length, config.vocab_size], &self.logits))];
        for (i, x) in self.hidden.iter().enumerate() {
            out.push((format!("hidden.{i}"), Tensor::floats(&[batch, length, config.dim], x)));
        }
        for (i, logits) in self.router_logits.iter().enumerate() {
            out.push((format!("router_logits.{i}"), Tensor::floats(&[tokens, self.num_experts], logits)));
            out.push((format!("experts.{i}"), Tensor::integers(&[tokens, self.per_token], &self.experts[i])));
            out.push((
                format!("expert_weights.{i}"),
                Tensor::floats(&[tokens, self.per_token], &self.expert_weights[i]),
            ));
        }
        out
    }
}

//! Memory and disk that a run will take, told before it starts.

use std::path::Path;

use anyhow::bail;
use octet_checkpoint::{Checkpoint, ElementType, Params};

use super::Args;
use super::data::Samples;
use super::model::lora;
use crate::{footprint, format, machine};

/// Bytes of the program, its buffers of logits and of weights made floats.
const FIXED_BYTES: u64 = 256 << 20;
/// Tokens that a smaller pass would have are tried in steps of this many.
const STEP_TOKENS: usize = 64;

/// Refuses a run that will not fit in memory, and says what would.
pub fn check_memory(args: &Args, checkpoint: &Checkpoint, samples: &Samples) -> anyhow::Result<()> {
    let Some(memory) = machine::memory() else { return Ok(()) };
    let longest = longest_unit(samples);
    let tokens = args.loop_options.pass_tokens.max(longest);
    let needed = weights_bytes(args, checkpoint) + pass_bytes(args, checkpoint.params(), tokens);
    if needed <= memory.available || args.load_anyway {
        return Ok(());
    }
    let (needed, free) = (format::bytes(needed), format::bytes(memory.available));
    let weights = weights_bytes(args, checkpoint);
    let fits = |tokens: &usize| weights + pass_bytes(args, checkpoint.params(), *tokens) <= memory.available;
    let smaller = (longest..tokens).step_by(STEP_TOKENS).rev().find(fits);
    let remedy = match smaller {
        Some(tokens) => format!("--pass-tokens {tokens} would fit"),
        None if args.targets.all => "an adapter (without --all) takes a fraction of that".into(),
        None if weights <= memory.available => {
            format!(
                "the longest sample has {longest} tokens; cut samples with --max-length, or keep less with --keep 0"
            )
        }
        None => "quantize the model first (octet quantize), and train an adapter over it".into(),
    };
    bail!("the run needs {needed} of memory and {free} are free; {remedy}, and --load-anyway starts nevertheless")
}

/// Refuses a run whose snapshots and result will not fit on the disk: two snapshots are there for a moment, each with
/// weights and two moments, besides the best evaluation's weights and the result.
pub fn check_disk(args: &Args, out: &Path, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    const FLOATS: u64 = 2 * 3 + 2;
    let needed = 4 * FLOATS * trained(args, checkpoint.params());
    match machine::free_disk(out) {
        Some(free) if free < needed => {
            let (needed, free) = (format::bytes(needed), format::bytes(free));
            bail!(
                "{}: the disk has {free} free, and snapshots and result need {needed}; make room, or choose another --out",
                out.display()
            )
        }
        _ => Ok(()),
    }
}

/// How many numbers are trained.
fn trained(args: &Args, params: &Params) -> u64 {
    if args.targets.all {
        return params.n_parameters();
    }
    let tensors = lora(&args.targets, 0).tensors(params).into_iter();
    tensors.map(|name| (params.shape(name).iter().sum::<usize>() * args.targets.rank) as u64).sum()
}

/// Tokens of the longest sample or pair: no pass can have fewer.
fn longest_unit(samples: &Samples) -> usize {
    let single = samples.single.iter().map(|sample| sample.tokens.len());
    let pairs = samples.pairs.iter().map(|pair| pair.chosen.tokens.len() + pair.rejected.tokens.len());
    single.chain(pairs).max().unwrap_or(0)
}

/// Weights as they lie in the file, or as floats where they are trained, with gradient and two moments of what is trained.
fn weights_bytes(args: &Args, checkpoint: &Checkpoint) -> u64 {
    const TRAINED_BYTES: u64 = 16;
    let params = checkpoint.params();
    if args.targets.all {
        return trained(args, params) * TRAINED_BYTES;
    }
    let types = footprint::types_of(checkpoint, None::<ElementType>);
    footprint::file_bytes(params, types) + trained(args, params) * TRAINED_BYTES
}

/// What passes through the model: the stream at every layer, one layer's activations and their gradients, and the layers
/// that are kept.
fn pass_bytes(args: &Args, params: &Params, tokens: usize) -> u64 {
    let per_token = params.moe.map_or(1, |moe| moe.num_experts_per_tok);
    let attention = 2 * (params.n_heads + params.n_kv_heads) * params.head_dim;
    let layer = attention + per_token * (2 * params.hidden_dim + params.dim) + params.dim;
    let streams = (params.n_layers + 6) * params.dim;
    let kept = (args.targets.keep as u64) << 20;
    let all_layers = 4 * (tokens * layer * params.n_layers) as u64;
    FIXED_BYTES + 4 * (tokens * (streams + 3 * layer)) as u64 + kept.min(all_layers)
}

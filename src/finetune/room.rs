//! Memory and disk that a run will take, told before it starts.

use std::path::Path;

use anyhow::bail;
use octet_model::Config;
use octet_train::layer_bytes;

use super::Args;
use super::data::Samples;
use super::forecast::{Reading, Run};
use crate::{footprint, format, machine};

/// Bytes of the program, its buffers of logits and of weights made floats.
const FIXED_BYTES: u64 = 256 << 20;
/// Tokens that a smaller pass would have are tried in steps of this many.
const STEP_TOKENS: usize = 64;

/// Refuses a run that will not fit in memory, and says what would.
pub fn check_memory(args: &Args, run: &Run<'_>, reading: &Reading, samples: &Samples) -> anyhow::Result<()> {
    let Some(memory) = machine::memory() else { return Ok(()) };
    let needed = needed_bytes(run, reading.learn.longest);
    if needed <= memory.available || args.load_anyway {
        return Ok(());
    }
    let longest = longest_unit(samples);
    let fits = |tokens: &usize| needed_bytes(run, *tokens) <= memory.available;
    let remedy = match (longest..reading.learn.longest).step_by(STEP_TOKENS).rev().find(fits) {
        Some(tokens) => format!("--pass-tokens {tokens} would fit"),
        None if args.targets.all => "an adapter (without --all) takes a fraction of that".into(),
        None if weights_bytes(run) <= memory.available => {
            format!(
                "the longest sample has {longest} tokens; cut samples with --max-length, or keep less with --keep 0"
            )
        }
        None => "quantize the model first (octet quantize), and train an adapter over it".into(),
    };
    let (needed, free) = (format::bytes(needed), format::bytes(memory.available));
    bail!("the run needs {needed} of memory and {free} are free; {remedy}, and --load-anyway starts nevertheless")
}

/// Refuses a run whose snapshots and result will not fit on the disk: two snapshots are there for a moment, each with
/// weights and two moments, besides the best evaluation's weights and the result.
pub fn check_disk(out: &Path, trained: u64) -> anyhow::Result<()> {
    const FLOATS: u64 = 2 * 3 + 2;
    let needed = 4 * FLOATS * trained;
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

/// Tokens of the longest sample or pair: no pass can have fewer.
fn longest_unit(samples: &Samples) -> usize {
    let single = samples.single.iter().map(|sample| sample.tokens.len());
    let pairs = samples.pairs.iter().map(|pair| pair.chosen.tokens.len() + pair.rejected.tokens.len());
    single.chain(pairs).max().unwrap_or(0)
}

/// Bytes that a run takes at its peak, with passes of up to so many tokens.
pub fn needed_bytes(run: &Run<'_>, tokens: usize) -> u64 {
    weights_bytes(run) + pass_bytes(run, tokens)
}

/// Weights as they lie in the file, or as floats where they are trained, with gradient and two moments of what is trained.
fn weights_bytes(run: &Run<'_>) -> u64 {
    const TRAINED_BYTES: u64 = 16;
    let frozen = if run.lora.is_some() { footprint::file_bytes(run.params, run.element_type) } else { 0 };
    frozen + run.trained() * TRAINED_BYTES
}

/// What passes through the model: the stream at every layer, the layers whose activations are kept (one is there at any
/// time), and what the way back through an expert takes: its hidden rows and their gradient, its inputs and answers.
fn pass_bytes(run: &Run<'_>, tokens: usize) -> u64 {
    let params = run.params;
    let per_token = params.moe.map_or(1, |moe| moe.num_experts_per_tok);
    let kept = params.n_layers.saturating_sub(run.layers_again(tokens)).max(1);
    let layer = Config::new(params).map_or(0, |config| layer_bytes(&config, tokens));
    let streams = (params.n_layers + 6) * params.dim;
    let expert = per_token * (2 * params.hidden_dim + 3 * params.dim);
    FIXED_BYTES + (kept * layer + 4 * tokens * (streams + expert)) as u64
}

//! Running a model over a text to learn which columns of its matrices matter.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::{Checkpoint, ExpertMatrix, LayerTensor, TensorName};
use octet_kernels::KvType;
use octet_model::{Batch, KvCache, LoadOptions, Logits, Transformer, Workspace};
use octet_tokenizer::Tokenizer;

use crate::importance::Importance;
use crate::progress::Progress;
use crate::stdout;

/// Tokens used of a text, unless the user says otherwise: what the field's calibration texts come to.
pub const MAX_TOKENS: usize = 65_536;
/// Tokens that are run at a time, each run without the ones before.
const CHUNK_TOKENS: usize = 512;
/// Longest text that is read.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Runs the model over the text, and prints how many tokens each expert saw.
///
/// Errors: no tokenizer, no text, a model that does not run.
pub fn run(checkpoint: &Arc<Checkpoint>, text: &Path, max_tokens: usize, threads: usize) -> anyhow::Result<Importance> {
    let ids = tokens(checkpoint, text, max_tokens)?;
    let loading = Progress::new("loading");
    let mut report = |done, total| loading.at(done, total);
    let options = LoadOptions { progress: Some(&mut report), ..Default::default() };
    let model = Transformer::load(Arc::clone(checkpoint), threads, options)?;
    loading.finish();

    let name = text.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut importance = Importance::default();
    importance.datasets.push(name);
    let mut cache = KvCache::new(model.config(), KvType::F32, CHUNK_TOKENS.next_multiple_of(KvCache::PAGE_TOKENS))?;
    let (mut workspace, calibrating) = (Workspace::default(), Progress::of_tokens("calibrating"));
    let mut done = 0;
    for chunk in ids.chunks(CHUNK_TOKENS) {
        let sequence = cache.add_sequence();
        let mut batch = Batch::default();
        batch.push(sequence, chunk, Logits::None);
        model.forward(&batch, &mut cache, &mut workspace, &mut importance)?;
        cache.remove_sequence(sequence);
        done += chunk.len();
        calibrating.at(done as u64, ids.len() as u64);
    }
    calibrating.finish();
    print_tokens(&importance, checkpoint)?;
    Ok(importance)
}

/// The text's ids, in chunks that each begin as the model expects a text to begin.
fn tokens(checkpoint: &Checkpoint, text: &Path, max_tokens: usize) -> anyhow::Result<Vec<u32>> {
    let cannot = || format!("cannot read {}", text.display());
    if text.metadata().with_context(cannot)?.len() > MAX_TEXT_BYTES {
        bail!("{}: is larger than {MAX_TEXT_BYTES} bytes; a few hundred kilobytes will do", text.display());
    }
    let bytes = std::fs::read(text).with_context(cannot)?;
    let tokenizer = Tokenizer::of_checkpoint(checkpoint).context("--calibrate needs the model's tokenizer")?;
    let mut ids = tokenizer.encode(&String::from_utf8_lossy(&bytes));
    if ids.is_empty() {
        bail!("{}: is an empty text; there is nothing to learn from it", text.display());
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let chunk = CHUNK_TOKENS - usize::from(bos.is_some());
    ids.truncate(max_tokens);
    Ok(ids.chunks(chunk).flat_map(|chunk| bos.into_iter().chain(chunk.iter().copied())).collect())
}

/// Tokens that each expert saw, a line a layer.
fn print_tokens(importance: &Importance, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let params = checkpoint.params();
    if params.moe.is_none() {
        return Ok(());
    }
    let mut table = String::from("tokens seen by each expert\n");
    for layer in 0..params.n_layers {
        let tokens = |e| importance.tokens(TensorName::Layer(layer, LayerTensor::Expert(e, ExpertMatrix::W1)));
        let counts: Vec<String> = (0..params.n_experts()).map(|e| format!("{:>7}", tokens(e))).collect();
        table += &format!("  layer {layer:>3} {}\n", counts.concat());
    }
    stdout::print(&table)
}

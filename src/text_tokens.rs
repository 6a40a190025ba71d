//! A text that a model is run over as a whole, to be calibrated on or compared: its tokens, and the run.

use std::path::Path;

use anyhow::{Context, bail};
use octet_checkpoint::Checkpoint;
use octet_model::{Layerwise, Record};
use octet_tokenizer::Tokenizer;

use crate::progress::Progress;

/// Tokens that are run at a time, each run without the ones before: the length of the field's measurements.
const CHUNK_TOKENS: usize = 512;
/// Longest text that is read.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// A text's ids, in chunks that each begin as the model expects a text to begin.
pub struct TextTokens {
    /// Of at most [`CHUNK_TOKENS`] each, and none empty.
    pub chunks: Vec<Vec<u32>>,
}

impl TextTokens {
    /// Reads at most `max_tokens` of a text. `flag` asked for it.
    ///
    /// Errors: no tokenizer, no text, or an empty one.
    pub fn read(flag: &str, checkpoint: &Checkpoint, text: &Path, max_tokens: usize) -> anyhow::Result<TextTokens> {
        let cannot = || format!("cannot read {}", text.display());
        if text.metadata().with_context(cannot)?.len() > MAX_TEXT_BYTES {
            bail!("{}: is larger than {MAX_TEXT_BYTES} bytes; a few hundred kilobytes will do", text.display());
        }
        let bytes = std::fs::read(text).with_context(cannot)?;
        let tokenizer =
            Tokenizer::of_checkpoint(checkpoint).with_context(|| format!("{flag} needs the model's tokenizer"))?;
        let mut ids = tokenizer.encode(&String::from_utf8_lossy(&bytes));
        ids.truncate(max_tokens);
        if ids.is_empty() {
            bail!("{}: is an empty text; there is nothing to learn from it", text.display());
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let of_text = CHUNK_TOKENS - usize::from(bos.is_some());
        let chunk = |ids: &[u32]| bos.into_iter().chain(ids.iter().copied()).collect();
        Ok(TextTokens { chunks: ids.chunks(of_text).map(chunk).collect() })
    }
}

/// Takes chunks of a text and what follows the last norm for them.
type Each<'a> = dyn FnMut(&[Vec<u32>], Vec<f32>) -> anyhow::Result<()> + 'a;

/// Runs a model over all chunks, as many at once as its memory allows. `each` gets the chunks that were run and what
/// follows the last norm, `[tokens, dim]`.
///
/// Errors: those of [`Layerwise::forward`], and what `each` says.
pub fn forward(
    model: &Layerwise,
    action: &'static str,
    text: &TextTokens,
    record: &mut dyn Record,
    each: &mut Each<'_>,
) -> anyhow::Result<()> {
    let progress = Progress::new(action);
    let groups: Vec<&[Vec<u32>]> = text.chunks.chunks((model.tokens_at_once() / CHUNK_TOKENS).max(1)).collect();
    for (index, &group) in groups.iter().enumerate() {
        let texts: Vec<&[u32]> = group.iter().map(Vec::as_slice).collect();
        let mut at = |done, total| progress.at(index as u64 * total + done, groups.len() as u64 * total);
        let normed = model.forward(&texts, record, &mut at)?;
        each(group, normed)?;
    }
    progress.finish();
    Ok(())
}

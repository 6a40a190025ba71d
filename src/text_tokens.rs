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
    /// Tokens at the beginning of each chunk that are not of the text: BOS, where the model begins texts so.
    pub n_lead: usize,
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
        match TextTokens::of(&tokenizer, &String::from_utf8_lossy(&bytes), max_tokens) {
            Some(tokens) => Ok(tokens),
            None => bail!("{}: is an empty text; there is nothing to learn from it", text.display()),
        }
    }

    /// At most `max_tokens` of a text; `None` if it has none.
    pub fn of(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> Option<TextTokens> {
        let mut ids = tokenizer.encode(text);
        ids.truncate(max_tokens);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let n_lead = usize::from(bos.is_some());
        let chunk = |ids: &[u32]| bos.into_iter().chain(ids.iter().copied()).collect();
        let chunks: Vec<Vec<u32>> = ids.chunks(CHUNK_TOKENS - n_lead).map(chunk).collect();
        (!chunks.is_empty()).then_some(TextTokens { chunks, n_lead })
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

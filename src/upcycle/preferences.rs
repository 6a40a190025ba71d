//! Routers that begin with a preference: expert E for tokens such as those of the E-th text.
//!
//! While all experts are alike, nothing pulls a random router anywhere, and it takes long until experts differ. Here the
//! mixture's router starts as a linear discriminant (Fisher's, with the covariance's diagonal alone) of what the dense
//! model's feed-forward blocks are given for each text: row E is `(m_E - m) / v`, where `m_E` is the mean of text E's
//! tokens, `m` the mean of those means, and `v` the variance within texts. A router has no bias, so every row is turned until
//! it gives `m` nothing, and it is stretched until its logits spread by [`SPREAD`] over all tokens. Rows beyond the texts
//! are random, treated in the same way.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use octet_checkpoint::{Checkpoint, ExpertMatrix, LayerTensor};
use octet_model::{Layerwise, Record};

use crate::progress::Progress;
use crate::random_weights::normal;
use crate::text_tokens::TextTokens;

/// Tokens that are read of each text: enough for means of some thousand columns.
const TOKENS: usize = 4096;
/// Standard deviation of a logit over all tokens. The router's two best then differ by about as much, so that the best one
/// answers for some three quarters, and neither is without a gradient.
const SPREAD: f64 = 1.0;

/// The routers of all layers, `[n_layers][num_experts, dim]`, and how many tokens of each text they come of.
pub struct Preferences {
    pub routers: Vec<Vec<f32>>,
    pub tokens: Vec<usize>,
}

impl Preferences {
    /// Runs the dense model over the texts, a layer at a time.
    ///
    /// Errors: more texts than experts, no tokenizer, an empty text, a model that does not run.
    pub fn learn(
        checkpoint: &Arc<Checkpoint>,
        files: &[PathBuf],
        num_experts: usize,
        threads: usize,
        seed: u64,
    ) -> anyhow::Result<Preferences> {
        if files.len() < 2 || files.len() > num_experts {
            bail!("--router-text: {} texts for {num_experts} experts; give 2 to {num_experts}", files.len());
        }
        let model = Layerwise::new(Arc::clone(checkpoint), threads)?;
        let most = TOKENS.min(model.tokens_at_once() / files.len());
        let read = |file| TextTokens::read("--router-text", checkpoint, file, most);
        let texts = files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
        let chunks: Vec<&[u32]> = texts.iter().flat_map(|text| text.chunks.iter().map(Vec::as_slice)).collect();
        let of_text = |(index, text): (usize, &TextTokens)| {
            // The first token of a text is like no other: attention rests on it.
            let of_chunk = |chunk: &Vec<u32>| (0..chunk.len()).map(|at| (at > 0).then_some(index)).collect::<Vec<_>>();
            text.chunks.iter().flat_map(of_chunk).collect::<Vec<_>>()
        };
        let text_of: Vec<Option<usize>> = texts.iter().enumerate().flat_map(of_text).collect();
        let tokens: Vec<usize> =
            (0..texts.len()).map(|text| text_of.iter().filter(|of| **of == Some(text)).count()).collect();
        if let Some(short) = tokens.iter().position(|&n| n < 2) {
            bail!("{}: is too short to tell its tokens from those of other texts", files[short].display());
        }
        let mut learner = Learner { text_of, n_texts: texts.len(), num_experts, seed, rows: vec![], routers: vec![] };
        let progress = Progress::new("reading router texts");
        model.forward(&chunks, &mut learner, &mut |done, total| progress.at(done, total))?;
        progress.finish();
        Ok(Preferences { routers: learner.routers, tokens })
    }
}

/// Gathers the inputs of a layer's experts, and makes its router of them.
struct Learner {
    /// The text of each token; `None` for those that do not count.
    text_of: Vec<Option<usize>>,
    n_texts: usize,
    num_experts: usize,
    seed: u64,
    /// Inputs of this layer so far, `[tokens, dim]`.
    rows: Vec<f32>,
    routers: Vec<Vec<f32>>,
}

impl Record for Learner {
    fn input(&mut self, layer: usize, tensor: LayerTensor, x: &[f32], cols: usize) {
        if tensor != LayerTensor::Expert(0, ExpertMatrix::W1) {
            return;
        }
        self.rows.extend_from_slice(x);
        if self.rows.len() == self.text_of.len() * cols {
            let rows = std::mem::take(&mut self.rows);
            let known = rows.chunks_exact(cols).zip(&self.text_of).filter_map(|(x, text)| Some((x, (*text)?)));
            let known: Vec<(&[f32], usize)> = known.collect();
            let moments = Moments::of(&known, self.n_texts, cols);
            let row = |expert: usize| {
                let toward: Vec<f64> = match moments.means.get(expert) {
                    Some(mean) => mean.iter().zip(&moments.mean).map(|(of, all)| of - all).collect(),
                    None => (0..cols).map(|col| f64::from(normal(self.seed, [layer, expert, col]))).collect(),
                };
                moments.discriminant(&toward, &known)
            };
            self.routers.push((0..self.num_experts).flat_map(row).collect());
        }
    }
}

/// Means and variances of a layer's inputs, by column.
struct Moments {
    /// Of each text.
    means: Vec<Vec<f64>>,
    /// The mean of those.
    mean: Vec<f64>,
    /// Within texts, over all of them.
    variance: Vec<f64>,
}

impl Moments {
    fn of(rows: &[(&[f32], usize)], n_texts: usize, cols: usize) -> Moments {
        let (mut means, mut counts) = (vec![vec![0.0; cols]; n_texts], vec![0.0; n_texts]);
        for &(x, text) in rows {
            means[text].iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
            counts[text] += 1.0;
        }
        means.iter_mut().zip(&counts).for_each(|(mean, n)| mean.iter_mut().for_each(|sum| *sum /= n));
        let mean = (0..cols).map(|col| means.iter().map(|mean| mean[col]).sum::<f64>() / n_texts as f64).collect();
        let mut variance = vec![0.0; cols];
        for &(x, text) in rows {
            let off = x.iter().zip(&means[text]).map(|(&x, mean)| f64::from(x) - mean);
            variance.iter_mut().zip(off).for_each(|(sum, off)| *sum += off * off);
        }
        variance.iter_mut().for_each(|sum| *sum /= rows.len() as f64);
        Moments { means, mean, variance }
    }

    /// The router's row whose logit grows `toward`, is 0 at the mean, and spreads as it should over `rows`.
    fn discriminant(&self, toward: &[f64], rows: &[(&[f32], usize)]) -> Vec<f32> {
        // A column that hardly moves would count for too much.
        let least = 0.01 * self.variance.iter().sum::<f64>() / self.variance.len() as f64 + f64::MIN_POSITIVE;
        let whitened =
            |of: &[f64]| -> Vec<f64> { of.iter().zip(&self.variance).map(|(x, v)| x / (v + least)).collect() };
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let (mut row, mean) = (whitened(toward), whitened(&self.mean));
        let share = dot(&row, &self.mean) / (dot(&mean, &self.mean) + f64::MIN_POSITIVE);
        row.iter_mut().zip(&mean).for_each(|(row, mean)| *row -= share * mean);
        let logit = |x: &[f32]| -> f64 { x.iter().zip(&row).map(|(&x, w)| f64::from(x) * w).sum() };
        let square = rows.iter().map(|(x, _)| logit(x).powi(2)).sum::<f64>() / rows.len() as f64;
        // Texts that are all the same leave nothing to stretch.
        let stretch = if square > 0.0 { SPREAD / square.sqrt() } else { 0.0 };
        row.iter().map(|w| (w * stretch) as f32).collect()
    }
}

//! Perplexity of a text: how surprised a model is by each next token, in the mean.
//!
//! `exp(-1/n Σ ln p(token | tokens before))`, counted as llama-perplexity counts it so that figures compare: the text is cut
//! into windows of `context` tokens without overlap, each begins anew (with BOS in place of its first token where the
//! vocabulary begins texts so), and only the second half of each is scored, so that every scored token has at least half a
//! window before it. What is left at the end of the text is not used.

use octet_kernels::KvType;
use octet_model::{AdapterId, Batch, KvCache, Logits, Nothing, Transformer, Workspace};

use crate::Error;

/// How a text is scored.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Tokens of a window, at least 4.
    pub context: usize,
    /// Stands in place of the first token of every window; `None` where texts do not begin with such a token.
    pub bos: Option<u32>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Experts for each token; `None` for the model's own number.
    pub experts_per_token: Option<usize>,
    /// The adapter that works on all of it.
    pub adapter: Option<AdapterId>,
}

/// The sum over the tokens scored so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Tokens that were scored.
    pub n_tokens: usize,
    /// `Σ -ln p`.
    nll: f64,
    /// `Σ (ln p)²`.
    nll_squared: f64,
}

impl Perplexity {
    /// The perplexity; not a number before the first token.
    pub fn value(&self) -> f64 {
        (self.nll / self.n_tokens as f64).exp()
    }

    /// Its standard error, from the spread of the tokens' surprises; 0 with fewer than two tokens.
    pub fn error(&self) -> f64 {
        let n = self.n_tokens as f64;
        let variance = self.nll_squared / n - (self.nll / n).powi(2);
        if self.n_tokens < 2 || variance <= 0.0 { 0.0 } else { self.value() * (variance / (n - 1.0)).sqrt() }
    }

    /// Counts a token whose logits were `logits [vocab_size]`.
    fn add(&mut self, logits: &[f32], token: u32) {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let nll = sum.ln() - f64::from(logits[token as usize] - largest);
        self.n_tokens += 1;
        self.nll += nll;
        self.nll_squared += nll * nll;
    }
}

/// Scores `tokens`; `watch` sees the windows that are done and the result so far.
///
/// # Errors
/// A text shorter than a window, windows too short to score, or what the model refuses.
pub fn perplexity(
    model: &Transformer,
    tokens: &[u32],
    windows: &Windows,
    watch: &mut dyn FnMut(usize, &Perplexity),
) -> Result<Perplexity, Error> {
    let &Windows { context, bos, kv, experts_per_token, adapter } = windows;
    if context < 4 {
        return Err(Error::Setting(format!("windows of {context} tokens leave nothing to score; take 4 or more")));
    }
    if tokens.len() < context {
        return Err(Error::TextTooShort { tokens: tokens.len(), context });
    }
    let mut cache = KvCache::new(model.config(), kv, context)?;
    let sequence = cache.add_sequence();
    let (mut workspace, mut batch, mut result) = (Workspace::default(), Batch::default(), Perplexity::default());
    let mut window = vec![0; context];
    let first_scored = context / 2;
    for (done, text) in tokens.chunks_exact(context).enumerate() {
        window.copy_from_slice(text);
        window[0] = bos.unwrap_or(window[0]);
        cache.truncate(sequence, 0);
        for (part, wanted) in [(0..first_scored, Logits::None), (first_scored..context - 1, Logits::All)] {
            batch.clear();
            batch.experts_per_token = experts_per_token;
            batch.push_adapted(sequence, adapter, &window[part.clone()], wanted);
            let logits = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing)?;
            for (logits, at) in logits.chunks_exact(model.config().vocab_size).zip(part) {
                result.add(logits, window[at + 1]);
            }
        }
        watch(done + 1, &result);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_odds_over_four_are_a_perplexity_of_four() {
        let mut even = Perplexity::default();
        (0..4).for_each(|token| even.add(&[3.0; 4], token));
        assert_eq!((even.n_tokens, even.error()), (4, 0.0));
        assert!((even.value() - 4.0).abs() < 1e-12);
    }

    /// Odds of 1:3 seen from both sides: surprises ln 4 and ln 4/3.
    #[test]
    fn surprises_are_averaged_as_logarithms() {
        let mut mixed = Perplexity::default();
        let logits = [0.0, 3f32.ln()];
        mixed.add(&logits, 0);
        mixed.add(&logits, 1);
        assert!((mixed.value() - (16.0f64 / 3.0).sqrt()).abs() < 1e-6);
        let half_difference = 3f64.ln() / 2.0;
        assert!((mixed.error() - mixed.value() * half_difference).abs() < 1e-6);
    }
}

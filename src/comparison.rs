//! Source and result side by side: how far the weights moved, and how far the model's predictions did.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use octet_checkpoint::Checkpoint;
use octet_model::{Head, Layerwise, Nothing};

use crate::format::three_digits;
use crate::text_tokens::{self, TextTokens};
use crate::{compare_weights, stdout};

/// Mean KL beyond which a result is called broken where the user names no limit, in nats a token: the most
/// aggressive sound mixes stay well below.
const DEFAULT_MAX_KL: f64 = 1.0;
/// Rows whose logits are held at a time, of both models.
const ROWS: usize = 128;

/// Options of a comparison.
#[derive(clap::Args)]
pub struct CompareOptions {
    /// Compare the result with the source: how far weights moved, role by role; with a text also how far predictions
    /// did, as mean KL divergence and the share of tokens whose most likely successor is another (top-1 flips)
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    compare: Option<Option<PathBuf>>,
    /// Most tokens of the text to compare on
    #[arg(long, value_name = "N", requires = "compare", default_value_t = 4096)]
    compare_tokens: usize,
    /// Fail if the mean KL divergence is larger, in nats a token [default: 1]
    #[arg(long, value_name = "NATS", requires = "compare", allow_negative_numbers = true, value_parser = limit)]
    max_kl: Option<f64>,
    /// Fail if more top-1 flips are found, in percent of the tokens
    #[arg(long, value_name = "PERCENT", requires = "compare", allow_negative_numbers = true, value_parser = limit)]
    max_flips: Option<f64>,
}

/// A limit from 0 on.
fn limit(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x >= 0.0 && x.is_finite()).ok_or_else(|| "give a number from 0 on".into())
}

impl CompareOptions {
    /// Finds out before hours of work whether the comparison will be possible. Errors: no text, no tokenizer, no tokens.
    pub fn prepare(&self, source: &Checkpoint) -> anyhow::Result<Option<TextTokens>> {
        match &self.compare {
            Some(Some(text)) => TextTokens::read("--compare", source, text, self.compare_tokens).map(Some),
            _ if self.max_kl.is_some() || self.max_flips.is_some() => {
                bail!("--max-kl and --max-flips need a text to measure on: --compare=TEXT")
            }
            _ => Ok(None),
        }
    }

    /// Prints the comparison, if one was asked for. Errors: the result is past a limit.
    pub fn run(
        &self,
        source: Arc<Checkpoint>,
        out: &Path,
        text: Option<&TextTokens>,
        threads: usize,
    ) -> anyhow::Result<()> {
        if self.compare.is_none() {
            return Ok(());
        }
        let result = Arc::new(Checkpoint::open(out)?);
        compare_weights::print(&source, &result, threads)?;
        let Some(text) = text else { return Ok(()) };
        let mut moved = predictions(source, result, text, threads)?;
        stdout::print(&moved.report())?;
        self.judge(&moved, out)
    }

    fn judge(&self, moved: &Moved, out: &Path) -> anyhow::Result<()> {
        let (kl, flips) = (moved.mean_kl(), moved.flips_percent());
        let (max_kl, max_flips) = (self.max_kl.unwrap_or(DEFAULT_MAX_KL), self.max_flips.unwrap_or(100.0));
        let remedy = "the file is kept, but do not publish it: take a finer mix, --calibrate, or a better source";
        if kl.is_nan() || kl > max_kl {
            let kl = three_digits(kl);
            bail!("{}: mean KL divergence {kl} nats is past the limit of {max_kl} (--max-kl); {remedy}", out.display());
        }
        if flips > max_flips {
            let flips = three_digits(flips);
            bail!(
                "{}: {flips} % of top-1 flips are past the limit of {max_flips} (--max-flips); {remedy}",
                out.display()
            );
        }
        Ok(())
    }
}

/// How far the predictions moved.
#[derive(Default)]
struct Moved {
    /// KL divergence from the source's prediction to the result's, of each token, in nats.
    kl: Vec<f64>,
    /// Tokens whose most likely successor is another.
    flips: usize,
    /// Sums of the negative logarithms of what each gave to the text's own next token, and how many there were.
    surprise: [f64; 2],
    successors: usize,
}

/// Runs both models over the text, each a layer at a time; of their logits only a few rows are held.
fn predictions(
    source: Arc<Checkpoint>,
    result: Arc<Checkpoint>,
    text: &TextTokens,
    threads: usize,
) -> anyhow::Result<Moved> {
    let (source, result) = (Layerwise::new(source, threads)?, Layerwise::new(result, threads)?);
    let dim = source.config().dim;
    let stream = |model: &Layerwise, action| {
        let mut stream = Vec::new();
        text_tokens::forward(model, action, text, &mut Nothing, &mut |_, normed| {
            stream.extend_from_slice(&normed);
            Ok(())
        })?;
        anyhow::Ok(stream)
    };
    let (before, after) = (stream(&source, "running the source")?, stream(&result, "running the result")?);
    let (mut source_head, mut result_head) = (source.head()?, result.head()?);
    let logits = |head: &mut Head<'_>, stream: &[f32]| head.logits(stream);
    let successors = text.chunks.iter().flat_map(|chunk| chunk[1..].iter().map(|&id| Some(id)).chain([None]));
    let successors: Vec<Option<u32>> = successors.collect();
    let mut moved = Moved::default();
    let rows = before.chunks(ROWS * dim).zip(after.chunks(ROWS * dim)).zip(successors.chunks(ROWS));
    for ((before, after), successors) in rows {
        let (p, q) = (logits(&mut source_head, before), logits(&mut result_head, after));
        let vocab_size = p.len() / successors.len();
        for ((p, q), next) in p.chunks_exact(vocab_size).zip(q.chunks_exact(vocab_size)).zip(successors) {
            moved.add(p, q, *next);
        }
    }
    Ok(moved)
}

impl Moved {
    /// Compares two predictions, as logits `[vocab_size]`, of what follows a token; `next` is what does in the text.
    fn add(&mut self, p: &[f32], q: &[f32], next: Option<u32>) {
        let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
        let of_token = |(&p, &q): (&f32, &f32)| {
            let (log_p, log_q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
            log_p.exp() * (log_p - log_q)
        };
        self.kl.push(p.iter().zip(q).map(of_token).sum());
        self.flips += usize::from(best(p) != best(q));
        if let Some(next) = next {
            let surprise = |logits: &[f32], norm| norm - f64::from(logits[next as usize]);
            self.surprise[0] += surprise(p, p_norm);
            self.surprise[1] += surprise(q, q_norm);
            self.successors += 1;
        }
    }

    fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len() as f64
    }

    fn flips_percent(&self) -> f64 {
        100.0 * self.flips as f64 / self.kl.len() as f64
    }

    fn report(&mut self) -> String {
        self.kl.sort_by(f64::total_cmp);
        let at = |share: f64| three_digits(self.kl[((self.kl.len() - 1) as f64 * share) as usize]);
        let (tokens, kl, flips) = (self.kl.len(), three_digits(self.mean_kl()), three_digits(self.flips_percent()));
        let mut report = format!("on {tokens} tokens\n");
        report += &format!(
            "  KL divergence   mean {kl} nats, median {}, 99 % below {}, largest {}\n",
            at(0.5),
            at(0.99),
            at(1.0)
        );
        report += &format!("  top-1 flips     {flips} %\n");
        if self.successors > 0 {
            let [before, after] = self.surprise.map(|sum| three_digits((sum / self.successors as f64).exp()));
            report += &format!("  perplexity      {before} of the source, {after} of the result\n");
        }
        report
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let largest = f64::from(largest);
    largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
}

/// The token with the largest logit; of equal ones the first.
fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_flips_and_perplexity_of_predictions_worked_by_hand() {
        let mut moved = Moved::default();
        let logits = |p: [f64; 2]| p.map(|p| (p.ln() + 3.0) as f32);
        moved.add(&logits([0.75, 0.25]), &logits([0.25, 0.75]), Some(1));
        moved.add(&logits([0.5, 0.5]), &logits([0.5, 0.5]), None);
        let kl = 0.75 * 3f64.ln() - 0.25 * 3f64.ln();
        assert!((moved.mean_kl() - kl / 2.0).abs() < 1e-6, "{}", moved.mean_kl());
        assert_eq!(moved.flips_percent(), 50.0);
        assert!(
            moved.report().contains("perplexity      4.00 of the source, 1.33 of the result"),
            "{}",
            moved.report()
        );
        moved.add(&[f32::NAN, 0.0], &[0.0, 0.0], None);
        assert!(moved.mean_kl().is_nan());
    }
}

//! `octet plan --tune`: a fine-tuning run that there is no data for yet.

use octet_checkpoint::{ElementType, Params, TensorName};
use octet_model::{LoraOptions, LoraTarget};
use octet_train::pace::{Passes, Unit};

use crate::finetune::forecast::{Forecast, Reading, Run};
use crate::machine::Memory;

/// The run that is meant.
#[derive(clap::Args, Debug, PartialEq)]
#[command(next_help_heading = "Fine-tuning")]
pub struct TuneOptions {
    /// Predict memory and time of `octet finetune` on so many tokens, such as 500k or 2M, all epochs together
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    tune: Option<u64>,
    /// Train every weight in place of an adapter
    #[arg(long, requires = "tune", conflicts_with_all = ["rank", "targets"])]
    all: bool,
    /// Rank of the adapter's matrices
    #[arg(long, value_name = "R", requires = "tune", default_value_t = 16, value_parser = at_least_one)]
    rank: usize,
    /// What the adapter changes, of attention, experts, router and head
    #[arg(long, value_name = "LIST", requires = "tune", value_delimiter = ',', default_value = "attention,experts",
          value_parser = crate::finetune::target)]
    targets: Vec<LoraTarget>,
    /// The tokens are of preference pairs, of which the reference reads each once before
    #[arg(long, requires = "tune")]
    dpo: bool,
    /// Tokens of a sample, or of each of a pair's answers with its prompt
    #[arg(long, value_name = "N", requires = "tune", default_value_t = 512, value_parser = at_least_one)]
    length: usize,
    /// Samples or pairs of a step
    #[arg(long, value_name = "N", requires = "tune", default_value_t = 16, value_parser = at_least_one)]
    batch: usize,
    /// Tokens that go through the model at once
    #[arg(long, value_name = "N", requires = "tune", default_value_t = 2048, value_parser = at_least_one)]
    pass_tokens: usize,
    /// Activations that are kept for the way back, in MiB
    #[arg(long, value_name = "MIB", requires = "tune", default_value_t = 1024, value_parser = at_least_one)]
    keep: usize,
}

/// The same as JSON; what is left out is as on the command line.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    tokens: u64,
    all: Option<bool>,
    rank: Option<usize>,
    targets: Option<Vec<String>>,
    dpo: Option<bool>,
    length: Option<usize>,
    batch: Option<usize>,
    pass_tokens: Option<usize>,
    keep: Option<usize>,
}

impl Default for TuneOptions {
    fn default() -> TuneOptions {
        TuneOptions {
            tune: None,
            all: false,
            rank: 16,
            targets: vec![LoraTarget::Attention, LoraTarget::Experts],
            dpo: false,
            length: 512,
            batch: 16,
            pass_tokens: 2048,
            keep: 1024,
        }
    }
}

impl TryFrom<Asked> for TuneOptions {
    type Error = String;

    fn try_from(asked: Asked) -> Result<TuneOptions, String> {
        let usual = TuneOptions::default();
        let sized = |name: &str, value: Option<usize>, usual: usize| match value {
            Some(1..=1_000_000) => Ok(value.unwrap_or(usual)),
            None => Ok(usual),
            Some(other) => Err(format!("tuning.{name} is {other}; it has to be from 1 to 1000000")),
        };
        let targets = asked.targets.map(|names| names.iter().map(|name| crate::finetune::target(name)).collect());
        Ok(TuneOptions {
            tune: Some(tokens(&asked.tokens.to_string()).map_err(|problem| format!("tuning.tokens: {problem}"))?),
            all: asked.all.unwrap_or(usual.all),
            rank: sized("rank", asked.rank, usual.rank)?,
            targets: targets.transpose()?.unwrap_or(usual.targets),
            dpo: asked.dpo.unwrap_or(usual.dpo),
            length: sized("length", asked.length, usual.length)?,
            batch: sized("batch", asked.batch, usual.batch)?,
            pass_tokens: sized("pass_tokens", asked.pass_tokens, usual.pass_tokens)?,
            keep: sized("keep", asked.keep, usual.keep)?,
        })
    }
}

impl TuneOptions {
    /// What the run takes, if one is meant.
    ///
    /// # Errors
    /// Options that make no adapter of this model.
    pub fn forecast(
        &self,
        params: &Params,
        element_type: &dyn Fn(TensorName) -> ElementType,
        threads: usize,
        memory: Option<Memory>,
    ) -> anyhow::Result<Option<Forecast>> {
        let Some(tokens) = self.tune else { return Ok(None) };
        let (rank, targets) = (self.rank, self.targets.clone());
        let lora = (!self.all).then(|| LoraOptions { rank, targets, ..LoraOptions::default() });
        let (keep_bytes, pass_tokens) = (self.keep << 20, self.pass_tokens);
        let run = Run { params, element_type, lora, keep_bytes, pass_tokens, threads: Some(threads) };
        run.forecast(&self.reading(&run, tokens), memory).map(Some)
    }

    /// Steps that are all alike.
    fn reading(&self, run: &Run<'_>, tokens: u64) -> Reading {
        let sequences = if self.dpo { 2 } else { 1 };
        let unit = Unit { tokens: sequences * self.length, learned: sequences * (self.length - 1) };
        let step = vec![unit; self.batch.min(tokens.div_ceil(unit.tokens as u64) as usize).max(1)];
        let steps = tokens.div_ceil((step.len() * unit.tokens) as u64).max(1);
        let [mut learn, mut look] = [Passes::default(); 2];
        learn.add(&step, run.pass_tokens, |tokens| run.layers_again(tokens));
        look.add(&step, run.pass_tokens, |_| 0);
        Reading {
            steps,
            learn: learn.times(steps),
            look: if self.dpo { look.times(steps) } else { Passes::default() },
            sequence_tokens: self.length,
            pairs: self.dpo,
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1_000_000) => Ok(n),
        _ => Err("has to be a whole number from 1 to 1000000".into()),
    }
}

/// `500k`, `2M`, `1.5G`, or a whole number.
fn tokens(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    match number.parse::<f64>().map(|number| number * factor) {
        Ok(tokens) if (1.0..=1e15).contains(&tokens) => Ok(tokens as u64),
        _ => Err("give a number of tokens, such as 2000000, 500k or 2M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_short_forms() {
        assert_eq!(["7", "500k", "2M", "1.5G"].map(tokens), [7, 500_000, 2_000_000, 1_500_000_000].map(Ok));
        for wrong in ["", "k", "0", "-3", "2 M", "many", "1e99G", "NaN"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_json_leaves_out_is_as_on_the_command_line() {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: TuneOptions,
        }
        let asked = |text: &str| TuneOptions::try_from(serde_json::from_str::<Asked>(text).unwrap());
        let typed = |words: &[&str]| <Alone as clap::Parser>::parse_from([&["plan"], words].concat()).options;
        assert_eq!(typed(&[]), TuneOptions::default());
        assert_eq!(asked(r#"{"tokens": 2000000}"#), Ok(typed(&["--tune", "2M"])));
        let words = ["--tune", "500", "--rank", "4", "--targets", "router", "--dpo", "--batch", "2"];
        let text = r#"{"tokens": 500, "rank": 4, "targets": ["router"], "dpo": true, "batch": 2}"#;
        assert_eq!(asked(text), Ok(typed(&words)));
        for (wrong, named) in [
            (r#"{"tokens": 0}"#, "tuning.tokens"),
            (r#"{"tokens": 1, "batch": 0}"#, "tuning.batch"),
            (r#"{"tokens": 1, "keep": 99999999999}"#, "tuning.keep"),
            (r#"{"tokens": 1, "targets": ["heart"]}"#, "attention"),
        ] {
            assert!(asked(wrong).unwrap_err().contains(named), "{wrong}");
        }
    }

    #[test]
    fn steps_are_cut_into_passes_as_the_run_cuts_them() {
        let params = crate::synth::params_of("mixtral-8x7b").unwrap();
        let run = Run {
            params: &params,
            element_type: &|_| ElementType::BF16,
            lora: Some(LoraOptions::default()),
            keep_bytes: 0,
            pass_tokens: 2048,
            threads: None,
        };
        let options = TuneOptions::default();
        let reading = options.reading(&run, 100_000);
        // A step has 16 samples of 512 tokens: four passes.
        assert_eq!((reading.steps, reading.learn.count, reading.learn.longest), (13, 52, 2048));
        assert_eq!((reading.learn.tokens, reading.learn.learned), (13 * 8192, 13 * 16 * 511));
        assert_eq!(reading.learn.again, [52 * 32, 32 * 13 * 8192], "nothing is kept");
        assert_eq!(reading.look, Passes::default());
        let pairs = TuneOptions { dpo: true, batch: 1, length: 100, ..options }.reading(&run, 1000);
        assert_eq!((pairs.steps, pairs.learn.count, pairs.learn.tokens), (5, 5, 1000));
        assert_eq!((pairs.look.count, pairs.look.tokens), (5, 1000));
        // Fewer tokens than a step: one step of as many samples as there are.
        let short = TuneOptions::default().reading(&run, 600);
        assert_eq!((short.steps, short.learn.tokens), (1, 1024));
    }
}

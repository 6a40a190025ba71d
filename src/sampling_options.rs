//! The options by which commands choose tokens, said once.

use anyhow::bail;
use octet_engine::{Sampling, Stop};
use serde_json::{Map, Value, json};

/// Last tokens that penalties look at where nobody says how many.
const WINDOW: usize = 256;

/// How tokens are chosen, and when an answer ends.
#[derive(clap::Args, Clone)]
pub struct SamplingOptions {
    /// 0 always takes the likeliest token; 1 follows the model's own probabilities
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f32,
    /// Choose among the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Choose among tokens of at least P times the best one's probability
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Make tokens that were used less likely; 1 for none
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Subtract from the logits of tokens that were used
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract from the logits of tokens for each time that they were used
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Last tokens that the penalties look at
    #[arg(long, value_name = "N", default_value_t = WINDOW)]
    pub penalty_window: usize,
    /// Add to the logit of a token; ID=-inf forbids it. May be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same words [default: another one each time, told in the statistics]
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer before this text. May be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Most tokens of an answer [default: as many as the context holds]
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
}

impl SamplingOptions {
    /// The engine's form, with a seed of the clock's where none is given.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(clock_seed),
        }
    }

    /// The engine's form, checked before a model is opened; an error names the flag.
    pub fn checked(&self) -> anyhow::Result<Sampling> {
        let sampling = self.sampling();
        sampling.check(u32::MAX as usize).map_err(|error| {
            let message = error.to_string();
            let (name, rest) = message.split_once(' ').unwrap_or((&message, ""));
            anyhow::anyhow!("--{} {rest}", name.replace('_', "-"))
        })?;
        Ok(sampling)
    }

    /// The fields by which OpenAI's API, and the servers that extend it, take these settings; what has no effect is left
    /// out, since not every server knows every field.
    ///
    /// Errors: a setting that no server takes.
    pub fn for_server(&self) -> anyhow::Result<Map<String, Value>> {
        if self.penalty_window != WINDOW {
            bail!("penalty_window cannot be set on a server; leave it at {WINDOW}");
        }
        // OpenAI's least bias stands for a ban.
        let bias = self.logit_bias.iter().map(|&(id, bias)| (id.to_string(), json!(bias.max(-100.0))));
        let bias: Map<String, Value> = bias.collect();
        let fields = [
            ("temperature", Some(number(self.temperature))),
            ("top_k", self.top_k.map(|k| json!(k))),
            ("top_p", (self.top_p != 1.0).then(|| number(self.top_p))),
            ("min_p", (self.min_p != 0.0).then(|| number(self.min_p))),
            ("repetition_penalty", (self.repetition_penalty != 1.0).then(|| number(self.repetition_penalty))),
            ("presence_penalty", (self.presence_penalty != 0.0).then(|| number(self.presence_penalty))),
            ("frequency_penalty", (self.frequency_penalty != 0.0).then(|| number(self.frequency_penalty))),
            ("logit_bias", (!bias.is_empty()).then_some(Value::Object(bias))),
            ("seed", self.seed.map(|seed| json!(seed))),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
            ("max_tokens", self.max_tokens.map(|n| json!(n))),
        ];
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }

    /// When answers end.
    pub fn stop(&self) -> Stop {
        Stop { strings: self.stop.clone(), max_tokens: self.max_tokens, ..Stop::default() }
    }

    /// Sets the option of this name, as `/params temperature 0.3` in a chat does.
    pub fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        fn parse<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
            value.parse().map_err(|_| anyhow::anyhow!("{name} takes a number, not {value:?}"))
        }
        let mut changed = self.clone();
        match name {
            "temperature" => changed.temperature = parse(name, value)?,
            "top_k" => changed.top_k = if value == "off" { None } else { Some(parse(name, value)?) },
            "top_p" => changed.top_p = parse(name, value)?,
            "min_p" => changed.min_p = parse(name, value)?,
            "repetition_penalty" => changed.repetition_penalty = parse(name, value)?,
            "presence_penalty" => changed.presence_penalty = parse(name, value)?,
            "frequency_penalty" => changed.frequency_penalty = parse(name, value)?,
            "penalty_window" => changed.penalty_window = parse(name, value)?,
            "seed" => changed.seed = if value == "off" { None } else { Some(parse(name, value)?) },
            "max_tokens" => changed.max_tokens = if value == "off" { None } else { Some(parse(name, value)?) },
            "stop" => changed.stop = if value == "off" { Vec::new() } else { vec![value.to_string()] },
            "logit_bias" if value == "off" => changed.logit_bias.clear(),
            "logit_bias" => changed.logit_bias.push(bias(value).map_err(anyhow::Error::msg)?),
            _ => bail!("there is no setting {name}; /params lists them"),
        }
        changed.sampling().check(u32::MAX as usize)?;
        *self = changed;
        Ok(())
    }

    /// Every setting with its value.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let off = |value: Option<String>| value.unwrap_or_else(|| "off".into());
        [
            ("temperature", self.temperature.to_string()),
            ("top_k", off(self.top_k.map(|k| k.to_string()))),
            ("top_p", self.top_p.to_string()),
            ("min_p", self.min_p.to_string()),
            ("repetition_penalty", self.repetition_penalty.to_string()),
            ("presence_penalty", self.presence_penalty.to_string()),
            ("frequency_penalty", self.frequency_penalty.to_string()),
            ("penalty_window", self.penalty_window.to_string()),
            ("seed", off(self.seed.map(|s| s.to_string()))),
            ("max_tokens", off(self.max_tokens.map(|n| n.to_string()))),
            ("stop", if self.stop.is_empty() { "off".into() } else { format!("{:?}", self.stop) }),
            ("logit_bias", if self.logit_bias.is_empty() { "off".into() } else { format!("{:?}", self.logit_bias) }),
        ]
        .to_vec()
    }
}

/// Settings with their values, one a line.
pub fn list(settings: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let lines = settings.into_iter().map(|(name, value)| format!("  {name:<20} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// A number as it was typed: 0.7 and not 0.699999988.
fn number(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64 & 0xffff_ffff)
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parsed
        .filter(|(_, bias): &(u32, f32)| !bias.is_nan())
        .ok_or_else(|| "write it as ID=BIAS, such as 42=-5 or 42=-inf".into())
}

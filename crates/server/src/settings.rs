//! Settings that OpenAI's and Mistral's endpoints share, and ours that go beyond them.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use octet_engine::Sampling;
use serde_json::Value;

use crate::ask::{Ask, Ending};
use crate::caller::Dialect;
use crate::fields::fields;
use crate::ids;
use crate::refusal::Refusal;

fields! {
    /// How tokens are chosen, in OpenAI's words.
    pub struct SamplingFields {
        /// 0 for greedy, up to 2.
        temperature: f32,
        /// Share of the probability that candidates are drawn from, above 0 up to 1.
        top_p: f32,
        /// From -2 to 2.
        presence_penalty: f32,
        /// From -2 to 2.
        frequency_penalty: f32,
        /// Same seed, same words.
        seed: i64,
        /// Mistral's name for the seed.
        random_seed: i64,
        /// A text, or several, that end the answer: up to 4 as OpenAI's, 64 for clients of other APIs.
        stop: Value,
        /// Token id to what is added to its logit, from -100 to 100.
        logit_bias: HashMap<String, f32>,
    }
}

fields! {
    /// Settings beyond OpenAI's.
    pub struct OctetFields {
        /// Keep this many candidates.
        top_k: u32,
        /// Keep candidates of at least this share of the best one's probability.
        min_p: f32,
        /// 1 for none.
        repetition_penalty: f32,
        /// The end of text cannot come before so many tokens.
        min_tokens: usize,
        /// Go on after the end of text.
        ignore_eos: bool,
        /// Ids that end the answer.
        stop_token_ids: Vec<u32>,
        /// Experts for each token, in place of the model's own number.
        experts_per_token: usize,
        /// Higher goes first; 0 where nothing is said.
        priority: i32,
        /// The answer ends after so many seconds with what there is.
        timeout_s: f64,
        /// Report each token's experts.
        routing: bool,
        /// Give back the exact prompt with its ids.
        return_prompt: bool,
        /// Give back times and rates.
        timings: bool,
    }
}

impl SamplingFields {
    /// Puts the settings into `ask`; what is not given is as in OpenAI's API.
    ///
    /// # Errors
    /// The first value out of its range.
    pub fn apply(self, ask: &mut Ask, dialect: Dialect) -> Result<(), Refusal> {
        let temperature = range("temperature", self.temperature, 0.0, 2.0)?;
        let top_p = range("top_p", self.top_p, 0.0, 1.0)?;
        if top_p == Some(0.0) {
            return Err(Refusal::field("top_p", "top_p is 0; it has to be above 0, up to 1"));
        }
        let seed = one_of(["seed", "random_seed"], self.seed, self.random_seed)?;
        let seed = seed.map_or_else(ids::bits, |seed| seed as u64);
        ask.sampling = Sampling {
            temperature: temperature.unwrap_or(1.0),
            top_p: top_p.unwrap_or(1.0),
            presence_penalty: range("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: self.logit_bias.map_or(Ok(Vec::new()), bias)?,
            seed,
            ..Sampling::default()
        };
        let most = if dialect == Dialect::OpenAi { MAX_OPENAI_STOPS } else { MAX_STOPS };
        ask.ending.strings = stop_strings("stop", self.stop, most)?;
        Ok(())
    }
}

impl OctetFields {
    /// Puts the settings into `ask`.
    ///
    /// # Errors
    /// The first value out of its range.
    pub fn apply(self, ask: &mut Ask) -> Result<(), Refusal> {
        ask.sampling.top_k = self.top_k.filter(|&k| k > 0).map(|k| k as usize);
        ask.sampling.min_p = range("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0);
        ask.sampling.repetition_penalty =
            range("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 100.0)?.unwrap_or(1.0);
        let Ending { min_tokens, ignore_eos, token_ids, .. } = &mut ask.ending;
        *min_tokens = self.min_tokens.unwrap_or(0);
        *ignore_eos = self.ignore_eos.unwrap_or(false);
        *token_ids = self.stop_token_ids.unwrap_or_default();
        ask.experts_per_token = self.experts_per_token;
        ask.priority = self.priority.unwrap_or(0);
        ask.deadline = self.timeout_s.map(|s| seconds("timeout_s", s)).transpose()?;
        ask.wants.routing = self.routing.unwrap_or(false);
        ask.wants.prompt = self.return_prompt.unwrap_or(false);
        ask.wants.timings = self.timings.unwrap_or(false);
        Ok(())
    }
}

/// `value` if it is from `least` to `most`.
///
/// # Errors
/// The field with its range.
pub fn range(name: &str, value: Option<f32>, least: f32, most: f32) -> Result<Option<f32>, Refusal> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            let from = if least == f32::MIN_POSITIVE { "above 0".into() } else { format!("from {least}") };
            Err(Refusal::field(name, format!("{name} is {value}; it has to be {from} to {most}")))
        }
        value => Ok(value),
    }
}

/// A time of that many seconds.
///
/// # Errors
/// The field, where it is no time.
pub fn seconds(name: &str, value: f64) -> Result<Duration, Refusal> {
    let wrong = || Refusal::field(name, format!("{name} is {value}; it has to be a time in seconds above 0"));
    if value > 0.0 { Duration::try_from_secs_f64(value).map_err(|_| wrong()) } else { Err(wrong()) }
}

/// The value of a field that has two names.
///
/// # Errors
/// Two values, by the second name.
pub fn one_of<T: PartialEq + Display>(
    names: [&str; 2],
    first: Option<T>,
    second: Option<T>,
) -> Result<Option<T>, Refusal> {
    match (first, second) {
        (Some(one), Some(other)) if one != other => {
            let message = format!("{} is {one} and {} is {other}, which are one setting; give one", names[0], names[1]);
            Err(Refusal::field(names[1], message))
        }
        (first, second) => Ok(first.or(second)),
    }
}

/// One text or several, at most `most`.
///
/// # Errors
/// Other JSON, or what [`check_stops`] refuses.
pub fn stop_strings(name: &str, value: Option<Value>, most: usize) -> Result<Vec<String>, Refusal> {
    let wrong = || Refusal::field(name, format!("{name} has to be a text or a list of texts, none of them empty"));
    let strings: Vec<String> = match value {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => {
            several.into_iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong()),
    };
    if strings.iter().any(String::is_empty) {
        return Err(wrong());
    }
    check_stops(name, &strings, most)?;
    Ok(strings)
}

/// Bounds the work of looking for stop strings behind every token.
///
/// # Errors
/// More than `most`, or one that is longer than [`MAX_STOP_BYTES`].
pub fn check_stops(name: &str, strings: &[String], most: usize) -> Result<(), Refusal> {
    if strings.len() > most {
        return Err(Refusal::field(name, format!("{name} has {} texts; at most {most}", strings.len())));
    }
    match strings.iter().map(String::len).find(|&bytes| bytes > MAX_STOP_BYTES) {
        Some(bytes) => {
            let message = format!("a text of {name} has {bytes} bytes; at most {MAX_STOP_BYTES}");
            Err(Refusal::field(name, message))
        }
        None => Ok(()),
    }
}

/// Most stop strings of a request in OpenAI's API, whose clients count on the refusal of more.
pub const MAX_OPENAI_STOPS: usize = 4;
/// Most stop strings of any request.
pub const MAX_STOPS: usize = 64;
/// Longest stop string.
pub const MAX_STOP_BYTES: usize = 1024;

fn bias(given: HashMap<String, f32>) -> Result<Vec<(u32, f32)>, Refusal> {
    let mut list = Vec::with_capacity(given.len());
    for (id, value) in given {
        let id =
            id.parse().map_err(|_| Refusal::field("logit_bias", format!("logit_bias of {id:?}: not a token id")))?;
        if !(-100.0..=100.0).contains(&value) {
            return Err(Refusal::field("logit_bias", format!("logit_bias of {id} is {value}; from -100 to 100")));
        }
        // OpenAI promises a ban at -100, whatever the logits are.
        list.push((id, if value == -100.0 { f32::NEG_INFINITY } else { value }));
    }
    list.sort_unstable_by_key(|entry| entry.0);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_engine::TextStart;
    use serde_json::json;

    fn applied(fields: Value, dialect: Dialect) -> Result<Ask, Refusal> {
        let mut ask = Ask::new(vec![1], TextStart::Fresh);
        let fields: SamplingFields = serde_json::from_value(fields).unwrap();
        fields.apply(&mut ask, dialect).map(|()| ask)
    }

    #[test]
    fn each_api_has_its_number_of_stop_strings() {
        let stops = |n: usize, dialect| {
            let list: Vec<String> = (0..n).map(|i| format!("end {i}")).collect();
            applied(json!({"stop": list}), dialect).map(|ask| ask.ending.strings.len())
        };
        assert_eq!(stops(4, Dialect::OpenAi).unwrap(), 4);
        assert_eq!(stops(5, Dialect::OpenAi).unwrap_err().param.unwrap(), "stop");
        for dialect in [Dialect::Mistral, Dialect::VercelAi] {
            assert_eq!(stops(64, dialect).unwrap(), 64);
            assert_eq!(stops(65, dialect).unwrap_err().param.unwrap(), "stop");
        }
        assert!(applied(json!({"stop": "x".repeat(1024)}), Dialect::OpenAi).is_ok());
        let refusal = applied(json!({"stop": ["a", "x".repeat(1025)]}), Dialect::Mistral).unwrap_err();
        assert!(refusal.message.contains("1025") && refusal.param.as_deref() == Some("stop"), "{refusal:?}");
    }

    #[test]
    fn a_setting_with_two_names_has_one_value() {
        let seed = |fields| applied(fields, Dialect::OpenAi).map(|ask| ask.sampling.seed);
        assert_eq!(seed(json!({"seed": 3, "random_seed": 3})).unwrap(), 3);
        assert_eq!(seed(json!({"random_seed": 4})).unwrap(), 4);
        assert_eq!(seed(json!({"seed": 3, "random_seed": 4})).unwrap_err().param.unwrap(), "random_seed");
    }
}

//! Ollama's `options`, `format` and `keep_alive`.

use octet_engine::Sampling;
use serde_json::Value;

use crate::ask::{Ask, Constraint};
use crate::caller::Ignored;
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::on_demand::Afterwards;
use crate::refusal::Refusal;
use crate::settings::{MAX_STOPS, range, stop_strings};

fields! {
    /// Settings in Ollama's words.
    pub struct OptionFields {
        /// 0 for greedy; 0.8 if absent.
        temperature: f32,
        /// Keep this many candidates; 40 if absent, 0 for all.
        top_k: usize,
        /// 0.9 if absent.
        top_p: f32,
        /// 0 if absent.
        min_p: f32,
        /// 1.1 if absent.
        repeat_penalty: f32,
        /// Tokens that penalties look at; 64 if absent, -1 for the whole context.
        repeat_last_n: i64,
        /// 0 if absent.
        presence_penalty: f32,
        /// 0 if absent.
        frequency_penalty: f32,
        /// Same seed, same words.
        seed: i64,
        /// Texts that end the answer.
        stop: Value,
        /// Most tokens of the answer; -1 for as many as the context holds.
        num_predict: i64,
        /// True, which changes nothing: penalties count newlines as other tokens.
        penalize_newline: bool,
    }
}

/// The context is set when the server starts; a client that asks for another never makes it load the model anew. These
/// say how another program would run the model, and change no words of the answer.
const UNSUPPORTED: &[Unsupported] = &[
    ("num_ctx", &["*"], ""),
    ("num_keep", &["*"], ""),
    ("num_batch", &["*"], ""),
    ("num_gpu", &["*"], ""),
    ("main_gpu", &["*"], ""),
    ("num_thread", &["*"], ""),
    ("use_mmap", &["*"], ""),
    ("use_mlock", &["*"], ""),
    ("low_vram", &["*"], ""),
    ("numa", &["*"], ""),
    ("f16_kv", &["*"], ""),
    ("typical_p", &["1", "1.0"], "it is not among this server's filters"),
    ("tfs_z", &["1", "1.0"], "it is not among this server's filters"),
    ("mirostat", &["0"], "it is not among this server's filters"),
    ("mirostat_tau", &["*"], ""),
    ("mirostat_eta", &["*"], ""),
];

/// Puts `options` into `ask`; those without effect are added to `ignored`.
///
/// # Errors
/// An option out of its range, or unknown.
pub fn apply(options: Option<Value>, ask: &mut Ask, ignored: &Ignored) -> Result<(), Refusal> {
    let mut body = match options {
        None => Body::default(),
        Some(Value::Object(fields)) => Body::of(fields, ignored),
        Some(_) => return Err(Refusal::field("options", "options has to be an object")),
    };
    let options: OptionFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    if options.penalize_newline == Some(false) {
        return Err(Refusal::unsupported(
            "penalize_newline",
            "newlines count as other tokens do; leave it out or say true",
        ));
    }
    let window = match options.repeat_last_n.unwrap_or(64) {
        n if n < 0 => usize::MAX,
        n => n as usize,
    };
    ask.sampling = Sampling {
        temperature: range("temperature", options.temperature, 0.0, 100.0)?.unwrap_or(0.8),
        top_k: Some(options.top_k.unwrap_or(40)).filter(|&k| k > 0),
        top_p: range("top_p", options.top_p, f32::MIN_POSITIVE, 1.0)?.unwrap_or(0.9),
        min_p: range("min_p", options.min_p, 0.0, 1.0)?.unwrap_or(0.0),
        repetition_penalty: range("repeat_penalty", options.repeat_penalty, f32::MIN_POSITIVE, 100.0)?.unwrap_or(1.1),
        presence_penalty: options.presence_penalty.unwrap_or(0.0),
        frequency_penalty: options.frequency_penalty.unwrap_or(0.0),
        penalty_window: window,
        seed: options.seed.map_or_else(ids::bits, |seed| seed as u64),
        ..Sampling::default()
    };
    ask.ending.strings = stop_strings("stop", options.stop, MAX_STOPS)?;
    ask.ending.max_tokens = options.num_predict.and_then(|n| usize::try_from(n).ok());
    Ok(())
}

/// `format`: `json`, or a schema.
///
/// # Errors
/// Something else.
pub fn format(format: Option<Value>) -> Result<Option<Constraint>, Refusal> {
    match format {
        None => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(Constraint::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema))),
        Some(other) => {
            Err(Refusal::field("format", format!("format is {other}; it has to be \"json\" or a JSON schema")))
        }
    }
}

/// `keep_alive`: a time of 0 lets go of the model after the answer; others are noted in `ignored`, since models stay.
///
/// # Errors
/// What is no time.
pub fn keep_alive(value: Option<&Value>, ignored: &Ignored) -> Result<Afterwards, Refusal> {
    let Some(value) = value else { return Ok(Afterwards::Keep) };
    let seconds = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds(text),
        _ => None,
    };
    let wrong = || {
        let form = "it has to be a time as \"5m\", seconds, 0 to let go of the model, or below 0 to keep it";
        Refusal::field("keep_alive", format!("keep_alive is {value}; {form}"))
    };
    if seconds.ok_or_else(wrong)? == 0.0 {
        return Ok(Afterwards::Unload);
    }
    ignored.add("keep_alive");
    Ok(Afterwards::Keep)
}

/// Seconds of a time as Go writes it: `1h30m`, `-1s`, `0`.
fn seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut sum = 0.0;
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    loop {
        let (number, behind) = rest.split_at(rest.find(|c| !is_digit(c))?);
        let (unit, behind) = behind.split_at(behind.find(is_digit).unwrap_or(behind.len()));
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum += number.parse::<f64>().ok()? * length;
        rest = behind;
        if rest.is_empty() {
            return Some(sign * sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_engine::TextStart;
    use serde_json::json;

    #[test]
    fn options_are_read_or_refused_by_name() {
        let mut ask = Ask::new(vec![1], TextStart::Fresh);
        let options = json!({"temperature": 0, "num_ctx": 512, "num_predict": -1, "repeat_last_n": -1, "stop": ["a"]});
        let ignored = Ignored::default();
        apply(Some(options), &mut ask, &ignored).unwrap();
        assert_eq!(ignored.names(), ["num_ctx"]);
        assert_eq!((ask.sampling.temperature, ask.ending.max_tokens), (0.0, None));
        assert_eq!(ask.sampling.penalty_window, usize::MAX);
        assert_eq!(
            apply(Some(json!({"tempreature": 1})), &mut ask, &ignored).unwrap_err().param.unwrap(),
            "tempreature"
        );
        assert_eq!(apply(Some(json!({"mirostat": 2})), &mut ask, &ignored).unwrap_err().param.unwrap(), "mirostat");
        assert_eq!(format(Some(json!("yaml"))).unwrap_err().param.unwrap(), "format");
    }

    #[test]
    fn newlines_are_penalized_and_cannot_be_spared() {
        let mut ask = Ask::new(vec![1], TextStart::Fresh);
        let ignored = Ignored::default();
        apply(Some(json!({"penalize_newline": true})), &mut ask, &ignored).unwrap();
        let refusal = apply(Some(json!({"penalize_newline": false})), &mut ask, &ignored).unwrap_err();
        assert_eq!(refusal.param.unwrap(), "penalize_newline");
    }

    #[test]
    fn more_stop_strings_may_be_given_than_to_openai() {
        let mut ask = Ask::new(vec![1], TextStart::Fresh);
        let mut stops = |n: usize| {
            let list: Vec<String> = (0..n).map(|i| format!("end {i}")).collect();
            apply(Some(json!({"stop": list})), &mut ask, &Ignored::default())
        };
        assert!(stops(5).is_ok() && stops(64).is_ok());
        assert_eq!(stops(65).unwrap_err().param.unwrap(), "stop");
    }

    #[test]
    fn a_time_of_zero_unloads_and_others_are_named() {
        let ignored = Ignored::default();
        let of = |value: Value| keep_alive(Some(&value), &ignored);
        for zero in [json!(0), json!(0.0), json!("0"), json!("0s"), json!("0h0m"), json!("-0ms")] {
            assert_eq!(of(zero).unwrap(), Afterwards::Unload);
        }
        assert!(ignored.names().is_empty());
        for other in [json!(-1), json!(300), json!("5m"), json!("1h30m0.5s"), json!("-1m")] {
            assert_eq!(of(other).unwrap(), Afterwards::Keep);
        }
        assert_eq!(ignored.names(), ["keep_alive"; 5]);
        for wrong in [
            json!(""),
            json!("-"),
            json!("5"),
            json!("s"),
            json!("m5"),
            json!("1.2.3s"),
            json!("5 m"),
            json!(true),
            json!([0]),
        ] {
            assert_eq!(of(wrong.clone()).unwrap_err().param.as_deref(), Some("keep_alive"), "{wrong}");
        }
    }
}

//! One request: the answer as it comes, and when.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{self, Server};

/// How long a client reads no answer before it hangs up during its prompt.
const BEFORE_FIRST: Duration = Duration::from_millis(500);

/// What a request got.
pub struct Record {
    /// When it was due.
    pub due: Instant,
    /// When each piece of text came.
    pub times: Vec<Instant>,
    /// When it was over.
    pub end: Instant,
    /// As the server counts, else pieces.
    pub tokens: usize,
    /// As the server counts.
    pub prompt_tokens: usize,
    /// Of these, what the server had already.
    pub cached_tokens: usize,
    /// Why it failed.
    pub error: Option<String>,
}

/// When a client goes away, or what else it does at its eighth token.
#[derive(Clone, Copy)]
pub enum HangUp<'a> {
    /// It stays.
    Never,
    /// After so many tokens; 0: half a second after it has asked.
    After(usize),
    /// It stays, and counts itself here at its eighth token.
    Watch(&'a AtomicUsize),
}

/// Where requests go.
pub struct Call(Server);

impl Call {
    /// A server at `http://HOST:PORT`, perhaps with a path.
    ///
    /// # Errors
    /// Another scheme.
    pub fn new(server: &str, key: &str) -> anyhow::Result<Call> {
        Server::new(server, key).map(Call)
    }

    /// Sends a body and reads the answer; every failure is a result.
    pub fn send(&self, body: &str, wanted: usize, due: Instant, hang_up: HangUp<'_>) -> Record {
        let (times, now) = (Vec::with_capacity(wanted), Instant::now());
        let mut record = Record { due, times, end: now, tokens: 0, prompt_tokens: 0, cached_tokens: 0, error: None };
        let outcome = self.exchange(body, &mut record, hang_up);
        record.end = Instant::now();
        record.error = match outcome {
            Err(error) => Some(format!("{error:#}")),
            Ok(Outcome::HungUp) => None,
            Ok(Outcome::Whole) => {
                record.tokens = if record.tokens == 0 { record.times.len() } else { record.tokens };
                (record.tokens < wanted).then(|| format!("{} tokens of {wanted}", record.tokens))
            }
        };
        record
    }

    fn exchange(&self, body: &str, record: &mut Record, hang_up: HangUp<'_>) -> anyhow::Result<Outcome> {
        let mut sent = self.0.post("/v1/completions", body)?;
        if matches!(hang_up, HangUp::After(0)) {
            sent.0.set_read_timeout(BEFORE_FIRST)?;
            // Whether something came or not, the client is gone afterwards.
            let _ = sent.0.read(&mut [0]);
            return Ok(Outcome::HungUp);
        }
        for event in http::events(sent.answer(None)?) {
            let (event, now) = (event?, Instant::now());
            count(&event, record);
            let has_text =
                event["choices"].as_array().is_some_and(|all| all.iter().any(|c| c["text"].as_str() > Some("")));
            if !has_text {
                continue;
            }
            record.times.push(now);
            match hang_up {
                HangUp::After(n) if record.times.len() >= n => return Ok(Outcome::HungUp),
                HangUp::Watch(streaming) if record.times.len() == 8 => {
                    streaming.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        Ok(Outcome::Whole)
    }
}

enum Outcome {
    Whole,
    HungUp,
}

fn count(event: &Value, record: &mut Record) {
    let number = |place: &str| event.pointer(place).and_then(Value::as_u64).unwrap_or(0) as usize;
    if event["usage"].is_object() {
        record.tokens = number("/usage/completion_tokens");
        record.prompt_tokens = number("/usage/prompt_tokens");
        record.cached_tokens = number("/usage/prompt_tokens_details/cached_tokens");
    }
}

//! Ollama's stream: a JSON object a line.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::caller::Ignored;
use crate::ids;
use crate::piece::{End, Piece, Usage, Whole};
use crate::refusal::Refusal;
use crate::stream::{self, Out, Writer};
use crate::tool_calls::Call;

/// Which of the two endpoints a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/api/chat`: the text is in `message`.
    Chat,
    /// `/api/generate`: the text is in `response`.
    Generate,
}

/// What all lines of an answer have in common.
pub struct Lines {
    kind: Kind,
    model: String,
    started: Instant,
    /// Until the model was there.
    load_time: Duration,
    end: End,
    /// What the reader should know; told in the last line.
    warnings: Vec<String>,
}

impl Lines {
    /// Of an answer that begins now.
    pub fn new(kind: Kind, model: &str) -> Lines {
        let (started, load_time) = (Instant::now(), Duration::ZERO);
        Lines { kind, model: model.into(), started, load_time, end: End::Eos, warnings: Vec::new() }
    }

    /// The same, whose model had to be waited for.
    pub fn after_load(mut self, load_time: Duration) -> Lines {
        self.load_time = load_time;
        self
    }

    /// The name of the model, as the client wrote it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The same, whose last line names the options that were read and change nothing.
    pub fn without_effect(mut self, ignored: &Ignored) -> Lines {
        let names = ignored.names();
        if !names.is_empty() {
            self.warnings.push(format!("without effect here: {}", names.join(", ")));
        }
        self
    }

    fn line(&self, text: &str, calls: &[Call]) -> Value {
        let mut line = json!({"model": self.model, "created_at": ids::rfc3339(ids::unix_s())});
        match self.kind {
            Kind::Generate => line["response"] = json!(text),
            Kind::Chat => {
                line["message"] = json!({"role": "assistant", "content": text});
                if !calls.is_empty() {
                    line["message"]["tool_calls"] = calls.iter().map(call).collect();
                }
            }
        }
        line["done"] = json!(false);
        line
    }

    fn last(&self, mut line: Value, usage: &Usage) -> Value {
        line["done"] = json!(true);
        line["done_reason"] = json!(if self.end.is_cut() { "length" } else { "stop" });
        line["total_duration"] = json!(ns(self.load_time + self.started.elapsed()));
        line["load_duration"] = json!(ns(self.load_time));
        line["prompt_eval_count"] = json!(usage.prompt_tokens);
        line["prompt_eval_duration"] = json!(ns(usage.prompt_time));
        line["eval_count"] = json!(usage.completion_tokens);
        line["eval_duration"] = json!(ns(usage.generation_time));
        self.warn(&mut line);
        line
    }

    fn warn(&self, line: &mut Value) {
        if !self.warnings.is_empty() {
            line["octet"] = json!({"warnings": self.warnings});
        }
    }

    /// The line that says that the model is there, or is let go of.
    pub fn only(&self, reason: &str) -> Value {
        let mut line = self.line("", &[]);
        line["done"] = json!(true);
        line["done_reason"] = json!(reason);
        self.warn(&mut line);
        line
    }

    /// The whole answer in one object.
    ///
    /// # Errors
    /// If it breaks off.
    pub async fn whole(mut self, answer: Answer) -> Result<Value, Refusal> {
        let Whole { mut choices, usage, warnings, .. } = stream::whole(answer).await?;
        self.warnings.extend(warnings);
        let choice = choices.remove(0);
        self.end = choice.end.unwrap_or(End::Eos);
        Ok(self.last(self.line(&choice.text, &choice.calls), &usage))
    }
}

/// Nanoseconds.
pub fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

fn call(call: &Call) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"id": call.id, "function": {"name": call.name, "arguments": arguments}})
}

impl Writer for Lines {
    const MEDIA: &'static str = "application/x-ndjson";

    fn begin(&mut self, _: &mut Out) {}

    fn piece(&mut self, piece: Piece, out: &mut Out) {
        match piece {
            Piece::Text { text, .. } if !text.is_empty() => out.line(&self.line(&text, &[])),
            Piece::Call { call, .. } => out.line(&self.line("", &[call])),
            Piece::End { end, .. } => self.end = end,
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::Done(usage) => out.line(&self.last(self.line("", &[]), &usage)),
            Piece::Failed(refusal) => out.line(&super::error::body(&refusal)),
            _ => {}
        }
    }

    /// Clients join the texts of all lines, so one without text changes nothing.
    fn ping(&mut self, (done, total): (usize, usize), out: &mut Out) {
        let mut line = self.line("", &[]);
        line["octet"] = json!({"reading": [done, total]});
        out.line(&line);
    }
}

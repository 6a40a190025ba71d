//! A chat's answer in JSON: whole, and event by event.
//!
//! The role stands in a choice's first event only, since clients join the texts of all events. A call of a tool is one
//! event, which suits OpenAI's clients and is what Mistral's need.

use serde_json::{Value, json};

use super::wire::{Head, StreamOptions, chat_logprobs, finish_reason, usage};
use crate::answer::tool_call;
use crate::caller::Dialect;
use crate::openai;
use crate::piece::{Choice, End, Piece, Usage, Whole};
use crate::stream::{Out, Writer};

/// The whole answer.
pub fn whole_body(head: &Head, dialect: Dialect, prefix: &str, whole: Whole) -> Value {
    let choices =
        whole.choices.iter().enumerate().map(|(index, choice)| whole_choice(head, dialect, prefix, index, choice));
    let mut body = head.object("chat.completion", choices.collect());
    body["usage"] = usage(&whole.usage);
    if let Some(octet) = head.octet(&whole.usage, &whole.warnings, &whole.routing) {
        body["octet"] = octet;
    }
    body
}

fn whole_choice(head: &Head, dialect: Dialect, prefix: &str, index: usize, choice: &Choice) -> Value {
    let text = format!("{prefix}{}", choice.text);
    let has_calls = !choice.calls.is_empty();
    // Mistral's clients want a text; OpenAI's say null where there is none beside calls.
    let content = if has_calls && text.is_empty() && dialect == Dialect::OpenAi { Value::Null } else { json!(text) };
    let mut message = json!({"role": "assistant", "content": content});
    if dialect == Dialect::OpenAi {
        message["refusal"] = Value::Null;
        message["annotations"] = json!([]);
    }
    if has_calls {
        message["tool_calls"] = choice.calls.iter().map(tool_call).map(|call| json!(call)).collect();
    }
    let reason = finish(dialect, choice.end.as_ref().unwrap_or(&End::Eos));
    let mut body = json!({"index": index, "message": message, "finish_reason": reason});
    if dialect != Dialect::Mistral {
        body["logprobs"] = if head.logprobs { chat_logprobs(&choice.tokens) } else { Value::Null };
    }
    body
}

/// Mistral says `tool_calls` for a named function too.
fn finish(dialect: Dialect, end: &End) -> &'static str {
    match end {
        End::NamedCall if dialect != Dialect::OpenAi => "tool_calls",
        end => finish_reason(end),
    }
}

/// Writes events.
pub struct ChatWriter {
    head: Head,
    dialect: Dialect,
    options: StreamOptions,
    prefix: String,
    choices: usize,
    warnings: Vec<String>,
    /// Mistral's last event has reason and usage in one, so the reason waits.
    held: Vec<Value>,
}

impl ChatWriter {
    /// A writer of so many choices.
    pub fn new(head: Head, dialect: Dialect, options: StreamOptions, prefix: String, choices: usize) -> ChatWriter {
        ChatWriter { head, dialect, options, prefix, choices, warnings: Vec::new(), held: Vec::new() }
    }

    /// Vercel's `ai` may be a client of either API, and both of its readers take this form.
    fn is_mistral(&self) -> bool {
        matches!(self.dialect, Dialect::Mistral | Dialect::VercelAi)
    }

    fn event(&self, choices: Value, usage: Option<&Usage>) -> Value {
        let mut event = self.head.object("chat.completion.chunk", choices);
        match usage {
            Some(of) => event["usage"] = openai::wire::usage(of),
            None if self.options.include_usage => event["usage"] = Value::Null,
            None => {}
        }
        event
    }

    fn delta(&self, choice: usize, delta: Value, out: &mut Out) {
        out.data(
            &self.event(json!([{"index": choice, "delta": delta, "logprobs": null, "finish_reason": null}]), None),
        );
    }

    fn end(&mut self, choice: usize, end: &End, out: &mut Out) {
        let reason = finish(self.dialect, end);
        let body = json!({"index": choice, "delta": {}, "logprobs": null, "finish_reason": reason});
        match self.is_mistral() {
            true => {
                let mut body = body;
                body["delta"] = json!({"content": ""});
                self.held.push(body);
            }
            false => out.data(&self.event(json!([body]), None)),
        }
    }

    fn done(&mut self, usage: &Usage, out: &mut Out) {
        let octet = self.head.octet(usage, &self.warnings, &[]);
        if self.is_mistral() {
            let held = std::mem::take(&mut self.held);
            let mut event = self.event(Value::Array(held), Some(usage));
            if let Some(octet) = octet {
                event["octet"] = octet;
            }
            out.data(&event);
        } else if self.options.include_usage || octet.is_some() {
            let mut event = self.event(json!([]), self.options.include_usage.then_some(usage));
            if let Some(octet) = octet {
                event["octet"] = octet;
            }
            out.data(&event);
        }
        out.text("data: [DONE]\n\n");
    }
}

impl Writer for ChatWriter {
    /// All choices begin in order: clients' helpers count on it.
    fn begin(&mut self, out: &mut Out) {
        for choice in 0..self.choices {
            self.delta(choice, json!({"role": "assistant", "content": self.prefix}), out);
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut Out) {
        match piece {
            Piece::Text { choice, text, tokens } => {
                let mut body = json!({"index": choice, "delta": {"content": text}, "finish_reason": null});
                body["logprobs"] = if self.head.logprobs { chat_logprobs(&tokens) } else { Value::Null };
                out.data(&self.event(json!([body]), None));
            }
            Piece::Call { choice, index, call } => {
                let mut call = json!(tool_call(&call));
                call["index"] = json!(index);
                self.delta(choice, json!({"tool_calls": [call]}), out);
            }
            Piece::Routing(routing) => {
                let mut event = self.event(json!([]), None);
                event["octet"] = json!({"routing": [routing]});
                out.data(&event);
            }
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::End { choice, end } => self.end(choice, &end, out),
            Piece::Done(usage) => self.done(&usage, out),
            Piece::Failed(refusal) => out.data(&self.dialect.refuse(&refusal, "").1),
            Piece::Reading { .. } | Piece::Prompt { .. } => {}
        }
    }
}

//! An answer in Anthropic's JSON: whole, and as events of blocks that open, grow and close.

use serde_json::{Value, json};

use super::error;
use crate::piece::{End, Piece, Usage, Whole};
use crate::stream::{Out, Writer};
use crate::tool_calls::Call;

/// The whole answer.
pub fn whole_body(id: &str, model: &str, whole: &Whole) -> Value {
    let choice = &whole.choices[0];
    let mut content = Vec::new();
    if !choice.text.is_empty() || choice.calls.is_empty() {
        content.push(json!({"type": "text", "text": choice.text, "citations": null}));
    }
    content.extend(choice.calls.iter().map(|call| {
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
    }));
    let (reason, sequence) = stop(choice.end.as_ref().unwrap_or(&End::Eos));
    let mut body = json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage(&whole.usage),
    });
    warn(&mut body, &whole.warnings);
    body
}

/// What the reader should know, beyond Anthropic's fields.
fn warn(body: &mut Value, warnings: &[String]) {
    if !warnings.is_empty() {
        body["octet"] = json!({"warnings": warnings});
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

fn stop(end: &End) -> (&'static str, Option<&str>) {
    match end {
        End::Eos => ("end_turn", None),
        End::StopString(text) => ("stop_sequence", Some(text)),
        End::MaxTokens | End::Deadline => ("max_tokens", None),
        End::ContextFull => ("model_context_window_exceeded", None),
        End::Calls | End::NamedCall => ("tool_use", None),
    }
}

/// Writes events.
pub struct MessagesWriter {
    id: String,
    model: String,
    block: Block,
    /// Of the block that is open, or comes next.
    index: usize,
    end: End,
    prompt_tokens: usize,
    warnings: Vec<String>,
}

#[derive(PartialEq)]
enum Block {
    None,
    Text,
}

impl MessagesWriter {
    /// A writer of the answer with this id, to a prompt of so many tokens.
    pub fn new(id: String, model: &str, prompt_tokens: usize) -> MessagesWriter {
        let (index, end, warnings) = (0, End::Eos, Vec::new());
        MessagesWriter { id, model: model.into(), block: Block::None, index, end, prompt_tokens, warnings }
    }

    fn text(&mut self, text: &str, out: &mut Out) {
        if text.is_empty() {
            return;
        }
        if self.block == Block::None {
            self.block = Block::Text;
            let block = json!({"type": "text", "text": ""});
            out.event("content_block_start", &self.of("content_block_start", "content_block", block));
        }
        let delta = json!({"type": "text_delta", "text": text});
        out.event("content_block_delta", &self.of("content_block_delta", "delta", delta));
    }

    fn call(&mut self, call: &Call, out: &mut Out) {
        self.close(out);
        let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
        out.event("content_block_start", &self.of("content_block_start", "content_block", block));
        let delta = json!({"type": "input_json_delta", "partial_json": call.arguments});
        out.event("content_block_delta", &self.of("content_block_delta", "delta", delta));
        self.block = Block::Text;
        self.close(out);
    }

    fn close(&mut self, out: &mut Out) {
        if self.block == Block::Text {
            out.event("content_block_stop", &json!({"type": "content_block_stop", "index": self.index}));
            self.index += 1;
            self.block = Block::None;
        }
    }

    fn of(&self, kind: &str, name: &str, value: Value) -> Value {
        let mut event = json!({"type": kind, "index": self.index});
        event[name] = value;
        event
    }

    fn done(&mut self, total: &Usage, out: &mut Out) {
        self.close(out);
        let (reason, sequence) = stop(&self.end);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let mut event = json!({"type": "message_delta", "delta": delta, "usage": usage(total)});
        warn(&mut event, &self.warnings);
        out.event("message_delta", &event);
        out.event("message_stop", &json!({"type": "message_stop"}));
    }
}

impl Writer for MessagesWriter {
    fn begin(&mut self, out: &mut Out) {
        // How much of the prompt is cached is not known yet; message_delta tells.
        let usage = usage(&Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() });
        let message = json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage,
        });
        out.event("message_start", &json!({"type": "message_start", "message": message}));
    }

    fn piece(&mut self, piece: Piece, out: &mut Out) {
        match piece {
            Piece::Failed(refusal) => {
                out.event("error", &json!({"type": "error", "error": error::error(&refusal)}));
            }
            Piece::Text { text, .. } => self.text(&text, out),
            Piece::Call { call, .. } => self.call(&call, out),
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::End { end, .. } => self.end = end,
            Piece::Done(usage) => self.done(&usage, out),
            _ => {}
        }
    }

    fn ping(&mut self, (done, total): (usize, usize), out: &mut Out) {
        out.event("ping", &json!({"type": "ping", "octet": {"reading": [done, total]}}));
    }
}

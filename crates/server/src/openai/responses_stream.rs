//! A response in JSON: whole, and as numbered events of items that are added, grow and are done.

use serde_json::{Value, json};

use super::error;
use super::responses::ResponseFields;
use super::wire::chat_logprobs;
use crate::ask::Ask;
use crate::ids;
use crate::piece::{Choice, End, Piece, Token, Usage, Whole};
use crate::refusal::Refusal;
use crate::stream::{Out, Writer};
use crate::tool_calls::Call;

/// What a response says about its request.
pub struct Outline {
    message_id: String,
    frame: Value,
}

impl Outline {
    /// Of a response that begins now.
    pub fn new(model: &str, fields: &ResponseFields, ask: &Ask) -> Outline {
        let id = ids::long("resp_");
        let frame = json!({
            "id": id,
            "object": "response",
            "created_at": ids::unix_s(),
            "model": model,
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "instructions": fields.instructions,
            "metadata": fields.metadata.clone().unwrap_or_else(|| json!({})),
            "output": [],
            "parallel_tool_calls": fields.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": ask.sampling.temperature,
            "text": fields.text.clone().unwrap_or_else(|| json!({"format": {"type": "text"}})),
            "tool_choice": fields.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": fields.tools.clone().unwrap_or_default(),
            "top_p": ask.sampling.top_p,
            "max_output_tokens": ask.ending.max_tokens,
            "truncation": "disabled",
            "usage": null,
        });
        Outline { message_id: ids::long("msg_"), frame }
    }

    fn response(&self, output: Vec<Value>, end: &End, total: &Usage, warnings: &[String]) -> Value {
        let mut response = self.frame.clone();
        response["status"] = json!(if end.is_cut() { "incomplete" } else { "completed" });
        if end.is_cut() {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = Value::Array(output);
        if !warnings.is_empty() {
            response["octet"] = json!({"warnings": warnings});
        }
        response["usage"] = json!({
            "input_tokens": total.prompt_tokens,
            "input_tokens_details": {"cached_tokens": total.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": total.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total.prompt_tokens + total.completion_tokens,
        });
        response
    }

    fn message(&self, text: &str, tokens: &[Token], status: &str) -> Value {
        let part = part(text, tokens);
        json!({"type": "message", "id": self.message_id, "status": status, "role": "assistant", "content": [part]})
    }
}

fn part(text: &str, tokens: &[Token]) -> Value {
    let logprobs = chat_logprobs(tokens)["content"].take();
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn call_item(id: &str, call: &Call, status: &str, arguments: &str) -> Value {
    json!({"type": "function_call", "id": id, "call_id": call.id, "name": call.name, "arguments": arguments, "status": status})
}

/// The whole response.
pub fn whole_body(outline: &Outline, whole: &Whole) -> Value {
    let Choice { text, tokens, calls, end, .. } = &whole.choices[0];
    let end = end.as_ref().unwrap_or(&End::Eos);
    let status = if end.is_cut() { "incomplete" } else { "completed" };
    let mut output = Vec::new();
    if !text.is_empty() || calls.is_empty() {
        output.push(outline.message(text, tokens, status));
    }
    output.extend(calls.iter().map(|call| call_item(&ids::long("fc_"), call, status, &call.arguments)));
    outline.response(output, end, &whole.usage, &whole.warnings)
}

/// Writes events.
pub struct ResponseWriter {
    outline: Outline,
    sequence: u64,
    /// Items that are done.
    output: Vec<Value>,
    /// The text of the message, once it has begun.
    text: Option<String>,
    tokens: Vec<Token>,
    warnings: Vec<String>,
    end: End,
}

impl ResponseWriter {
    /// A writer of this response.
    pub fn new(outline: Outline) -> ResponseWriter {
        let (output, tokens, warnings) = Default::default();
        ResponseWriter { outline, sequence: 0, output, text: None, tokens, warnings, end: End::Eos }
    }

    fn send(&mut self, kind: &str, mut event: Value, out: &mut Out) {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        out.event(kind, &event);
    }

    /// An event of the message's text.
    fn place(&self, mut event: Value) -> Value {
        event["item_id"] = json!(self.outline.message_id);
        event["output_index"] = json!(self.output.len());
        event["content_index"] = json!(0);
        event
    }

    fn text(&mut self, text: &str, tokens: Vec<Token>, out: &mut Out) {
        self.tokens.extend(tokens.iter().cloned());
        if text.is_empty() {
            return;
        }
        self.open_message(out);
        self.text.get_or_insert_default().push_str(text);
        let logprobs = chat_logprobs(&tokens)["content"].take();
        let delta = self.place(json!({"delta": text, "logprobs": logprobs}));
        self.send("response.output_text.delta", delta, out);
    }

    fn open_message(&mut self, out: &mut Out) {
        if self.text.is_none() {
            self.text = Some(String::new());
            let mut item = self.outline.message("", &[], "in_progress");
            item["content"] = json!([]);
            let index = self.output.len();
            self.send("response.output_item.added", json!({"output_index": index, "item": item}), out);
            let begun = self.place(json!({"part": part("", &[])}));
            self.send("response.content_part.added", begun, out);
        }
    }

    fn close_message(&mut self, status: &str, out: &mut Out) {
        let Some(text) = self.text.take() else { return };
        let part = part(&text, &self.tokens);
        let done = self.place(json!({"text": text, "logprobs": part["logprobs"]}));
        self.send("response.output_text.done", done, out);
        let done = self.place(json!({"part": part}));
        self.send("response.content_part.done", done, out);
        let item = self.outline.message(&text, &self.tokens, status);
        self.close_item(item, out);
    }

    fn close_item(&mut self, item: Value, out: &mut Out) {
        let index = self.output.len();
        self.send("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }

    fn call(&mut self, call: &Call, out: &mut Out) {
        self.close_message("completed", out);
        let (id, index) = (ids::long("fc_"), self.output.len());
        let item = call_item(&id, call, "in_progress", "");
        self.send("response.output_item.added", json!({"output_index": index, "item": item}), out);
        let delta = json!({"item_id": id, "output_index": index, "delta": call.arguments});
        self.send("response.function_call_arguments.delta", delta, out);
        let done = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
        self.send("response.function_call_arguments.done", done, out);
        self.close_item(call_item(&id, call, "completed", &call.arguments), out);
    }

    fn done(&mut self, total: &Usage, out: &mut Out) {
        let is_cut = self.end.is_cut();
        if self.output.is_empty() {
            // An empty answer is a message without text.
            self.open_message(out);
        }
        self.close_message(if is_cut { "incomplete" } else { "completed" }, out);
        let output = std::mem::take(&mut self.output);
        let response = self.outline.response(output, &self.end, total, &self.warnings);
        let kind = if is_cut { "response.incomplete" } else { "response.completed" };
        self.send(kind, json!({"response": response}), out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Out) {
        let mut response = self.outline.frame.clone();
        response["status"] = json!("failed");
        let body = error::body(refusal);
        let code = body["error"]["code"].as_str().unwrap_or("server_error").to_owned();
        response["error"] = json!({"code": code, "message": refusal.message});
        self.send("response.failed", json!({"response": response}), out);
    }
}

impl Writer for ResponseWriter {
    fn begin(&mut self, out: &mut Out) {
        for kind in ["response.created", "response.in_progress"] {
            let frame = self.outline.frame.clone();
            self.send(kind, json!({"response": frame}), out);
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut Out) {
        match piece {
            Piece::Text { text, tokens, .. } => self.text(&text, tokens, out),
            Piece::Call { call, .. } => self.call(&call, out),
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::End { end, .. } => self.end = end,
            Piece::Done(usage) => self.done(&usage, out),
            Piece::Failed(refusal) => self.failed(&refusal, out),
            _ => {}
        }
    }
}

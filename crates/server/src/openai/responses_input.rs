//! Items of `/v1/responses`, as messages and tools.

use octet_tokenizer::{FunctionCall, Message, Role, Tool, ToolCall};
use serde_json::{Value, json};

use crate::messages;
use crate::refusal::Refusal;

/// Reads `instructions` and `input`. A last message of the assistant is continued.
///
/// # Errors
/// The first item that is no message, call or result, by its path.
pub fn read(instructions: Option<String>, input: Value) -> Result<Vec<Message>, Refusal> {
    let mut read: Vec<Message> = instructions.map(Message::system).into_iter().collect();
    match input {
        Value::String(text) => read.push(Message::user(text)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                add(item, &format!("input[{index}]"), &mut read)?;
            }
        }
        _ => return Err(Refusal::field("input", "input has to be a text or a list of items")),
    }
    if let Some(last) = read.last_mut().filter(|last| last.role == Role::Assistant && last.tool_calls.is_empty()) {
        last.prefix = true;
    }
    Ok(read)
}

fn add(item: &Value, path: &str, read: &mut Vec<Message>) -> Result<(), Refusal> {
    let text = |name: &str| {
        let missing = || Refusal::field(format!("{path}.{name}"), format!("{path}.{name} is missing"));
        item.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(missing)
    };
    match item.get("type").and_then(Value::as_str).unwrap_or("message") {
        "message" => read.push(message(item, path)?),
        "function_call" => {
            let function = FunctionCall { name: text("name")?, arguments: text("arguments")? };
            let call = ToolCall { id: Some(text("call_id")?), kind: "function".into(), function };
            // Calls made at once are items in a row, and one turn.
            match read.last_mut().filter(|last| last.role == Role::Assistant) {
                Some(last) => last.tool_calls.push(call),
                None => {
                    let mut turn = Message::assistant("");
                    turn.tool_calls.push(call);
                    read.push(turn);
                }
            }
        }
        "function_call_output" => {
            let output =
                item.get("output").map_or(Ok(String::new()), |output| content(output, &format!("{path}.output")))?;
            let mut result = Message::new(Role::Tool, output);
            result.tool_call_id = Some(text("call_id")?);
            read.push(result);
        }
        // What a model thought is not shown to it again.
        "reasoning" => {}
        other => {
            let place = format!("{path}.type");
            return Err(Refusal::field(place, format!("an item of type {other:?} is not known here")));
        }
    }
    Ok(())
}

fn message(item: &Value, path: &str) -> Result<Message, Refusal> {
    let role = match item.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system" | "developer") => Role::System,
        _ => {
            return Err(Refusal::field(
                format!("{path}.role"),
                format!("{path}.role is none of user, assistant, system"),
            ));
        }
    };
    Ok(Message::new(role, content(item.get("content").unwrap_or(&Value::Null), &format!("{path}.content"))?))
}

fn content(value: &Value, path: &str) -> Result<String, Refusal> {
    let parts = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(Refusal::field(path, format!("{path} has to be a text or a list of texts"))),
    };
    let mut texts = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match part.get("text").and_then(Value::as_str) {
            Some(text) if ["input_text", "output_text", "text"].contains(&kind) => texts.push(text),
            _ => {
                let place = format!("{path}[{index}]");
                return Err(Refusal::field(
                    place.clone(),
                    format!("{place} of type {kind:?}: this model reads text only"),
                ));
            }
        }
    }
    Ok(texts.join("\n\n"))
}

/// Reads `tools`, whose functions stand flat.
///
/// # Errors
/// A tool that is no function.
pub fn tools(values: &[Value]) -> Result<Vec<Tool>, Refusal> {
    let nested = |value: &Value| {
        let mut function = value.clone();
        let kind = function.as_object_mut().and_then(|object| object.remove("type")).unwrap_or(json!("function"));
        json!({"type": kind, "function": function})
    };
    messages::tools(values.iter().map(nested).collect())
}

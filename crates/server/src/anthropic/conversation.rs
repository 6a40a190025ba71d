//! Anthropic's messages: blocks of text, calls and results, in our conversation's form.

use octet_tokenizer::{FunctionCall, Message, Role, Tool, ToolCall, ToolFunction};
use serde_json::{Value, json};

use crate::messages::ToolChoice;
use crate::refusal::Refusal;

/// Reads `system` and `messages`. A last turn of the assistant is continued.
///
/// # Errors
/// The first block that is no text, call or result, by its path.
pub fn read(system: Option<Value>, messages: Vec<Value>) -> Result<Vec<Message>, Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field("messages", "messages: at least one message is required"));
    }
    let mut read = Vec::new();
    if let Some(system) = system {
        read.push(Message::system(text_of(&system, "system")?));
    }
    for (index, message) in messages.iter().enumerate() {
        read_message(message, &format!("messages.{index}"), &mut read)?;
    }
    if let Some(last) = read.last_mut().filter(|last| last.role == Role::Assistant && last.tool_calls.is_empty()) {
        last.prefix = true;
    }
    Ok(read)
}

fn read_message(message: &Value, path: &str, read: &mut Vec<Message>) -> Result<(), Refusal> {
    let place = |name: &str| format!("{path}.{name}");
    let role = match message.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        _ => return Err(Refusal::field(place("role"), format!("{}: has to be user or assistant", place("role")))),
    };
    let extra = message.as_object().into_iter().flat_map(|object| object.keys());
    if let Some(name) = extra.into_iter().find(|name| !["role", "content"].contains(&name.as_str())) {
        return Err(Refusal::field(place(name), format!("{}: extra inputs are not permitted", place(name))));
    }
    let blocks = match message.get("content") {
        Some(Value::String(text)) => {
            return {
                read.push(Message::new(role, text.clone()));
                Ok(())
            };
        }
        Some(Value::Array(blocks)) => blocks,
        _ => return Err(Refusal::field(place("content"), format!("{}: has to be a text or blocks", place("content")))),
    };
    let mut turn = Message::new(role, "");
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}.content.{index}");
        match (block.get("type").and_then(Value::as_str), role) {
            (Some("text"), _) => join(&mut turn.content, text_field(block, &path)?),
            (Some("tool_use"), Role::Assistant) => turn.tool_calls.push(tool_use(block, &path)?),
            (Some("tool_result"), Role::User) => read.push(tool_result(block, &path)?),
            // What a model thought is not shown to it again.
            (Some("thinking" | "redacted_thinking"), Role::Assistant) => {}
            (kind, _) => {
                let message = format!("{path}.type: {kind:?} is not supported here; this model reads text only");
                return Err(Refusal::field(format!("{path}.type"), message));
            }
        }
    }
    if !turn.content.is_empty() || !turn.tool_calls.is_empty() || blocks.is_empty() {
        read.push(turn);
    }
    Ok(())
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

fn text_field<'a>(block: &'a Value, path: &str) -> Result<&'a str, Refusal> {
    let missing = || Refusal::field(format!("{path}.text"), format!("{path}.text: has to be a text"));
    block.get("text").and_then(Value::as_str).ok_or_else(missing)
}

/// A text, or blocks of text.
fn text_of(value: &Value, path: &str) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(blocks) => {
            let mut text = String::new();
            for (index, block) in blocks.iter().enumerate() {
                join(&mut text, text_field(block, &format!("{path}.{index}"))?);
            }
            Ok(text)
        }
        _ => Err(Refusal::field(path, format!("{path}: has to be a text or blocks of text"))),
    }
}

fn tool_use(block: &Value, path: &str) -> Result<ToolCall, Refusal> {
    let text = |name: &str| block.get(name).and_then(Value::as_str).map(str::to_owned);
    let missing = || Refusal::field(format!("{path}.name"), format!("{path}.name: a tool_use needs a name"));
    let arguments = block.get("input").cloned().unwrap_or_else(|| json!({})).to_string();
    let function = FunctionCall { name: text("name").ok_or_else(missing)?, arguments };
    Ok(ToolCall { id: text("id"), kind: "function".into(), function })
}

fn tool_result(block: &Value, path: &str) -> Result<Message, Refusal> {
    let id = block.get("tool_use_id").and_then(Value::as_str);
    let missing = || Refusal::field(format!("{path}.tool_use_id"), format!("{path}.tool_use_id: field required"));
    let content = text_of(block.get("content").unwrap_or(&Value::Null), &format!("{path}.content"))?;
    let content = match block.get("is_error") {
        None | Some(Value::Null | Value::Bool(false)) => content,
        Some(Value::Bool(true)) => failed(content),
        Some(_) => {
            let place = format!("{path}.is_error");
            return Err(Refusal::field(place.clone(), format!("{place}: has to be true or false")));
        }
    };
    let mut message = Message::new(Role::Tool, content);
    message.tool_call_id = Some(id.ok_or_else(missing)?.to_owned());
    Ok(message)
}

/// What a call that failed came to: no format of a model has a place for that, so the text has to say it.
fn failed(content: String) -> String {
    let says_so = content.trim_start().get(..5).is_some_and(|word| word.eq_ignore_ascii_case("error"));
    match content.trim() {
        "" => "Error: the call failed".into(),
        _ if says_so => content,
        _ => format!("Error: {content}"),
    }
}

/// Reads `tools`.
///
/// # Errors
/// A tool that Anthropic would run, or one without a name.
pub fn tools(values: Vec<Value>) -> Result<Vec<Tool>, Refusal> {
    let read = |(index, value): (usize, Value)| {
        let path = format!("tools.{index}");
        if let Some(kind) = value.get("type").and_then(Value::as_str).filter(|&kind| kind != "custom") {
            let message = format!("{path}.type: {kind:?} runs at Anthropic; this server knows tools of yours only");
            return Err(Refusal::field(format!("{path}.type"), message));
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let missing = || Refusal::field(format!("{path}.name"), format!("{path}.name: field required"));
        let name = text("name").filter(|name| !name.is_empty()).ok_or_else(missing)?;
        let parameters = value.get("input_schema").cloned().unwrap_or_else(|| json!({}));
        let function = ToolFunction { name, description: text("description").unwrap_or_default(), parameters };
        Ok(Tool { kind: "function".into(), function })
    };
    values.into_iter().enumerate().map(read).collect()
}

/// Reads `tool_choice`: what to do, and whether with one call at most.
///
/// # Errors
/// An unknown type, or a tool that is not there.
pub fn tool_choice(value: Option<&Value>, tools: &[Tool]) -> Result<(ToolChoice, bool), Refusal> {
    let Some(value) = value else { return Ok((ToolChoice::Auto, false)) };
    let single = value.get("disable_parallel_tool_use").and_then(Value::as_bool).unwrap_or(false);
    let name = value.get("name").and_then(Value::as_str);
    let choice = match (value.get("type").and_then(Value::as_str), name) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("any"), _) if !tools.is_empty() => ToolChoice::Required,
        (Some("tool"), Some(name)) if tools.iter().any(|tool| tool.function.name == name) => {
            ToolChoice::Named(name.into())
        }
        _ => {
            let message = "tool_choice: has to be of type auto, none, any, or tool with the name of one of the tools";
            return Err(Refusal::field("tool_choice", message));
        }
    };
    Ok((choice, single))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_turns() {
        let messages = json!([
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "abc", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "abc", "content": [{"type": "text", "text": "sun"}]},
                {"type": "text", "text": "and?"}]},
            {"role": "assistant", "content": "It is"}
        ]);
        let read =
            read(Some(json!([{"type": "text", "text": "Be brief."}])), messages.as_array().unwrap().clone()).unwrap();
        let roles: Vec<_> = read.iter().map(|message| message.role.name()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user", "assistant"]);
        assert_eq!(read[2].tool_calls[0].function.arguments, r#"{"x":1}"#);
        assert_eq!((read[3].content.as_str(), read[3].tool_call_id.as_deref()), ("sun", Some("abc")));
        assert!(read[5].prefix);
    }

    #[test]
    fn a_call_that_failed_is_told_to_the_model() {
        let told = |content: Value, is_error: Value| {
            let block = json!({"type": "tool_result", "tool_use_id": "abc", "content": content, "is_error": is_error});
            read(None, vec![json!({"role": "user", "content": [block]})]).map(|mut read| read.remove(0).content)
        };
        assert_eq!(told(json!("no such city"), json!(true)).unwrap(), "Error: no such city");
        assert_eq!(told(json!([{"type": "text", "text": "ERROR 404"}]), json!(true)).unwrap(), "ERROR 404");
        assert_eq!(told(Value::Null, json!(true)).unwrap(), "Error: the call failed");
        assert_eq!(told(json!("sun"), json!(false)).unwrap(), "sun");
        let refusal = told(json!("sun"), json!("yes")).unwrap_err();
        assert_eq!(refusal.param.unwrap(), "messages.0.content.0.is_error");
    }

    #[test]
    fn what_is_not_text_is_refused_by_path() {
        let image = json!({"role": "user", "content": [{"type": "image", "source": {}}]});
        assert_eq!(read(None, vec![image]).unwrap_err().param.unwrap(), "messages.0.content.0.type");
        assert!(tools(vec![json!({"type": "bash_20250124", "name": "bash"})]).is_err());
    }
}

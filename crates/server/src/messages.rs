//! Messages and tools as OpenAI and Mistral write them, read without loss.

use octet_tokenizer::{Message, Role, Tool};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// Fields of a message that the conversation keeps.
const KNOWN: [&str; 6] = ["role", "content", "name", "tool_calls", "tool_call_id", "prefix"];
/// Fields that answers carry and clients send back; they say nothing when empty. `octet` is ours and for the reader.
const MAY_BE_EMPTY: [&str; 6] = ["refusal", "audio", "function_call", "annotations", "reasoning_content", "octet"];

/// Reads `messages`. A last message of the assistant is continued, in every dialect.
///
/// # Errors
/// The first message that cannot be read, by its path.
pub fn read(values: Vec<Value>) -> Result<Vec<Message>, Refusal> {
    if values.is_empty() {
        return Err(Refusal::field("messages", "messages is empty; give at least one"));
    }
    let read_one = |(index, value)| message(value, &format!("messages[{index}]"));
    let mut messages = values.into_iter().enumerate().map(read_one).collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = messages.last_mut().filter(|last| last.role == Role::Assistant && last.tool_calls.is_empty()) {
        last.prefix = true;
    }
    Ok(messages)
}

fn message(value: Value, path: &str) -> Result<Message, Refusal> {
    let object = value.as_object().ok_or_else(|| Refusal::field(path, format!("{path} has to be an object")))?;
    for (name, value) in object.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
        let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty) || name == "octet";
        if !MAY_BE_EMPTY.contains(&name.as_str()) || !is_empty {
            let place = format!("{path}.{name}");
            return Err(Refusal::field(place.clone(), format!("{place} is not supported; leave it out")));
        }
    }
    if let Some(Value::Array(calls)) = object.get("tool_calls") {
        let odd =
            calls.iter().position(|call| call.get("type").is_some_and(|kind| !kind.is_null() && kind != "function"));
        if let Some(index) = odd {
            return Err(Refusal::field(
                format!("{path}.tool_calls[{index}].type"),
                "only calls of functions are known",
            ));
        }
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let place = if inner == "." { path.to_owned() } else { format!("{path}.{inner}") };
        Refusal::field(place.clone(), format!("{place}: {}", error.into_inner()))
    })
}

/// What an answer may do with tools.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum ToolChoice {
    /// Call or talk.
    #[default]
    Auto,
    /// Talk only.
    None,
    /// Call at least one.
    Required,
    /// Call this one.
    Named(String),
}

/// Reads `tools`: only functions, and nothing in them that we would not show to the model.
///
/// # Errors
/// The first tool that is something else, by its path.
pub fn tools(values: Vec<Value>) -> Result<Vec<Tool>, Refusal> {
    values.into_iter().enumerate().map(|(index, value)| tool(value, &format!("tools[{index}]"))).collect()
}

fn tool(value: Value, path: &str) -> Result<Tool, Refusal> {
    let kind = value.get("type").cloned().unwrap_or(json!("function"));
    if kind != "function" {
        let place = format!("{path}.type");
        return Err(Refusal::field(
            place,
            format!("a tool of type {kind}; this server runs none, only functions of yours"),
        ));
    }
    let extra = value.get("function").and_then(Value::as_object).into_iter().flat_map(|function| function.keys());
    let known = ["name", "description", "parameters", "strict"];
    if let Some(name) = extra.into_iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Refusal::field(format!("{path}.function.{name}"), format!("{path}.function.{name} is not known")));
    }
    let tool = Tool::deserialize(value).map_err(|error| Refusal::field(path, format!("{path}: {error}")))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if tool.function.name.is_empty() || tool.function.name.len() > 64 || !tool.function.name.chars().all(is_plain) {
        let place = format!("{path}.function.name");
        return Err(Refusal::field(place, "a function's name has 1 to 64 letters, digits, '_' or '-'"));
    }
    Ok(tool)
}

/// Names of the functions whose calls have to follow their schemas: `strict` stands in the function, or beside its name.
///
/// # Errors
/// `strict` is neither true nor false.
pub fn strict(tools: &[Value]) -> Result<Vec<String>, Refusal> {
    let mut names = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let of = |field: &str| tool.pointer(&format!("/function/{field}")).or_else(|| tool.get(field));
        match (of("strict"), of("name").and_then(Value::as_str)) {
            (None | Some(Value::Null | Value::Bool(false)), _) | (_, None) => {}
            (Some(Value::Bool(true)), Some(name)) => names.push(name.to_owned()),
            (Some(_), _) => {
                let place = format!("tools[{index}].strict");
                return Err(Refusal::field(place.clone(), format!("{place} has to be true or false")));
            }
        }
    }
    Ok(names)
}

/// Reads `tool_choice`: `auto`, `none`, `required` (Mistral: `any`), or a function by name.
///
/// # Errors
/// Another value, or a function that is not among the tools.
pub fn tool_choice(value: Option<&Value>, tools: &[Tool]) -> Result<ToolChoice, Refusal> {
    let choice = match value {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => ToolChoice::Required,
            _ => {
                return Err(Refusal::field(
                    "tool_choice",
                    format!("tool_choice {word:?} is none of auto, none, required"),
                ));
            }
        },
        Some(value) => {
            let name = value.pointer("/function/name").or_else(|| value.get("name")).and_then(Value::as_str);
            let name =
                name.ok_or_else(|| Refusal::field("tool_choice", "tool_choice has to be a word or name a function"))?;
            ToolChoice::Named(name.to_owned())
        }
    };
    match &choice {
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.function.name == *name) => {
            Err(Refusal::field("tool_choice", format!("tool_choice names {name:?}, which is not among the tools")))
        }
        ToolChoice::Required if tools.is_empty() => {
            Err(Refusal::field("tool_choice", "tool_choice asks for a call, but there are no tools"))
        }
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(messages: Value) -> String {
        read(messages.as_array().unwrap().clone()).unwrap_err().param.unwrap()
    }

    #[test]
    fn a_message_is_read_whole_or_refused_by_path() {
        let user = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(read(vec![user.clone()]).unwrap()[0].content, "a\n\nb");
        assert_eq!(refused(json!([user, {"role": "user", "content": [{"type": "image_url"}]}])), "messages[1].content");
        assert_eq!(refused(json!([{"role": "user", "content": "x", "audio": {"id": "a"}}])), "messages[0].audio");
        assert_eq!(refused(json!([{"role": "robot", "content": "x"}])), "messages[0].role");
        assert_eq!(refused(json!([7])), "messages[0]");
        assert!(read(vec![json!({"role": "assistant", "content": "So", "refusal": null})]).unwrap()[0].prefix);
    }

    #[test]
    fn tools_and_choices_are_checked() {
        let list = tools(vec![json!({"type": "function", "function": {"name": "f", "strict": true}})]).unwrap();
        let named = [
            json!({"function": {"name": "f", "strict": true}}),
            json!({"name": "g", "strict": true}),
            json!({"name": "h"}),
        ];
        assert_eq!(strict(&named).unwrap(), ["f", "g"]);
        assert_eq!(strict(&[json!({"name": "f", "strict": 1})]).unwrap_err().param.unwrap(), "tools[0].strict");
        assert_eq!(tool_choice(Some(&json!("any")), &list).unwrap(), ToolChoice::Required);
        let named = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(tool_choice(Some(&named), &list).unwrap(), ToolChoice::Named("f".into()));
        assert!(tool_choice(Some(&json!("required")), &[]).is_err());
        assert!(tool_choice(Some(&named), &[]).is_err());
        assert!(tools(vec![json!({"type": "web_search"})]).is_err());
        assert!(tools(vec![json!({"type": "function", "function": {"name": "a b"}})]).is_err());
    }
}

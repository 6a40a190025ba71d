//! From a row's keys to an example.

use octet_tokenizer::{Conversation, Message, Role, Tool};
use serde_json::{Map, Value};

/// What one row teaches.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// Every token is learned.
    Text(String),
    /// What the assistant says is learned.
    Chat(Conversation),
    /// The one answer is to become likelier than the other.
    Pair(Pair),
}

/// A better and a worse answer to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// What was said before.
    pub prompt: Conversation,
    /// The better answer.
    pub chosen: Vec<Message>,
    /// The worse answer.
    pub rejected: Vec<Message>,
}

impl Example {
    /// The name of the shape, for messages.
    pub fn shape(&self) -> &'static str {
        match self {
            Example::Text(_) => "plain text",
            Example::Chat(_) => "a conversation",
            Example::Pair(_) => "a preference pair",
        }
    }

    /// Reads a row. Errors: what is wrong with it, in words for the one who wrote it.
    pub fn from_row(row: &Map<String, Value>) -> Result<Example, String> {
        let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
        if has("messages") {
            return chat(messages(row, "messages", Role::User)?, tools(row)?);
        }
        if has("chosen") || has("rejected") {
            return pair(row, tools(row)?);
        }
        if has("prompt") && has("completion") {
            let mut turns = messages(row, "prompt", Role::User)?;
            turns.extend(messages(row, "completion", Role::Assistant)?);
            return chat(turns, tools(row)?);
        }
        match row.get("text") {
            Some(Value::String(text)) if text.is_empty() => Err("`text` is empty".into()),
            Some(Value::String(text)) => Ok(Example::Text(text.clone())),
            Some(other) => Err(format!("`text` is {}, not a string", kind(other))),
            None => Err(unknown_shape(row)),
        }
    }
}

fn unknown_shape(row: &Map<String, Value>) -> String {
    let keys: Vec<String> = row.keys().take(8).map(|key| format!("{key:?}")).collect();
    let found = if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
    format!("needs `messages`, `chosen` with `rejected`, `prompt` with `completion`, or `text`; it has {found}")
}

fn chat(messages: Vec<Message>, tools: Vec<Tool>) -> Result<Example, String> {
    if !messages.iter().any(answers) {
        return Err("has no assistant message, so there is nothing to learn".into());
    }
    Ok(Example::Chat(Conversation { messages, tools }))
}

fn answers(message: &Message) -> bool {
    message.role == Role::Assistant && !(message.content.is_empty() && message.tool_calls.is_empty())
}

fn pair(row: &Map<String, Value>, tools: Vec<Tool>) -> Result<Example, String> {
    let mut chosen = messages(row, "chosen", Role::Assistant)?;
    let mut rejected = messages(row, "rejected", Role::Assistant)?;
    let mut prompt = match row.get("prompt") {
        None | Some(Value::Null) => Vec::new(),
        Some(_) => messages(row, "prompt", Role::User)?,
    };
    // Lists that begin with the user's turn hold the whole conversation.
    if chosen.first().is_some_and(|first| first.role != Role::Assistant) {
        let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
        let shared = shared.min(chosen.len().saturating_sub(1)).min(rejected.len().saturating_sub(1));
        prompt = chosen.drain(..shared).collect();
        rejected.drain(..shared);
    }
    if prompt.is_empty() {
        return Err("has no `prompt`, and `chosen` and `rejected` share no beginning".into());
    }
    for (key, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
        if answer.first().is_none_or(|first| first.role != Role::Assistant) || !answer.iter().any(answers) {
            return Err(format!("`{key}` holds no answer of the assistant after the prompt"));
        }
    }
    if chosen == rejected {
        return Err("`chosen` and `rejected` are the same".into());
    }
    Ok(Example::Pair(Pair { prompt: Conversation { messages: prompt, tools }, chosen, rejected }))
}

/// The messages under `key`: a list, or a text that `speaker` says.
fn messages(row: &Map<String, Value>, key: &str, speaker: Role) -> Result<Vec<Message>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Err(format!("lacks `{key}`")),
        Some(Value::String(text)) if key != "messages" => Ok(vec![Message::new(speaker, text)]),
        Some(Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(i, value)| message(value).map_err(|problem| format!("`{key}[{i}]`: {problem}")))
            .collect(),
        Some(other) => Err(format!("`{key}` is {}, not a list of messages", kind(other))),
    }
}

fn tools(row: &Map<String, Value>) -> Result<Vec<Tool>, String> {
    match row.get("tools") {
        None | Some(Value::Null) => Ok(Vec::new()),
        // Parquet files often hold them as JSON text.
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|error| format!("`tools`: {error}")),
        Some(value) => serde_json::from_value(value.clone()).map_err(|error| format!("`tools`: {error}")),
    }
}

fn message(value: &Value) -> Result<Message, String> {
    if !value.is_object() {
        return Err(format!("is {}, not an object with `role` and `content`", kind(value)));
    }
    serde_json::from_value(value.clone()).map_err(|error| error.to_string())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Example, String> {
        Example::from_row(value.as_object().unwrap())
    }

    fn said(role: Role, text: &str) -> Message {
        Message::new(role, text)
    }

    #[test]
    fn every_shape_is_told_by_its_keys() {
        assert_eq!(read(json!({"text": "a"})), Ok(Example::Text("a".into())));
        let chat = Example::Chat(Conversation {
            messages: vec![said(Role::User, "a"), said(Role::Assistant, "b")],
            tools: vec![],
        });
        let list = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        assert_eq!(read(json!({"messages": list})).as_ref(), Ok(&chat));
        assert_eq!(read(json!({"prompt": "a", "completion": "b"})).as_ref(), Ok(&chat));
        assert_eq!(read(json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b"})), Ok(chat));
    }

    #[test]
    fn pairs_come_as_texts_or_as_whole_conversations() {
        let texts = read(json!({"prompt": "q", "chosen": "y", "rejected": "n"})).unwrap();
        let q = json!({"role": "user", "content": "q"});
        let lists = read(json!({
            "prompt": "q",
            "chosen": [q, {"role": "assistant", "content": "y"}],
            "rejected": [q, {"role": "assistant", "content": "n"}],
        }));
        assert_eq!(lists, Ok(texts));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let problem = |value| read(value).unwrap_err();
        assert!(problem(json!({"instruction": "x"})).contains("\"instruction\""));
        assert!(problem(json!({"messages": [{"role": "bot", "content": ""}]})).contains("messages[0]"));
        assert!(problem(json!({"messages": [{"role": "user", "content": "x"}]})).contains("no assistant message"));
        assert!(problem(json!({"messages": "x"})).contains("is a string"));
        assert!(problem(json!({"prompt": "q", "chosen": "y"})).contains("lacks `rejected`"));
        assert!(problem(json!({"prompt": "q", "chosen": "y", "rejected": "y"})).contains("the same"));
        assert!(problem(json!({"chosen": "y", "rejected": "n"})).contains("no `prompt`"));
        assert!(problem(json!({"text": 3})).contains("a number"));
        assert!(problem(json!({"text": ""})).contains("empty"));
    }
}

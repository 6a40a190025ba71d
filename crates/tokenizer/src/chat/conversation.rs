//! What is said in a chat, in the form in which OpenAI's and Mistral's APIs and published data sets write it.

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A chat and the tools that the model may call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// From the first turn to the last.
    pub messages: Vec<Message>,
    /// May be empty.
    #[serde(default, deserialize_with = "null_is_default")]
    pub tools: Vec<Tool>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole chat; `developer` is read as this.
    #[serde(alias = "developer")]
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The role's name in JSON and in templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. JSON may give null or a list of text chunks, which are joined with an empty line as Mistral does.
    #[serde(default, deserialize_with = "text_content")]
    pub content: String,
    /// Assistant: the tools it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub tool_calls: Vec<ToolCall>,
    /// Tool: the call that this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Tool: the name of the function; other roles: whatever the caller named the speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Assistant, last message: the answer begins with this content and is to be continued.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_is_default")]
    pub prefix: bool,
}

impl Message {
    /// A message of text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None, name: None, prefix: false }
    }

    /// What the instructions say.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// What the human says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// A call of a function by the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Ties the result to the call; nine letters and digits in Mistral's v3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function's name with arguments for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// JSON text; JSON input may give the object itself.
    #[serde(default, deserialize_with = "json_text")]
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    pub function: ToolFunction,
}

/// A function's description for the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolFunction {
    /// The function's name.
    pub name: String,
    /// What it is for.
    #[serde(default, deserialize_with = "null_is_default")]
    pub description: String,
    /// A JSON schema of the arguments.
    #[serde(default = "empty_object", deserialize_with = "null_is_empty_object")]
    pub parameters: Value,
}

fn function() -> String {
    "function".into()
}

fn empty_object() -> Value {
    Value::Object(Default::default())
}

fn is_false(value: &bool) -> bool {
    !value
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn null_is_empty_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Ok(Option::<Value>::deserialize(deserializer)?.unwrap_or_else(empty_object))
}

/// Between texts that become one: of several messages in a row, and of several chunks in one message.
pub(crate) const TEXT_SEPARATOR: &str = "\n\n";

fn text_content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Chunks(Vec<Chunk>),
    }
    #[derive(Deserialize)]
    struct Chunk {
        #[serde(rename = "type")]
        kind: String,
        text: Option<String>,
    }
    let chunks = match Option::<Content>::deserialize(deserializer)? {
        None => return Ok(String::new()),
        Some(Content::Text(text)) => return Ok(text),
        Some(Content::Chunks(chunks)) => chunks,
    };
    let mut texts = Vec::new();
    for chunk in chunks {
        match chunk.text {
            Some(text) if chunk.kind == "text" => texts.push(text),
            _ => return Err(D::Error::custom(format!("content of type {:?}; this model reads text only", chunk.kind))),
        }
    }
    texts.retain(|text| !text.is_empty());
    Ok(texts.join(TEXT_SEPARATOR))
}

/// Arguments come as JSON text, or as the object that the text would say.
fn json_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(value) => super::python_json::dumps(&value),
    })
}

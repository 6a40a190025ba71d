//! Mistral's instruct formats v1, v2 and v3, token for token as mistral-common writes them.
//!
//! ```text
//! v1 (Mixtral 8x7B)   <s> "[INST] system\n\nuser [/INST]" "answer" </s> "[INST] user [/INST]"
//! v2, v3 (8x22B)      <s>[INST] "user" [/INST] "answer" </s>
//!                     [AVAILABLE_TOOLS] "[tools]" [/AVAILABLE_TOOLS] [INST] "system\n\nuser" [/INST]
//!                     [TOOL_CALLS] "[calls]" </s> [TOOL_RESULTS] "result" [/TOOL_RESULTS]
//! ```
//!
//! What stands in quotes is encoded as a text of its own, with its own leading `▁`; the rest are control tokens,
//! which only this file puts in. v1 knows no control tokens but `<s>` and `</s>`, so its `[INST]` is text; the system
//! text goes to the first user turn. v2 and v3 put system text and tools at the last user turn. v2 forgets tool calls
//! and results before the last user turn, leaves out call ids and wraps a result in a list.

use super::conversation::{Conversation, Message, Role, Tool, ToolCall};
use super::fold::{Folded, fold};
use super::python_json::{dumps, normalize, quote};
use crate::{Error, Tokenizer};
use serde_json::json;

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
    V3,
}

impl Version {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
            Version::V3 => "v3",
        }
    }
}

/// The ids of `conversation`, BOS first.
pub(crate) fn render(version: Version, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<u32>, Error> {
    let Folded { system, turns } = fold(conversation);
    if version == Version::V1 {
        refuse_tools(&turns, &conversation.tools)?;
    }
    let is_user = |turn: &Message| turn.role == Role::User;
    let first_user = turns.iter().position(is_user).unwrap_or(0);
    let last_user = turns.iter().rposition(is_user).unwrap_or(0);
    let system_turn = if version == Version::V1 { first_user } else { last_user };
    let mut writer = Writer { version, tokenizer, ids: Vec::new() };
    writer.control("<s>", tokenizer.bos())?;
    for (at, turn) in turns.iter().enumerate() {
        let is_forgotten = version == Version::V2 && at < last_user;
        match turn.role {
            Role::User => {
                let tools = if at == last_user { conversation.tools.as_slice() } else { &[] };
                writer.user(turn, system.as_deref().filter(|_| at == system_turn), tools)?;
            }
            Role::Assistant => {
                let is_last = at + 1 == turns.len();
                writer.assistant(turn, if is_forgotten { &[] } else { &turn.tool_calls }, is_last)?;
            }
            Role::Tool if is_forgotten => {}
            Role::Tool => writer.tool_result(turn)?,
            Role::System => unreachable!("folding leaves no system turns"),
        }
    }
    Ok(writer.ids)
}

fn refuse_tools(turns: &[Message], tools: &[Tool]) -> Result<(), Error> {
    let uses_tools = |turn: &Message| turn.role == Role::Tool || !turn.tool_calls.is_empty();
    if tools.is_empty() && !turns.iter().any(uses_tools) {
        return Ok(());
    }
    let remedy = "Mixtral 8x7B's format (v1) has no tools; leave them out or use a model with format v3";
    Err(Error::Conversation(remedy.into()))
}

/// Builds the prompt of one conversation.
struct Writer<'a> {
    version: Version,
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
}

impl Writer<'_> {
    fn user(&mut self, turn: &Message, system: Option<&str>, tools: &[Tool]) -> Result<(), Error> {
        let content = match system {
            Some(system) => format!("{system}\n\n{}", turn.content),
            None => turn.content.clone(),
        };
        if self.version == Version::V1 {
            self.text(&format!("[INST] {content} [/INST]"));
            return Ok(());
        }
        if !tools.is_empty() {
            self.named("[AVAILABLE_TOOLS]")?;
            self.text(&dumps(&json!(tools)));
            self.named("[/AVAILABLE_TOOLS]")?;
        }
        self.named("[INST]")?;
        self.text(&content);
        self.named("[/INST]")
    }

    fn assistant(&mut self, turn: &Message, calls: &[ToolCall], is_last: bool) -> Result<(), Error> {
        let content = match self.version {
            Version::V1 => turn.content.as_str(),
            Version::V2 | Version::V3 => turn.content.trim_end_matches(' '),
        };
        if turn.content.is_empty() && calls.is_empty() {
            return Ok(());
        }
        self.text(content);
        if !calls.is_empty() {
            let calls: Vec<String> = calls.iter().map(|call| self.call_json(call)).collect();
            self.named("[TOOL_CALLS]")?;
            self.text(&format!("[{}]", calls.join(", ")));
        }
        if turn.prefix && is_last {
            return Ok(());
        }
        self.control("</s>", self.tokenizer.eos())
    }

    fn call_json(&self, call: &ToolCall) -> String {
        let name = quote(&call.function.name);
        let arguments = value_or_text(&call.function.arguments);
        match call.id.as_deref().filter(|id| !id.is_empty() && *id != "null") {
            Some(id) if self.version == Version::V3 => {
                format!("{{\"name\": {name}, \"arguments\": {arguments}, \"id\": {}}}", quote(id))
            }
            _ => format!("{{\"name\": {name}, \"arguments\": {arguments}}}"),
        }
    }

    fn tool_result(&mut self, turn: &Message) -> Result<(), Error> {
        let content = value_or_text(&turn.content);
        let result = if self.version == Version::V2 {
            let name = turn.name.as_deref().map_or("null".into(), quote);
            format!("[{{\"name\": {name}, \"content\": {content}}}]")
        } else {
            let needs_id = || Error::Conversation("a tool message needs its tool_call_id in format v3".into());
            let id = turn.tool_call_id.as_deref().ok_or_else(needs_id)?;
            format!("{{\"content\": {content}, \"call_id\": {}}}", quote(id))
        };
        self.named("[TOOL_RESULTS]")?;
        self.text(&result);
        self.named("[/TOOL_RESULTS]")
    }

    fn text(&mut self, text: &str) {
        self.tokenizer.encode_into(text, &mut self.ids);
    }

    fn named(&mut self, token: &'static str) -> Result<(), Error> {
        self.control(token, self.tokenizer.control_id(token))
    }

    fn control(&mut self, token: &'static str, id: Option<u32>) -> Result<(), Error> {
        let id = id.ok_or_else(|| Error::MissingControlToken {
            format: self.version.name(),
            token,
            path: self.tokenizer.path().to_owned(),
        })?;
        self.ids.push(id);
        Ok(())
    }
}

/// JSON text in Python's notation, other text as a JSON string, nothing as an empty object.
fn value_or_text(text: &str) -> String {
    if text.is_empty() { "{}".into() } else { normalize(text).unwrap_or_else(|| quote(text)) }
}

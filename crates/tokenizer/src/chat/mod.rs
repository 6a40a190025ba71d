//! Conversations to prompts.

mod conversation;
mod fold;
mod instruct;
mod python_json;

pub use conversation::{Conversation, FunctionCall, Message, Role, Tool, ToolCall, ToolFunction};

use crate::{Error, Tokenizer};
use instruct::Version;

/// How a model wants conversations written.
#[derive(Debug, Clone)]
pub struct ChatFormat {
    tokenizer: Tokenizer,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Instruct(Version),
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Prompt {
    /// What goes into the model; begins with BOS, exactly one, if the model has it.
    pub ids: Vec<u32>,
    /// The same for people: the template's text, or for Mistral's own formats the pieces joined.
    pub text: String,
}

impl ChatFormat {
    /// The format of the model that `tokenizer` belongs to: its template, or else what its vocabulary tells.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let has = |token| tokenizer.control_id(token).is_some();
        let version = match (has("[INST]"), has("[TOOL_CALLS]")) {
            (true, true) => Version::V3,
            _ if tokenizer.vocab_size() == 32000 => Version::V1,
            _ => return Err(Error::NoChatFormat { path: tokenizer.path().to_owned() }),
        };
        Ok(Self { tokenizer: tokenizer.clone(), form: Form::Instruct(version) })
    }

    /// The format with this name: `v1`, `v2` or `v3`; `None` for other names.
    pub fn named(tokenizer: &Tokenizer, name: &str) -> Option<Self> {
        let version = [Version::V1, Version::V2, Version::V3].into_iter().find(|version| version.name() == name)?;
        Some(Self { tokenizer: tokenizer.clone(), form: Form::Instruct(version) })
    }

    /// The format's name: `v1`, `v2`, `v3`.
    pub fn name(&self) -> &'static str {
        match self.form {
            Form::Instruct(version) => version.name(),
        }
    }

    /// Writes the prompt that asks for the next assistant turn.
    pub fn render(&self, conversation: &Conversation) -> Result<Prompt, Error> {
        match self.form {
            Form::Instruct(version) => {
                let ids = instruct::render(version, &self.tokenizer, conversation)?;
                let text = ids.iter().map(|&id| self.tokenizer.piece(id)).collect();
                Ok(Prompt { ids, text })
            }
        }
    }
}

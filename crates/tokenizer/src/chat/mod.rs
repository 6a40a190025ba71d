//! Conversations to prompts.
//!
//! A format is one of Mistral's own, written in Rust, or a template in Jinja: the model's, the user's, or ours for
//! ChatML. Whatever it is, control tokens come from the format alone.

mod conversation;
mod date;
mod fold;
mod instruct;
mod python_json;
mod shield;
mod template;

pub use conversation::{Conversation, FunctionCall, Message, Role, Tool, ToolCall, ToolFunction};

use crate::tokenizer::Templates;
use crate::{Error, Tokenizer};
use instruct::Version;
use std::path::Path;
use template::Template;

/// How a model wants conversations written.
#[derive(Debug, Clone)]
pub struct ChatFormat {
    tokenizer: Tokenizer,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Instruct(Version),
    Template {
        name: &'static str,
        default: Template,
        /// Some models bring a second one for conversations with tools.
        with_tools: Option<Template>,
    },
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Prompt {
    /// What goes into the model; begins with BOS, exactly one, if the model has it.
    pub ids: Vec<u32>,
    /// The same for people: the template's text, or for Mistral's own formats the pieces joined.
    pub text: String,
}

/// What stands at a conversation's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The beginning of the next assistant turn.
    Prompt,
    /// Nothing: all has been said.
    Whole,
}

/// ChatML: every turn between `<|im_start|>` and `<|im_end|>`.
const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The size of Mixtral 8x7B's vocabulary, and of Mistral 7B's first two.
const V1_VOCABULARY: usize = 32000;

impl ChatFormat {
    /// The format of the model that `tokenizer` belongs to: its template, or else what its vocabulary tells (`v3`
    /// where it has `[INST]` and `[TOOL_CALLS]`, `v1` for Mixtral 8x7B's, `chatml` where it has `<|im_start|>`).
    ///
    /// Errors: nothing tells; the template does not compile.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let Templates { default, with_tools } = &tokenizer.parts().templates;
        let compile = |source: &str| Template::new(source, tokenizer.path().to_owned());
        if let Some(default) = default {
            let with_tools = with_tools.as_deref().map(compile).transpose()?;
            return Ok(Self::of(
                tokenizer,
                Form::Template { name: "template", default: compile(default)?, with_tools },
            ));
        }
        let has = |token| tokenizer.control_id(token).is_some();
        let name = if has("[INST]") && has("[TOOL_CALLS]") && !has("[SYSTEM_PROMPT]") {
            if is_v2(tokenizer.path()) { "v2" } else { "v3" }
        } else if tokenizer.is_sentencepiece() && tokenizer.vocab_size() == V1_VOCABULARY {
            "v1"
        } else if has("<|im_start|>") {
            "chatml"
        } else {
            return Err(Error::NoChatFormat { path: tokenizer.path().to_owned() });
        };
        Ok(Self::named(tokenizer, name).expect("all of these names are known"))
    }

    /// The format with this name, one of [`Self::NAMES`]; `None` for other names.
    pub fn named(tokenizer: &Tokenizer, name: &str) -> Option<Self> {
        if name == "chatml" {
            let default = Template::new(CHATML, tokenizer.path().to_owned()).expect("a test compiles it");
            return Some(Self::of(tokenizer, Form::Template { name: "chatml", default, with_tools: None }));
        }
        let version = [Version::V1, Version::V2, Version::V3].into_iter().find(|version| version.name() == name)?;
        Some(Self::of(tokenizer, Form::Instruct(version)))
    }

    /// The names that [`Self::named`] knows.
    pub const NAMES: [&str; 4] = ["v1", "v2", "v3", "chatml"];

    /// A format that runs the template `source`; `path` says where it came from, for messages.
    pub fn template(tokenizer: &Tokenizer, source: &str, path: &Path) -> Result<Self, Error> {
        let default = Template::new(source, path.to_owned())?;
        Ok(Self::of(tokenizer, Form::Template { name: "template", default, with_tools: None }))
    }

    fn of(tokenizer: &Tokenizer, form: Form) -> Self {
        Self { tokenizer: tokenizer.clone(), form }
    }

    /// The format's name: one of [`Self::NAMES`], or `template`.
    pub fn name(&self) -> &'static str {
        match self.form {
            Form::Instruct(version) => version.name(),
            Form::Template { name, .. } => name,
        }
    }

    /// Writes the prompt that asks for the next assistant turn, or for the rest of the last one if that has `prefix`.
    ///
    /// Roles never fail: what a format cannot take as it is, is folded (docs/text.md). Errors: tools in a format that
    /// has none, a template that fails or refuses the folded conversation too.
    pub fn render(&self, conversation: &Conversation) -> Result<Prompt, Error> {
        self.write(conversation, Ending::Prompt)
    }

    /// Writes the conversation as it stands once its last turn has been said: what a model is trained on.
    ///
    /// The same as [`Self::render`], but asks for no next turn. Errors: as there.
    pub fn render_whole(&self, conversation: &Conversation) -> Result<Prompt, Error> {
        self.write(conversation, Ending::Whole)
    }

    fn write(&self, conversation: &Conversation, ending: Ending) -> Result<Prompt, Error> {
        match &self.form {
            Form::Instruct(version) => {
                let ids = instruct::render(*version, &self.tokenizer, conversation)?;
                let text = ids.iter().map(|&id| self.tokenizer.piece(id)).collect();
                Ok(Prompt { ids, text })
            }
            Form::Template { default, with_tools, .. } => {
                let template = with_tools.as_ref().filter(|_| !conversation.tools.is_empty()).unwrap_or(default);
                template.render(&self.tokenizer, conversation, ending)
            }
        }
    }
}

/// v2 and v3 have the same vocabulary but for names that some published files lack, so the file's name decides.
fn is_v2(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "v2")
}

//! Prompts: conversations in the model's format, tools among them, within the limits.

use octet_engine::TextStart;
use octet_tokenizer::{ChatFormat, Conversation, Message, Prompt, Role, Tool};
use serde_json::json;

use crate::ask::{Ask, Calls, Constraint};
use crate::caller::Ignored;
use crate::messages::ToolChoice;
use crate::models::Model;
use crate::noise;
use crate::refusal::{Fault, Refusal};
use crate::tool_calls::CallStyle;
use crate::tool_grammar;

/// Most probabilities of prompts' tokens in one answer: some 500 MB of JSON.
const MOST_ECHOED: usize = 4_000_000;

/// A conversation and how tools may be used in its answer.
#[derive(Debug, Default)]
pub struct Chat {
    /// From the first to the last.
    pub messages: Vec<Message>,
    /// What may be called.
    pub tools: Vec<Tool>,
    /// Whether it may.
    pub choice: ToolChoice,
    /// One call at most.
    pub single: bool,
    /// Names of the functions whose calls have to follow their schemas.
    pub strict: Vec<String>,
    /// Where it is noted that noise was taken out of the system text.
    pub ignored: Ignored,
}

impl Model {
    /// Writes the prompt of a conversation; `ask` has then what its answer needs, the rest as in [`Ask::new`].
    ///
    /// # Errors
    /// The model has no chat format, or its format cannot express the conversation.
    pub fn chat(&self, mut chat: Chat) -> Result<(Ask, Prompt), Refusal> {
        let format = self.format.as_ref().map_err(|why| Refusal::field("messages", why.clone()))?;
        if noise::take_out(&mut chat.messages, &self.system_noise) {
            chat.ignored.add("noise in the system text");
        }
        let wants_tools = !chat.tools.is_empty() && chat.choice != ToolChoice::None;
        let is_continued = chat.messages.last().is_some_and(|last| last.prefix);
        let tools = if wants_tools { chat.tools.clone() } else { Vec::new() };
        let mut conversation = Conversation { messages: std::mem::take(&mut chat.messages), tools };
        let native = self.native_style();
        if native.is_none() {
            describe_tools(&mut conversation);
        }
        let refuse = |error: octet_tokenizer::Error| Refusal::field("messages", error.to_string());
        let mut prompt = format.render(&conversation).map_err(refuse)?;
        if has_names(&conversation) && names_say_nothing(format, conversation, &prompt) {
            chat.ignored.add("messages[].name");
        }
        let mut calls = None;
        let mut constraint = None;
        if wants_tools {
            let style = native.unwrap_or(CallStyle::Tagged);
            constraint = self.oblige(&mut prompt, style, &chat);
            calls = Some(Calls { style, choice: chat.choice, single: chat.single });
        }
        let start = if is_continued { TextStart::Continued } else { TextStart::Fresh };
        let ask = Ask { calls, constraint, ..Ask::new(prompt.ids.clone(), start) };
        Ok((ask, prompt))
    }

    /// How the model's own format writes calls; `None` if it has no place for tools.
    fn native_style(&self) -> Option<CallStyle> {
        let format = self.format.as_ref().ok()?;
        let marker = self.tokenizer.control_id("[TOOL_CALLS]");
        match (format.name(), marker) {
            // v1 has no tools, and its format says so; v2 and v3 have the marker.
            ("v1", _) => Some(CallStyle::Tagged),
            ("v2" | "v3", Some(id)) => Some(CallStyle::Marked(id)),
            _ => {
                let template = self.tokenizer.chat_template()?;
                if !template.contains("tools") {
                    return None;
                }
                Some(marker.map_or(CallStyle::Tagged, CallStyle::Marked))
            }
        }
    }

    /// Where a call is obliged, the prompt begins it and a schema holds the answer to it; where strict functions may be
    /// called, a grammar holds the calls, if there are any, to their schemas.
    fn oblige(&self, prompt: &mut Prompt, style: CallStyle, chat: &Chat) -> Option<Constraint> {
        let (tools, is_named): (Vec<&Tool>, bool) = match &chat.choice {
            ToolChoice::Named(name) => (chat.tools.iter().filter(|tool| tool.function.name == *name).collect(), true),
            ToolChoice::Required => (chat.tools.iter().collect(), false),
            ToolChoice::Auto if !chat.strict.is_empty() => {
                return Some(Constraint::Grammar(tool_grammar::grammar(&chat.tools, &chat.strict, style, chat.single)));
            }
            ToolChoice::Auto | ToolChoice::None => return None,
        };
        match style {
            CallStyle::Marked(id) => {
                prompt.ids.push(id);
                prompt.text.push_str(self.tokenizer.piece(id));
            }
            CallStyle::Tagged => {
                self.tokenizer.encode_into("<tool_call>\n", &mut prompt.ids);
                prompt.text.push_str("<tool_call>\n");
            }
        }
        Some(Constraint::JsonSchema(tool_grammar::forced(&tools, style, chat.single || is_named)))
    }

    /// Checks a request against the model and the limit on prompts.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self, ask: &Ask, most: Option<usize>) -> Result<(), Refusal> {
        for prompt in &ask.prompts {
            if prompt.is_empty() {
                return Err(Refusal::field("prompt", "the prompt is empty; give at least one token"));
            }
            if let Some(id) = prompt.iter().find(|&&id| id as usize >= self.facts.vocab_size) {
                let last = self.facts.vocab_size - 1;
                return Err(Refusal::field("prompt", format!("token {id} does not exist; ids go up to {last}")));
            }
            self.check_length("the prompt", prompt.len(), most)?;
        }
        if let Some(top) = ask.logprobs.filter(|_| ask.echo) {
            let told = ask.prompts.iter().map(Vec::len).sum::<usize>() * ask.n * (1 + top);
            if told > MOST_ECHOED {
                let message = format!(
                    "echo and logprobs would report {told} probabilities of prompts; a request may have {MOST_ECHOED}: ask for fewer answers, alternatives or prompts"
                );
                return Err(Refusal::field("logprobs", message));
            }
        }
        let has_bias = ask.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= self.facts.vocab_size);
        if let Some((id, _)) = has_bias {
            return Err(Refusal::field("logit_bias", format!("logit_bias of {id}: there is no such token")));
        }
        match ask.experts_per_token {
            Some(k) if k == 0 || k > self.facts.experts => Err(Refusal::field(
                "experts_per_token",
                format!("experts_per_token is {k}; {} has {} experts", self.name, self.facts.experts),
            )),
            _ => Ok(()),
        }
    }

    /// Checks that what has `n` tokens leaves room in the context, and is no longer than the limit.
    ///
    /// # Errors
    /// It does not; both counts.
    pub fn check_length(&self, what: &str, n: usize, most: Option<usize>) -> Result<(), Refusal> {
        let room = match (self.facts.context, most) {
            (context, _) if n >= context => format!("the context of {} only {context}", self.name),
            (_, Some(most)) if n > most => format!("this server takes {most}"),
            _ => return Ok(()),
        };
        Err(Refusal::new(Fault::ContextTooLong, format!("{what} has {n} tokens and {room}; shorten it")))
    }

    /// A prompt of these ids, for those who want to see it: the pieces joined, as in Mistral's chat formats.
    pub fn prompt_of(&self, ids: Vec<u32>) -> Prompt {
        let text = ids.iter().map(|&id| self.tokenizer.piece(id)).collect();
        Prompt { ids, text }
    }

    /// The ids of a text as a prompt of its own: with BOS, if the model has one.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos()).into_iter().collect();
        self.tokenizer.encode_into(text, &mut ids);
        ids
    }
}

/// Whether somebody who speaks is named; the name of a tool's result is its function's.
fn has_names(conversation: &Conversation) -> bool {
    conversation.messages.iter().any(|message| message.role != Role::Tool && message.name.is_some())
}

/// Whether the prompt is the same without the names of those who speak: many formats do not write them.
fn names_say_nothing(format: &ChatFormat, mut conversation: Conversation, prompt: &Prompt) -> bool {
    for message in conversation.messages.iter_mut().filter(|message| message.role != Role::Tool) {
        message.name = None;
    }
    format.render(&conversation).is_ok_and(|nameless| nameless.ids == prompt.ids)
}

/// For formats without a place for tools: describes them in a system message, and writes calls and results as text. The
/// words are those that most models of 2024 have seen.
fn describe_tools(conversation: &mut Conversation) {
    for message in &mut conversation.messages {
        match message.role {
            Role::Assistant => {
                for call in std::mem::take(&mut message.tool_calls) {
                    let arguments = serde_json::from_str(&call.function.arguments);
                    let arguments = arguments.unwrap_or(serde_json::Value::String(call.function.arguments));
                    let written = json!({"name": call.function.name, "arguments": arguments});
                    let gap = if message.content.is_empty() { "" } else { "\n" };
                    message.content.push_str(&format!("{gap}<tool_call>\n{written}\n</tool_call>"));
                }
            }
            Role::Tool => {
                *message = Message::user(format!("<tool_response>\n{}\n</tool_response>", message.content));
            }
            Role::System | Role::User => {}
        }
    }
    if conversation.tools.is_empty() {
        return;
    }
    let listed: Vec<String> =
        std::mem::take(&mut conversation.tools).iter().map(|tool| json!(tool).to_string()).collect();
    let text = format!(
        "You may call functions. They are described here:\n<tools>\n{}\n</tools>\nTo call one, write\n<tool_call>\n\
         {{\"name\": the function's name, \"arguments\": an object}}\n</tool_call>",
        listed.join("\n")
    );
    match conversation.messages.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => conversation.messages.insert(0, Message::system(text)),
    }
}

impl Model {
    /// The prompt whose answer stands between two texts: `BOS [SUFFIX] after [PREFIX] before`.
    ///
    /// # Errors
    /// The model was not trained to fill.
    pub fn fill(&self, before: &str, after: &str) -> Result<Vec<u32>, Refusal> {
        let named = |token| self.tokenizer.control_id(token);
        let (Some(suffix), Some(prefix)) = (named("[SUFFIX]"), named("[PREFIX]")) else {
            let message = format!("{} cannot fill a middle: its vocabulary has no [SUFFIX] and [PREFIX]", self.name);
            return Err(Refusal::field("suffix", message));
        };
        let mut ids: Vec<u32> = self.tokenizer.bos().into_iter().chain([suffix]).collect();
        // The suffix goes on after what is to be filled in, so it gets no space of its own in front: as mistral-common
        // does it, encoded behind a character that is taken away again.
        let mark = self.tokenizer.encode("☺").len();
        ids.extend(self.tokenizer.encode(&format!("☺{after}")).into_iter().skip(mark));
        ids.push(prefix);
        self.tokenizer.encode_into(before, &mut ids);
        Ok(ids)
    }
}

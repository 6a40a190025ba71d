//! Chat templates: small Jinja programs that come with a model and write its prompts.
//!
//! They are strangers' programs, so they run in a box: no files, no includes, a budget of work and memory that grows
//! with the conversation, a limit on recursion. They see what transformers shows them (`messages`, `tools`,
//! `add_generation_prompt`, `bos_token`, …, `raise_exception`, `strftime_now`, `tojson` in Python's notation, Python's
//! methods of strings and dicts). User text is shielded, see [`super::shield`].

use super::conversation::{Conversation, Message, Role, Tool};
use super::fold::{Folded, fold};
use super::shield::{Shield, free_character};
use super::{Ending, date, python_json};
use crate::tokenizer::Spaces;
use crate::{Error, Prompt, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Work for any conversation: about two million steps of the template, or 128 MB written by it.
const BASE_FUEL: u64 = 2_000_000;
/// More work for each byte of the conversation, for templates that copy what they have written so far.
const FUEL_PER_BYTE: u64 = 16;
/// How deep macros, loops and nested values may go.
const RECURSION_LIMIT: usize = 100;
/// The longest template we compile; the longest published ones have some 20 kB.
const LONGEST_TEMPLATE_BYTES: usize = 1 << 20;

/// A template, ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    path: PathBuf,
}

const NAME: &str = "chat_template";

/// What `raise_exception` leaves behind, to be told from failures.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl Template {
    /// Compiles `source`; `path` is where it came from, for messages.
    pub(crate) fn new(source: &str, path: PathBuf) -> Result<Self, Error> {
        if source.len() > LONGEST_TEMPLATE_BYTES {
            let problem = format!("is longer than {LONGEST_TEMPLATE_BYTES} bytes");
            return Err(Error::Template { path, problem });
        }
        let mut environment = sandbox();
        if let Err(error) = environment.add_template_owned(NAME, without_generation_tags(source)) {
            return Err(Error::Template { path, problem: format!("does not compile: {}", one_line(&error)) });
        }
        Ok(Self { environment: Arc::new(environment), source: source.into(), path })
    }

    /// Writes the prompt. A conversation that the template refuses is offered again folded: first with one system
    /// message in front, then with the system text inside the first user turn.
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        ending: Ending,
    ) -> Result<Prompt, Error> {
        let attempt = |messages: &[Message]| self.attempt(tokenizer, messages, &conversation.tools, ending);
        let refusal = match attempt(&conversation.messages) {
            Err(Failure::Refused(refusal)) => refusal,
            outcome => return outcome.map_err(|failure| self.error(failure)),
        };
        let Folded { system, mut turns } = fold(conversation);
        let with_system: Vec<Message> =
            system.iter().map(|text| Message::system(text.as_str())).chain(turns.iter().cloned()).collect();
        if let Ok(prompt) = attempt(&with_system) {
            return Ok(prompt);
        }
        if let (Some(system), Some(first)) = (system, turns.first_mut()) {
            first.content = format!("{system}\n\n{}", first.content);
        }
        // What the template said of the conversation as it was given tells the user most.
        attempt(&turns).map_err(|_| self.error(Failure::Refused(refusal)))
    }

    fn error(&self, failure: Failure) -> Error {
        let problem = match failure {
            Failure::Refused(message) => format!("refuses this conversation: {message}"),
            Failure::Broken(problem) => problem,
        };
        Error::Template { path: self.path.clone(), problem }
    }

    fn attempt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: &[Tool],
        ending: Ending,
    ) -> Result<Prompt, Failure> {
        let parts = tokenizer.parts();
        let messages_json = json!(messages).to_string();
        let tools_json = json!(tools).to_string();
        let texts = [&*self.source, &messages_json, &tools_json];
        let free = |taken: &[char]| {
            free_character(&texts, taken).ok_or_else(|| Failure::Broken("uses up every private character".into()))
        };
        let sentinel = free(&[])?;
        let cut_mark = free(&[sentinel])?;
        let shield = Shield::new(tokenizer.controls(), &parts.vocabulary, sentinel);
        let (prefix, cut) = match messages.split_last() {
            Some((last, _)) if last.role == Role::Assistant && last.prefix => (Some(last), Some(cut_mark)),
            _ => (None, None),
        };
        let context = json!({
            "messages": messages.iter().map(|message| {
                let is_cut = prefix.is_some_and(|prefix| std::ptr::eq(prefix, message));
                message_json(message, &shield, cut.filter(|_| is_cut))
            }).collect::<Vec<_>>(),
            "tools": if tools.is_empty() { Value::Null } else { tools_value(tools, &shield) },
            "add_generation_prompt": prefix.is_none() && ending == Ending::Prompt,
            "bos_token": name_of(tokenizer, tokenizer.bos()),
            "eos_token": name_of(tokenizer, tokenizer.eos()),
            "unk_token": name_of(tokenizer, parts.specials.unknown),
            "pad_token": name_of(tokenizer, parts.specials.padding),
        });
        let fuel = BASE_FUEL + FUEL_PER_BYTE * (messages_json.len() + tools_json.len()) as u64;
        let mut rendered = self.run(context, fuel)?;
        if let Some(mark) = cut {
            let end = rendered.find(mark).ok_or_else(|| Failure::Broken("drops the answer to be continued".into()))?;
            rendered.truncate(end);
        }
        Ok(prompt_of(tokenizer, &shield, &rendered))
    }

    fn run(&self, context: Value, fuel: u64) -> Result<String, Failure> {
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).expect("added when compiled");
        template.render(minijinja::Value::from(Serde(context))).map_err(|error| match refusal_in(&error) {
            Some(refusal) => Failure::Refused(refusal),
            None if error.kind() == ErrorKind::OutOfFuel => Failure::Broken("does not come to an end".into()),
            None => Failure::Broken(format!("fails: {}", one_line(&error))),
        })
    }
}

/// Why a template gave no prompt.
enum Failure {
    /// It called `raise_exception`.
    Refused(String),
    /// Anything else.
    Broken(String),
}

/// The ids of a template's output, with one BOS in front and never two.
fn prompt_of(tokenizer: &Tokenizer, shield: &Shield, rendered: &str) -> Prompt {
    let mut ids = Vec::new();
    tokenizer.encode_parts(rendered, Spaces::OneAtMost, |part| shield.remove(part), &mut ids);
    if let Some(bos) = tokenizer.bos() {
        let written = ids.iter().take_while(|&&id| id == bos).count();
        if written > 1 {
            ids.drain(1..written);
        } else if written == 0 && tokenizer.adds_bos() {
            ids.insert(0, bos);
        }
    }
    Prompt { ids, text: shield.remove(rendered).into_owned() }
}

fn name_of(tokenizer: &Tokenizer, id: Option<u32>) -> Value {
    id.map_or(Value::Null, |id| tokenizer.piece(id).into())
}

/// A message as transformers hands it to templates: arguments of calls are objects, not text.
fn message_json(message: &Message, shield: &Shield, cut: Option<char>) -> Value {
    let mut content = shield.guard(&message.content);
    content.extend(cut);
    let mut json = Map::new();
    json.insert("role".into(), message.role.name().into());
    json.insert("content".into(), content.into());
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = serde_json::from_str(&call.function.arguments)
                .unwrap_or_else(|_| Value::String(call.function.arguments.clone()));
            let mut json = json!({"type": "function", "function": {
                "name": shield.guard(&call.function.name),
                "arguments": shield.guard_json(&arguments),
            }});
            if let Some(id) = &call.id {
                json["id"] = shield.guard(id).into();
            }
            json
        });
        json.insert("tool_calls".into(), calls.collect());
    }
    for (key, value) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if let Some(value) = value {
            json.insert(key.into(), shield.guard(value).into());
        }
    }
    Value::Object(json)
}

fn tools_value(tools: &[Tool], shield: &Shield) -> Value {
    shield.guard_json(&json!(tools))
}

/// An environment with nothing but what chat templates are promised.
fn sandbox() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters do not clash"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
    });
    environment.add_function("strftime_now", |format: String| date::now(&format));
    environment.add_filter("tojson", to_json);
    environment.add_filter("int", int_or_zero);
    environment.add_filter("float", float_or_zero);
    environment
}

/// `{% generation %}` marks the assistant's part for training in transformers; for prompts it means nothing.
fn without_generation_tags(source: &str) -> String {
    let mut source = source.to_owned();
    for (tag, neutral) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%", "{%-", "{%+"] {
            for close in ["%}", "-%}", "+%}"] {
                source = source.replace(&format!("{open} {tag} {close}"), &format!("{open} {neutral} {close}"));
            }
        }
    }
    source
}

/// The `tojson` of transformers: Python's notation, without escapes for HTML.
fn to_json(state: &State, value: minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Templates name these only to say what is our default.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let json = plain_json(state, &value, 0)?;
    Ok(match indent {
        Some(spaces) => python_json::dumps_indented(&json, spaces.min(16)),
        None => python_json::dumps(&json),
    })
}

/// `value` as JSON; templates can nest values in themselves, so depth and work are bounded.
fn plain_json(state: &State, value: &minijinja::Value, depth: usize) -> Result<Value, minijinja::Error> {
    if depth > RECURSION_LIMIT {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson of a value nested too deep"));
    }
    state.consume_fuel(1)?;
    Ok(match value.kind() {
        ValueKind::Undefined | ValueKind::None => Value::Null,
        ValueKind::Map => {
            let mut entries = Map::new();
            for key in value.try_iter()? {
                entries.insert(key.to_string(), plain_json(state, &value.get_item(&key)?, depth + 1)?);
            }
            Value::Object(entries)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| plain_json(state, &item, depth + 1));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number => serde_json::to_value(value).unwrap_or(Value::Null),
        _ => Value::String(value.to_string()),
    })
}

/// Jinja's `int` takes what is no number for 0, and templates count on that to tell numbers from other text.
fn int_or_zero(
    state: &State,
    value: &minijinja::Value,
    default: Option<minijinja::Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<minijinja::Value, minijinja::Error> {
    let default = default_of(default, &options)?.unwrap_or_else(|| 0.into());
    minijinja::filters::int(state, value, Some(default), base, options)
}

/// The same for `float`.
fn float_or_zero(
    state: &State,
    value: &minijinja::Value,
    default: Option<minijinja::Value>,
    options: Kwargs,
) -> Result<minijinja::Value, minijinja::Error> {
    let default = default_of(default, &options)?.unwrap_or_else(|| 0.0.into());
    minijinja::filters::float(state, value, Some(default), options)
}

fn default_of(
    positional: Option<minijinja::Value>,
    options: &Kwargs,
) -> Result<Option<minijinja::Value>, minijinja::Error> {
    match positional {
        Some(value) => Ok(Some(value)),
        None => options.get("default"),
    }
}

fn refusal_in(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

/// What went wrong and in which line.
fn one_line(error: &minijinja::Error) -> String {
    let problem = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{problem} (line {line})"),
        None => problem,
    }
}

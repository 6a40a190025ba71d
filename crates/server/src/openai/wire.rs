//! Pieces of JSON that several of OpenAI's endpoints share.

use octet_tokenizer::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ask::{Ask, Wants};
use crate::ids;
use crate::piece::{End, Token, Usage};

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last event without choices tells the tokens.
    #[serde(default)]
    pub include_usage: bool,
    /// Read and done: events are never padded.
    #[serde(default, rename = "include_obfuscation")]
    pub _include_obfuscation: bool,
}

/// What all events of an answer have in common.
pub struct Head {
    /// Its id.
    pub id: String,
    /// When it began, seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What else is reported.
    pub wants: Wants,
    /// Whether probabilities are.
    pub logprobs: bool,
    /// The prompts, if they are wanted.
    prompts: Vec<Prompt>,
}

impl Head {
    /// The head of an answer that begins now; `prompts` are made and told if they are wanted.
    pub fn new(id_prefix: &str, model: &str, ask: &Ask, prompts: impl FnOnce() -> Vec<Prompt>) -> Head {
        Head {
            id: ids::long(id_prefix),
            created: ids::unix_s(),
            model: model.into(),
            wants: ask.wants,
            logprobs: ask.logprobs.is_some(),
            prompts: if ask.wants.prompt { prompts() } else { Vec::new() },
        }
    }

    /// An object of this kind, with the choices.
    pub fn object(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// What we report beyond OpenAI's fields; `None` if nobody asked and nothing is amiss.
    pub fn octet(&self, usage: &Usage, warnings: &[String], routing: &[Value]) -> Option<Value> {
        let mut octet = serde_json::Map::new();
        let prompt = match self.prompts.as_slice() {
            [] => None,
            [one] => Some(json!(one)),
            several => Some(json!(several)),
        };
        octet.extend(prompt.map(|prompt| ("prompt".to_owned(), prompt)));
        if self.wants.timings {
            octet.insert("timings".into(), usage.timings());
        }
        if !routing.is_empty() {
            octet.insert("routing".into(), json!(routing));
        }
        if !warnings.is_empty() {
            octet.insert("warnings".into(), json!(warnings));
        }
        (!octet.is_empty()).then_some(Value::Object(octet))
    }
}

/// `usage`.
pub fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    })
}

/// `finish_reason`.
pub fn finish_reason(end: &End) -> &'static str {
    match end {
        End::Eos | End::StopString(_) | End::NamedCall => "stop",
        End::Calls => "tool_calls",
        End::MaxTokens | End::ContextFull | End::Deadline => "length",
    }
}

/// `logprobs` of a chat's choice: `content`, one entry a token.
pub fn chat_logprobs(tokens: &[Token]) -> Value {
    let entry = |text: &str, bytes: &[u8], logprob: f32| json!({"token": text, "logprob": logprob, "bytes": bytes});
    let content = tokens.iter().map(|token| {
        let mut one = entry(&token.text, &token.bytes, token.logprob.unwrap_or(LEAST_LOGPROB));
        one["id"] = json!(token.id);
        let top = token.top.iter().map(|other| {
            let mut one = entry(&other.text, &other.bytes, other.logprob.max(LEAST_LOGPROB));
            one["id"] = json!(other.id);
            one
        });
        one["top_logprobs"] = top.collect();
        one
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// JSON has no infinity; OpenAI writes this for what is all but impossible.
pub const LEAST_LOGPROB: f32 = -9999.0;

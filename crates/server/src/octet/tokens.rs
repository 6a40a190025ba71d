//! `/tokenize` and `/detokenize`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::app::{Shared, text_work};
use crate::fields::{Body, fields};
use crate::messages;
use crate::prompt::Chat;
use crate::refusal::Refusal;

fields! {
    /// A text, or a conversation.
    pub struct TokenizeFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// The text.
        content: String,
        /// The same by vLLM's name.
        prompt: String,
        /// A conversation, in the model's format, in place of a text.
        messages: Vec<Value>,
        /// Functions that may be called.
        tools: Vec<Value>,
        /// Put BOS before a text, if the model has it; true if absent.
        add_special: bool,
        /// Give each token's text too.
        with_pieces: bool,
    }
}

/// The ids of a text or a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn tokenize(State(app): State<Shared>, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: TokenizeFields = body.read()?;
    let ignored = body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    let writer = model.clone();
    let tools = messages::tools(fields.tools.unwrap_or_default())?;
    let messages = fields.messages.map(messages::read).transpose()?;
    let text = fields.content.or(fields.prompt);
    let has_bos = fields.add_special.unwrap_or(true);
    let (ids, prompt) = text_work(move || match (messages, text) {
        (Some(messages), None) => {
            let (_, prompt) = writer.chat(Chat { messages, tools, ignored, ..Chat::default() })?;
            Ok((prompt.ids, Some(prompt.text)))
        }
        (None, Some(text)) if has_bos => Ok((writer.encode(&text), None)),
        (None, Some(text)) => Ok((writer.tokenizer.encode(&text), None)),
        _ => Err(Refusal::field("content", "give either content, which is a text, or messages")),
    })
    .await?;
    let mut answer = json!({"count": ids.len(), "max_model_len": model.facts.context});
    if fields.with_pieces == Some(true) {
        answer["pieces"] = ids.iter().map(|&id| json!(model.tokenizer.piece(id))).collect();
    }
    if let Some(prompt) = prompt {
        answer["prompt"] = json!(prompt);
    }
    answer["tokens"] = json!(ids);
    Ok(Json(answer))
}

fields! {
    /// Ids.
    pub struct DetokenizeFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// The ids.
        tokens: Vec<u32>,
    }
}

/// The text of ids.
///
/// # Errors
/// An id that the vocabulary does not have.
pub async fn detokenize(State(app): State<Shared>, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: DetokenizeFields = body.read()?;
    body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    let ids = fields.tokens.ok_or_else(|| Refusal::field("tokens", "tokens is required"))?;
    if let Some((place, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= model.tokenizer.vocab_size()) {
        let last = model.tokenizer.vocab_size() - 1;
        return Err(Refusal::field(
            format!("tokens[{place}]"),
            format!("token {id} does not exist; ids go up to {last}"),
        ));
    }
    let text = model.tokenizer.decode(&ids);
    Ok(Json(json!({"content": text, "prompt": text})))
}

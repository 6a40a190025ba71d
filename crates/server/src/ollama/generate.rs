//! `/api/generate`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_engine::TextStart;
use octet_tokenizer::Message;
use serde_json::Value;

use super::lines::{Kind, Lines};
use super::options;
use crate::app::{Shared, text_work};
use crate::ask::Ask;
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::on_demand::{self, Held};
use crate::prompt::Chat;
use crate::refusal::Refusal;
use crate::stream;

fields! {
    /// A prompt in Ollama's words.
    pub struct GenerateFields {
        /// Name or alias of a model.
        model: String,
        /// A user's message, or with `raw` a text to continue; empty to see whether the model is there.
        prompt: String,
        /// The text after the answer: the model fills the middle, if it was trained to.
        suffix: String,
        /// A system message; not for `raw`, and without effect where a middle is filled or the model has no chat format.
        system: String,
        /// Continue the prompt as it is, in no chat format.
        raw: bool,
        /// `json` or a JSON schema.
        format: Value,
        /// Sampling and limits.
        options: Value,
        /// False for one object; lines if absent.
        stream: bool,
        /// 0 to let go of the model after the answer, unless others use it; other times change nothing, since models stay.
        keep_alive: Value,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("template", &[], "the model's own template is used; render it yourself and send it with raw"),
    ("context", &[], "send the conversation to /api/chat"),
    ("images", &[], "this model reads text only"),
];

/// Continues a prompt, or answers it as a user's message.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let mut fields: GenerateFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.unsupported(super::chat::UNSUPPORTED)?;
    body.finish()?;
    let name = fields.model.take().ok_or_else(|| Refusal::field("model", "model is required"))?;
    let prompt = fields.prompt.take().unwrap_or_default();
    let afterwards = options::keep_alive(fields.keep_alive.as_ref(), &caller.ignored)?;
    if prompt.is_empty() && fields.suffix.is_none() {
        return super::models::touch(
            &app,
            Lines::new(Kind::Generate, &name).without_effect(&caller.ignored),
            afterwards,
        )
        .await;
    }
    let system = fields.system.take().filter(|system| !system.is_empty());
    if fields.raw == Some(true) && system.is_some() {
        return Err(Refusal::unsupported("system", "with raw the prompt is all that the model is shown"));
    }
    let Held { model, using, load_time } = on_demand::held(&app.models, &name).await?;
    let (writer, suffix) = (model.clone(), fields.suffix.take());
    let ignored = caller.ignored.clone();
    let is_raw = fields.raw == Some(true) || writer.format.is_err();
    if system.is_some() && (is_raw || suffix.is_some()) {
        // As in Ollama, where a middle is filled, and where no format has a place for it.
        ignored.add("system");
    }
    let mut ask = text_work(move || match suffix {
        Some(suffix) => Ok(Ask::new(writer.fill(&prompt, &suffix)?, TextStart::Continued)),
        None if is_raw => Ok(Ask::new(writer.encode(&prompt), TextStart::Continued)),
        None => {
            let messages = system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect();
            Ok(writer.chat(Chat { messages, ignored, ..Chat::default() })?.0)
        }
    })
    .await?;
    options::apply(fields.options, &mut ask, &caller.ignored)?;
    ask.constraint = options::format(fields.format)?;
    let answer = app.answer(&caller, &model, &ask)?.using(using.then(afterwards));
    let lines = Lines::new(Kind::Generate, &name).after_load(load_time).without_effect(&caller.ignored);
    match fields.stream {
        Some(false) => Ok(Json(lines.whole(answer).await?).into_response()),
        _ => Ok(stream::respond(answer, lines, app.patience())),
    }
}

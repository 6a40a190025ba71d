//! `/v1/fim/completions`: code between a prompt and a suffix.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_engine::TextStart;

use crate::app::{Shared, text_work};
use crate::ask::Ask;
use crate::caller::{Caller, Dialect};
use crate::fields::{Body, Unsupported, fields};
use crate::openai::chat::max_tokens;
use crate::openai::chat_stream::{ChatWriter, whole_body};
use crate::openai::wire::{Head, StreamOptions};
use crate::refusal::Refusal;
use crate::settings::{OctetFields, SamplingFields};
use crate::stream;

fields! {
    /// What stands before and after.
    pub struct FimFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// The text before.
        prompt: String,
        /// The text after; may be empty.
        suffix: String,
        /// Most tokens of the answer; the context's end if absent.
        max_tokens: usize,
        /// Send the answer as it comes.
        stream: bool,
    }
}

const UNSUPPORTED: &[Unsupported] = &[("metadata", &["*"], "")];

/// Fills the middle.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let fields: FimFields = body.read()?;
    let sampling: SamplingFields = body.read()?;
    let octet: OctetFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    let (before, after) = (fields.prompt.unwrap_or_default(), fields.suffix.unwrap_or_default());
    let writer = model.clone();
    let ids = text_work(move || writer.fill(&before, &after)).await?;
    let mut ask = Ask::new(ids, TextStart::Continued);
    sampling.apply(&mut ask, Dialect::Mistral)?;
    octet.apply(&mut ask)?;
    ask.ending.max_tokens = max_tokens(fields.max_tokens)?;
    let answer = app.answer(&caller, &model, &ask)?;
    let head = Head::new("fim-", &model.name, &ask, || vec![model.prompt_of(ask.prompts[0].clone())]);
    if fields.stream == Some(true) {
        let writer = ChatWriter::new(head, Dialect::Mistral, StreamOptions::default(), String::new(), 1);
        return Ok(stream::respond(answer, writer, app.patience()));
    }
    Ok(axum::Json(whole_body(&head, Dialect::Mistral, "", stream::whole(answer).await?)).into_response())
}

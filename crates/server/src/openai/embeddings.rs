//! `/v1/embeddings`: the mean of a text's last hidden states, of length 1.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::app::{Shared, text_work};
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::limits::Place;
use crate::models::Model;
use crate::on_demand::Use;
use crate::refusal::Refusal;

fields! {
    /// Texts to embed.
    pub struct EmbeddingFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// A text, several, token ids, or several lists of them.
        input: Value,
        /// `float`, or `base64` for little-endian f32.
        encoding_format: String,
        /// Only the model's own width.
        dimensions: usize,
    }
}

const UNSUPPORTED: &[Unsupported] =
    &[("user", &["*"], ""), ("metadata", &["*"], ""), ("output_dtype", &["float"], "only floats are given")];

/// Most texts of a request, as in OpenAI's API.
const MAX_INPUTS: usize = 2048;
/// Texts that share the engine's passes: short ones would each read all weights for a few tokens.
const AT_ONCE: usize = 16;

/// Embeds texts.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: EmbeddingFields = body.read()?;
    // Mistral's name of the same field.
    body.unsupported(UNSUPPORTED)?;
    body.unsupported(&[("output_dimension", &[], "only the model's own width is given")])?;
    body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    if let Some(asked) = fields.dimensions.filter(|&n| n != model.facts.dim) {
        let message = format!("dimensions is {asked}; {} gives {} only", model.name, model.facts.dim);
        return Err(Refusal::field("dimensions", message));
    }
    let is_base64 = match fields.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Refusal::field(
                "encoding_format",
                format!("encoding_format {other:?} is neither float nor base64"),
            ));
        }
    };
    let Embedded { vectors, tokens } = embed(&app, &caller, &model, fields.input.unwrap_or(Value::Null)).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| {
        let embedding = if is_base64 { json!(base64_of(&vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.into_iter().enumerate().map(entry).collect();
    let usage = json!({"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens});
    Ok(Json(json!({"id": ids::long("embd-"), "object": "list", "data": data, "model": model.name, "usage": usage})))
}

/// Vectors of length 1, and the tokens that it took.
pub struct Embedded {
    /// One a text.
    pub vectors: Vec<Vec<f32>>,
    /// Of all texts.
    pub tokens: usize,
}

/// Embeds one text or several.
///
/// # Errors
/// No text, too many, or one that is too long.
pub async fn embed(app: &Shared, caller: &Caller, model: &Arc<Model>, input: Value) -> Result<Embedded, Refusal> {
    let inputs = read_inputs(input)?;
    if inputs.len() > MAX_INPUTS {
        return Err(Refusal::field("input", format!("{} texts; at most {MAX_INPUTS} in a request", inputs.len())));
    }
    let writer = model.clone();
    let all = text_work(move || {
        let encode = |input| match input {
            Input::Text(text) => writer.encode(&text),
            Input::Ids(ids) => ids,
        };
        Ok(inputs.into_iter().map(encode).collect::<Vec<_>>())
    })
    .await?;
    let tokens = all.iter().map(Vec::len).sum();
    for n in all.iter().map(Vec::len) {
        if n == 0 {
            return Err(Refusal::field("input", "a text of input is empty"));
        }
        model.check_length("a text of input", n, app.limits.prompt_tokens)?;
    }
    let _place = Place::take(caller.key.as_ref())?;
    let _using = Use::of(&app.models, model);
    let mut vectors = Vec::with_capacity(all.len());
    for several in all.chunks(AT_ONCE) {
        let running = several.iter().map(|ids| model.engine.embed(ids)).collect::<Result<Vec<_>, _>>()?;
        if let Some(key) = &caller.key {
            // Before they are there: who hangs up meanwhile has had them worked out all the same.
            key.meter.take_tokens(several.iter().map(Vec::len).sum());
        }
        for one in running {
            vectors.push(unit(one.wait().await?));
        }
    }
    app.metrics.count_embedding(&model.name, tokens);
    Ok(Embedded { vectors, tokens })
}

enum Input {
    Text(String),
    Ids(Vec<u32>),
}

fn read_inputs(input: Value) -> Result<Vec<Input>, Refusal> {
    let wrong =
        || Refusal::field("input", "input has to be a text, token ids, or a list of either, none of them empty");
    let ids = |items: &[Value]| {
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
        items.iter().map(id).collect::<Result<Vec<u32>, _>>().map(Input::Ids)
    };
    match input {
        Value::String(text) if !text.is_empty() => Ok(vec![Input::Text(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => Ok(vec![ids(&items)?]),
        Value::Array(items) if !items.is_empty() => {
            let one = |item: Value| match item {
                Value::String(text) if !text.is_empty() => Ok(Input::Text(text)),
                Value::Array(items) if !items.is_empty() => ids(&items),
                _ => Err(wrong()),
            };
            items.into_iter().map(one).collect()
        }
        _ => Err(wrong()),
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

fn base64_of(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

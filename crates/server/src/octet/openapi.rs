//! `/openapi.json`: all endpoints with their fields, for people and for programs that try to break them; `/docs` shows it.

use axum::Json;
use axum::response::Html;
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

use crate::anthropic::messages::{AnswerFields, ConversationFields};
use crate::mistral::fim::FimFields;
use crate::octet::state::LoadFields;
use crate::octet::tokens::{DetokenizeFields, TokenizeFields};
use crate::ollama::chat::OllamaChatFields;
use crate::ollama::embed::EmbedFields;
use crate::ollama::generate::GenerateFields;
use crate::ollama::models::ShowFields;
use crate::openai::chat::ChatFields;
use crate::openai::completions::CompletionFields;
use crate::openai::embeddings::EmbeddingFields;
use crate::openai::responses::ResponseFields;
use crate::openai::wire::StreamOptions;
use crate::settings::{OctetFields, SamplingFields};

/// Path, what it does, and the schema of its body by name.
const POSTS: [(&str, &str, &[&str]); 18] = [
    (
        "/v1/chat/completions",
        "Answer a conversation (OpenAI, Mistral)",
        &["ChatFields", "SamplingFields", "OctetFields"],
    ),
    ("/v1/completions", "Continue texts (OpenAI)", &["CompletionFields", "SamplingFields", "OctetFields"]),
    ("/v1/responses", "Answer a conversation (OpenAI's newer API)", &["ResponseFields"]),
    ("/v1/embeddings", "Embed texts (OpenAI, Mistral)", &["EmbeddingFields"]),
    ("/v1/fim/completions", "Fill the middle of a text (Mistral)", &["FimFields", "SamplingFields", "OctetFields"]),
    ("/v1/messages", "Answer a conversation (Anthropic)", &["ConversationFields", "AnswerFields"]),
    ("/v1/messages/count_tokens", "Count a conversation's tokens (Anthropic)", &["ConversationFields"]),
    ("/api/chat", "Answer a conversation (Ollama)", &["OllamaChatFields"]),
    ("/api/generate", "Answer or continue a text (Ollama)", &["GenerateFields"]),
    ("/api/embed", "Embed texts (Ollama)", &["EmbedFields"]),
    ("/api/show", "What a model is (Ollama)", &["ShowFields"]),
    ("/tokenize", "The ids of a text or a conversation", &["TokenizeFields"]),
    ("/detokenize", "The text of ids", &["DetokenizeFields"]),
    ("/octet/answers", "Begin an answer that goes on by itself", &["ChatFields", "SamplingFields", "OctetFields"]),
    ("/octet/plan", "Predict memory and speed", &[]),
    ("/octet/peers/{name}/chat/completions", "Ask a peer, in the words of OpenAI", &[]),
    ("/octet/models/{name}/load", "Open a model", &["LoadFields"]),
    ("/octet/models/{name}/unload", "Let go of a model", &[]),
];

const GETS: [(&str, &str); 19] = [
    ("/v1/models", "Models that answer"),
    ("/v1/models/{name}", "One model"),
    ("/api/tags", "Models, loaded or not (Ollama)"),
    ("/api/ps", "Models that are loaded (Ollama)"),
    ("/api/version", "Our version (Ollama)"),
    ("/health", "Whether every engine goes on with its work"),
    ("/ready", "Whether every model is loaded"),
    ("/metrics", "Numbers for Prometheus"),
    ("/octet/state", "Models, their engines, keys"),
    ("/octet/history", "Load, speed and latency of the last half hour"),
    ("/octet/logs", "The last requests and answers, without prompts"),
    ("/octet/plan", "What may be planned"),
    ("/octet/models/{name}/experts", "Tokens that each expert has seen"),
    ("/octet/peers", "Other servers whose models the page may compare"),
    ("/octet/conversations", "Conversations that are kept"),
    ("/octet/conversations/{id}", "One of them"),
    ("/octet/answers", "Answers that are being written"),
    ("/octet/answers/{id}", "Follow an answer"),
    ("/openapi.json", "This"),
];

const REST: [(&str, &str, &str); 3] = [
    ("/octet/conversations/{id}", "put", "Keep a conversation"),
    ("/octet/conversations/{id}", "delete", "Remove it"),
    ("/octet/answers/{id}", "delete", "Stop an answer"),
];

/// The document.
pub async fn document() -> Json<Value> {
    Json(build())
}

fn build() -> Value {
    let mut paths = serde_json::Map::new();
    for (path, summary, schemas) in POSTS {
        let parts: Vec<Value> =
            schemas.iter().map(|name| json!({"$ref": format!("#/components/schemas/{name}")})).collect();
        let status = if path == "/octet/answers" { "202" } else { "200" };
        let mut post = json!({"summary": summary, "responses": responses(status)});
        if !parts.is_empty() {
            let required = schemas != ["LoadFields"];
            post["requestBody"] =
                json!({"required": required, "content": {"application/json": {"schema": {"allOf": parts}}}});
        }
        add(&mut paths, path, "post", post);
    }
    for (path, summary) in GETS {
        add(&mut paths, path, "get", json!({"summary": summary, "responses": responses("200")}));
    }
    for (path, method, summary) in REST {
        let mut operation = json!({"summary": summary, "responses": responses("204")});
        if method == "put" {
            let object = json!({"type": "object"});
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": object}}});
        }
        add(&mut paths, path, method, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Octet", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    })
}

fn responses(good: &str) -> Value {
    json!({
        good: {"description": "The answer"},
        "4XX": {"description": "What is wrong with the request"},
        "5XX": {"description": "The model is not loaded, the server goes down, or a fault of ours"},
    })
}

fn add(paths: &mut serde_json::Map<String, Value>, path: &str, method: &str, mut operation: Value) {
    if let Some((_, rest)) = path.split_once('{') {
        let name = rest.split('}').next().unwrap_or_default();
        operation["parameters"] = json!([{"name": name, "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    let entry = paths.entry(path).or_insert_with(|| json!({}));
    entry[method] = operation;
}

fn schemas() -> Value {
    fn one<T: PartialSchema + ToSchema>() -> (String, Value) {
        (T::name().into_owned(), json!(T::schema()))
    }
    let list = [
        one::<ChatFields>(),
        one::<SamplingFields>(),
        one::<OctetFields>(),
        one::<StreamOptions>(),
        one::<CompletionFields>(),
        one::<ResponseFields>(),
        one::<EmbeddingFields>(),
        one::<FimFields>(),
        one::<ConversationFields>(),
        one::<AnswerFields>(),
        one::<OllamaChatFields>(),
        one::<GenerateFields>(),
        one::<EmbedFields>(),
        one::<ShowFields>(),
        one::<TokenizeFields>(),
        one::<DetokenizeFields>(),
        one::<LoadFields>(),
    ];
    Value::Object(list.into_iter().collect())
}

/// The document for people: every endpoint, and each of its fields.
pub async fn docs() -> Html<String> {
    let document = build();
    let mut html = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Octet: the APIs</title><style>body{font:16px/1.6 system-ui;max-width:72ch;margin:2em auto;padding:0 1em;\
         color-scheme:light dark}code{font-size:.95em}dt{margin-top:.4em}dd{margin-left:1.5em}</style>\
         <h1>Octet: the APIs</h1><p>The same for programs: <a href=/openapi.json>openapi.json</a>.",
    );
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            html.push_str(&format!("<h2><code>{} {path}</code></h2><p>{summary}", method.to_uppercase()));
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["allOf"];
            for part in schema.as_array().into_iter().flatten() {
                let name = part["$ref"].as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
                html.push_str(&fields_html(&document["components"]["schemas"][name]));
            }
        }
    }
    Html(html)
}

fn fields_html(schema: &Value) -> String {
    let field = |(name, field): (&String, &Value)| {
        let text = field["description"].as_str().unwrap_or_default().replace('<', "&lt;");
        format!("<dt><code>{name}</code><dd>{text}")
    };
    let fields: String = schema["properties"].as_object().into_iter().flatten().map(field).collect();
    format!("<dl>{fields}</dl>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_has_a_schema_with_fields() {
        let document = build();
        for (path, _, names) in POSTS {
            for name in names {
                let fields = document["components"]["schemas"][name]["properties"].as_object();
                assert!(fields.is_some_and(|fields| !fields.is_empty()), "{path}: {name}");
            }
        }
    }
}

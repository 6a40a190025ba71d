//! Which path leads where.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::app::Shared;
use crate::octet::{answers, conversations, history, journal, openapi, page, peers, probes, state, tokens};
use crate::{anthropic, enter, mistral, ollama, openai};

/// All routes, with the door around them.
pub fn routes(app: &Shared) -> Router {
    Router::new()
        .merge(apis())
        .merge(own())
        .fallback(enter::nowhere)
        .layer(from_fn_with_state(app.clone(), enter::enter))
        .with_state(app.clone())
}

fn apis() -> Router<Shared> {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/responses", post(openai::responses::handle))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*name}", get(openai::models::one))
        .route("/v1/fim/completions", post(mistral::fim::handle))
        .route("/v1/messages", post(anthropic::messages::handle))
        .route("/v1/messages/count_tokens", post(anthropic::messages::count))
        .route("/api/chat", post(ollama::chat::handle))
        .route("/api/generate", post(ollama::generate::handle))
        .route("/api/embed", post(ollama::embed::handle))
        .route("/api/embeddings", post(ollama::embed::handle))
        .route("/api/tags", get(ollama::models::tags))
        .route("/api/ps", get(ollama::models::running))
        .route("/api/show", post(ollama::models::show))
        .route("/api/version", get(ollama::models::version))
}

fn own() -> Router<Shared> {
    Router::new()
        .route("/", get(page::root))
        .route("/assets/{*name}", get(page::asset))
        .route("/favicon.svg", get(page::icon))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::docs))
        .route("/octet/state", get(state::state))
        .route("/octet/history", get(history::history))
        .route("/octet/logs", get(journal::logs))
        .route("/octet/plan", get(state::plan_choices).post(state::plan))
        .route("/octet/models/{name}/experts", get(state::experts))
        .route("/octet/models/{name}/load", post(state::load))
        .route("/octet/models/{name}/unload", post(state::unload))
        .route("/octet/conversations", get(conversations::list))
        .route(
            "/octet/conversations/{id}",
            get(conversations::get).put(conversations::put).delete(conversations::delete),
        )
        .route("/octet/peers", get(peers::list))
        .route("/octet/peers/{name}/chat/completions", post(peers::chat))
        .route("/octet/answers", get(answers::list).post(answers::begin))
        .route("/octet/answers/{id}", get(answers::attach).delete(answers::stop))
}

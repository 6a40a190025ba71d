//! What stands at the root: the page for browsers, Ollama's words for its clients.

use axum::extract::Path;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use crate::refusal::Refusal;

/// A file of the page, or none if this binary was built without it.
fn file(_path: &str) -> Option<(&'static [u8], &'static str)> {
    None
}

/// `/`.
pub async fn root(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accepts.contains("text/html") {
        return "Ollama is running".into_response();
    }
    match file("index.html") {
        Some((bytes, media)) => ([(header::CONTENT_TYPE, media)], bytes).into_response(),
        None => axum::response::Html(WITHOUT_PAGE).into_response(),
    }
}

/// `/assets/…`.
///
/// # Errors
/// There is none of that name.
pub async fn asset(Path(name): Path<String>) -> Result<Response, Refusal> {
    let (bytes, media) = file(&format!("assets/{name}")).ok_or_else(|| Refusal::not_found("no such file"))?;
    // Their names hold a hash of what they are.
    let forever = "public, max-age=31536000, immutable";
    Ok(([(header::CONTENT_TYPE, media), (header::CACHE_CONTROL, forever)], bytes).into_response())
}

const WITHOUT_PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Octet</title>\
    <body style='font:16px/1.6 system-ui;max-width:68ch;margin:4em auto;padding:0 1em'>\
    <h1>Octet is running</h1><p>This binary was built without the page. The APIs answer all the same: \
    <a href=/docs>what they take</a>, <a href=/v1/models>models</a>, <a href=/metrics>metrics</a>.";

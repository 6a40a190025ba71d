//! What stands at the root: the page for browsers, Ollama's words for its clients.
//!
//! The page is embedded when this crate is compiled (`build.rs`). It asks no other host for anything, and its policy
//! keeps it from doing so whatever a model writes: no foreign scripts, styles, pictures or connections.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::refusal::Refusal;

/// A file of the page.
struct File {
    name: &'static str,
    bytes: &'static [u8],
    /// The same, by gzip.
    packed: Option<&'static [u8]>,
}

/// All of them; none if there was no page when this was compiled.
static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/page_files.rs"));

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

/// `/`.
pub async fn root(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = match file("index.html") {
        _ if !accepts.contains("text/html") => "Ollama is running".into_response(),
        Some(page) => send(page, &headers, "no-cache"),
        None => axum::response::Html(WITHOUT_PAGE).into_response(),
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// `/assets/…`.
///
/// # Errors
/// There is none of that name.
pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    let file = file(&format!("assets/{name}")).ok_or_else(|| Refusal::not_found("no such file"))?;
    // Their names hold a hash of what they are.
    Ok(send(file, &headers, "public, max-age=31536000, immutable"))
}

/// `/favicon.svg`.
///
/// # Errors
/// This binary was built without the page.
pub async fn icon(headers: HeaderMap) -> Result<Response, Refusal> {
    let file = file("favicon.svg").ok_or_else(|| Refusal::not_found("no such file"))?;
    Ok(send(file, &headers, "public, max-age=86400"))
}

fn send(file: &'static File, headers: &HeaderMap, cache: &'static str) -> Response {
    let takes = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let packed = file.packed.filter(|_| takes.contains("gzip"));
    let mut response = (StatusCode::OK, packed.unwrap_or(file.bytes)).into_response();
    let mut put = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    put(header::CONTENT_TYPE, media(file.name));
    put(header::CACHE_CONTROL, cache);
    put(header::VARY, "accept-encoding");
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::REFERRER_POLICY, "no-referrer");
    put(header::CONTENT_SECURITY_POLICY, POLICY);
    if packed.is_some() {
        put(header::CONTENT_ENCODING, "gzip");
    }
    response
}

fn media(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

const WITHOUT_PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Octet</title>\
    <body style='font:16px/1.6 system-ui;max-width:68ch;margin:4em auto;padding:0 1em'>\
    <h1>Octet is running</h1><p>This binary was built without the page: that takes Node and npm, and make page. The APIs \
    answer all the same: <a href=/docs>what they take</a>, <a href=/v1/models>models</a>, <a href=/metrics>metrics</a>.";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn browsers_and_ollamas_clients_are_told_apart() {
        let plain = root(HeaderMap::new()).await;
        assert!(!plain.headers().contains_key(header::CONTENT_SECURITY_POLICY));
        let browser: HeaderMap = [(header::ACCEPT, HeaderValue::from_static("text/html,*/*"))].into_iter().collect();
        let page = root(browser).await;
        assert!(page.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
        // With and without the page this holds: what is listed is served, and what is not is not found.
        assert_eq!(page.headers().contains_key(header::CONTENT_SECURITY_POLICY), file("index.html").is_some());
        assert_eq!(asset(Path("nothing.js".into()), HeaderMap::new()).await.unwrap_err().status(), 404);
    }

    #[test]
    fn a_file_is_sent_packed_to_those_who_take_it() {
        static FILE: File = File { name: "assets/a.js", bytes: b"plain", packed: Some(b"packed") };
        let gzip: HeaderMap = [(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br"))].into_iter().collect();
        assert_eq!(send(&FILE, &gzip, "no-cache").headers()[header::CONTENT_ENCODING], "gzip");
        let plain = send(&FILE, &HeaderMap::new(), "no-cache");
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(plain.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    }
}

//! The door: every request gets an id and a dialect, shows its key, is counted, and if refused is told so in its own words.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::{App, Shared};
use crate::caller::{Caller, Dialect, Ignored};
use crate::ids;
use crate::keys::Key;
use crate::limits::Standing;
use crate::octet::journal::{Entry, is_poll};
use crate::origin;
use crate::refusal::{Fault, Refusal};

/// Paths that need no key: probes, and the page itself, which asks for the key it needs.
fn is_open(method: &Method, path: &str) -> bool {
    let is_page = path == "/" || path.starts_with("/assets/") || path == "/favicon.svg" || path == "/docs";
    matches!(*method, Method::GET | Method::HEAD) && (is_page || matches!(path, "/health" | "/ready" | "/openapi.json"))
        || *method == Method::OPTIONS
}

/// The middleware around all routes.
pub async fn enter(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let dialect = Dialect::of(request.uri(), request.headers());
    let request_id: Arc<str> = ids::long("req_").into();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut key = None;
    let ignored = Ignored::default();
    let page = origin::check(&app.origins, &request);
    let admitted = page.clone().and_then(|_| admit(&app, &request, &mut key));
    let origin = page.ok().flatten();
    let preflight = origin.as_ref().and_then(|_| origin::preflight(&request));
    let response = match (admitted, preflight) {
        (Err(refusal), _) => refusal.into_response(),
        (Ok(()), Some(preflight)) => preflight,
        (Ok(()), None) => {
            let (request_id, key, ignored) = (request_id.clone(), key.clone(), ignored.clone());
            request.extensions_mut().insert(Caller { dialect, started, request_id, key, ignored });
            let broken = || Refusal::internal("the server met a fault; its log tells where").into_response();
            caught(next.run(request)).await.unwrap_or_else(broken)
        }
    };
    let mut response = finish(response, dialect, &request_id);
    add_headers(response.headers_mut(), &request_id, key.as_deref());
    if let Ok(names) = HeaderValue::try_from(ignored.names().join(", "))
        && !names.is_empty()
    {
        response.headers_mut().insert("x-octet-ignored", names);
    }
    if let Some(origin) = origin {
        // Refusals too, so that the page can read why.
        origin::share(response.headers_mut(), origin);
    }
    let status = response.status().as_u16();
    app.metrics.count_http(dialect.name(), status);
    let key = key.as_ref().map(|key| key.name.as_str());
    let ms = started.elapsed().as_millis() as u64;
    if is_poll(&path) && status < 400 || status == StatusCode::NOT_MODIFIED.as_u16() {
        return response;
    }
    tracing::info!(
        request_id = &*request_id,
        method = method.as_str(),
        path,
        dialect = dialect.name(),
        key,
        status,
        ms,
        "request"
    );
    let (method, request_id) = (method.to_string(), request_id.to_string());
    app.journal.add(key.unwrap_or(Caller::NOBODY), Entry::Request { method, path, status, ms, request_id });
    response
}

/// What comes of `work`; `None` if it panics, which ends this request and no other.
async fn caught<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let poll = |context: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    };
    poll_fn(poll).await
}

/// Lets a request in, or says why not; `key` is the one that it shows.
fn admit(app: &App, request: &Request, key: &mut Option<Arc<Key>>) -> Result<(), Refusal> {
    let keys = app.keys();
    if keys.is_empty() {
        origin::check_host(request)?;
    }
    if keys.is_empty() || is_open(request.method(), request.uri().path()) {
        return Ok(());
    }
    let shown = shown_key(request.headers());
    let missing = "no API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'";
    let shown = shown.ok_or_else(|| Refusal::new(Fault::Unauthorized, missing))?;
    let found = keys.find(shown).ok_or_else(|| Refusal::new(Fault::Unauthorized, "this API key is not known here"))?;
    let found = key.insert(found);
    if request.method() == Method::POST { found.meter.take_request() } else { Ok(()) }
}

fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| text("x-api-key"))
}

/// Writes the body of a refusal, axum's own ones too.
fn finish(response: Response, dialect: Dialect, request_id: &str) -> Response {
    let refusal = match response.extensions().get::<Refusal>() {
        Some(refusal) => refusal.clone(),
        None => match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => Refusal::new(Fault::Method, "this path does not take this method"),
            _ => return response,
        },
    };
    let (status, body) = dialect.refuse(&refusal, request_id);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = (status, axum::Json(body)).into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        answer.headers_mut().insert(header::ALLOW, allow.clone());
    }
    if let Some(seconds) = refusal.retry_after_s {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal.fault == Fault::Unauthorized {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(refusal.fault, Fault::TooLarge | Fault::TooSlow) {
        // The rest of the body is still on its way; nobody will read it.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn add_headers(headers: &mut HeaderMap, request_id: &str, key: Option<&Key>) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", id.clone());
        headers.insert("request-id", id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let Some(key) = key else { return };
    for (what, standing) in ["requests", "tokens"].into_iter().zip(key.meter.standing()) {
        let Some(Standing { limit, remaining, reset_s }) = standing else { continue };
        let values = [("limit", limit.to_string()), ("remaining", remaining.to_string()), ("reset", pause(reset_s))];
        for (part, value) in values {
            let name = HeaderName::try_from(format!("x-ratelimit-{part}-{what}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// Seconds as `6m0s`.
fn pause(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    if seconds >= 60 { format!("{}m{}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") }
}

/// A path that leads nowhere.
pub async fn nowhere(request: Request<Body>) -> Refusal {
    Refusal::not_found(format!("there is nothing at {} {}", request.method(), request.uri().path()))
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use axum::Router;
    use tower::ServiceExt;

    use super::*;
    use crate::app::Limits;
    use crate::keys::Keys;
    use crate::metrics::Metrics;
    use crate::models::{LoadFailure, Models};
    use crate::octet::peers::Peers;
    use crate::routes::routes;

    #[tokio::test]
    async fn a_handler_that_panics_ends_its_own_request() {
        assert_eq!(caught(async { 1 }).await, Some(1));
        let late = async {
            tokio::task::yield_now().await;
            panic!("on purpose")
        };
        assert_eq!(caught::<()>(late).await, None);
    }

    /// A server without models, with one key, that pages of chat.example may call.
    fn server() -> Router {
        let no_model = LoadFailure { why: "there is none".into(), does_not_fit: false };
        let models = Models::new(vec![], vec![], vec![], Arc::new(move |_, _, _| Err(no_model.clone())));
        let models = Arc::new(models.unwrap());
        routes(&Arc::new(App {
            models: models.clone(),
            keys: RwLock::new(Arc::new(Keys::read(&["tester=secret".into()], None).unwrap())),
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new(models)),
            history: None,
            answers: Default::default(),
            peers: Peers::new(vec![]).unwrap(),
            journal: Arc::default(),
            samples: Default::default(),
            started: Instant::now(),
            planner: Arc::new(|_| Err("no plans".into())),
            log_text: false,
            origins: vec!["https://chat.example".into()],
        }))
    }

    /// Status and headers.
    async fn ask(method: &str, uri: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap) {
        let builder = Request::builder().method(method).uri(uri);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        let response = server().oneshot(builder.body(Body::empty()).unwrap()).await.unwrap();
        (response.status().as_u16(), response.headers().clone())
    }

    const FRIEND: (&str, &str) = ("origin", "https://chat.example");
    const STRANGER: (&str, &str) = ("origin", "https://evil.example");

    fn is_shared(headers: &HeaderMap) -> bool {
        let exposed = headers.get("access-control-expose-headers").and_then(|value| value.to_str().ok());
        assert!(!headers.contains_key("access-control-allow-credentials"));
        headers.get("access-control-allow-origin").is_some_and(|origin| origin == "https://chat.example")
            && headers.get("vary").is_some_and(|vary| vary == "origin")
            && exposed.is_some_and(|names| names.contains("x-request-id") && names.contains("x-ratelimit-reset-tokens"))
    }

    #[tokio::test]
    async fn a_browser_is_told_what_a_page_may_send() {
        let asks = [
            FRIEND,
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-stainless-os"),
        ];
        let (status, headers) = ask("OPTIONS", "/v1/chat/completions", &asks).await;
        assert_eq!((status, is_shared(&headers)), (204, true));
        assert_eq!(headers["access-control-allow-headers"], "authorization,x-stainless-os");
        assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
        assert!(headers.contains_key("access-control-max-age"));
        let broken = [FRIEND, ("access-control-request-method", "POST"), ("access-control-request-headers", "a b")];
        let (status, headers) = ask("OPTIONS", "/v1/models", &broken).await;
        assert_eq!((status, headers.get("access-control-allow-headers")), (204, None));
        // Without the question it is a request as any other.
        let (status, headers) = ask("OPTIONS", "/v1/models", &[FRIEND]).await;
        assert_eq!((status, is_shared(&headers)), (405, true));
        let (status, headers) = ask("OPTIONS", "/v1/models", &[STRANGER, asks[1]]).await;
        assert_eq!((status, headers.get("access-control-allow-origin")), (403, None));
    }

    #[tokio::test]
    async fn a_page_that_may_call_reads_answers_and_refusals() {
        let key = ("authorization", "Bearer secret");
        for (headers, expected) in [(&[FRIEND, key][..], 200), (&[FRIEND], 401)] {
            let (status, headers) = ask("GET", "/v1/models", headers).await;
            assert_eq!((status, is_shared(&headers)), (expected, true));
        }
        let (status, headers) = ask("GET", "/v1/models", &[STRANGER, key]).await;
        assert_eq!((status, headers.get("access-control-allow-origin"), headers.get("vary")), (403, None, None));
        // Our own page, by HTTP/2, and a program.
        let own = [("origin", "https://octet.example"), key];
        for (uri, headers) in [("https://octet.example/v1/models", &own[..]), ("/v1/models", &[key])] {
            let (status, headers) = ask("GET", uri, headers).await;
            assert_eq!((status, headers.get("access-control-allow-origin"), headers.get("vary")), (200, None, None));
        }
    }
}

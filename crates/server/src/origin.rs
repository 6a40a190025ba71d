//! Pages of other origins: which may call, and what browsers have to be told before they show a page an answer (CORS).

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::refusal::{Fault, Refusal};

/// Methods that some path of ours takes.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// Seconds that a browser may remember a preflight; Chrome's most.
const REMEMBERED_S: &str = "7200";
/// Headers that a page may read; browsers hide all others but the most common ones.
const EXPOSED: &str = "x-request-id, request-id, retry-after, etag, x-octet-ignored, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// The origin of the page that asks, if it is not ours but one of `allowed`; `None` for our own page, and for programs.
///
/// # Errors
/// A page of another origin may not use this server behind its user's back: browsers tell where a page is from.
pub fn check(allowed: &[String], request: &Request) -> Result<Option<HeaderValue>, Refusal> {
    let Some(value) = request.headers().get(header::ORIGIN) else { return Ok(None) };
    let origin = String::from_utf8_lossy(value.as_bytes());
    let own = host(request).is_some_and(|host| origin.split_once("://").is_some_and(|(_, of)| of == host));
    if own {
        return Ok(None);
    }
    if allowed.iter().any(|allowed| *allowed == origin || allowed == "*") {
        return Ok(Some(value.clone()));
    }
    Err(Refusal::new(Fault::Forbidden, format!("pages of {origin} may not call this server; allow them with --origin")))
}

/// Without keys only this machine may come in, and a page whose name was made to point here is not from this machine.
///
/// # Errors
/// The name by which the client knows us is another machine's.
pub fn check_host(request: &Request) -> Result<(), Refusal> {
    let Some(host) = host(request) else { return Ok(()) };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let is_here = name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if is_here || name.ends_with(".localhost") {
        return Ok(());
    }
    Err(Refusal::new(
        Fault::Forbidden,
        format!("the host {name} is not this machine; give keys to serve under that name"),
    ))
}

/// The name and port by which the client knows us. HTTP/2 puts them into the address, as `:authority`.
fn host(request: &Request) -> Option<&str> {
    match request.headers().get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => request.uri().authority().map(|authority| authority.as_str()),
    }
}

/// The answer to a browser that asks whether a page may send what it wants to; `None` for any other request.
pub fn preflight(request: &Request) -> Option<Response> {
    let asked = request.headers();
    if request.method() != Method::OPTIONS || !asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(REMEMBERED_S));
    // Clients of four APIs send many of their own, and a page that may call at all may send any.
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|names| are_names(names)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    Some(response)
}

/// Whether these are names of headers between commas.
fn are_names(list: &HeaderValue) -> bool {
    let is_name = |name: &[u8]| HeaderName::from_bytes(name.trim_ascii()).is_ok();
    list.as_bytes().split(|&byte| byte == b',').all(is_name)
}

/// Lets the browser show this answer to pages of `origin`.
pub fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    // A cache must not hand one origin what another one was allowed to see.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let builder = Request::builder().uri(uri);
        headers
            .iter()
            .fold(builder, |builder, (name, value)| builder.header(*name, *value))
            .body(Body::empty())
            .unwrap()
    }

    #[test]
    fn our_own_page_is_known_by_host_or_authority() {
        let none: &[String] = &[];
        let own = ("origin", "https://octet.example:8080");
        assert_eq!(check(none, &request("/", &[own, ("host", "octet.example:8080")])).unwrap(), None);
        assert_eq!(check(none, &request("https://octet.example:8080/", &[own])).unwrap(), None);
        assert!(check(none, &request("https://octet.example/", &[own])).is_err());
        assert!(check(none, &request("/", &[own])).is_err());
        assert_eq!(check(none, &request("/", &[])).unwrap(), None);
        assert!(check(none, &request("/", &[("origin", "null")])).is_err());
    }

    #[test]
    fn other_pages_come_in_if_they_are_named() {
        let asks = |allowed: &str, origin: &'static str| {
            let found = check(&[allowed.into()], &request("/", &[("origin", origin), ("host", "localhost")]));
            found.ok().flatten().map(|origin| origin.to_str().unwrap().to_owned())
        };
        assert_eq!(asks("https://chat.example", "https://chat.example").as_deref(), Some("https://chat.example"));
        assert_eq!(asks("*", "https://chat.example").as_deref(), Some("https://chat.example"));
        assert_eq!(asks("https://chat.example", "https://chat.example.evil"), None);
        assert_eq!(asks("https://chat.example", "http://chat.example"), None);
    }

    #[test]
    fn a_name_that_points_here_is_not_this_machine() {
        let is_here = |uri: &str, headers: &[(&str, &str)]| check_host(&request(uri, headers)).is_ok();
        assert!(is_here("/", &[("host", "localhost:8080")]) && is_here("/", &[("host", "[::1]:80")]));
        assert!(is_here("https://127.0.0.1:8080/", &[]) && is_here("https://a.localhost/", &[]));
        assert!(!is_here("/", &[("host", "evil.example")]) && !is_here("https://evil.example:8080/", &[]));
    }

    #[test]
    fn only_names_of_headers_are_echoed() {
        let echoed = |names: &'static str| are_names(&HeaderValue::from_static(names));
        assert!(echoed("authorization,content-type") && echoed("x-stainless-os, anthropic-version"));
        assert!(!echoed("") && !echoed("a,,b") && !echoed("a b") && !echoed("a: b"));
    }
}

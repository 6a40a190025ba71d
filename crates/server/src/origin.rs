//! Pages of other origins: which may call.

use axum::extract::Request;
use axum::http::{HeaderValue, header};

use crate::refusal::{Fault, Refusal};

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
}

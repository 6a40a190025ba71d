//! A client of one other server, named when ours was started: HTTP/1.1, one connection a request, TLS where the address says
//! `https`. It follows no redirects, so that nobody leads it elsewhere.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::tls;

/// Until there is a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// Where requests go.
pub struct Upstream {
    host: String,
    port: u16,
    /// What the `Host` header says.
    authority: String,
    /// What stands before `/models` and `/chat/completions`, as `/v1`.
    base: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Shown as `Authorization: Bearer`.
    key: Option<String>,
}

impl Upstream {
    /// The server at an address as OpenAI's clients take it: `https://HOST[:PORT][/PATH]`, where no path means `/v1`.
    ///
    /// # Errors
    /// A sentence, about an address or a key that cannot be.
    pub fn new(url: &str, key: Option<String>) -> Result<Upstream, String> {
        let wrong = || format!("{url} is no address: write it as https://HOST/v1 or http://HOST:PORT/v1");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|of| !of.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.query().is_some() {
            return Err(wrong());
        }
        if key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(format!("the key for {url} is empty, or holds what no key does"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        let base = match uri.path().trim_end_matches('/') {
            "" => "/v1".to_owned(),
            path => path.to_owned(),
        };
        let tls = match is_encrypted {
            true => Some((tls::client()?, ServerName::try_from(host.clone()).map_err(|_| wrong())?)),
            false => None,
        };
        Ok(Upstream { host, port, authority: authority.as_str().to_owned(), base, tls, key })
    }

    /// Sends a request and waits for the head of the response. `path` is behind the base.
    ///
    /// # Errors
    /// A clause that says why there is none: nobody listens, the certificate is not trusted, the connection broke.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, String> {
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let stream = connected.map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("it speaks no HTTP: {error}"))?;
        // It ends by itself when the response is read or dropped; what went wrong then shows there.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("octet/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "text/event-stream, application/json")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
        sender.send_request(request).await.map_err(|error| format!("the connection broke: {error}"))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|error| format!("no connection: {error}"))?;
        // As for our own readers: small pieces go out at once.
        let _ = tcp.set_nodelay(true);
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((config, name)) => {
                let connected = TlsConnector::from(config.clone()).connect(name.clone(), tcp).await;
                Box::new(connected.map_err(|error| format!("no TLS: {error}"))?)
            }
        })
    }
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_openais_clients_read_them() {
        let read = |url: &str| Upstream::new(url, None).map(|of| (of.host, of.port, of.base));
        assert_eq!(read("http://127.0.0.1:8080").unwrap(), ("127.0.0.1".into(), 8080, "/v1".into()));
        assert_eq!(read("http://a/v1/").unwrap(), ("a".into(), 80, "/v1".into()));
        assert_eq!(read("http://[::1]:81/x/openai").unwrap(), ("::1".into(), 81, "/x/openai".into()));
        for url in ["", "a:80", "ftp://a", "http://", "http://user:word@a", "http://a/v1?x=1", "http://a b"] {
            assert!(read(url).is_err(), "{url}");
        }
        assert!(Upstream::new("http://a", Some("two words".into())).is_err());
    }
}

//! `/octet/peers`: models of other servers, for the page to compare with ours.
//!
//! Whoever starts the server names them (`--peer`); nobody else can, so a request reaches no address but those. The page
//! speaks with us alone: we pass its question on with the peer's key, which no browser sees, and the answer back as it comes.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures_core::Stream;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::Shared;
use crate::fields;
use crate::openai;
use crate::refusal::{Fault, Refusal};
use crate::stream::{Out, events};
use crate::upstream::Upstream;

/// How long a peer may take to list its models.
const LISTING: Duration = Duration::from_secs(5);
/// How long a peer may say nothing: it may have a long prompt to read.
const SILENCE: Duration = Duration::from_secs(300);
/// Most bytes of a list of models, or of a refusal.
const MOST_BYTES: usize = 4 << 20;
/// Letters of a refusal that are passed on.
const REFUSAL_LETTERS: usize = 500;
/// Parts of an answer on their way to a reader that is behind.
const PARTS_AHEAD: usize = 64;

/// Another server, as it was named at the start.
#[derive(Clone, Debug)]
pub struct PeerOption {
    /// What the page calls it.
    pub name: String,
    /// Its address, as OpenAI's clients take it.
    pub url: String,
    /// Its key.
    pub key: Option<String>,
}

/// All of them.
#[derive(Default)]
pub struct Peers(Vec<(String, Arc<Upstream>)>);

impl Peers {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// A sentence, about a name that is there twice or an address that cannot be.
    pub fn new(options: Vec<PeerOption>) -> Result<Peers, String> {
        let mut peers: Vec<(String, Arc<Upstream>)> = Vec::new();
        for PeerOption { name, url, key } in options {
            if name.is_empty() || name.contains('/') || peers.iter().any(|(known, _)| *known == name) {
                return Err(format!(
                    "--peer {name}={url}: a peer's name is not empty, has no slash, and is there once"
                ));
            }
            let upstream = Upstream::new(&url, key).map_err(|why| format!("--peer {name}: {why}"))?;
            peers.push((name, Arc::new(upstream)));
        }
        Ok(Peers(peers))
    }

    fn get(&self, name: &str) -> Result<Arc<Upstream>, Refusal> {
        let found = self.0.iter().find(|(known, _)| known == name).map(|(_, upstream)| upstream.clone());
        found.ok_or_else(|| Refusal::not_found(format!("there is no peer {name}; peers are named by --peer")))
    }
}

/// All peers with the names of their models, or why they cannot be asked now.
pub async fn list(State(app): State<Shared>) -> Json<Value> {
    let ask = |(name, upstream): &(String, Arc<Upstream>)| {
        let upstream = upstream.clone();
        (name.clone(), tokio::spawn(async move { tokio::time::timeout(LISTING, models(&upstream)).await }))
    };
    let asked: Vec<_> = app.peers.0.iter().map(ask).collect();
    let mut peers = Vec::new();
    for (name, models) in asked {
        let models = match models.await {
            Ok(Ok(models)) => models,
            Ok(Err(_)) => Err(format!("no list of models within {} s", LISTING.as_secs())),
            Err(_) => Err("asking it failed".into()),
        };
        peers.push(match models {
            Ok(models) => json!({"name": name, "models": models}),
            Err(why) => {
                tracing::warn!(peer = name, why, "a peer lists no models");
                json!({"name": name, "models": [], "error": why})
            }
        });
    }
    Json(json!({"peers": peers}))
}

async fn models(upstream: &Upstream) -> Result<Vec<String>, String> {
    let response = upstream.send(Method::GET, "/models", Bytes::new()).await?;
    let status = response.status();
    let bytes = to_bytes(Body::new(response.into_body()), MOST_BYTES).await;
    let bytes = bytes.map_err(|_| "its list of models broke off".to_owned())?;
    if status != StatusCode::OK {
        return Err(format!("it answers {}: {}", status.as_u16(), words(&bytes)));
    }
    let list: Value = serde_json::from_slice(&bytes).map_err(|_| "its list of models is not JSON".to_owned())?;
    // Some servers give the list without an envelope.
    let list = list.get("data").unwrap_or(&list).as_array().ok_or("it gives no list of models")?;
    Ok(list.iter().filter_map(|model| Some(model.get("id")?.as_str()?.to_owned())).collect())
}

/// Passes a chat completion on to a peer, and its answer back.
///
/// # Errors
/// No such peer; a body that is no JSON object; 502 with the peer's own words if it cannot be reached or fails, 400 if it
/// finds something wrong with the request.
pub async fn chat(State(app): State<Shared>, Path(name): Path<String>, request: Request) -> Result<Response, Refusal> {
    let upstream = app.peers.get(&name)?;
    let body = fields::read(request, &app).await?;
    fields::Body::parse(&body)?;
    let sent = tokio::time::timeout(SILENCE, upstream.send(Method::POST, "/chat/completions", body)).await;
    let sent = sent.unwrap_or_else(|_| Err(format!("it has said nothing for {} s", SILENCE.as_secs())));
    let response = sent.map_err(|why| Refusal::new(Fault::Upstream, format!("{name} cannot be asked: {why}")))?;
    let status = response.status();
    if status != StatusCode::OK {
        let bytes = to_bytes(Body::new(response.into_body()), MOST_BYTES).await.unwrap_or_default();
        let fault = match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Fault::Invalid,
            _ => Fault::Upstream,
        };
        return Err(Refusal::new(fault, format!("{name} answers {}: {}", status.as_u16(), words(&bytes))));
    }
    let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
    tokio::spawn(pass_on(name, response.into_body(), sender, app.patience()));
    Ok(events(receiver, "text/event-stream; charset=utf-8"))
}

/// Gives an answer's bytes to its reader. Ends with the answer, with the reader, or with an event that says what broke.
async fn pass_on(name: String, body: Incoming, sender: mpsc::Sender<Bytes>, patience: Duration) {
    let mut parts = Body::new(body).into_data_stream();
    let broken = loop {
        let part = tokio::select! {
            () = sender.closed() => return,
            part = tokio::time::timeout(SILENCE, next(&mut parts)) => part,
        };
        match part {
            Ok(Some(Ok(bytes))) => match tokio::time::timeout(patience, sender.send(bytes)).await {
                Ok(Ok(())) => {}
                // The reader is gone, or takes nothing.
                Ok(Err(_)) | Err(_) => return,
            },
            Ok(None) => return,
            Ok(Some(Err(error))) => break format!("{name} broke off: {error}"),
            Err(_) => break format!("{name} has said nothing for {} s", SILENCE.as_secs()),
        }
    };
    let mut out = Out::default();
    // The event that broke off is ended first.
    out.text("\n\n");
    out.data(&openai::error::body(&Refusal::new(Fault::Upstream, broken)));
    let _ = tokio::time::timeout(patience, sender.send(out.take())).await;
}

async fn next(parts: &mut BodyDataStream) -> Option<Result<Bytes, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *parts).poll_next(context)).await
}

/// What a refusal says, in whichever of the usual forms, else its text.
fn words(bytes: &[u8]) -> String {
    let parsed: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let told = places.iter().find_map(|place| parsed.pointer(place)?.as_str());
    let text = String::from_utf8_lossy(bytes);
    told.unwrap_or(&text).trim().chars().take(REFUSAL_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_there_once() {
        let option = |name: &str| PeerOption { name: name.into(), url: "http://a".into(), key: None };
        let two = Peers::new(vec![option("a"), option("b")]).unwrap();
        assert!(two.get("b").is_ok() && two.get("http:").is_err());
        assert!(Peers::new(vec![option("a"), option("a")]).is_err());
        assert!(Peers::new(vec![option("a/b")]).is_err() && Peers::new(vec![option("")]).is_err());
    }

    #[test]
    fn refusals_are_told_in_the_peers_words() {
        assert_eq!(words(br#"{"error":{"message":"no such model","code":404}}"#), "no such model");
        assert_eq!(words(br#"{"detail":"Not Found"}"#), "Not Found");
        assert_eq!(words(b" Bad Gateway\n"), "Bad Gateway");
    }

    /// A server of one answer, which it breaks off.
    async fn broken() -> Upstream {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata: \r\n").await.unwrap();
        });
        Upstream::new(&format!("http://{address}"), None).unwrap()
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_ends_with_an_error() {
        let response = broken().await.send(Method::POST, "/chat/completions", "{}".into()).await.unwrap();
        let (sender, mut parts) = mpsc::channel(PARTS_AHEAD);
        pass_on("other".into(), response.into_body(), sender, Duration::from_secs(5)).await;
        let mut text = String::new();
        while let Some(part) = parts.recv().await {
            text.push_str(std::str::from_utf8(&part).unwrap());
        }
        assert!(text.starts_with("data: \n\ndata: {\"error\":") && text.contains("other broke off"), "{text}");
    }
}

//! A plain HTTP/1.1 client, one socket a request: what commands need to talk with a running server.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::socket::{Address, Socket};

/// Longer than any answer should take; a server that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(600);
/// How often a client that waits looks whether its user has had enough.
const LOOK: Duration = Duration::from_millis(100);
/// Most of a refusal, or of an answer that is no stream, that is read.
const MAX_BODY_BYTES: u64 = 16 << 20;

/// Where requests go.
#[derive(Clone)]
pub struct Server {
    address: Address,
    /// What the `Host` header says.
    authority: String,
    /// What stands before `/v1` in paths.
    base: String,
    key: String,
}

/// A request that has been sent.
pub struct Sent(pub Socket);

/// What comes back.
pub type Body = Box<dyn BufRead>;

impl Server {
    /// A server at `http://HOST:PORT` or `https://HOST`, perhaps with a path.
    ///
    /// # Errors
    /// Another scheme, or no host.
    pub fn new(url: &str, key: &str) -> anyhow::Result<Server> {
        let (is_encrypted, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => bail!("{url} is no server: write it as http://HOST:PORT or https://HOST"),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            _ => (authority, Some(if is_encrypted { 443 } else { 80 })),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_odd = |text: &str| text.contains(|c: char| c.is_control() || c == ' ');
        let (Some(port), false) = (port, host.is_empty() || is_odd(url) || is_odd(key)) else {
            bail!("{url} is no server: write it as http://HOST:PORT or https://HOST, and a key without spaces");
        };
        let base = format!("/{path}").trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Server { address: Address { host, port, is_encrypted }, authority: authority.into(), base, key: key.into() })
    }

    /// Posts JSON to a path such as `/v1/completions`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn post(&self, path: &str, body: &str) -> anyhow::Result<Sent> {
        self.send("POST", path, body)
    }

    /// The JSON at a path.
    ///
    /// # Errors
    /// Nobody listens there, or what comes is a refusal or no JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let body = self.send("GET", path, "")?.answer(None)?;
        serde_json::from_reader(body.take(MAX_BODY_BYTES)).with_context(|| format!("{path} is not JSON"))
    }

    fn send(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Sent> {
        let Server { address, authority, base, key } = self;
        let mut stream = Socket::connect(address)?;
        let authorization = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
        let length = body.len();
        stream.write_all(
            format!(
                "{method} {base}{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n{authorization}\
                 Accept: text/event-stream, application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .as_bytes(),
        )?;
        Ok(Sent(stream))
    }
}

impl Sent {
    /// Waits for the answer's head and gives its body. Reading ends with an error once `is_stopped` is set.
    ///
    /// # Errors
    /// A refusal, in the server's own words.
    pub fn answer(self, is_stopped: Option<Arc<AtomicBool>>) -> anyhow::Result<Body> {
        self.0.set_read_timeout(if is_stopped.is_some() { LOOK } else { SILENCE })?;
        let mut reader = BufReader::new(Wire { stream: self.0, is_stopped });
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut body: Body = match read_headers(&mut reader)? {
            Length::Chunks => Box::new(BufReader::new(Chunks { inner: reader, left: 0 })),
            Length::Bytes(length) => Box::new(reader.take(length)),
            Length::ToTheEnd => Box::new(reader),
        };
        if status != "200" {
            let mut text = Vec::new();
            // The words are a help, not a need.
            let _ = body.by_ref().take(1 << 16).read_to_end(&mut text);
            bail!("HTTP {status}: {}", refusal(&String::from_utf8_lossy(&text)));
        }
        Ok(body)
    }
}

/// How a body ends.
#[derive(Debug, PartialEq)]
enum Length {
    /// By an empty chunk.
    Chunks,
    /// After so many bytes.
    Bytes(u64),
    /// With the connection.
    ToTheEnd,
}

/// Reads headers up to the empty line.
fn read_headers(reader: &mut impl BufRead) -> anyhow::Result<Length> {
    let mut length = Length::ToTheEnd;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(length);
        }
        let header = header.to_ascii_lowercase();
        match header.split_once(':') {
            Some(("transfer-encoding", how)) if how.contains("chunked") => length = Length::Chunks,
            Some(("content-length", bytes)) if length == Length::ToTheEnd => {
                length = bytes.trim().parse().map_or(Length::ToTheEnd, Length::Bytes);
            }
            _ => {}
        }
    }
}

/// What a refusal says: the message that OpenAI's, FastAPI's or Ollama's form holds, else its text.
fn refusal(body: &str) -> String {
    let parsed: Value = serde_json::from_str(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let message = places.iter().find_map(|place| parsed.pointer(place).and_then(Value::as_str));
    message.unwrap_or(body).trim().chars().take(500).collect()
}

/// The events of a streamed answer, to its `[DONE]`. An event that is an error, or a stream that breaks off, is one.
pub fn events(body: Body) -> impl Iterator<Item = anyhow::Result<Value>> {
    let mut lines = body.lines();
    let mut is_over = false;
    std::iter::from_fn(move || {
        while !is_over {
            let event = match lines.next() {
                None => Some(Err(anyhow::anyhow!("the stream ended without [DONE]"))),
                Some(Err(error)) => Some(Err(error).context("the stream broke off")),
                Some(Ok(line)) => match line.strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => {
                        is_over = true;
                        None
                    }
                    data => data.map(event),
                },
            };
            is_over |= matches!(event, Some(Err(_)));
            if event.is_some() {
                return event;
            }
        }
        None
    })
}

fn event(data: &str) -> anyhow::Result<Value> {
    let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
    match event.get("error") {
        Some(error) => {
            bail!("{}", error.get("message").and_then(Value::as_str).map_or(error.to_string(), str::to_owned))
        }
        None => Ok(event),
    }
}

/// A socket whose reader may give up.
struct Wire {
    stream: Socket,
    is_stopped: Option<Arc<AtomicBool>>,
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        use std::io::ErrorKind::{ConnectionAborted, TimedOut, WouldBlock};
        let began = Instant::now();
        loop {
            match self.stream.read(out) {
                Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => {
                    if self.is_stopped.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                        return Err(std::io::Error::new(ConnectionAborted, "stopped"));
                    }
                    if began.elapsed() >= SILENCE {
                        return Err(std::io::Error::new(TimedOut, "the server says nothing any more"));
                    }
                }
                outcome => return outcome,
            }
        }
    }
}

/// The bytes of a chunked body.
struct Chunks<R> {
    inner: R,
    left: usize,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let mut line = String::new();
        while self.left == 0 {
            line.clear();
            if self.inner.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            if size.is_empty() {
                continue;
            }
            self.left = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let n = self.left.min(out.len());
        let n = self.inner.read(&mut out[..n])?;
        self.left -= n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let mut text = String::new();
        let bytes = &b"5\r\nhello\r\n7;x=1\r\n, world\r\n0\r\n\r\n"[..];
        Chunks { inner: bytes, left: 0 }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello, world");
    }

    #[test]
    fn addresses_may_have_a_path() {
        let base = |server| Server::new(server, "").unwrap().base;
        assert_eq!(base("http://a:1"), "");
        assert_eq!(base("http://a:1/v1"), "");
        assert_eq!(base("http://a:1/x/v1/"), "/x");
        let port = |server| Server::new(server, "").unwrap().address.port;
        assert_eq!(
            [port("https://a"), port("http://a/v1"), port("http://[::1]"), port("http://[::1]:3")],
            [443, 80, 80, 3]
        );
        for wrong in ["http://", "ftp://a", "a:80", "http://a:b", "https:// a"] {
            assert!(Server::new(wrong, "").is_err(), "{wrong}");
        }
    }

    #[test]
    fn bodies_end_as_their_headers_say() {
        let read = |mut headers: &'static [u8]| read_headers(&mut headers).unwrap();
        assert_eq!(read(b"A: b\r\nContent-Length: 12\r\n\r\n"), Length::Bytes(12));
        assert_eq!(read(b"Transfer-Encoding: chunked\r\nContent-Length: 12\r\n\r\n"), Length::Chunks);
        assert_eq!(read(b"A: b\r\n\r\n"), Length::ToTheEnd);
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        assert_eq!(refusal(r#"{"error":{"message":"no such model","code":404}}"#), "no such model");
        assert_eq!(refusal(r#"{"error":"no such model"}"#), "no such model");
        assert_eq!(refusal("Bad Gateway\n"), "Bad Gateway");
    }

    #[test]
    fn a_stream_ends_with_done_or_is_broken() {
        let read = |text: &'static str| events(Box::new(text.as_bytes())).collect::<Vec<_>>();
        let whole = read(": hello\n\ndata: {\"a\":1}\n\ndata:[DONE]\n\ndata: {}\n");
        assert!(whole.len() == 1 && whole[0].as_ref().unwrap()["a"] == 1);
        let broken = read("data: {\"a\":1}\n");
        assert!(broken.len() == 2 && broken[1].as_ref().unwrap_err().to_string().contains("[DONE]"));
        let failed = read("data: {\"error\":{\"message\":\"full\"}}\ndata: {}\n");
        assert!(failed.len() == 1 && failed[0].as_ref().unwrap_err().to_string() == "full");
    }
}

//! One request: plain HTTP/1.1 over a socket of its own, the answer as it comes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// Longer than any answer should take; a server that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a client reads no answer before it hangs up during its prompt.
const BEFORE_FIRST: Duration = Duration::from_millis(500);

/// What a request got.
pub struct Record {
    /// When it was due.
    pub due: Instant,
    /// When each piece of text came.
    pub times: Vec<Instant>,
    /// When it was over.
    pub end: Instant,
    /// As the server counts, else pieces.
    pub tokens: usize,
    /// As the server counts.
    pub prompt_tokens: usize,
    /// Of these, what the server had already.
    pub cached_tokens: usize,
    /// Why it failed.
    pub error: Option<String>,
}

/// When a client goes away, or what else it does at its eighth token.
#[derive(Clone, Copy)]
pub enum HangUp<'a> {
    /// It stays.
    Never,
    /// After so many tokens; 0: half a second after it has asked.
    After(usize),
    /// It stays, and counts itself here at its eighth token.
    Watch(&'a AtomicUsize),
}

/// Where requests go.
pub struct Call {
    host: String,
    path: String,
    key: String,
}

impl Call {
    /// A server at `http://HOST:PORT`, perhaps with a path.
    ///
    /// # Errors
    /// Another scheme.
    pub fn new(server: &str, key: &str) -> anyhow::Result<Call> {
        let Some(rest) = server.strip_prefix("http://") else {
            bail!("--server {server}: it has to begin with http://");
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let path = format!("/{path}");
        let path = format!("{}/v1/completions", path.trim_end_matches('/').trim_end_matches("/v1"));
        Ok(Call { host, path, key: key.into() })
    }

    /// Sends a body and reads the answer; every failure is a result.
    pub fn send(&self, body: &str, wanted: usize, due: Instant, hang_up: HangUp<'_>) -> Record {
        let (times, now) = (Vec::with_capacity(wanted), Instant::now());
        let mut record = Record { due, times, end: now, tokens: 0, prompt_tokens: 0, cached_tokens: 0, error: None };
        let outcome = self.exchange(body, &mut record, hang_up);
        record.end = Instant::now();
        record.error = match outcome {
            Err(error) => Some(format!("{error:#}")),
            Ok(Outcome::HungUp) => None,
            Ok(Outcome::Whole) => {
                record.tokens = if record.tokens == 0 { record.times.len() } else { record.tokens };
                (record.tokens < wanted).then(|| format!("{} tokens of {wanted}", record.tokens))
            }
        };
        record
    }

    fn exchange(&self, body: &str, record: &mut Record, hang_up: HangUp<'_>) -> anyhow::Result<Outcome> {
        let address = self.host.to_socket_addrs().ok().and_then(|mut all| all.next());
        let address = address.with_context(|| format!("there is no host {}", self.host))?;
        let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {}", self.host))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let (host, path, key, length) = (&self.host, &self.path, &self.key, body.len());
        stream.write_all(
            format!(
                "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAuthorization: Bearer {key}\r\n\
                 Accept: text/event-stream\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .as_bytes(),
        )?;
        if matches!(hang_up, HangUp::After(0)) {
            stream.set_read_timeout(Some(BEFORE_FIRST))?;
            // Whether something came or not, the client is gone afterwards.
            let _ = stream.read(&mut [0]);
            return Ok(Outcome::HungUp);
        }
        let mut reader = BufReader::new(stream);
        let is_chunked = read_head(&mut reader)?;
        let body: Box<dyn BufRead> =
            if is_chunked { Box::new(BufReader::new(Chunks::new(reader))) } else { Box::new(reader) };
        read_events(body, record, hang_up)
    }
}

enum Outcome {
    Whole,
    HungUp,
}

/// Reads status and headers; gives whether the body comes in chunks.
fn read_head(reader: &mut BufReader<TcpStream>) -> anyhow::Result<bool> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut is_chunked = false;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
        is_chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
    }
    if status != "200" {
        let mut text = String::new();
        // The words are a help, not a need.
        let _ = reader.by_ref().take(500).read_to_string(&mut text);
        bail!("HTTP {status}: {}", text.trim());
    }
    Ok(is_chunked)
}

fn read_events(body: Box<dyn BufRead>, record: &mut Record, hang_up: HangUp<'_>) -> anyhow::Result<Outcome> {
    for line in body.lines() {
        let line = line.context("the stream broke off")?;
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            return Ok(Outcome::Whole);
        }
        let now = Instant::now();
        let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
        if let Some(error) = event.get("error") {
            bail!("{error}");
        }
        count(&event, record);
        let has_text = event["choices"].as_array().is_some_and(|all| all.iter().any(|c| c["text"].as_str() > Some("")));
        if !has_text {
            continue;
        }
        record.times.push(now);
        match hang_up {
            HangUp::After(n) if record.times.len() >= n => return Ok(Outcome::HungUp),
            HangUp::Watch(streaming) if record.times.len() == 8 => {
                streaming.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
    bail!("the stream ended without [DONE]")
}

fn count(event: &Value, record: &mut Record) {
    let number = |place: &str| event.pointer(place).and_then(Value::as_u64).unwrap_or(0) as usize;
    if event["usage"].is_object() {
        record.tokens = number("/usage/completion_tokens");
        record.prompt_tokens = number("/usage/prompt_tokens");
        record.cached_tokens = number("/usage/prompt_tokens_details/cached_tokens");
    }
}

/// The bytes of a chunked body.
struct Chunks<R> {
    inner: R,
    left: usize,
}

impl<R: BufRead> Chunks<R> {
    fn new(inner: R) -> Chunks<R> {
        Chunks { inner, left: 0 }
    }
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
        Chunks::new(&b"5\r\nhello\r\n7;x=1\r\n, world\r\n0\r\n\r\n"[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello, world");
    }

    #[test]
    fn addresses_may_have_a_path() {
        let path = |server| Call::new(server, "").unwrap().path;
        assert_eq!(path("http://a:1"), "/v1/completions");
        assert_eq!(path("http://a:1/x/v1/"), "/x/v1/completions");
        assert!(Call::new("https://a", "").is_err());
    }
}

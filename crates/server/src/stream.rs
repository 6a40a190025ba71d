//! Answers on their way out: whole, or event by event, with signs of life while a prompt is read, and no patience for
//! readers that do not read.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::piece::{Piece, Whole};
use crate::refusal::Refusal;

/// Puts the pieces of an answer into a dialect's events.
pub trait Writer: Send + 'static {
    /// The content type.
    const MEDIA: &'static str = "text/event-stream; charset=utf-8";

    /// Events before the first piece.
    fn begin(&mut self, out: &mut Out);
    /// Events for a piece.
    fn piece(&mut self, piece: Piece, out: &mut Out);
    /// A sign of life, if the dialect has one: `(done, total)` tokens of the prompt.
    fn ping(&mut self, progress: (usize, usize), out: &mut Out) {
        out.text(&format!(": reading the prompt, {} of {} tokens\n\n", progress.0, progress.1));
    }
}

/// Bytes of events.
#[derive(Default)]
pub struct Out(Vec<u8>);

impl Out {
    /// `data: JSON`.
    pub fn data(&mut self, value: &Value) {
        self.text("data: ");
        self.json(value);
        self.text("\n\n");
    }

    /// `event: NAME` and `data: JSON`.
    pub fn event(&mut self, name: &str, value: &Value) {
        self.text("event: ");
        self.text(name);
        self.text("\n");
        self.data(value);
    }

    /// `JSON` and a line break.
    pub fn line(&mut self, value: &Value) {
        self.json(value);
        self.text("\n");
    }

    /// What there is, which is nothing afterwards.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }

    /// Text as it is.
    pub fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn json(&mut self, value: &Value) {
        serde_json::to_writer(&mut self.0, value).expect("a Vec takes all bytes, and keys are text");
    }
}

/// How often a stream shows that it lives, and how far its prompt is read, while no text comes.
const PING_EVERY: Duration = Duration::from_secs(2);
/// Events on their way to a reader that is behind.
const EVENTS_AHEAD: usize = 64;

/// Waits for the whole answer.
///
/// # Errors
/// If it breaks off.
pub async fn whole(mut answer: Answer) -> Result<Whole, Refusal> {
    let mut whole = Whole::of(answer.choices());
    while let Some(piece) = answer.next().await {
        match piece {
            Piece::Failed(refusal) => return Err(refusal),
            piece => whole.add(piece),
        }
    }
    Ok(whole)
}

/// Sends the answer as it comes. A reader that takes nothing for `patience` loses it, and one that hangs up too.
pub fn respond<W: Writer>(answer: Answer, writer: W, patience: Duration) -> Response {
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    tokio::spawn(pump(answer, writer, sender, patience));
    events(receiver, W::MEDIA)
}

/// A response of what comes out of a channel.
pub fn events(receiver: mpsc::Receiver<Bytes>, media: &'static str) -> Response {
    let mut response = Body::from_stream(Events(receiver)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that follow nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn pump<W: Writer>(mut answer: Answer, mut writer: W, sender: mpsc::Sender<Bytes>, patience: Duration) {
    let mut out = Out::default();
    writer.begin(&mut out);
    let mut progress = (0, answer.prompt_tokens());
    let mut ping_at = Instant::now() + PING_EVERY;
    loop {
        if !out.0.is_empty() {
            let bytes = out.take();
            ping_at = Instant::now() + PING_EVERY;
            match tokio::time::timeout(patience, sender.send(bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return tracing::warn!("a reader took nothing for {} s; its answer ends", patience.as_secs()),
            }
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            // Most of what comes while a prompt is read goes to no reader, so the time counts from the last bytes.
            piece = tokio::time::timeout_at(ping_at, answer.next()) => match piece {
                Ok(Some(piece)) => {
                    if let Piece::Reading { done, total } = piece {
                        progress = (done, total);
                    }
                    let is_over = matches!(piece, Piece::Failed(_));
                    writer.piece(piece, &mut out);
                    while !is_over && out.0.len() < 4096 {
                        // What is there already goes out in one write.
                        let Some(piece) = answer.next_now() else { break };
                        writer.piece(piece, &mut out);
                    }
                }
                Ok(None) if out.0.is_empty() => return,
                Ok(None) => {}
                Err(_) => writer.ping(progress, &mut out),
            }
        }
    }
}

/// The receiving end as a stream of bytes.
struct Events(mpsc::Receiver<Bytes>);

impl futures_core::Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ask::Ask;
    use crate::bridge::Event;
    use crate::caller::{Caller, Dialect};
    use crate::limits::Place;
    use crate::metrics::Metrics;
    use crate::models::{LoadFailure, Models};
    use crate::piece::{End, Usage};
    use crate::track::Track;

    /// Writes nothing but the end.
    struct Plain;

    impl Writer for Plain {
        fn begin(&mut self, _: &mut Out) {}

        fn piece(&mut self, piece: Piece, out: &mut Out) {
            if let Piece::Done(_) = piece {
                out.text("done");
            }
        }
    }

    /// The account of an answer that nobody reads.
    pub(crate) fn track() -> Track {
        let models = Models::new(
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Arc::new(|_, _, _| Err(LoadFailure { why: String::new(), does_not_fit: false })),
        )
        .unwrap();
        let caller = Caller {
            dialect: Dialect::OpenAi,
            started: std::time::Instant::now(),
            request_id: "id".into(),
            key: None,
            ignored: Default::default(),
        };
        Track::new(
            Arc::new(Metrics::new(Arc::new(models))),
            Arc::default(),
            &caller,
            "model",
            Place::take(None).unwrap(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_shows_how_far_its_prompt_is_read() {
        let (events, receiver) = mpsc::unbounded_channel();
        let ask = Ask::new(vec![1; 100], octet_engine::TextStart::Fresh);
        let (sender, mut bytes) = mpsc::channel(EVENTS_AHEAD);
        tokio::spawn(pump(Answer::new(&ask, receiver, Vec::new(), track()), Plain, sender, PING_EVERY));
        // Steps are shorter than the time after which a sign of life is due.
        for step in 1..=9 {
            events.send((0, Event::Reading { prompt: 0, done: 10 * step, cached: 0 })).unwrap();
            tokio::time::sleep(PING_EVERY / 4).await;
        }
        events.send((0, Event::End { end: End::Eos, usage: Usage::default() })).unwrap();
        let mut seen = Vec::new();
        while let Some(more) = bytes.recv().await {
            seen.push(String::from_utf8(more.to_vec()).unwrap());
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(
            seen[0].contains(" of 100 tokens") && seen[1].contains(" of 100 tokens") && seen[2] == "done",
            "{seen:?}"
        );
    }
}

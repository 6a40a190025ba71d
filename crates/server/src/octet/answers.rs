//! `/octet/answers`: answers that go on when their page goes away, and are there when it comes back.
//!
//! An answer is a log of events, those of a streamed chat completion. Any number of readers follow it, each from where it
//! likes (`?from=N`; every event bears its number as `id:`), so a page that was reloaded goes on where it was. Only DELETE
//! stops it. Logs of finished answers are kept for a while; with a data folder every log grows in a file there too, so that a
//! crash loses a second of it at most, and says at its end that it broke off.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::answer::Answer;
use crate::app::{Shared, text_work};
use crate::caller::{Caller, Dialect};
use crate::fields::Body;
use crate::ids;
use crate::openai;
use crate::openai::chat;
use crate::openai::chat_stream::ChatWriter;
use crate::openai::wire::{Head, StreamOptions};
use crate::piece::Piece;
use crate::refusal::{Fault, Refusal};
use crate::stream::{Out, Writer, events};

/// How long the log of a finished answer stays in memory.
const KEPT: Duration = Duration::from_secs(900);
/// Most logs in memory; the oldest finished ones leave first.
const MOST: usize = 512;
/// How often an answer that is being written is put into its file.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// The last line of a whole log.
const DONE: &str = "data: [DONE]\n\n";

/// All logs by id.
#[derive(Default)]
pub struct Answers(Mutex<HashMap<String, Arc<Log>>>);

/// One answer.
struct Log {
    key: String,
    model: String,
    started: Instant,
    events: Mutex<Vec<Bytes>>,
    /// Number of events, and whether there will be more.
    state: watch::Sender<(usize, bool)>,
    stop: tokio::sync::Notify,
    /// Whether its conversation was deleted, so that no file of it may appear any more.
    is_forgotten: AtomicBool,
}

impl Log {
    fn add(&self, out: &mut Out) {
        let bytes = out.take();
        if bytes.is_empty() {
            return;
        }
        let n = {
            let mut events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            events.push(bytes);
            events.len()
        };
        self.state.send_modify(|state| state.0 = n);
    }

    fn is_over(&self) -> bool {
        self.state.borrow().1
    }

    fn events(&self, from: usize) -> Vec<Bytes> {
        let events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        events.get(from..).unwrap_or_default().to_vec()
    }
}

impl Answers {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Log>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn insert(&self, id: &str, log: Arc<Log>) {
        let mut map = self.map();
        map.retain(|_, log| !log.is_over() || log.started.elapsed() < KEPT);
        if map.len() >= MOST {
            let over = map.iter().filter(|(_, log)| log.is_over());
            let oldest = over.min_by_key(|(_, log)| log.started).map(|(id, _)| id.clone());
            oldest.map(|id| map.remove(&id));
        }
        map.insert(id.to_owned(), log);
    }

    /// Waits until all answers are over and kept.
    pub async fn settled(&self) {
        let logs: Vec<_> = self.map().values().cloned().collect();
        for log in logs {
            // An error would mean that its sender has gone, and the log holds that.
            let _ = log.state.subscribe().wait_for(|state| state.1).await;
        }
    }

    /// Ends an answer whose conversation is gone, and keeps nothing of it.
    pub fn forget(&self, key: &str, id: &str) {
        let Some(log) = self.get(key, id) else { return };
        log.is_forgotten.store(true, Ordering::Relaxed);
        log.stop.notify_one();
        self.map().remove(id);
    }

    fn get(&self, key: &str, id: &str) -> Option<Arc<Log>> {
        self.map().get(id).filter(|log| log.key == key).cloned()
    }
}

/// Begins an answer; the body is that of a chat completion.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn begin(
    State(app): State<Shared>,
    caller: Caller,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let request = chat::read(&app, Dialect::OpenAi, body).await?;
    let answer = app.answer(&caller, &request.model, &request.ask)?;
    let head = Head::new("chatcmpl-", &request.model.name, &request.ask, || vec![request.prompt]);
    let id = ids::long("answer_");
    let options = StreamOptions { include_usage: true, ..StreamOptions::default() };
    let writer = ChatWriter::new(head, Dialect::OpenAi, options, String::new(), request.ask.choices());
    let log = Arc::new(Log {
        key: caller.name().to_owned(),
        model: request.model.name.clone(),
        started: Instant::now(),
        events: Mutex::default(),
        state: watch::Sender::new((0, false)),
        stop: tokio::sync::Notify::new(),
        is_forgotten: AtomicBool::new(false),
    });
    app.answers.insert(&id, log.clone());
    tokio::spawn(follow(app, id.clone(), answer, writer, log));
    Ok((StatusCode::ACCEPTED, Json(json!({"id": id}))))
}

async fn follow(app: Shared, id: String, mut answer: Answer, mut writer: ChatWriter, log: Arc<Log>) {
    let mut out = Out::default();
    writer.begin(&mut out);
    log.add(&mut out);
    let mut file = Kept { app, id, kept: 0 };
    let mut keep_at = Instant::now() + KEEP_EVERY;
    loop {
        let piece = tokio::select! {
            () = log.stop.notified() => {
                out.data(&json!({"choices": [], "octet": {"stopped": true}}));
                out.text(DONE);
                break;
            }
            piece = tokio::time::timeout_at(keep_at.into(), answer.next()) => piece,
        };
        match piece {
            Ok(Some(Piece::Reading { done, total })) => {
                out.data(&json!({"choices": [], "octet": {"reading": [done, total]}}))
            }
            // All layers of every token would double the log; the page lights the strongest.
            Ok(Some(Piece::Routing(routing))) => {
                out.data(&json!({"choices": [], "octet": {"experts": strongest(&routing)}}))
            }
            Ok(Some(piece)) => writer.piece(piece, &mut out),
            Ok(None) => break,
            Err(_) => {
                file.keep(&log).await;
                keep_at = Instant::now() + KEEP_EVERY;
            }
        }
        log.add(&mut out);
    }
    log.add(&mut out);
    // Over only once it is kept: when the server goes down it waits for that.
    file.keep(&log).await;
    log.state.send_modify(|state| state.1 = true);
}

/// The experts that weighed most for the last of some tokens, over all layers, as many as a layer chooses.
fn strongest(routing: &Value) -> Vec<u64> {
    let last = |of: &str| -> Vec<Vec<Value>> {
        let layers = routing[of].as_array().into_iter().flatten();
        layers
            .map(|tokens| tokens.as_array().and_then(|all| all.last()?.as_array().cloned()).unwrap_or_default())
            .collect()
    };
    let (experts, weights) = (last("experts"), last("weights"));
    let mut sums: Vec<(u64, f64)> = Vec::new();
    for (expert, weight) in experts.iter().flatten().zip(weights.iter().flatten()) {
        let (Some(expert), Some(weight)) = (expert.as_u64(), weight.as_f64()) else { continue };
        match sums.iter_mut().find(|(known, _)| *known == expert) {
            Some((_, sum)) => *sum += weight,
            None => sums.push((expert, weight)),
        }
    }
    sums.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    sums.into_iter().take(experts.first().map_or(0, Vec::len)).map(|(expert, _)| expert).collect()
}

/// The file of a log.
struct Kept {
    app: Shared,
    id: String,
    /// Events that are in it.
    kept: usize,
}

impl Kept {
    /// Adds what is new.
    async fn keep(&mut self, log: &Log) {
        let events = log.events(self.kept);
        if self.app.history.is_none() || events.is_empty() || log.is_forgotten.load(Ordering::Relaxed) {
            return;
        }
        self.kept += events.len();
        let (app, id, key) = (self.app.clone(), self.id.clone(), log.key.clone());
        let kept = text_work(move || match &app.history {
            Some(history) => history.keep_answer(&key, &id, &events.concat()),
            None => Ok(()),
        });
        if let Err(refusal) = kept.await {
            tracing::error!(error = refusal.message, "an answer is not kept");
        }
    }
}

/// Answers of the caller that are in memory.
pub async fn list(State(app): State<Shared>, caller: Caller) -> Json<Value> {
    let map = app.answers.map();
    let own = map.iter().filter(|(_, log)| log.key == caller.name());
    let list = own.map(|(id, log)| {
        let (events, is_over) = *log.state.borrow();
        json!({"id": id, "model": log.model, "events": events, "is_over": is_over,
            "seconds": log.started.elapsed().as_secs_f64()})
    });
    Json(json!({"answers": list.collect::<Vec<_>>()}))
}

/// Where a reader goes on.
#[derive(serde::Deserialize)]
pub struct From {
    /// Number of the first event that it wants.
    #[serde(default)]
    from: usize,
}

/// Follows an answer to its end.
///
/// # Errors
/// There is none of that id.
pub async fn attach(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Query(From { from }): Query<From>,
) -> Result<Response, Refusal> {
    let (sender, receiver) = mpsc::channel(64);
    match app.answers.get(caller.name(), &id) {
        Some(log) => drop(tokio::spawn(send_from(log, from, sender))),
        None => {
            let bytes = text_work(move || {
                let missing = || Refusal::not_found(format!("there is no answer {id}"));
                app.history.as_ref().ok_or_else(missing)?.kept_answer(caller.name(), &id)
            });
            let whole = whole(&bytes.await?);
            tokio::spawn(async move {
                for (number, event) in whole.split_inclusive("\n\n").enumerate().skip(from) {
                    if sender.send(numbered(number, event.as_bytes())).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    Ok(events(receiver, "text/event-stream; charset=utf-8"))
}

/// A log out of its file: if the server was stopped meanwhile it ends with an error that says so.
fn whole(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if !text.ends_with(DONE) {
        text.truncate(text.rfind("\n\n").map_or(0, |end| end + 2));
        let refusal = Refusal::new(Fault::Unavailable, "the server was stopped while it wrote this answer");
        let mut out = Out::default();
        out.data(&openai::error::body(&refusal));
        out.text(DONE);
        text.push_str(&String::from_utf8_lossy(&out.take()));
    }
    text
}

async fn send_from(log: Arc<Log>, mut from: usize, sender: mpsc::Sender<Bytes>) {
    let mut state = log.state.subscribe();
    loop {
        let is_over = state.borrow_and_update().1;
        for event in log.events(from) {
            if sender.send(numbered(from, &event)).await.is_err() {
                return;
            }
            from += 1;
        }
        if is_over {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

fn numbered(number: usize, event: &[u8]) -> Bytes {
    [format!("id: {number}\n").as_bytes(), event].concat().into()
}

/// Stops an answer; what there is of it stays.
///
/// # Errors
/// There is none of that id.
pub async fn stop(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    let missing = || Refusal::not_found(format!("there is no answer {id}"));
    app.answers.get(caller.name(), &id).ok_or_else(missing)?.stop.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_experts_are_those_of_the_last_token() {
        let routing = json!({
            "experts": [[[7, 6], [1, 2]], [[7, 6], [2, 3]], [[7, 6], [4, 1]]],
            "weights": [[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.7, 0.3]], [[0.9, 0.1], [0.5, 0.5]]],
        });
        // Of expert 1: 0.6 + 0.5, of 2: 0.4 + 0.7, of 4: 0.5.
        let mut strongest = strongest(&routing);
        strongest.sort_unstable();
        assert_eq!(strongest, [1, 2]);
    }

    #[test]
    fn a_log_that_broke_off_ends_with_an_error() {
        assert_eq!(whole(b"data: 1\n\ndata: [DONE]\n\n"), "data: 1\n\ndata: [DONE]\n\n");
        let cut = whole(b"data: 1\n\ndata: {\"half");
        assert!(cut.starts_with("data: 1\n\ndata: {\"error\":") && cut.ends_with(DONE), "{cut}");
        assert_eq!(cut.matches("half").count(), 0);
    }
}

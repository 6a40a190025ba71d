//! `/octet/logs`: the last lines of the log, for the page. Requests and answers as they end: who, what, how long; never a
//! prompt.

use std::collections::VecDeque;
use std::sync::Mutex;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::Shared;
use crate::caller::Caller;
use crate::ids;

/// Lines that are kept.
const MOST: usize = 1000;

/// The last lines.
#[derive(Default)]
pub struct Journal(Mutex<VecDeque<Line>>);

/// One line.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Milliseconds since 1970.
    at_ms: u64,
    /// Whose it is.
    key: String,
    #[serde(flatten)]
    what: Entry,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// A request was responded to; of a stream, its head.
    Request {
        /// `GET`, `POST` …
        method: String,
        /// Without what follows `?`.
        path: String,
        /// HTTP's.
        status: u16,
        /// Milliseconds.
        ms: u64,
        /// For whoever asks about it.
        request_id: String,
    },
    /// An answer ended.
    Answer {
        /// Whose words.
        model: String,
        /// `done`, `failed` or `cancelled`.
        outcome: &'static str,
        /// Why it failed.
        fault: Option<String>,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those that were not read again.
        cached_tokens: usize,
        /// Tokens of the answer.
        completion_tokens: usize,
        /// Milliseconds to the first token.
        first_token_ms: Option<u64>,
        /// Milliseconds in all.
        ms: u64,
        /// That of its request.
        request_id: String,
    },
}

/// Paths that a page asks for again and again; their lines would drown the others.
pub fn is_poll(path: &str) -> bool {
    matches!(
        path,
        "/health" | "/ready" | "/metrics" | "/octet/state" | "/octet/history" | "/octet/logs" | "/octet/conversations"
    ) || path.starts_with("/octet/models/") && path.ends_with("/experts")
}

impl Journal {
    /// Adds a line of this key's.
    pub fn add(&self, key: &str, what: Entry) {
        let mut lines = self.lines();
        if lines.len() == MOST {
            lines.pop_front();
        }
        lines.push_back(Line { at_ms: ids::unix_ms(), key: key.into(), what });
    }

    /// The last `n` lines, the newest last; of this key's, if one is named.
    fn last(&self, n: usize, key: Option<&str>) -> Vec<Line> {
        let lines = self.lines();
        let own = lines.iter().rev().filter(|line| key.is_none_or(|key| line.key == key));
        let mut last: Vec<Line> = own.take(n).cloned().collect();
        last.reverse();
        last
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, VecDeque<Line>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How much is wanted.
#[derive(Deserialize)]
pub struct Asked {
    /// Lines.
    #[serde(default = "enough")]
    lines: usize,
}

fn enough() -> usize {
    200
}

/// The last lines: of a server with keys, those of the caller's own.
pub async fn logs(State(app): State<Shared>, caller: Caller, Query(Asked { lines }): Query<Asked>) -> Json<Value> {
    let key = caller.key.as_ref().map(|_| caller.name());
    Json(json!({"lines": app.journal.last(lines.min(MOST), key)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> Entry {
        Entry::Request { method: "GET".into(), path: path.into(), status: 200, ms: 1, request_id: String::new() }
    }

    #[test]
    fn the_last_lines_are_kept_and_each_key_sees_its_own() {
        let journal = Journal::default();
        for i in 0..MOST + 5 {
            journal.add(if i % 2 == 0 { "alice" } else { "bob" }, request(&i.to_string()));
        }
        let all = journal.last(usize::MAX, None);
        assert_eq!(all.len(), MOST);
        let last = serde_json::to_value(all.last().unwrap()).unwrap();
        assert_eq!((&last["path"], &last["kind"]), (&json!("1004"), &json!("request")));
        assert!(journal.last(3, Some("bob")).iter().all(|line| line.key == "bob"));
        assert_eq!(journal.last(3, Some("bob")).len(), 3);
    }
}

//! `/octet/conversations`: JSON objects that the page keeps, each a plain file `DIR/conversations/KEY/ID.json`.
//!
//! The server does not look into them, but for a title and a time to list, and for a text that is looked for. A write replaces
//! the whole file, or nothing; with `If-Match` it is refused when somebody else has written in between.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::{Shared, text_work};
use crate::caller::Caller;
use crate::fields;
use crate::ids;
use crate::refusal::{Fault, Refusal};

/// Most conversations of a key.
const MOST: usize = 100_000;
/// Letters that are shown before what was found, and in all.
const FOUND_BEFORE: usize = 30;
const FOUND_LETTERS: usize = 120;

/// Where conversations are kept.
#[derive(Debug, Default)]
pub struct History {
    root: PathBuf,
    /// What stands in the list of each file, by its time and length: the list is asked for every few seconds.
    summaries: Mutex<HashMap<PathBuf, (SystemTime, u64, Value)>>,
    /// Held while a file is compared and replaced, so that of two writers one sees the other.
    writing: Mutex<()>,
}

impl History {
    /// In this folder, which is made when there is something to keep.
    pub fn at(data: &FilePath) -> History {
        History { root: data.to_owned(), ..History::default() }
    }

    /// The data folder.
    pub fn root(&self) -> &FilePath {
        &self.root
    }

    /// The folder that has one for each key.
    pub fn conversations(&self) -> PathBuf {
        self.root.join("conversations")
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.conversations().join(key)
    }

    /// What stands in the name of a file must not lead out of its folder.
    ///
    /// # Errors
    /// It would, or could.
    pub fn check_id(id: &str) -> Result<(), Refusal> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        match id.is_empty() || id.len() > 64 || !id.chars().all(is_plain) {
            true => Err(Refusal::field("id", "an id has 1 to 64 letters, digits, '-' or '_'")),
            false => Ok(()),
        }
    }

    fn file(&self, key: &str, id: &str) -> Result<PathBuf, Refusal> {
        History::check_id(id)?;
        Ok(self.folder(key).join(format!("{id}.json")))
    }

    /// The conversation with this id, and its tag.
    ///
    /// # Errors
    /// There is none.
    pub fn read(&self, key: &str, id: &str) -> Result<(Vec<u8>, String), Refusal> {
        let path = self.file(key, id)?;
        let bytes = std::fs::read(&path).map_err(|error| missing(&error, id))?;
        let tag = tag(&bytes);
        Ok((bytes, tag))
    }

    /// Writes it, beside and then over the old one.
    ///
    /// # Errors
    /// The disk, or `expected` is not what is there.
    pub fn write(&self, key: &str, id: &str, bytes: &[u8], expected: Option<&str>) -> Result<String, Refusal> {
        let path = self.file(key, id)?;
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(expected) = expected {
            let there = std::fs::read(&path).map(|old| tag(&old)).unwrap_or_default();
            if there != expected {
                return Err(Refusal::new(
                    Fault::Conflict,
                    "this conversation has been changed elsewhere; read it anew",
                ));
            }
        }
        let cannot = |error: std::io::Error| Refusal::internal(format!("cannot keep it: {error}"));
        make_folder(&self.folder(key)).map_err(cannot)?;
        let beside = path.with_extension(format!("{}.part", ids::short(8)));
        let written = std::fs::File::create(&beside).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| std::fs::rename(&beside, &path));
        if renamed.is_err() {
            // What is half written must not stay; if that fails too, the first error says why.
            let _ = std::fs::remove_file(&beside);
        }
        renamed.map_err(cannot)?;
        Ok(tag(bytes))
    }

    /// Of all conversations, or of those in which `search` stands, newest first.
    fn list(&self, key: &str, search: Option<&str>) -> Vec<Value> {
        let Ok(entries) = std::fs::read_dir(self.folder(key)) else { return Vec::new() };
        let search = search.map(str::to_lowercase);
        let one = |path: PathBuf| match &search {
            Some(text) => found(&path, text),
            None => self.summary(&path),
        };
        let mut list: Vec<Value> = entries.flatten().take(MOST).filter_map(|entry| one(entry.path())).collect();
        list.sort_by_key(|value| std::cmp::Reverse(value["changed_ms"].as_u64()));
        list
    }

    /// What the list shows of a file; `None` for what is no conversation.
    fn summary(&self, path: &FilePath) -> Option<Value> {
        let file = path.metadata().ok()?;
        let (time, length) = (file.modified().ok()?, file.len());
        let known = |map: &HashMap<PathBuf, (SystemTime, u64, Value)>| {
            map.get(path).filter(|known| (known.0, known.1) == (time, length)).map(|known| known.2.clone())
        };
        let summaries = || self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known(&summaries()) {
            return Some(known);
        }
        let (_, value) = read_summary(path)?;
        summaries().insert(path.to_owned(), (time, length, value.clone()));
        Some(value)
    }

    /// Removes it with its answers, of which it gives the ids.
    fn remove(&self, key: &str, id: &str) -> Result<Vec<String>, Refusal> {
        let (conversation, _) = self.read(key, id)?;
        std::fs::remove_file(self.file(key, id)?).map_err(|error| missing(&error, id))?;
        Ok(self.forget_answers(key, &conversation))
    }
}

/// Makes a folder for its owner alone: conversations are private.
///
/// # Errors
/// The disk.
pub fn make_folder(path: &FilePath) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn missing(error: &std::io::Error, id: &str) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::NotFound => Refusal::not_found(format!("there is no {id}")),
        _ => Refusal::internal(format!("cannot read {id}: {error}")),
    }
}

/// A conversation, and what the list shows of it.
fn read_summary(path: &FilePath) -> Option<(Value, Value)> {
    let id = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
    let changed = path.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let value: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let (title, model, changed_ms) = (value.get("title"), value.get("model"), changed.as_millis() as u64);
    let summary = json!({"id": id, "title": title, "model": model, "changed_ms": changed_ms});
    Some((value, summary))
}

/// The same of a file in which `text`, in small letters, stands, with the place.
fn found(path: &FilePath, text: &str) -> Option<Value> {
    let (value, mut summary) = read_summary(path)?;
    summary["found"] = json!(place_of(&value, "", text)?);
    Some(summary)
}

/// Looks for `text` in titles and contents, however deep; some words around it.
fn place_of(value: &Value, name: &str, text: &str) -> Option<String> {
    match value {
        Value::String(content) if matches!(name, "content" | "title" | "system") => {
            let small = content.to_lowercase();
            let letters_before = small[..small.find(text)?].chars().count();
            let start = letters_before.saturating_sub(FOUND_BEFORE);
            let around: String = content.chars().skip(start).take(FOUND_LETTERS).collect();
            Some(around.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        Value::Array(items) => items.iter().find_map(|item| place_of(item, name, text)),
        Value::Object(fields) => fields.iter().find_map(|(name, item)| place_of(item, name, text)),
        _ => None,
    }
}

/// Tells versions apart.
fn tag(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("\"{:016x}\"", hasher.finish())
}

fn none() -> Refusal {
    Refusal::not_found("this server keeps no conversations; start it without --no-history")
}

/// What is looked for.
#[derive(serde::Deserialize)]
pub struct Search {
    /// A text, in any case of letters.
    search: Option<String>,
}

/// All of the caller's, or those in which a text stands, newest first.
///
/// # Errors
/// The server keeps none.
pub async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Query(Search { search }): Query<Search>,
) -> Result<Json<Value>, Refusal> {
    text_work(move || {
        let list = app.history.as_ref().ok_or_else(none)?.list(caller.name(), search.as_deref());
        Ok(Json(json!({"conversations": list})))
    })
    .await
}

/// One of them, as it was put; 304 to whoever has this version.
///
/// # Errors
/// There is none.
pub async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (bytes, tag) = text_work(move || app.history.as_ref().ok_or_else(none)?.read(caller.name(), &id)).await?;
    let mut response = match headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes())
    {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
    };
    put_tag(response.headers_mut(), &tag);
    Ok(response)
}

/// Keeps it.
///
/// # Errors
/// It is no JSON object, or has changed in between.
pub async fn put(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let expected = request.headers().get(header::IF_MATCH).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let bytes = fields::read(request, &app).await?;
    fields::Body::parse(&bytes)?;
    let tag = text_work(move || {
        app.history.as_ref().ok_or_else(none)?.write(caller.name(), &id, &bytes, expected.as_deref())
    })
    .await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    put_tag(response.headers_mut(), &tag);
    Ok(response)
}

/// Removes it, and its answers unless another conversation has them too.
///
/// # Errors
/// There is none.
pub async fn delete(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    text_work(move || {
        let gone = app.history.as_ref().ok_or_else(none)?.remove(caller.name(), &id)?;
        gone.iter().for_each(|id| app.answers.forget(caller.name(), id));
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn put_tag(headers: &mut HeaderMap, tag: &str) {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_whole_and_conflicts_are_seen() {
        let folder = std::env::temp_dir().join(format!("octet-history-{}", ids::short(8)));
        let history = History::at(&folder);
        let first = history.write("local", "a-1", b"{\"title\":\"T\"}", None).unwrap();
        assert_eq!(history.read("local", "a-1").unwrap(), (b"{\"title\":\"T\"}".to_vec(), first.clone()));
        let second = history.write("local", "a-1", b"{\"title\":\"U\"}", Some(&first)).unwrap();
        assert_eq!(history.write("local", "a-1", b"{}", Some(&first)).unwrap_err().fault, Fault::Conflict);
        assert_ne!(first, second);
        assert_eq!(history.list("local", None)[0]["title"], "U");
        assert!(history.list("other", None).is_empty() && history.read("other", "a-1").is_err());
        for id in ["../a", "", "a/b", ".."] {
            assert!(history.read("local", id).is_err(), "{id}");
        }
        history.remove("local", "a-1").unwrap();
        assert_eq!(history.remove("local", "a-1").unwrap_err().fault, Fault::NotFound);
        assert_eq!(std::fs::read_dir(folder.join("conversations/local")).unwrap().count(), 0);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn texts_are_found_in_titles_and_messages_only() {
        let folder = std::env::temp_dir().join(format!("octet-history-{}", ids::short(8)));
        let history = History::at(&folder);
        let told =
            json!({"title": "Letters", "messages": {"a": {"role": "user", "content": "Der ÄRGER mit\nden Briefen"}}});
        history.write("local", "a", told.to_string().as_bytes(), None).unwrap();
        history.write("local", "b", b"{\"title\":\"Other\",\"model\":\"letters\"}", None).unwrap();
        assert_eq!(history.list("local", None).len(), 2);
        let found = history.list("local", Some("Ärger"));
        assert_eq!((found.len(), &found[0]["found"]), (1, &json!("Der ÄRGER mit den Briefen")));
        assert_eq!(history.list("local", Some("letters")).len(), 1);
        assert!(history.list("local", Some("user")).is_empty());
        // A file that changes is read anew.
        history.write("local", "b", b"{\"title\":\"Another\"}", None).unwrap();
        assert!(history.list("local", None).iter().any(|one| one["title"] == "Another"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

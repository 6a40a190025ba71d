//! Files of answers, `DIR/answers/KEY/ID.json`: grown while they are written, and thrown away when nobody needs them.
//!
//! A conversation has an answer's text once a page has seen its end; what only the file has then are the probabilities of its
//! tokens, which the model can work out again. So files go after some time, and the oldest ones first where there are too
//! many, but never one whose conversation still waits for its end.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::conversations::{History, make_folder};
use crate::app::Shared;
use crate::refusal::Refusal;

/// How long an answer's file is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of all of them.
const MOST_BYTES: u64 = 1 << 30;
/// How often it is looked whether some may go.
const EVERY: Duration = Duration::from_secs(3600);

/// The file of an answer.
struct File {
    path: PathBuf,
    /// Whose it is.
    key: String,
    id: String,
    changed: SystemTime,
    bytes: u64,
}

impl History {
    fn answers(&self) -> PathBuf {
        self.root().join("answers")
    }

    /// Adds to the log of an answer.
    ///
    /// # Errors
    /// The disk.
    pub fn keep_answer(&self, key: &str, id: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let folder = self.answers().join(key);
        let cannot = |error: std::io::Error| Refusal::internal(format!("cannot keep it: {error}"));
        let path = folder.join(file_name(id)?);
        make_folder(&folder).map_err(cannot)?;
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(bytes)).map_err(cannot)
    }

    /// The log of an answer, as far as it is kept.
    ///
    /// # Errors
    /// There is none.
    pub fn kept_answer(&self, key: &str, id: &str) -> Result<Vec<u8>, Refusal> {
        let path = self.answers().join(key).join(file_name(id)?);
        std::fs::read(path).map_err(|_| Refusal::not_found(format!("there is no answer {id}")))
    }

    /// Removes the answers of a conversation that is gone, but for those that another one has too; gives their ids.
    pub fn forget_answers(&self, key: &str, conversation: &[u8]) -> Vec<String> {
        let mut ids: HashSet<String> = runs(conversation).into_iter().map(|(id, _)| id).collect();
        let others = if ids.is_empty() { Vec::new() } else { files(&self.conversations().join(key)) };
        for path in others {
            let other = std::fs::read(path).unwrap_or_default();
            for (id, _) in runs(&other) {
                ids.remove(&id);
            }
        }
        for name in ids.iter().filter_map(|id| file_name(id).ok()) {
            // One that was never kept need not be removed.
            let _ = std::fs::remove_file(self.answers().join(key).join(name));
        }
        ids.into_iter().collect()
    }

    /// Throws away what has had its time, as of `now`; gives how many files that were.
    pub fn prune_answers(&self, now: SystemTime, most_bytes: u64) -> usize {
        let mut all: Vec<File> = files(&self.answers()).into_iter().flat_map(|folder| files_of(&folder)).collect();
        all.sort_by_key(|file| file.changed);
        let mut bytes: u64 = all.iter().map(|file| file.bytes).sum();
        let mut gone = 0;
        let mut waiting: Option<(String, HashSet<String>)> = None;
        for file in &all {
            let is_old = now.duration_since(file.changed).is_ok_and(|age| age > KEPT);
            if !is_old && bytes <= most_bytes {
                continue;
            }
            if waiting.as_ref().is_none_or(|(key, _)| *key != file.key) {
                waiting = Some((file.key.clone(), self.waiting(&file.key)));
            }
            let is_wanted = waiting.as_ref().is_some_and(|(_, ids)| ids.contains(&file.id));
            if !is_wanted && std::fs::remove_file(&file.path).is_ok() {
                bytes -= file.bytes;
                gone += 1;
            }
        }
        gone
    }

    /// Ids of the answers whose ends a key's conversations do not have yet.
    fn waiting(&self, key: &str) -> HashSet<String> {
        let conversations = files(&self.conversations().join(key)).into_iter();
        let all = conversations.flat_map(|path| runs(&std::fs::read(path).unwrap_or_default()));
        all.filter(|(_, is_over)| !is_over).map(|(id, _)| id).collect()
    }
}

/// Looks now and then whether some may go, for as long as the server is there.
pub async fn watch(app: Shared) {
    let app = std::sync::Arc::downgrade(&app);
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let Some(app) = app.upgrade() else { return };
        let pruned = tokio::task::spawn_blocking(move || {
            app.history.as_ref().map_or(0, |history| history.prune_answers(SystemTime::now(), MOST_BYTES))
        });
        match pruned.await {
            Ok(0) | Err(_) => {}
            Ok(files) => tracing::info!(files, "old answers are thrown away; their conversations stay"),
        }
    }
}

/// Answers of a conversation: their ids, and whether it has their ends.
fn runs(conversation: &[u8]) -> Vec<(String, bool)> {
    let value: Value = serde_json::from_slice(conversation).unwrap_or_default();
    let messages = value["messages"].as_object().into_iter().flat_map(|messages| messages.values());
    let runs = messages.flat_map(|message| message["runs"].as_array().into_iter().flatten());
    runs.filter_map(|run| Some((run["id"].as_str()?.to_owned(), !run["finish"].is_null()))).collect()
}

fn file_name(id: &str) -> Result<String, Refusal> {
    History::check_id(id).map(|()| format!("{id}.json"))
}

/// What is in a folder; nothing where there is none.
fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn files_of(folder: &Path) -> Vec<File> {
    let key = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let one = |path: PathBuf| {
        let about = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let id = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
        Some(File { key: key.clone(), id, changed: about.modified().ok()?, bytes: about.len(), path })
    };
    files(folder).into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids;

    fn conversation(runs: &[(&str, Option<&str>)]) -> Vec<u8> {
        let runs: Vec<Value> = runs.iter().map(|(id, finish)| json!({"id": id, "finish": finish})).collect();
        json!({"messages": {"a": {"role": "user"}, "b": {"role": "assistant", "runs": runs}}}).to_string().into_bytes()
    }

    #[test]
    fn old_answers_go_but_not_those_that_are_waited_for() {
        let folder = std::env::temp_dir().join(format!("octet-answers-{}", ids::short(8)));
        let history = History::at(&folder);
        history.write("local", "c", &conversation(&[("over", Some("stop")), ("waiting", None)]), None).unwrap();
        for id in ["over", "waiting", "nobodys"] {
            history.keep_answer("local", id, b"data: [DONE]\n\n").unwrap();
        }
        let later = SystemTime::now() + KEPT + Duration::from_secs(60);
        assert_eq!(history.prune_answers(SystemTime::now(), MOST_BYTES), 0);
        assert_eq!(history.prune_answers(later, MOST_BYTES), 2);
        assert!(history.kept_answer("local", "waiting").is_ok() && history.kept_answer("local", "over").is_err());
        // Where they are too large, young ones go too.
        history.keep_answer("local", "young", b"data: [DONE]\n\n").unwrap();
        assert_eq!(history.prune_answers(SystemTime::now(), 20), 1);
        assert!(history.kept_answer("local", "../c").is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn answers_go_with_the_last_conversation_that_has_them() {
        let folder = std::env::temp_dir().join(format!("octet-answers-{}", ids::short(8)));
        let history = History::at(&folder);
        let [one, two] = [conversation(&[("a", None), ("b", None)]), conversation(&[("b", None)])];
        history.write("local", "two", &two, None).unwrap();
        for id in ["a", "b"] {
            history.keep_answer("local", id, b"x").unwrap();
        }
        assert_eq!(history.forget_answers("local", &one), ["a"]);
        assert!(history.kept_answer("local", "a").is_err() && history.kept_answer("local", "b").is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }
}

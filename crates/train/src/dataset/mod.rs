//! Examples to learn from: JSONL and Parquet in the field's shapes, from a file, a folder or standard input.
//!
//! | keys of a row | is |
//! | --- | --- |
//! | `text` | plain text |
//! | `messages` (and `tools`) | a conversation; its assistant turns are what is learned |
//! | `prompt`, `completion` | the same with one answer |
//! | `chosen`, `rejected` (and `prompt`, `tools`) | a better and a worse answer |
//!
//! `prompt`, `completion`, `chosen` and `rejected` are texts or lists of messages. A text in `prompt` is what the user says,
//! a text in the others what the assistant says. Lists in `chosen` and `rejected` may repeat the prompt's messages.
//! A row that is none of these is kept apart with its number and what is wrong.

mod example;
mod json_lines;
mod parquet_rows;
mod source;

pub use example::{Example, Pair};
pub use source::{Dataset, read, read_from};

use std::path::Path;
use std::sync::Arc;

/// Where an example came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file; `standard input` has that name.
    pub file: Arc<Path>,
    /// Line of a JSONL or row of a Parquet file, from 1; 0 where the file as a whole is meant.
    pub number: u64,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.file.display();
        match (self.number, self.file.extension().is_some_and(|e| e == "parquet")) {
            (0, _) => write!(f, "{file}"),
            (row, true) => write!(f, "{file}, row {row}"),
            (line, false) => write!(f, "{file}, line {line}"),
        }
    }
}

/// An example and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it teaches.
    pub example: Example,
    /// Its place.
    pub origin: Origin,
}

/// A row that teaches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its place.
    pub origin: Origin,
    /// What is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.problem)
    }
}

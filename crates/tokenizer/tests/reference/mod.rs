//! Where the reference data lies, and how the tests read it.

#![allow(dead_code)] // every test file uses a part of this

use octet_tokenizer::{Conversation, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// The files of Mistral's that the tests need, as `tests/fetch_tokenizers` names them.
pub const V1: &str = "tokenizer.model.v1";
pub const V2: &str = "mistral_instruct_tokenizer_240216.model.v2";
pub const V3: &str = "mistral_instruct_tokenizer_240323.model.v3";

/// What a program said of a conversation.
#[derive(Deserialize)]
pub struct InstructRow {
    #[serde(flatten)]
    pub conversation: Conversation,
    pub ids: Vec<u32>,
    pub text: String,
}

/// The shared reference data, which `OCTET_FIXTURES` can replace.
pub fn fixtures(name: &str) -> PathBuf {
    std::env::var_os("OCTET_FIXTURES").map_or_else(|| root().join("tests/fixtures"), PathBuf::from).join(name)
}

/// Reference data of this crate's own, made by `tools/reference_text.py`.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub fn read<T: DeserializeOwned>(path: PathBuf) -> T {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A real file of Mistral's, or one derived from it.
pub fn fetched(name: &str) -> PathBuf {
    let cache = root().join("tests/cache/mistral-common");
    let path = std::env::var_os("OCTET_TOKENIZERS").map_or(cache, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is missing: run tests/fetch_tokenizers first", path.display());
    path
}

pub fn open(name: &str) -> Tokenizer {
    Tokenizer::open(fetched(name)).unwrap()
}

fn root() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into()
}

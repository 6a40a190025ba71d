//! What the reference tokenizers say, byte for byte: sentencepiece on Mistral's own models, mistral-common on whole
//! conversations. The models come out of the `mistral-common` Python package, see `tests/fetch_tokenizers`.

use octet_tokenizer::{ChatFormat, Conversation, Tokenizer};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Goldens {
    sentencepiece: BTreeMap<String, Vec<TextRow>>,
    instruct: BTreeMap<String, Vec<InstructRow>>,
}

#[derive(Deserialize)]
struct TextRow {
    text: String,
    ids: Vec<u32>,
    pieces: Vec<String>,
    decoded: String,
}

#[derive(Deserialize)]
struct InstructRow {
    #[serde(flatten)]
    conversation: Conversation,
    ids: Vec<u32>,
    text: String,
}

fn goldens() -> Goldens {
    let folder = std::env::var_os("OCTET_FIXTURES").map_or_else(|| root().join("tests/fixtures"), PathBuf::from);
    let path = folder.join("tokenizer-goldens.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn root() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into()
}

/// A real file of Mistral's.
fn model(name: &str) -> PathBuf {
    let cache = root().join("tests/cache/mistral-common");
    let path = std::env::var_os("OCTET_TOKENIZERS").map_or(cache, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is missing: run tests/fetch_tokenizers first", path.display());
    path
}

#[test]
fn sentencepiece_models_give_the_reference_ids() {
    for (name, rows) in goldens().sentencepiece {
        let tokenizer = Tokenizer::open(model(&name)).unwrap();
        assert!(rows.len() > 200, "{name} has too few strings");
        for row in rows {
            assert_eq!(tokenizer.encode(&row.text), row.ids, "{name}: {:?}", row.text);
            let pieces: Vec<_> = row.ids.iter().map(|&id| tokenizer.piece(id)).collect();
            assert_eq!(pieces, row.pieces, "{name}: {:?}", row.text);
            assert_eq!(tokenizer.decode(&row.ids), row.decoded, "{name}: {:?}", row.text);
        }
    }
}

#[test]
fn instruct_formats_give_the_reference_ids() {
    for (version, rows) in goldens().instruct {
        let name = if version == "v1" { "tokenizer.model.v1" } else { "mistral_instruct_tokenizer_240323.model.v3" };
        let tokenizer = Tokenizer::open(model(name)).unwrap();
        let format = ChatFormat::for_tokenizer(&tokenizer).unwrap();
        assert_eq!(format.name(), version);
        assert!(rows.len() >= 12, "{version} has too few conversations");
        for row in rows {
            let prompt = format.render(&row.conversation).unwrap();
            assert_eq!(prompt.ids, row.ids, "{version}: {:?}", row.text);
            assert_eq!(prompt.text, row.text);
        }
    }
}

//! Finds the tokenizer of a checkpoint.
//!
//! | given | read |
//! | --- | --- |
//! | a folder | `tokenizer.json`, or `tokenizer.model` if it has the same tokens |
//! | without `tokenizer.json` | `tokenizer.model` and the added tokens that the small files name; else its GGUF |
//! | a GGUF | its own vocabulary; of a split one, the first part's |
//! | `tokenizer.json`, `tokenizer.model*` | that file alone |
//! | another file of a checkpoint | its folder |
//!
//! `tokenizer.model` goes before an equal `tokenizer.json` because it is what the model was trained with: the
//! conversions differ from it in runs of spaces and after control tokens.

use crate::hugging_face::{added_tokens, complete, read_bounded};
use crate::{Error, Tokenizer};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest published `tokenizer.json` has 33 MB.
const LARGEST_TOKENIZER_BYTES: u64 = 256 << 20;

/// Opens a tokenizer file, or the best one of a folder.
pub(crate) fn open(path: &Path) -> Result<Tokenizer, Error> {
    if path.is_dir() {
        return open_folder(path);
    }
    let name = file_name(path);
    if has_gguf_magic(path)? {
        open_gguf(path)
    } else if is_sentencepiece(name) {
        Tokenizer::from_sentencepiece_model(&read_bounded(path, LARGEST_TOKENIZER_BYTES)?, path)
    } else if belongs_to_folder(name) {
        open_folder(&folder_of(path))
    } else if name.ends_with(".json") {
        Tokenizer::from_tokenizer_json(&read_bounded(path, LARGEST_TOKENIZER_BYTES)?, path)
    } else {
        // Whatever it is called: SentencePiece's reader says what is wrong with it if it is something else.
        Tokenizer::from_sentencepiece_model(&read_bounded(path, LARGEST_TOKENIZER_BYTES)?, path)
    }
}

fn open_folder(folder: &Path) -> Result<Tokenizer, Error> {
    let json = folder.join("tokenizer.json");
    let from_json = json.is_file().then(|| open(&json));
    let model = newest_model(folder)?;
    let tokenizer = match (from_json, model) {
        (Some(Ok(json)), Some(model)) => match open(&model) {
            Ok(model) if has_same_tokens(&json, &model) => model,
            _ => json,
        },
        (Some(Ok(json)), None) => json,
        (_, Some(model)) => {
            let bytes = read_bounded(&model, LARGEST_TOKENIZER_BYTES)?;
            Tokenizer::from_sentencepiece_and_added(&bytes, &model, &added_tokens(folder)?)?
        }
        (Some(Err(error)), None) => return Err(error),
        (None, None) => return open_gguf_in(folder),
    };
    complete(tokenizer, folder)
}

fn has_same_tokens(a: &Tokenizer, b: &Tokenizer) -> bool {
    a.vocab_size() == b.vocab_size() && (0..a.vocab_size() as u32).all(|id| a.piece(id) == b.piece(id))
}

/// `tokenizer.model.v3` goes before `tokenizer.model.v2` before `tokenizer.model`.
fn newest_model(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let mut models = files_of(folder)?;
    models.retain(|file| {
        let name = file_name(file);
        name == "tokenizer.model" || name.contains("tokenizer") && name.contains(".model.v")
    });
    Ok(models.pop())
}

/// The files of `folder`, sorted by name.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |cause| Error::Io { path: folder.to_owned(), cause };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        files.push(entry.map_err(io)?.path());
    }
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

fn open_gguf(path: &Path) -> Result<Tokenizer, Error> {
    let file = octet_checkpoint::gguf::File::open(path)?;
    Tokenizer::from_gguf_metadata(file.metadata(), path)
}

/// The first GGUF by name, which of a split one is the part with the vocabulary.
fn open_gguf_in(folder: &Path) -> Result<Tokenizer, Error> {
    let first = files_of(folder)?.into_iter().find(|file| file_name(file).ends_with(".gguf"));
    open_gguf(&first.ok_or_else(|| Error::NoTokenizer { path: folder.to_owned() })?)
}

fn has_gguf_magic(path: &Path) -> Result<bool, Error> {
    let io = |cause| Error::Io { path: path.to_owned(), cause };
    let mut magic = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(4).read_to_end(&mut magic).map_err(io)?;
    Ok(magic == b"GGUF")
}

fn is_sentencepiece(name: &str) -> bool {
    name.ends_with(".model") || name.contains(".model.v")
}

/// Whether a file is part of a checkpoint and no tokenizer.
fn belongs_to_folder(name: &str) -> bool {
    const CONFIGURATION: [&str; 5] =
        ["config.json", "params.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"];
    const WEIGHTS: [&str; 4] = [".safetensors", ".pth", ".pt", ".index.json"];
    CONFIGURATION.contains(&name) || WEIGHTS.iter().any(|extension| name.ends_with(extension))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

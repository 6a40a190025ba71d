//! Finds the tokenizer of a checkpoint.

use crate::{Error, Tokenizer};
use std::path::Path;

/// Opens a tokenizer file, or the best one of a folder.
pub(crate) fn open(path: &Path) -> Result<Tokenizer, Error> {
    let file = if path.is_dir() { find_in(path)? } else { path.to_owned() };
    let bytes = std::fs::read(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
    Tokenizer::from_sentencepiece_model(&bytes, &file)
}

fn find_in(folder: &Path) -> Result<std::path::PathBuf, Error> {
    let model = folder.join("tokenizer.model");
    if model.is_file() { Ok(model) } else { Err(Error::NoTokenizer { path: folder.to_owned() }) }
}

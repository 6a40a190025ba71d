//! A model's JSON configuration: bounded reading, and typed keys whose errors name file and key.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;

/// Longest configuration or index that we read; Mixtral 8x22B's index has some 200 kB.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::io(path, e))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::malformed(
            path,
            format!("is larger than {MAX_JSON_BYTES} bytes, too large for a configuration"),
        ));
    }
    String::from_utf8(text).map_err(|_| Error::malformed(path, "is no UTF-8 text; fetch it again"))
}

/// The keys of a `config.json` or `params.json`. A key whose value is `null` counts as absent, except to `has`.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl ConfigFile {
    pub(crate) fn read(path: &Path) -> Result<ConfigFile, Error> {
        ConfigFile::parse(path, &read_text(path)?)
    }

    /// Takes `text` for the content of `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<ConfigFile, Error> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(ConfigFile { path: path.to_owned(), keys }),
            Ok(_) => Err(Error::malformed(path, "is no JSON object; fetch it again")),
            Err(e) => Err(Error::malformed(path, format!("is no valid JSON ({e}); fetch it again"))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True if the key is there, `null` or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::key(&self.path, key, "is missing; fetch the file again")
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize, Error> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>, Error> {
        self.get(key).map(|value| as_count(&self.path, key, value)).transpose()
    }

    pub(crate) fn optional_float(&self, key: &str) -> Result<Option<f32>, Error> {
        let number = |value: &Value| match value.as_f64() {
            Some(x) => Ok(x as f32),
            None => Err(Error::key(&self.path, key, "is no number")),
        };
        self.get(key).map(number).transpose()
    }

    /// A truth value; absent means false.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Error::key(&self.path, key, "is neither true nor false")),
        }
    }

    /// A token's id, or the first of a list of them.
    pub(crate) fn id(&self, key: &str) -> Option<u32> {
        let value = self.get(key)?;
        value.get(0).unwrap_or(value).as_u64()?.try_into().ok()
    }
}

/// A whole number of things.
pub(crate) fn as_count(path: &Path, key: &str, value: &Value) -> Result<usize, Error> {
    // 4096.0 is how some writers put 4096.
    let whole = value
        .as_u64()
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x)).map(|x| x as u64));
    match whole.and_then(|n| usize::try_from(n).ok()) {
        Some(n) => Ok(n),
        None => Err(Error::key(path, key, "is no whole number from 0 on")),
    }
}

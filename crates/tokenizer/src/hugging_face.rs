//! The small files beside a `tokenizer.json` or `tokenizer.model`: which tokens begin and end a text, and the chat
//! template. A file that is not there says nothing; one that is there must be JSON.

use crate::tokenizer::{Specials, Templates};
use crate::vocabulary::Vocabulary;
use crate::{Error, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// No real file of this kind is larger; templates have some ten thousand bytes.
const LARGEST_CONFIG_BYTES: u64 = 64 << 20;

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    bos_token: TokenName,
    #[serde(default)]
    eos_token: TokenName,
    #[serde(default)]
    unk_token: TokenName,
    #[serde(default)]
    pad_token: TokenName,
    add_bos_token: Option<bool>,
    chat_template: Option<TemplateField>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedTokenField>,
}

#[derive(Deserialize)]
struct AddedTokenField {
    content: String,
    #[serde(default)]
    special: bool,
}

/// A token that a fine-tuned model has beyond its vocabulary file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) is_special: bool,
}

/// The added tokens that `tokenizer_config.json` and the older `added_tokens.json` of a folder name. The latter does
/// not say which are special; those that the model was tuned to see rarely are text, so all are.
pub(crate) fn added_tokens(folder: &Path) -> Result<Vec<AddedToken>, Error> {
    let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?;
    let older: BTreeMap<String, u32> = read_json(&folder.join("added_tokens.json"))?;
    let mut added: BTreeMap<u32, AddedToken> = BTreeMap::new();
    for (content, id) in older {
        added.insert(id, AddedToken { id, content, is_special: true });
    }
    for (id, AddedTokenField { content, special }) in config.added_tokens_decoder {
        let Ok(id) = id.parse() else { continue };
        added.insert(id, AddedToken { id, content, is_special: special });
    }
    Ok(added.into_values().collect())
}

/// A token as text, or as an object with its text.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Object {
        content: String,
    },
    #[default]
    Absent,
}

impl TokenName {
    fn id(&self, vocabulary: &Vocabulary) -> Option<u32> {
        match self {
            TokenName::Text(text) | TokenName::Object { content: text } => vocabulary.id(text),
            TokenName::Absent => None,
        }
    }
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// `generation_config.json` and `config.json`: ids, alone or in a list.
#[derive(Default, Deserialize)]
struct ModelConfig {
    eos_token_id: Option<Value>,
}

/// `tokenizer` with what the other files of its folder say.
pub(crate) fn complete(tokenizer: Tokenizer, folder: &Path) -> Result<Tokenizer, Error> {
    let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?;
    let generation: ModelConfig = read_json(&folder.join("generation_config.json"))?;
    let model: ModelConfig = read_json(&folder.join("config.json"))?;
    let templates = templates(config.chat_template.as_ref(), folder)?;
    Ok(tokenizer.with(|parts| {
        let ends = [generation, model].iter().flat_map(end_ids).collect();
        parts.specials = specials(&parts.specials, &config, ends, &parts.vocabulary);
        parts.templates = templates;
    }))
}

fn specials(bare: &Specials, config: &TokenizerConfig, ends: Vec<u32>, vocabulary: &Vocabulary) -> Specials {
    let ends: Vec<u32> = ends.into_iter().filter(|&id| (id as usize) < vocabulary.len()).collect();
    Specials {
        bos: config.bos_token.id(vocabulary).or(bare.bos),
        eos: config.eos_token.id(vocabulary).or(ends.first().copied()).or(bare.eos),
        unknown: config.unk_token.id(vocabulary).or(bare.unknown),
        padding: config.pad_token.id(vocabulary).or(bare.padding),
        other_ends: ends,
        adds_bos: config.add_bos_token.unwrap_or(bare.adds_bos),
    }
}

fn end_ids(config: &ModelConfig) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &config.eos_token_id {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `chat_template.jinja` goes before the field in `tokenizer_config.json`, as in transformers.
fn templates(field: Option<&TemplateField>, folder: &Path) -> Result<Templates, Error> {
    let named = |wanted: &str| match field {
        Some(TemplateField::One(template)) => (wanted == "default").then(|| template.clone()),
        Some(TemplateField::Several(list)) => {
            list.iter().find(|named| named.name == wanted).map(|named| named.template.clone())
        }
        None => None,
    };
    let file = folder.join("chat_template.jinja");
    let from_file = if file.is_file() { Some(read_text(&file)?) } else { None };
    Ok(Templates { default: from_file.or_else(|| named("default")), with_tools: named("tool_use") })
}

fn read_json<T: Default + for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Error> {
    if !path.is_file() {
        return Ok(T::default());
    }
    serde_json::from_str(&read_text(path)?).map_err(|error| Error::malformed(path, error.to_string()))
}

/// The text of a small file.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let bytes = read_bounded(path, LARGEST_CONFIG_BYTES)?;
    String::from_utf8(bytes).map_err(|_| Error::malformed(path, "is not UTF-8 text"))
}

/// The bytes of a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let io = |cause| Error::Io { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(Error::malformed(path, format!("has more than {limit} bytes, too many for a file of its kind")));
    }
    Ok(bytes)
}

//! Vocabulary and chat template on their way into another layout: copied where the layout is the same, translated
//! where it is not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use octet_checkpoint::gguf::Value;
use octet_checkpoint::write::gguf::shape_keys;
use octet_checkpoint::{Checkpoint, ElementType, Layout, Params};
use octet_tokenizer::Tokenizer;
use serde_json::json;

use crate::output;

/// Files of Hugging Face's layout that say how text becomes tokens.
const HUGGING_FACE_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Keys of a GGUF that do not hold for a copy with other tensors.
const OUTDATED_KEYS: [&str; 2] = ["general.file_type", "general.quantization_version"];

/// What goes along with the weights.
pub struct TokenizerFiles {
    /// Name and content of the files beside the weights; none in a GGUF.
    pub files: Vec<(String, Vec<u8>)>,
    /// What the user should know, for the end of a run that succeeds.
    pub notes: Vec<String>,
    tokenizer: Option<Tokenizer>,
}

/// Finds the tokenizer of `checkpoint` and makes of it what layout `to` has. A checkpoint without one is converted all
/// the same, with a note.
pub fn carry(checkpoint: &Checkpoint, to: Layout) -> anyhow::Result<TokenizerFiles> {
    let mut notes = Vec::new();
    let tokenizer = match Tokenizer::of_checkpoint(checkpoint) {
        Ok(tokenizer) => Some(tokenizer),
        Err(error) => {
            notes.push(format!("no tokenizer goes along ({error})"));
            None
        }
    };
    let files = match to {
        Layout::Gguf => Vec::new(),
        Layout::HuggingFace => hugging_face_files(checkpoint, tokenizer.as_ref())?,
        Layout::MistralRelease => mistral_files(checkpoint, tokenizer.as_ref(), &mut notes)?,
    };
    Ok(TokenizerFiles { files, notes, tokenizer })
}

impl TokenizerFiles {
    /// The model's shape, with the ids that only the tokenizer knows.
    pub fn complete(&self, params: &Params) -> Params {
        let id = |of: fn(&Tokenizer) -> Option<u32>| self.tokenizer.as_ref().and_then(of);
        Params {
            bos_id: params.bos_id.or_else(|| id(Tokenizer::bos)),
            eos_id: params.eos_id.or_else(|| id(Tokenizer::eos)),
            ..params.clone()
        }
    }

    /// The keys of a GGUF: those of the source where it is one, else shape and vocabulary.
    ///
    /// `main` is the type of most of the weights.
    pub fn gguf_keys(&self, checkpoint: &Checkpoint, params: &Params, main: ElementType) -> Vec<(String, Value)> {
        let mut keys = Keys(match checkpoint.gguf() {
            Some(metadata) => metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            None => Vec::new(),
        });
        keys.0.retain(|(key, _)| !OUTDATED_KEYS.contains(&key.as_str()) && !key.starts_with("split."));
        for (key, value) in shape_keys(params) {
            keys.set(&key, value);
        }
        if keys.0.iter().all(|(key, _)| key != "general.name") {
            keys.set("general.name", Value::String(output::model_name(checkpoint.path())));
        }
        if let Some(file_type) = file_type(main) {
            keys.set("general.file_type", Value::U32(file_type));
        }
        if main.is_quantized() {
            keys.set("general.quantization_version", Value::U32(2));
        }
        match (&self.tokenizer, checkpoint.gguf()) {
            (_, Some(_)) => {}
            (Some(tokenizer), None) => keys.0.extend(tokenizer.padded_to(params.vocab_size).to_gguf()),
            // llama.cpp opens such a file too; it then takes and gives token ids only.
            (None, None) => {
                keys.set("tokenizer.ggml.model", Value::String("none".into()));
                let ids = [("bos_token_id", params.bos_id), ("eos_token_id", params.eos_id)];
                for (key, id) in ids.into_iter().filter_map(|(key, id)| Some((key, id?))) {
                    keys.set(&format!("tokenizer.ggml.{key}"), Value::U32(id));
                }
            }
        }
        keys.0
    }
}

/// Keys in the order of their first appearance.
struct Keys(Vec<(String, Value)>);

impl Keys {
    fn set(&mut self, key: &str, value: Value) {
        match self.0.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }
}

/// llama.cpp's number for a file of mostly this type, of those whose mix has no name of its own.
fn file_type(main: ElementType) -> Option<u32> {
    Some(match main {
        ElementType::F32 => 0,
        ElementType::F16 => 1,
        ElementType::BF16 => 32,
        ElementType::Q4_0 => 2,
        ElementType::Q4_1 => 3,
        ElementType::Q8_0 => 7,
        ElementType::Q5_0 => 8,
        ElementType::Q5_1 => 9,
        ElementType::Q6_K => 18,
        _ => return None,
    })
}

fn hugging_face_files(
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = beside(checkpoint, &HUGGING_FACE_FILES)?;
    let Some(tokenizer) = tokenizer else { return Ok(files) };
    let missing = |files: &[(String, Vec<u8>)], name: &str| files.iter().all(|(other, _)| other != name);
    if missing(&files, "tokenizer.json") {
        files.push(("tokenizer.json".into(), tokenizer.to_tokenizer_json().into_bytes()));
    }
    if missing(&files, "tokenizer.model")
        && let Some(model) = tokenizer.to_sentencepiece_model()
    {
        files.push(("tokenizer.model".into(), model));
    }
    if missing(&files, "tokenizer_config.json") {
        files.push(("tokenizer_config.json".into(), format!("{:#}\n", tokenizer_config(tokenizer)).into_bytes()));
    }
    if missing(&files, "chat_template.jinja")
        && checkpoint.layout() != Layout::HuggingFace
        && let Some(template) = tokenizer.chat_template()
    {
        files.push(("chat_template.jinja".into(), template.as_bytes().to_vec()));
    }
    Ok(files)
}

/// `tokenizer_config.json`, as transformers needs it to use `tokenizer.json`.
fn tokenizer_config(tokenizer: &Tokenizer) -> serde_json::Value {
    let piece = |id: Option<u32>| id.map(|id| tokenizer.piece(id));
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_bos(),
        "add_eos_token": false,
        "bos_token": piece(tokenizer.bos()),
        "eos_token": piece(tokenizer.eos()),
        "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = tokenizer.chat_template() {
        config["chat_template"] = json!(template);
    }
    config
}

fn mistral_files(
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec!["tokenizer.model".to_owned(), "tekken.json".into()];
    names.extend((1..10).map(|version| format!("tokenizer.model.v{version}")));
    let mut files = beside(checkpoint, &names)?;
    let Some(tokenizer) = tokenizer else { return Ok(files) };
    if files.is_empty() {
        match tokenizer.to_sentencepiece_model() {
            Some(model) => files.push(("tokenizer.model".into(), model)),
            None => {
                notes.push("Mistral's layout has no place for this vocabulary; it goes along as tokenizer.json".into());
                files.push(("tokenizer.json".into(), tokenizer.to_tokenizer_json().into_bytes()));
            }
        }
    }
    Ok(files)
}

/// Those of the named files that lie beside the weights, with their content.
fn beside(checkpoint: &Checkpoint, names: &[impl AsRef<str>]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = match checkpoint.layout() {
        // Files beside a lone GGUF may belong to anything.
        Layout::Gguf => return Ok(Vec::new()),
        _ => folder_of(checkpoint.path()),
    };
    let mut files = Vec::new();
    for name in names.iter().map(AsRef::as_ref) {
        let path = folder.join(name);
        if path.is_file() {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((name.to_owned(), content));
        }
    }
    Ok(files)
}

fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new(".")).to_owned() }
}

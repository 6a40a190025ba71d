//! `tokenizer.json`: Hugging Face's description of a tokenizer as a pipeline of components.
//!
//! The pipelines that Mistral, Mixtral, Llama and SmolLM publish come down to the two algorithms that we have:
//!
//! ```text
//! normalizer [Prepend ▁, Replace " " ▁], BPE with byte fallback        SentencePiece, old form
//! pre_tokenizer Metaspace, BPE with byte fallback                      SentencePiece, new form
//! pre_tokenizer [Digits | Split by a known pattern], ByteLevel, BPE    byte level
//! ```
//!
//! Any other component is refused by its name: to skip one would give wrong ids in silence.

use crate::Error;
use crate::Tokenizer;
use crate::byte_level::{self, ByteLevel, LeadingSpace, Options, WholeWords};
use crate::merge::MergeTable;
use crate::ranking::Ranking;
use crate::sentencepiece::{self, Cuts, SentencePiece, SpacePrefix};
use crate::sentencepiece_model::byte_of;
use crate::split::Splitter;
use crate::tokenizer::{Algorithm, Parts, Specials, Templates};
use crate::vocabulary::{SPACE_MARK, Token, TokenKind, Vocabulary};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const USE_ANOTHER: &str = "use the model's tokenizer.model or a GGUF of it";

/// More unnamed ids than this in a vocabulary are a damaged file; real ones leave some hundreds free.
const MOST_HOLES: usize = 1 << 16;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<MergeLine>,
    unk_token: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge as older files write it, `"a b"`, and as newer ones do, `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeLine {
    Line(String),
    Pair(String, String),
}

impl MergeLine {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            MergeLine::Line(line) => line.split_once(' '),
            MergeLine::Pair(left, right) => Some((left, right)),
        }
    }
}

/// Pieces with their ids; a list instead of a map belongs to another algorithm.
enum Vocab {
    Ids(Vec<(String, u32)>),
    List,
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = Vocab;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("a map from pieces to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut ids = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    ids.push(entry);
                }
                Ok(Vocab::Ids(ids))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocab::List)
            }
        }
        deserializer.deserialize_any(VocabVisitor)
    }
}

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.json`; `path` is only for messages.
    pub fn from_tokenizer_json(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        read(bytes, path)
    }
}

fn read(bytes: &[u8], path: &Path) -> Result<Tokenizer, Error> {
    let file: File = serde_json::from_slice(bytes)
        .map_err(|error| Error::malformed(path, format!("not a tokenizer.json: {error}")))?;
    let reader = Reader { path };
    reader.check_model(&file.model)?;
    reader.check_added(&file.added_tokens)?;
    let pipeline = reader.pipeline(&file)?;
    reader.check_decoder(file.decoder.as_ref())?;
    let bos_name = reader.bos_of(file.post_processor.as_ref())?;
    let tokens = reader.tokens(&file)?;
    let vocabulary = match pipeline {
        Pipeline::SentencePiece { .. } => Vocabulary::new(tokens, sentencepiece::surface),
        Pipeline::ByteLevel(_) => Vocabulary::new(tokens, byte_level::surface),
    };
    let bos = bos_name.and_then(|name| vocabulary.id(&name));
    let specials = Specials {
        bos: bos.or_else(|| vocabulary.control("<s>")),
        eos: vocabulary.control("</s>"),
        unknown: vocabulary.of_kind(TokenKind::Unknown).map(|(id, _)| id).next(),
        adds_bos: bos.is_some(),
        ..Specials::default()
    };
    let algorithm = reader.algorithm(&vocabulary, pipeline, &file.model)?;
    Ok(Tokenizer::new(Parts {
        path: path.to_owned(),
        vocabulary: Arc::new(vocabulary),
        algorithm: Arc::new(algorithm),
        specials,
        templates: Templates::default(),
    }))
}

/// What normalizer and pre-tokenizer come down to.
enum Pipeline {
    SentencePiece { prefix: SpacePrefix, cuts: Cuts },
    ByteLevel(Options),
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn check_model(&self, model: &Model) -> Result<(), Error> {
        // Files from before 2020 leave the type out, and so do some of those with byte fallback.
        let kind = model.kind.as_deref().unwrap_or("BPE");
        if kind != "BPE" || matches!(model.vocab, Vocab::List) {
            return Err(self.unsupported(format!("model {kind}")));
        }
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err(self.unsupported("model.dropout"));
        }
        let is_set = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
        if is_set(&model.continuing_subword_prefix) {
            return Err(self.unsupported("model.continuing_subword_prefix"));
        }
        if is_set(&model.end_of_word_suffix) {
            return Err(self.unsupported("model.end_of_word_suffix"));
        }
        Ok(())
    }

    fn check_added(&self, added: &[AddedToken]) -> Result<(), Error> {
        // Control tokens are never looked for in text, so how they would be found there does not matter.
        for token in added.iter().filter(|token| !token.special) {
            if token.single_word || token.lstrip || token.rstrip {
                let component = format!("added token {:?} with single_word, lstrip or rstrip", token.content);
                return Err(self.unsupported(component));
            }
        }
        Ok(())
    }

    fn pipeline(&self, file: &File) -> Result<Pipeline, Error> {
        let normalizers = steps(file.normalizer.as_ref(), "normalizers");
        let pre_tokenizers = steps(file.pre_tokenizer.as_ref(), "pretokenizers");
        let is_byte_level = pre_tokenizers.last().is_some_and(|last| name(last) == "ByteLevel");
        if is_byte_level {
            self.no_normalizer(&normalizers)?;
            return Ok(Pipeline::ByteLevel(self.byte_level(&pre_tokenizers, &file.model)?));
        }
        match pre_tokenizers.as_slice() {
            [] => Ok(Pipeline::SentencePiece { prefix: self.prefix(&normalizers)?, cuts: Cuts::WhereNoMergeCrosses }),
            [metaspace] if name(metaspace) == "Metaspace" => {
                self.no_normalizer(&normalizers)?;
                self.metaspace(metaspace)
            }
            [first, ..] => Err(self.unsupported(format!("pre_tokenizer {}", name(first)))),
        }
    }

    fn no_normalizer(&self, normalizers: &[&Value]) -> Result<(), Error> {
        match normalizers {
            [] => Ok(()),
            [first, ..] => Err(self.unsupported(format!("normalizer {}", name(first)))),
        }
    }

    /// `[Prepend ▁]`, `Replace " " ▁`: the old way to write SentencePiece.
    fn prefix(&self, normalizers: &[&Value]) -> Result<SpacePrefix, Error> {
        let mut prefix = SpacePrefix::Never;
        let mut replaces = false;
        for normalizer in normalizers {
            match name(normalizer) {
                "Prepend" if is_space_mark(&normalizer["prepend"]) && !replaces => prefix = SpacePrefix::EachPart,
                "Replace" if replaces_space(normalizer) => replaces = true,
                other => return Err(self.unsupported(format!("normalizer {other}"))),
            }
        }
        if replaces { Ok(prefix) } else { Err(self.unsupported("BPE without pre_tokenizer and without normalizer")) }
    }

    fn metaspace(&self, metaspace: &Value) -> Result<Pipeline, Error> {
        if !is_space_mark(&metaspace["replacement"]) {
            return Err(self.unsupported(format!("Metaspace with replacement {}", metaspace["replacement"])));
        }
        let prefix = match (metaspace["prepend_scheme"].as_str(), metaspace["add_prefix_space"].as_bool()) {
            (Some("first"), _) => SpacePrefix::StartUnlessSpace,
            (Some("never"), _) | (None, Some(false)) => SpacePrefix::Never,
            (Some("always") | None, _) => SpacePrefix::EachPartUnlessSpace,
            (Some(other), _) => return Err(self.unsupported(format!("Metaspace with prepend_scheme {other}"))),
        };
        let splits = metaspace["split"].as_bool().unwrap_or(true);
        let cuts = if splits { Cuts::BeforeEverySpace } else { Cuts::WhereNoMergeCrosses };
        Ok(Pipeline::SentencePiece { prefix, cuts })
    }

    fn byte_level(&self, pre_tokenizers: &[&Value], model: &Model) -> Result<Options, Error> {
        let last = pre_tokenizers.last().expect("the caller found ByteLevel");
        let uses_gpt2 = last["use_regex"].as_bool().unwrap_or(true);
        let splitter = match (pre_tokenizers, uses_gpt2) {
            ([_], true) => Splitter::Gpt2,
            ([digits, _], true) if name(digits) == "Digits" && digits["individual_digits"] == true => Splitter::Smollm,
            ([splits @ .., _], false) => self.splitter(splits)?,
            ([first, ..], _) => return Err(self.unsupported(format!("pre_tokenizer {} before ByteLevel", name(first)))),
            ([], _) => unreachable!("the caller found ByteLevel"),
        };
        let ensures_space = last["add_prefix_space"].as_bool().unwrap_or(true);
        Ok(Options {
            splitter,
            whole_words: if model.ignore_merges { WholeWords::Take } else { WholeWords::Merge },
            leading_space: if ensures_space { LeadingSpace::Ensure } else { LeadingSpace::Keep },
        })
    }

    fn splitter(&self, splits: &[&Value]) -> Result<Splitter, Error> {
        let mut patterns = Vec::new();
        for split in splits {
            let is_isolated = split["behavior"] == "Isolated" && split["invert"] != true;
            match split["pattern"]["Regex"].as_str() {
                Some(pattern) if name(split) == "Split" && is_isolated => patterns.push(pattern),
                _ => return Err(self.unsupported(format!("pre_tokenizer {split}"))),
            }
        }
        let unknown = || self.unsupported(format!("pre_tokenizer Split with pattern {patterns:?}"));
        Splitter::of_patterns(&patterns).ok_or_else(unknown)
    }

    fn check_decoder(&self, decoder: Option<&Value>) -> Result<(), Error> {
        const KNOWN: [&str; 6] = ["ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"];
        let steps = steps(decoder, "decoders");
        match steps.iter().find(|step| !KNOWN.contains(&name(step))) {
            Some(unknown) => Err(self.unsupported(format!("decoder {}", name(unknown)))),
            None => Ok(()),
        }
    }

    /// The token that the post-processor puts in front of a text.
    fn bos_of(&self, post_processor: Option<&Value>) -> Result<Option<String>, Error> {
        let mut bos = None;
        for step in steps(post_processor, "processors") {
            match name(step) {
                "ByteLevel" => {}
                "TemplateProcessing" => {
                    let first = &step["single"][0]["SpecialToken"]["id"];
                    bos = first.as_str().map(str::to_owned).or(bos);
                }
                other => return Err(self.unsupported(format!("post_processor {other}"))),
            }
        }
        Ok(bos)
    }

    fn tokens(&self, file: &File) -> Result<Vec<Token>, Error> {
        let Vocab::Ids(ids) = &file.model.vocab else { unreachable!("checked with the model") };
        let added = file.added_tokens.iter();
        let highest = ids.iter().map(|(_, id)| *id).chain(added.clone().map(|token| token.id)).max();
        let size = highest.map_or(0, |highest| highest as usize + 1);
        if size > ids.len() + file.added_tokens.len() + MOST_HOLES {
            return Err(Error::malformed(self.path, format!("id {} is far beyond the number of tokens", size - 1)));
        }
        let hole = Token { piece: String::new(), kind: TokenKind::Unused };
        let mut tokens = vec![hole; size];
        let unknown = file.model.unk_token.as_deref();
        for (piece, id) in ids {
            let kind = match byte_of(piece).filter(|_| file.model.byte_fallback) {
                Some(byte) => TokenKind::Byte(byte),
                None if unknown == Some(piece) => TokenKind::Unknown,
                None => TokenKind::Normal,
            };
            tokens[*id as usize] = Token { piece: piece.clone(), kind };
        }
        for token in added {
            let kind = match (unknown == Some(&token.content), token.special) {
                (true, _) => TokenKind::Unknown,
                (false, true) => TokenKind::Control,
                (false, false) => TokenKind::UserDefined,
            };
            tokens[token.id as usize] = Token { piece: token.content.clone(), kind };
        }
        Ok(tokens)
    }

    fn algorithm(&self, vocabulary: &Vocabulary, pipeline: Pipeline, model: &Model) -> Result<Algorithm, Error> {
        let merges = self.merges(vocabulary, &model.merges)?;
        let mut table = MergeTable::default();
        for (rank, &(left, right, joined)) in (0u32..).zip(&merges) {
            table.insert(left, right, rank, joined);
        }
        let merges = merges.into_iter().map(|(left, right, _)| (left, right)).collect();
        Ok(match pipeline {
            Pipeline::SentencePiece { prefix, cuts } => Algorithm::SentencePiece {
                encoder: SentencePiece::new(vocabulary, table, prefix, cuts),
                ranking: Ranking::Merges(merges),
                unknown_surface: String::new(),
            },
            Pipeline::ByteLevel(options) => {
                Algorithm::ByteLevel { encoder: ByteLevel::new(vocabulary, table, options), merges }
            }
        })
    }

    /// The merge list as (left, right, joined).
    fn merges(&self, vocabulary: &Vocabulary, lines: &[MergeLine]) -> Result<Vec<(u32, u32, u32)>, Error> {
        let merge = |line: &MergeLine| {
            let (left, right) = line.pair()?;
            Some((vocabulary.id(left)?, vocabulary.id(right)?, vocabulary.id(&format!("{left}{right}"))?))
        };
        let checked = lines.iter().enumerate().map(|(at, line)| {
            merge(line).ok_or_else(|| Error::malformed(self.path, format!("merge {at} names a piece that is no token")))
        });
        checked.collect()
    }

    fn unsupported(&self, component: impl Into<String>) -> Error {
        Error::unsupported(self.path, component, USE_ANOTHER)
    }
}

/// The steps of a component: itself, or those of a `Sequence`, whose list is called `list`.
fn steps<'a>(component: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match component {
        None | Some(Value::Null) => Vec::new(),
        Some(sequence) if name(sequence) == "Sequence" => {
            sequence[list].as_array().map(|steps| steps.iter().collect()).unwrap_or_default()
        }
        Some(single) => vec![single],
    }
}

fn name(component: &Value) -> &str {
    component["type"].as_str().unwrap_or("without type")
}

fn is_space_mark(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().eq([SPACE_MARK]))
}

fn replaces_space(normalizer: &Value) -> bool {
    normalizer["pattern"]["String"] == " " && is_space_mark(&normalizer["content"])
}

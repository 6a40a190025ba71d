//! The vocabulary inside a GGUF, in both directions: `tokenizer.ggml.*` keys and `tokenizer.chat_template`.

use crate::Error;
use crate::Tokenizer;
use crate::byte_level::{self, ByteLevel, LeadingSpace, Options, WholeWords};
use crate::merge::MergeTable;
use crate::ranking::Ranking;
use crate::sentencepiece::{self, SentencePiece, SpacePrefix};
use crate::sentencepiece_model::{byte_of, token_kind};
use crate::split::Splitter;
use crate::tokenizer::{Algorithm, Parts, Specials, Templates};
use crate::vocabulary::{Token, TokenKind, Vocabulary, looks_like_control};
use octet_checkpoint::gguf::Metadata;
use std::path::Path;
use std::sync::Arc;

/// A `pre` name, how it cuts words, and what it does with words that are tokens.
struct Pre {
    name: &'static str,
    splitter: Splitter,
    whole_words: WholeWords,
}

/// The names that llama.cpp's converter gives to the splitters that we have. The first name of a splitter is the one
/// that we write.
const PRES: &[Pre] = &[
    pre("gpt-2", Splitter::Gpt2, WholeWords::Merge),
    pre("phi-2", Splitter::Gpt2, WholeWords::Merge),
    pre("mpt", Splitter::Gpt2, WholeWords::Merge),
    pre("olmo", Splitter::Gpt2, WholeWords::Merge),
    pre("jais", Splitter::Gpt2, WholeWords::Merge),
    pre("smollm", Splitter::Smollm, WholeWords::Merge),
    pre("starcoder", Splitter::Smollm, WholeWords::Merge),
    pre("refact", Splitter::Smollm, WholeWords::Merge),
    pre("command-r", Splitter::Smollm, WholeWords::Merge),
    pre("codeshell", Splitter::Smollm, WholeWords::Merge),
    pre("exaone", Splitter::Smollm, WholeWords::Merge),
    pre("minerva-7b", Splitter::Smollm, WholeWords::Merge),
    pre("llama-bpe", Splitter::Llama3, WholeWords::Take),
    pre("llama3", Splitter::Llama3, WholeWords::Take),
    pre("llama-v3", Splitter::Llama3, WholeWords::Take),
    pre("falcon3", Splitter::Llama3, WholeWords::Take),
    pre("pixtral", Splitter::Llama3, WholeWords::Take),
    pre("dbrx", Splitter::Llama3, WholeWords::Merge),
    pre("smaug-bpe", Splitter::Llama3, WholeWords::Merge),
    pre("qwen2", Splitter::Qwen2, WholeWords::Merge),
    pre("stablelm2", Splitter::Qwen2, WholeWords::Merge),
    pre("deepseek-r1-qwen", Splitter::Qwen2, WholeWords::Merge),
    pre("tekken", Splitter::Tekken, WholeWords::Take),
    pre("default", Splitter::Default, WholeWords::Merge),
];

const fn pre(name: &'static str, splitter: Splitter, whole_words: WholeWords) -> Pre {
    Pre { name, splitter, whole_words }
}

/// The `pre` to write for a way to cut words; where none does the same to whole words, one that cuts alike.
pub(crate) fn pre_name(splitter: Splitter, whole_words: WholeWords) -> &'static str {
    let mut alike = PRES.iter().filter(|pre| pre.splitter == splitter);
    let first = alike.clone().next().expect("every splitter has a name");
    alike.find(|pre| pre.whole_words == whole_words).unwrap_or(first).name
}

impl Tokenizer {
    /// The tokenizer that a GGUF carries; `path` is only for messages.
    ///
    /// Errors: no vocabulary, one of another kind than `llama` and `gpt2`, an unknown `pre`, lists that do not fit.
    pub fn from_gguf_metadata(metadata: &Metadata, path: &Path) -> Result<Self, Error> {
        let reader = Reader { metadata, path };
        let (vocabulary, algorithm) = match metadata.str("tokenizer.ggml.model") {
            Some("llama") => reader.sentencepiece()?,
            Some("gpt2") => reader.byte_level()?,
            Some(other) => {
                let remedy = "Octet reads vocabularies of the kinds llama and gpt2";
                return Err(Error::unsupported(path, format!("tokenizer.ggml.model {other:?}"), remedy));
            }
            None => return Err(Error::malformed(path, "holds no vocabulary (tokenizer.ggml.model is missing)")),
        };
        let specials = reader.specials(&vocabulary, &algorithm)?;
        Ok(Self::new(Parts {
            path: path.to_owned(),
            vocabulary: Arc::new(vocabulary),
            algorithm: Arc::new(algorithm),
            specials,
            templates: Templates {
                default: metadata.str("tokenizer.chat_template").map(str::to_owned),
                with_tools: metadata.str("tokenizer.chat_template.tool_use").map(str::to_owned),
            },
        }))
    }
}

struct Reader<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
}

impl Reader<'_> {
    fn sentencepiece(&self) -> Result<(Vocabulary, Algorithm), Error> {
        let tokens = self.tokens()?;
        let scores = match self.metadata.f32s("tokenizer.ggml.scores") {
            Some(scores) if scores.len() == tokens.len() => scores.to_vec(),
            Some(scores) => return Err(self.uneven("tokenizer.ggml.scores", scores.len(), tokens.len())),
            None => return Err(Error::malformed(self.path, "tokenizer.ggml.scores is missing")),
        };
        let vocabulary = Vocabulary::new(tokens, sentencepiece::surface);
        let adds_prefix = self.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let prefix = if adds_prefix { SpacePrefix::Start } else { SpacePrefix::Never };
        let encoder = SentencePiece::from_scores(&vocabulary, &scores, prefix, self.path)?;
        let unknown_surface = crate::sentencepiece_model::UNKNOWN_SURFACE.into();
        Ok((vocabulary, Algorithm::SentencePiece { encoder, ranking: Ranking::Scores(scores), unknown_surface }))
    }

    fn byte_level(&self) -> Result<(Vocabulary, Algorithm), Error> {
        let vocabulary = Vocabulary::new(self.tokens()?, byte_level::surface);
        let name = self.metadata.str("tokenizer.ggml.pre").unwrap_or("default");
        let Some(pre) = PRES.iter().find(|pre| pre.name == name) else {
            let remedy = "convert the model again from its original files, or use its tokenizer.json";
            return Err(Error::unsupported(self.path, format!("tokenizer.ggml.pre {name:?}"), remedy));
        };
        let lines = self.metadata.strings("tokenizer.ggml.merges").unwrap_or_default();
        let mut table = MergeTable::default();
        let mut merges = Vec::with_capacity(lines.len());
        for (rank, line) in (0u32..).zip(lines) {
            // Pieces may begin with a space only as `Ġ`, so the first space after the first character separates.
            let Some((left, right)) = line.split_once(' ') else {
                return Err(Error::malformed(self.path, format!("merge {rank} is not a pair: {line:?}")));
            };
            let joined = vocabulary.id(&format!("{left}{right}"));
            if let (Some(left), Some(right), Some(joined)) = (vocabulary.id(left), vocabulary.id(right), joined) {
                table.insert(left, right, rank, joined);
                merges.push((left, right));
            }
        }
        let adds_space = self.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false);
        let options = Options {
            splitter: pre.splitter,
            whole_words: pre.whole_words,
            leading_space: if adds_space { LeadingSpace::Ensure } else { LeadingSpace::Keep },
        };
        let encoder = ByteLevel::new(&vocabulary, table, options);
        Ok((vocabulary, Algorithm::ByteLevel { encoder, merges }))
    }

    fn tokens(&self) -> Result<Vec<Token>, Error> {
        let Some(pieces) = self.metadata.strings("tokenizer.ggml.tokens") else {
            return Err(Error::malformed(self.path, "tokenizer.ggml.tokens is missing"));
        };
        let kinds = match self.metadata.array("tokenizer.ggml.token_type") {
            None => {
                return Ok(pieces
                    .iter()
                    .map(|piece| Token { piece: piece.clone(), kind: kind_by_name(piece) })
                    .collect());
            }
            Some(kinds) => kinds
                .integers()
                .ok_or_else(|| Error::malformed(self.path, "tokenizer.ggml.token_type is not a list of integers"))?,
        };
        if kinds.len() != pieces.len() {
            return Err(self.uneven("tokenizer.ggml.token_type", kinds.len(), pieces.len()));
        }
        let token = |(piece, kind): (&String, i64)| {
            let known = u64::try_from(kind).ok().and_then(|kind| token_kind(kind, piece));
            // Type 0 and byte tokens that name no byte occur in published files; both are plain text there.
            Token { piece: piece.clone(), kind: known.unwrap_or(TokenKind::Normal) }
        };
        Ok(pieces.iter().zip(kinds).map(token).collect())
    }

    fn specials(&self, vocabulary: &Vocabulary, algorithm: &Algorithm) -> Result<Specials, Error> {
        let is_sentencepiece = matches!(algorithm, Algorithm::SentencePiece { .. });
        let named = |piece| vocabulary.control(piece).filter(|_| is_sentencepiece);
        let adds_bos = self.metadata.bool("tokenizer.ggml.add_bos_token");
        // Llama 3's files leave it unsaid, as llama.cpp knows it by their `pre`.
        let is_llama3 = matches!(
            algorithm,
            Algorithm::ByteLevel { encoder, .. }
                if (encoder.splitter, encoder.whole_words) == (Splitter::Llama3, WholeWords::Take)
        );
        Ok(Specials {
            bos: self.id("tokenizer.ggml.bos_token_id", vocabulary)?.or_else(|| named("<s>")),
            eos: self.id("tokenizer.ggml.eos_token_id", vocabulary)?.or_else(|| named("</s>")),
            unknown: self.id("tokenizer.ggml.unknown_token_id", vocabulary)?,
            padding: self.id("tokenizer.ggml.padding_token_id", vocabulary)?,
            other_ends: ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
                .into_iter()
                .filter_map(|key| self.id(key, vocabulary).transpose())
                .collect::<Result<_, _>>()?,
            adds_bos: adds_bos.unwrap_or(is_sentencepiece || is_llama3),
        })
    }

    fn id(&self, key: &str, vocabulary: &Vocabulary) -> Result<Option<u32>, Error> {
        let Some(id) = self.metadata.u64(key) else { return Ok(None) };
        // Some converters wrote u32::MAX, that is -1, for "none".
        if id == u64::from(u32::MAX) {
            return Ok(None);
        }
        match u32::try_from(id) {
            Ok(id) if (id as usize) < vocabulary.len() => Ok(Some(id)),
            _ => Err(Error::malformed(self.path, format!("{key} is {id}, past the {} tokens", vocabulary.len()))),
        }
    }

    fn uneven(&self, key: &str, length: usize, tokens: usize) -> Error {
        Error::malformed(self.path, format!("{key} has {length} entries for {tokens} tokens"))
    }
}

/// The kind of a token in a file that says nothing about kinds.
fn kind_by_name(piece: &str) -> TokenKind {
    match piece {
        "<unk>" => TokenKind::Unknown,
        "<s>" | "</s>" => TokenKind::Control,
        _ if looks_like_control(piece) => TokenKind::Control,
        _ => byte_of(piece).map_or(TokenKind::Normal, TokenKind::Byte),
    }
}

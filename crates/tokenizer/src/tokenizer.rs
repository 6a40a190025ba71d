//! The tokenizer that the rest of the program sees, whatever file it came from.

use crate::Error;
use crate::byte_level::ByteLevel;
use crate::decode::Decoder;
use crate::matcher::Matcher;
use crate::ranking::Ranking;
use crate::sentencepiece::{Place, SentencePiece, SpacePrefix};
use crate::vocabulary::{TokenKind, Vocabulary};
use octet_checkpoint::Checkpoint;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Text to token ids and back. Cheap to clone, free to share between threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// What a tokenizer is made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Where it came from, for messages.
    pub(crate) path: PathBuf,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) algorithm: Arc<Algorithm>,
    pub(crate) specials: Specials,
    pub(crate) templates: Templates,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// All control tokens, by their text.
    controls: Matcher,
}

/// How text is cut into tokens.
#[derive(Debug)]
pub(crate) enum Algorithm {
    /// SentencePiece's BPE.
    SentencePiece { encoder: SentencePiece, ranking: Ranking, unknown_surface: String },
    /// Byte-level BPE, with its merges in order.
    ByteLevel { encoder: ByteLevel, merges: Vec<(u32, u32)> },
}

/// The tokens with a role of their own.
#[derive(Debug, Default, Clone)]
pub(crate) struct Specials {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// Tokens that end an answer besides `eos`.
    pub(crate) other_ends: Vec<u32>,
    pub(crate) adds_bos: bool,
}

/// The chat templates that came with a model.
#[derive(Debug, Default, Clone)]
pub(crate) struct Templates {
    pub(crate) default: Option<String>,
    /// Used instead where there are tools.
    pub(crate) with_tools: Option<String>,
}

/// Names of tokens that end an answer wherever they are control tokens: models are published whose files name only
/// one of two.
const ENDS: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|eom_id|>"];

impl Tokenizer {
    /// Opens the tokenizer of a checkpoint (folder, GGUF or one of its weight files), or a bare `tokenizer.model`
    /// (`.v1`, `.v3`, …) or `tokenizer.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        crate::open::open(path.as_ref())
    }

    /// The tokenizer of a checkpoint that is open already: a GGUF's vocabulary is taken from its header as it was read.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        match checkpoint.gguf() {
            Some(metadata) => Tokenizer::from_gguf_metadata(metadata, checkpoint.path()),
            None => Tokenizer::open(checkpoint.path()),
        }
    }

    pub(crate) fn new(mut parts: Parts) -> Self {
        let ends = ENDS.iter().filter_map(|name| parts.vocabulary.control(name));
        parts.specials.other_ends.extend(ends);
        let controls = Matcher::new(parts.vocabulary.steering());
        Self { inner: Arc::new(Inner { parts, controls }) }
    }

    /// The same tokenizer with other parts.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Parts)) -> Self {
        let mut parts = self.inner.parts.clone();
        change(&mut parts);
        Self::new(parts)
    }

    /// The same tokenizer with at least `vocab_size` tokens: models whose matrices have more rows than there are tokens
    /// need unused ones to fill the rest.
    pub fn padded_to(&self, vocab_size: usize) -> Self {
        self.with(|parts| parts.vocabulary = Arc::new(parts.vocabulary.padded_to(vocab_size)))
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    pub(crate) fn is_sentencepiece(&self) -> bool {
        matches!(*self.parts().algorithm, Algorithm::SentencePiece { .. })
    }

    pub(crate) fn controls(&self) -> &Matcher {
        &self.inner.controls
    }

    /// The ids of `text`, and of text only: control tokens typed in it stay text, and no BOS is added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.encode_part(text, Place::Start, Spaces::AsFile, ids);
    }

    /// The ids of a prompt that a program wrote: control tokens spelled out in it are taken as such. Never for text
    /// that people typed.
    pub fn encode_with_control(&self, prompt: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_parts(prompt, Spaces::AsFile, |part| part.into(), &mut ids);
        ids
    }

    /// Cuts `prompt` at its control tokens and encodes the parts between, each after `clean`.
    pub(crate) fn encode_parts<'t>(
        &self,
        prompt: &'t str,
        spaces: Spaces,
        clean: impl Fn(&'t str) -> std::borrow::Cow<'t, str>,
        ids: &mut Vec<u32>,
    ) {
        let mut rest = prompt;
        let mut place = Place::Start;
        while let Some((start, end, id)) = self.controls().find(rest) {
            self.encode_part(&clean(&rest[..start]), place, spaces, ids);
            ids.push(id);
            rest = &rest[end..];
            place = Place::AfterToken;
        }
        self.encode_part(&clean(rest), place, spaces, ids);
    }

    fn encode_part(&self, part: &str, place: Place, spaces: Spaces, ids: &mut Vec<u32>) {
        let Parts { algorithm, vocabulary, .. } = self.parts();
        match &**algorithm {
            Algorithm::SentencePiece { encoder, .. } => {
                let (place, prefix) = match (spaces, encoder.prefix) {
                    (Spaces::OneAtMost, SpacePrefix::Start | SpacePrefix::EachPart) => {
                        (place, SpacePrefix::EachPartUnlessSpace)
                    }
                    // SentencePiece knows no control tokens in text: what stands between them are texts of their own.
                    (Spaces::AsFile, SpacePrefix::Start) => (Place::Start, SpacePrefix::Start),
                    (_, prefix) => (place, prefix),
                };
                encoder.encode(part, place, prefix, ids);
            }
            Algorithm::ByteLevel { encoder, .. } => encoder.encode(vocabulary, part, ids),
        }
    }

    /// The text of `ids`. Control tokens are no text; ids past the vocabulary neither.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut decoder = Decoder::at_start(self);
        for &id in ids {
            decoder.push(self, id, &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    /// The token's name as its vocabulary writes it: `▁Hello`, `<0x0A>`, `[INST]`; empty past the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        self.parts().vocabulary.piece(id).unwrap_or_default()
    }

    /// The bytes that the token stands for in the middle of a text; none for control tokens.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.parts().vocabulary.bytes(id)
    }

    /// What kind of token it is.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.parts().vocabulary.kind(id)
    }

    /// How many tokens there are; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.parts().vocabulary.len()
    }

    /// The token that every prompt begins with, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.parts().specials.bos
    }

    /// The token that ends an answer.
    pub fn eos(&self) -> Option<u32> {
        self.parts().specials.eos
    }

    /// Whether a bare prompt gets a BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.parts().specials.adds_bos && self.bos().is_some()
    }

    /// Whether it steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == TokenKind::Control
    }

    /// Whether the model says with it that it has finished: EOS and its like (`<|im_end|>`, `<|eot_id|>`).
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.eos() == Some(id) || self.parts().specials.other_ends.contains(&id)
    }

    /// The id of the token with this name, of whatever kind.
    pub fn token_id(&self, piece: &str) -> Option<u32> {
        self.parts().vocabulary.id(piece)
    }

    /// The id of the control token with this name.
    pub fn control_id(&self, piece: &str) -> Option<u32> {
        self.parts().vocabulary.control(piece)
    }

    /// The chat template that came with the model.
    pub fn chat_template(&self) -> Option<&str> {
        self.parts().templates.default.as_deref()
    }

    /// Where the tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.parts().path
    }
}

/// How the space in front of a part comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spaces {
    /// As the vocabulary's file says.
    AsFile,
    /// A part that begins with a space gets no second one: published templates write `[INST] ` and `[INST]` for the
    /// same tokens, because the programs they were written for disagree about this space.
    OneAtMost,
}

//! The tokenizer that the rest of the program sees, whatever file it came from.

use crate::Error;
use crate::decode::Decoder;
use crate::sentencepiece::{SentencePiece, SpacePrefix};
use crate::sentencepiece_model;
use crate::vocabulary::{SPACE_MARK, TokenKind, Vocabulary};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Text to token ids and back. Cheap to clone, free to share between threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// What a tokenizer is made of.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Where it came from, for messages.
    pub(crate) path: PathBuf,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) algorithm: Algorithm,
    pub(crate) specials: Specials,
}

/// How text is cut into tokens.
#[derive(Debug)]
pub(crate) enum Algorithm {
    /// SentencePiece's BPE.
    SentencePiece {
        encoder: SentencePiece,
        prefix: SpacePrefix,
        /// By id; what the merges were ranked by.
        scores: Vec<f32>,
        unknown_surface: String,
    },
}

/// The tokens with a role of their own.
#[derive(Debug, Default)]
pub(crate) struct Specials {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// All tokens that end an answer, `eos` among them.
    pub(crate) end_of_generation: Vec<u32>,
    pub(crate) adds_bos: bool,
}

impl Tokenizer {
    /// Opens the tokenizer of a checkpoint folder or of one file: `tokenizer.model` (`.v1`, `.v3`, …).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        crate::open::open(path.as_ref())
    }

    /// A tokenizer from the bytes of a `tokenizer.model`; `path` is only for messages.
    pub fn from_sentencepiece_model(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let model = sentencepiece_model::read(bytes, path)?;
        let vocabulary = Vocabulary::new(model.tokens, sentencepiece_surface);
        let encoder = SentencePiece::from_scores(&vocabulary, &model.scores, path)?;
        let prefix = if model.adds_space_prefix { SpacePrefix::Add } else { SpacePrefix::Omit };
        let eos = vocabulary.control(&model.eos);
        let specials = Specials {
            bos: vocabulary.control(&model.bos),
            eos,
            end_of_generation: eos.into_iter().collect(),
            adds_bos: true,
        };
        let algorithm =
            Algorithm::SentencePiece { encoder, prefix, scores: model.scores, unknown_surface: model.unknown_surface };
        Ok(Self::new(Inner { path: path.to_owned(), vocabulary, algorithm, specials }))
    }

    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The ids of `text`, and of text only: control tokens typed in it stay text, and no BOS is added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        match &self.inner.algorithm {
            Algorithm::SentencePiece { encoder, prefix, .. } => encoder.encode(text, *prefix, ids),
        }
    }

    /// The text of `ids`. Control tokens are no text; ids past the vocabulary neither.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut decoder = Decoder::at_start();
        for &id in ids {
            decoder.push(self, id, &mut text);
        }
        decoder.finish(self, &mut text);
        text
    }

    /// The token's name as its vocabulary writes it: `▁Hello`, `<0x0A>`, `[INST]`; empty past the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        self.inner.vocabulary.piece(id).unwrap_or_default()
    }

    /// The bytes that the token stands for in the middle of a text; none for control tokens.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.inner.vocabulary.bytes(id)
    }

    /// What kind of token it is.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.inner.vocabulary.kind(id)
    }

    /// How many tokens there are; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocabulary.len()
    }

    /// The token that every prompt begins with, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.specials.bos
    }

    /// The token that ends an answer.
    pub fn eos(&self) -> Option<u32> {
        self.inner.specials.eos
    }

    /// Whether a bare prompt gets a BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.inner.specials.adds_bos && self.bos().is_some()
    }

    /// Whether it steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == TokenKind::Control
    }

    /// Whether the model says with it that it has finished: EOS and its like (`<|im_end|>`, `<|eot_id|>`).
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.inner.specials.end_of_generation.contains(&id)
    }

    /// All tokens for which [`Self::is_end_of_generation`] holds.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.inner.specials.end_of_generation
    }

    /// The id of the token with this name, of whatever kind.
    pub fn token_id(&self, piece: &str) -> Option<u32> {
        self.inner.vocabulary.id(piece)
    }

    /// The id of the control token with this name.
    pub fn control_id(&self, piece: &str) -> Option<u32> {
        self.inner.vocabulary.control(piece)
    }

    /// Where the tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

/// What a SentencePiece piece stands for: itself, with spaces for `▁`.
pub(crate) fn sentencepiece_surface(piece: &str, bytes: &mut Vec<u8>) {
    let mut buffer = [0; 4];
    for character in piece.chars() {
        let character = if character == SPACE_MARK { ' ' } else { character };
        bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
    }
}

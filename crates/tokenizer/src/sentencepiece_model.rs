//! `tokenizer.model`: SentencePiece's own file, a protobuf message.
//!
//! Of its fields we need the pieces (text, score, kind) and a few switches. Switches that Mistral's and Llama's
//! files never set differently (another algorithm, a normaliser, suffix spaces) are refused by name, because to
//! ignore them would give wrong ids in silence.

use crate::hugging_face::AddedToken;
use crate::protobuf::{Value, Writer, fields};
use crate::ranking::Ranking;
use crate::sentencepiece::{SentencePiece, SpacePrefix, surface};
use crate::tokenizer::{Algorithm, Parts, Specials, Templates};
use crate::vocabulary::{Token, TokenKind, Vocabulary};
use crate::{Error, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// What SentencePiece writes for text that it could not encode.
pub(crate) const UNKNOWN_SURFACE: &str = " \u{2047} ";

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.model`; `path` is only for messages.
    pub fn from_sentencepiece_model(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        Self::from_sentencepiece_and_added(bytes, path, &[])
    }

    /// The same with tokens that a fine-tuned model has beyond its `tokenizer.model`.
    pub(crate) fn from_sentencepiece_and_added(bytes: &[u8], path: &Path, added: &[AddedToken]) -> Result<Self, Error> {
        let mut model = read(bytes, path)?;
        model.add(added, path)?;
        let vocabulary = Vocabulary::new(model.tokens, surface);
        let prefix = if model.adds_space_prefix { SpacePrefix::Start } else { SpacePrefix::Never };
        let encoder = SentencePiece::from_scores(&vocabulary, &model.scores, prefix, path)?;
        let specials = Specials {
            bos: vocabulary.control(&model.bos),
            eos: vocabulary.control(&model.eos),
            unknown: vocabulary.of_kind(TokenKind::Unknown).map(|(id, _)| id).next(),
            adds_bos: true,
            ..Specials::default()
        };
        let ranking = Ranking::Scores(model.scores);
        let algorithm = Algorithm::SentencePiece { encoder, ranking, unknown_surface: model.unknown_surface };
        Ok(Self::new(Parts {
            path: path.to_owned(),
            vocabulary: Arc::new(vocabulary),
            algorithm: Arc::new(algorithm),
            specials,
            templates: Templates::default(),
        }))
    }
}

/// What a `tokenizer.model` says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    pub(crate) tokens: Vec<Token>,
    pub(crate) scores: Vec<f32>,
    /// Whether text gets a space in front of it.
    pub(crate) adds_space_prefix: bool,
    pub(crate) bos: String,
    pub(crate) eos: String,
    pub(crate) unknown_surface: String,
}

/// More added tokens than this are a damaged file; real models add a few hundred.
const MOST_ADDED_TOKENS: u32 = 1 << 16;

impl Model {
    /// Appends the tokens whose ids are past the end; what lies between becomes unused.
    fn add(&mut self, added: &[AddedToken], path: &Path) -> Result<(), Error> {
        let bare = self.tokens.len() as u32;
        for token in added.iter().filter(|token| token.id >= bare) {
            if token.id - bare >= MOST_ADDED_TOKENS {
                let problem =
                    format!("the added token {:?} has the id {}, far beyond the others", token.content, token.id);
                return Err(Error::malformed(path, problem));
            }
            let size = self.tokens.len().max(token.id as usize + 1);
            self.tokens.resize(size, Token { piece: String::new(), kind: TokenKind::Unused });
            let kind = if token.is_special { TokenKind::Control } else { TokenKind::UserDefined };
            self.tokens[token.id as usize] = Token { piece: token.content.clone(), kind };
        }
        self.scores.resize(self.tokens.len(), 0.0);
        Ok(())
    }
}

const USE_THE_ORIGINAL: &str = "use the tokenizer.model of a Mistral, Mixtral or Llama model";

/// Reads the bytes of a `tokenizer.model`; `path` is for messages.
pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Model, Error> {
    let mut model = Model {
        tokens: Vec::new(),
        scores: Vec::new(),
        adds_space_prefix: true,
        bos: "<s>".into(),
        eos: "</s>".into(),
        unknown_surface: UNKNOWN_SURFACE.into(),
    };
    let mut reader = Reader { model: &mut model, path };
    reader.model(bytes)?;
    if model.tokens.is_empty() {
        return Err(Error::malformed(path, "holds no pieces; is it a SentencePiece model?"));
    }
    Ok(model)
}

struct Reader<'a> {
    model: &'a mut Model,
    path: &'a Path,
}

impl Reader<'_> {
    fn model(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.each(bytes, "model", |reader, number, value| match (number, value) {
            (1, Value::Bytes(piece)) => reader.piece(piece),
            (2, Value::Bytes(spec)) => reader.each(spec, "trainer_spec", Self::trainer_field),
            (3, Value::Bytes(spec)) => reader.each(spec, "normalizer_spec", Self::normalizer_field),
            _ => Ok(()),
        })
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (mut text, mut score, mut kind) = ("", 0f32, 1);
        let id = self.model.tokens.len();
        for field in fields(bytes) {
            match field.map_err(|problem| self.malformed(format!("piece {id}: {problem}")))? {
                (1, Value::Bytes(bytes)) => text = self.text(bytes)?,
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Varint(value)) => kind = value,
                _ => {}
            }
        }
        let kind = token_kind(kind, text)
            .ok_or_else(|| self.malformed(format!("piece {id} {text:?} is of no known type ({kind})")))?;
        self.model.tokens.push(Token { piece: text.into(), kind });
        self.model.scores.push(score);
        Ok(())
    }

    fn trainer_field(&mut self, number: u64, value: Value) -> Result<(), Error> {
        match (number, value) {
            (3, Value::Varint(BPE)) => Ok(()),
            (3, Value::Varint(other)) => {
                let name = ["unknown", "unigram", "bpe", "word", "char"].get(other as usize).unwrap_or(&"unknown");
                self.refuse(format!("model_type {name}"))
            }
            (24, Value::Varint(1)) => self.refuse("treat_whitespace_as_suffix"),
            (44, Value::Bytes(text)) => self.set(text, |model| &mut model.unknown_surface),
            (46, Value::Bytes(text)) => self.set(text, |model| &mut model.bos),
            (47, Value::Bytes(text)) => self.set(text, |model| &mut model.eos),
            _ => Ok(()),
        }
    }

    fn normalizer_field(&mut self, number: u64, value: Value) -> Result<(), Error> {
        match (number, value) {
            (2, Value::Bytes(map)) if !map.is_empty() => self.refuse("a normaliser (precompiled_charsmap)"),
            (3, Value::Varint(adds)) => {
                self.model.adds_space_prefix = adds != 0;
                Ok(())
            }
            (4, Value::Varint(1)) => self.refuse("remove_extra_whitespaces"),
            (5, Value::Varint(0)) => self.refuse("escape_whitespaces = false"),
            _ => Ok(()),
        }
    }

    fn each(
        &mut self,
        message: &[u8],
        name: &str,
        visit: impl Fn(&mut Self, u64, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for field in fields(message) {
            let (number, value) = field.map_err(|problem| self.malformed(format!("{name}: {problem}")))?;
            visit(self, number, value)?;
        }
        Ok(())
    }

    fn set(&mut self, bytes: &[u8], field: impl Fn(&mut Model) -> &mut String) -> Result<(), Error> {
        let text = self.text(bytes)?.to_owned();
        *field(self.model) = text;
        Ok(())
    }

    fn text<'b>(&self, bytes: &'b [u8]) -> Result<&'b str, Error> {
        std::str::from_utf8(bytes).map_err(|_| self.malformed("holds text that is not UTF-8".into()))
    }

    fn malformed(&self, problem: String) -> Error {
        Error::malformed(self.path, format!("not a SentencePiece model: {problem}"))
    }

    fn refuse(&self, component: impl Into<String>) -> Result<(), Error> {
        Err(Error::unsupported(self.path, component, USE_THE_ORIGINAL))
    }
}

const BPE: u64 = 2;

/// SentencePiece's number for a kind of piece, which GGUF uses too.
pub(crate) fn token_kind(number: u64, piece: &str) -> Option<TokenKind> {
    Some(match number {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte(byte_of(piece)?),
        _ => return None,
    })
}

/// The inverse of [`token_kind`].
pub(crate) fn kind_number(kind: TokenKind) -> u64 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
        TokenKind::Unused => 5,
        TokenKind::Byte(_) => 6,
    }
}

/// The byte that a piece like `<0x0A>` stands for.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_two_digits = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_two_digits.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

impl Tokenizer {
    /// This tokenizer as a `tokenizer.model` that SentencePiece reads; `None` for byte-level BPE, which that format
    /// cannot express.
    pub fn to_sentencepiece_model(&self) -> Option<Vec<u8>> {
        let Algorithm::SentencePiece { encoder, ranking, .. } = &*self.parts().algorithm else { return None };
        let vocabulary = &self.parts().vocabulary;
        let mut file = Writer::default();
        for ((piece, kind), score) in vocabulary.exported().zip(ranking.scores(vocabulary)) {
            let mut token = Writer::default();
            token.bytes(1, piece.as_bytes());
            token.float(2, score);
            token.varint(3, kind_number(kind));
            file.bytes(1, &token.finish());
        }
        file.bytes(2, &self.trainer_spec());
        let mut normalizer = Writer::default();
        normalizer.bytes(1, b"identity");
        normalizer.varint(3, u64::from(encoder.prefix != SpacePrefix::Never));
        normalizer.varint(4, 0);
        normalizer.varint(5, 1);
        file.bytes(3, &normalizer.finish());
        Some(file.finish())
    }

    fn trainer_spec(&self) -> Vec<u8> {
        let Parts { vocabulary, specials, .. } = self.parts();
        let has_bytes = vocabulary.tokens().any(|(_, token)| matches!(token.kind, TokenKind::Byte(_)));
        let mut trainer = Writer::default();
        trainer.varint(3, BPE);
        trainer.varint(4, vocabulary.len() as u64);
        trainer.varint(35, u64::from(has_bytes));
        let names = [(40, 45, specials.unknown), (41, 46, specials.bos), (42, 47, specials.eos)];
        for (id_field, name_field, id) in names {
            if let Some(id) = id {
                trainer.varint(id_field, u64::from(id));
                trainer.bytes(name_field, self.piece(id).as_bytes());
            }
        }
        trainer.bytes(44, UNKNOWN_SURFACE.as_bytes());
        trainer.finish()
    }
}

//! Tokens back to text, whole or as they come.
//!
//! Two things make this more than joining pieces. A character may lie across several tokens, so bytes wait until
//! they are complete. And SentencePiece puts a space in front of every text, which the first token with text has to
//! give back: `▁Hello` is `Hello` at the start of a text and ` Hello` in the middle.

use crate::sentencepiece::SpacePrefix;
use crate::tokenizer::{Algorithm, Tokenizer};
use crate::vocabulary::TokenKind;

/// The state between tokens.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    /// The start of a character whose end has not come yet; at most 3 bytes.
    pending: Vec<u8>,
    start: Start,
    replacement: Replacement,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Start {
    /// No text yet: a leading space belongs to the encoding.
    Ahead,
    /// Text has begun.
    Passed,
}

/// Where U+FFFD stands for bytes that are no UTF-8.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Replacement {
    /// For each byte, as SentencePiece does.
    EachByte,
    /// For each longest start of a character, as Rust and the byte-level tokenizers do.
    EachStart,
}

impl Decoder {
    /// A decoder at the start of a text.
    pub(crate) fn at_start(tokenizer: &Tokenizer) -> Self {
        let start = match &*tokenizer.parts().algorithm {
            Algorithm::SentencePiece { encoder, .. } if encoder.prefix != SpacePrefix::Never => Start::Ahead,
            _ => Start::Passed,
        };
        Self { start, ..Self::in_the_middle(tokenizer) }
    }

    /// A decoder of tokens that continue a text.
    pub(crate) fn in_the_middle(tokenizer: &Tokenizer) -> Self {
        let replacement = match &*tokenizer.parts().algorithm {
            Algorithm::SentencePiece { .. } => Replacement::EachByte,
            Algorithm::ByteLevel { .. } => Replacement::EachStart,
        };
        Self { pending: Vec::new(), start: Start::Passed, replacement }
    }

    /// Appends to `text` what `id` completes.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        let parts = tokenizer.parts();
        let mut bytes = parts.vocabulary.bytes(id);
        if let Algorithm::SentencePiece { unknown_surface, .. } = &*parts.algorithm {
            let kind = parts.vocabulary.kind(id);
            if kind == TokenKind::Unknown {
                bytes = unknown_surface.as_bytes();
            }
            if !matches!(kind, TokenKind::Byte(_)) {
                // Only byte tokens can complete a character that byte tokens began.
                self.finish(text);
            }
            if !bytes.is_empty() && self.start == Start::Ahead {
                self.start = Start::Passed;
                if !matches!(kind, TokenKind::Byte(_) | TokenKind::Unknown) {
                    bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                }
            }
        }
        self.pending.extend_from_slice(bytes);
        self.drain(text);
    }

    /// Appends what is still pending: bytes that never became a character.
    pub(crate) fn finish(&mut self, text: &mut String) {
        let replacements = match self.replacement {
            Replacement::EachByte => self.pending.len(),
            Replacement::EachStart => usize::from(!self.pending.is_empty()),
        };
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, replacements));
        self.pending.clear();
    }

    /// Moves all complete characters from `pending` to `text`; what cannot become one turns into U+FFFD.
    fn drain(&mut self, text: &mut String) {
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break self.pending.clear();
                }
                Err(error) => error,
            };
            text.push_str(std::str::from_utf8(&rest[..error.valid_up_to()]).expect("valid up to here"));
            done += error.valid_up_to();
            let Some(invalid) = error.error_len() else {
                break drop(self.pending.drain(..done));
            };
            text.push(char::REPLACEMENT_CHARACTER);
            done += if self.replacement == Replacement::EachByte { 1 } else { invalid };
        }
    }
}

/// Decodes token by token, as they are generated. Gives out only complete characters.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    decoder: Decoder,
}

impl DecodeStream {
    /// For tokens that begin a text of their own, like an assistant's answer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone(), decoder: Decoder::at_start(tokenizer) }
    }

    /// For tokens that continue a text, like the completion of a prompt.
    pub fn continuing(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone(), decoder: Decoder::in_the_middle(tokenizer) }
    }

    /// The text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    /// Appends the text that `id` completes; allocates only if `text` must grow.
    pub fn push_into(&mut self, id: u32, text: &mut String) {
        self.decoder.push(&self.tokenizer, id, text);
    }

    /// The rest, with U+FFFD for bytes that never became a character.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        text
    }
}

//! Tokens back to text, whole or as they come.
//!
//! Two things make this more than joining pieces. A character may lie across several tokens, so bytes wait until
//! they are complete. And SentencePiece puts a space in front of every text, which the first token with text has to
//! give back: `▁Hello` is `Hello` at the start of a text and ` Hello` in the middle.

use crate::tokenizer::{Algorithm, Tokenizer};
use crate::vocabulary::TokenKind;

/// The state between tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decoder {
    /// The start of a character whose end has not come yet; at most 3 bytes.
    pending: Vec<u8>,
    start: Start,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Start {
    /// No text yet: a leading space belongs to the encoding.
    #[default]
    Ahead,
    /// Text has begun.
    Passed,
}

impl Decoder {
    /// A decoder at the start of a text.
    pub(crate) fn at_start() -> Self {
        Self::default()
    }

    /// A decoder of tokens that continue a text.
    pub(crate) fn in_the_middle() -> Self {
        Self { start: Start::Passed, ..Self::default() }
    }

    /// Appends to `text` what `id` completes.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        let inner = tokenizer.inner();
        let mut bytes = inner.vocabulary.bytes(id);
        let kind = inner.vocabulary.kind(id);
        let Algorithm::SentencePiece { prefix, unknown_surface, .. } = &inner.algorithm;
        if !matches!(kind, TokenKind::Byte(_)) {
            self.finish(tokenizer, text);
            if kind == TokenKind::Unknown {
                bytes = unknown_surface.as_bytes();
            } else if self.start == Start::Ahead
                && *prefix != crate::sentencepiece::SpacePrefix::Omit
                && !bytes.is_empty()
            {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        if kind != TokenKind::Control {
            self.start = Start::Passed;
        }
        self.pending.extend_from_slice(bytes);
        self.drain(text);
    }

    /// Appends what is still pending: bytes that never became a character.
    pub(crate) fn finish(&mut self, _tokenizer: &Tokenizer, text: &mut String) {
        for _ in self.pending.drain(..) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Moves all complete characters from `pending` to `text`; a byte that cannot belong to one becomes U+FFFD.
    fn drain(&mut self, text: &mut String) {
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    rest = invalid;
                    if error.error_len().is_none() {
                        break;
                    }
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[1..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
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
        Self { tokenizer: tokenizer.clone(), decoder: Decoder::at_start() }
    }

    /// For tokens that continue a text, like the completion of a prompt.
    pub fn continuing(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone(), decoder: Decoder::in_the_middle() }
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
        self.decoder.finish(&self.tokenizer, &mut text);
        text
    }
}

//! Byte-level BPE, as GPT-2 introduced it: every text is bytes, so nothing is unknown.
//!
//! Vocabularies write each byte as a printable character (`Ġ` for a space, `Ċ` for a line break), so that pieces can
//! stand in JSON. Text is cut into words, a word becomes its bytes' tokens, and neighbours are merged in the order
//! of the merge list.

use crate::matcher::Matcher;
use crate::merge::{MergeTable, Scratch};
use crate::split::Splitter;
use crate::vocabulary::{Token, TokenKind, Vocabulary};

/// What is done with a word that is a token as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WholeWords {
    /// It is merged like any other.
    Merge,
    /// It is that token, even if no merges lead there (`ignore_merges`).
    Take,
}

/// What is done at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeadingSpace {
    /// Nothing.
    Keep,
    /// A space is put in front if there is none (`add_prefix_space`).
    Ensure,
}

/// The encoder of one vocabulary.
#[derive(Debug)]
pub(crate) struct ByteLevel {
    /// The token of each byte, if it has one.
    bytes: Box<[Option<u32>; 256]>,
    merges: MergeTable,
    user_defined: Matcher,
    pub(crate) splitter: Splitter,
    pub(crate) whole_words: WholeWords,
    pub(crate) leading_space: LeadingSpace,
}

/// How to build a [`ByteLevel`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) splitter: Splitter,
    pub(crate) whole_words: WholeWords,
    pub(crate) leading_space: LeadingSpace,
}

impl ByteLevel {
    /// An encoder over `vocabulary`, which is written in the byte alphabet.
    pub(crate) fn new(vocabulary: &Vocabulary, merges: MergeTable, options: Options) -> Self {
        let mut bytes = Box::new([None; 256]);
        for byte in 0..=255u8 {
            let mut buffer = [0; 4];
            bytes[usize::from(byte)] = vocabulary.id(char_of_byte(byte).encode_utf8(&mut buffer));
        }
        let user_defined = vocabulary.of_kind(TokenKind::UserDefined);
        let user_defined = Matcher::new(user_defined.map(|(id, token)| (token.piece.as_str(), id)));
        let Options { splitter, whole_words, leading_space } = options;
        Self { bytes, merges, user_defined, splitter, whole_words, leading_space }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) {
        let mut words = Words { encoder: self, vocabulary, scratch: Scratch::default(), symbols: Vec::new(), ids };
        let mut rest = text;
        while let Some((start, end, id)) = self.user_defined.find(rest) {
            words.segment(&rest[..start]);
            words.ids.push(id);
            rest = &rest[end..];
        }
        words.segment(rest);
    }
}

/// One call of `encode`.
struct Words<'a> {
    encoder: &'a ByteLevel,
    vocabulary: &'a Vocabulary,
    scratch: Scratch,
    symbols: Vec<u32>,
    ids: &'a mut Vec<u32>,
}

impl Words<'_> {
    fn segment(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.encoder.leading_space == LeadingSpace::Ensure && !text.starts_with(' ') {
            self.encoder.splitter.split(&format!(" {text}"), &mut |word| self.word(word));
        } else {
            self.encoder.splitter.split(text, &mut |word| self.word(word));
        }
    }

    fn word(&mut self, word: &str) {
        if self.encoder.whole_words == WholeWords::Take {
            let piece: String = word.bytes().map(char_of_byte).collect();
            if let Some(id) = self.vocabulary.normal(&piece) {
                self.ids.push(id);
                return;
            }
        }
        let Self { encoder, symbols, scratch, ids, .. } = self;
        symbols.clear();
        symbols.extend(word.bytes().filter_map(|byte| encoder.bytes[usize::from(byte)]));
        encoder.merges.merge(symbols, scratch);
        ids.extend_from_slice(symbols);
    }
}

/// The character that stands for `byte` in a piece. Printable bytes of Latin-1 stand for themselves, the others, in
/// order, for U+0100 and up.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => code,
        0..=b' ' => 0x100 + code,
        0x7f..=0xa0 => 0x121 + (code - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).expect("at most U+0143")
}

/// The inverse of [`char_of_byte`].
pub(crate) fn byte_of_char(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// What a piece in the byte alphabet stands for; characters outside it stand for themselves, user-defined pieces too.
pub(crate) fn surface(token: &Token, bytes: &mut Vec<u8>) {
    if token.kind == TokenKind::UserDefined {
        return bytes.extend_from_slice(token.piece.as_bytes());
    }
    let mut buffer = [0; 4];
    for character in token.piece.chars() {
        match byte_of_char(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet() {
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        // As every GPT-2 vocabulary writes them.
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(char_of_byte(0xff), 'ÿ');
        assert_eq!(char_of_byte(0x7f), 'ġ');
        assert_eq!(char_of_byte(0xad), 'Ń');
    }
}

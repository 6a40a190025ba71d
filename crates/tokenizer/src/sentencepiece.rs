//! Encoding as SentencePiece's BPE does it, for vocabularies with scores or with the merge list derived from them.
//!
//! Text becomes characters, with `▁` for a space and one more `▁` in front; neighbours are joined, best score first;
//! characters without a piece fall back to their UTF-8 bytes. In Mistral's vocabularies `▁` only ever begins a piece,
//! so no merge crosses the border in `x▁`: text is cut there and each word is merged alone, which gives the same ids.

use crate::Error;
use crate::matcher::Matcher;
use crate::merge::{MergeTable, OUTSIDE, Scratch};
use crate::vocabulary::{SPACE_MARK, Token, TokenKind, Vocabulary};
use std::collections::HashMap;
use std::path::Path;

/// No real piece is longer, and looking at all splits of a piece costs the square of its length.
const LONGEST_PIECE_BYTES: usize = 1024;

/// Where a `▁` is put in front of text. The five differ only around tokens that were cut out of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    /// In front of the whole text: SentencePiece's `add_dummy_prefix`.
    Start,
    /// The same, if the text does not begin with a space: `Metaspace` with `first`.
    StartUnlessSpace,
    /// In front of the text and after every token that was cut out of it: `Prepend` in `tokenizer.json`.
    EachPart,
    /// The same, for parts that do not begin with a space: `Metaspace` with `always`.
    EachPartUnlessSpace,
    /// Nowhere.
    Never,
}

/// Where a part of a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the very start.
    Start,
    /// After a control token or a user-defined one.
    AfterToken,
}

impl SpacePrefix {
    fn applies(self, part: &str, place: Place) -> bool {
        let needs_space = || !part.is_empty() && !part.starts_with([' ', SPACE_MARK]);
        match self {
            // Even in front of a user-defined token at the start, where the first part is empty.
            SpacePrefix::Start => place == Place::Start,
            SpacePrefix::StartUnlessSpace => place == Place::Start && needs_space(),
            SpacePrefix::EachPart => !part.is_empty(),
            SpacePrefix::EachPartUnlessSpace => needs_space(),
            SpacePrefix::Never => false,
        }
    }
}

/// Where words may be cut before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// Wherever no merge can cross, which changes nothing but the speed.
    WhereNoMergeCrosses,
    /// Before every `▁`, even those that follow another: `Metaspace` with `split`.
    BeforeEverySpace,
}

/// The encoder of one vocabulary.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    chars: CharTable,
    merges: MergeTable,
    /// The token of each byte; `None` without byte fallback.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    user_defined: Matcher,
    pub(crate) prefix: SpacePrefix,
    border: Border,
}

/// Before which `▁` a word ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    AnySpace,
    SpaceAfterText,
    None,
}

impl SentencePiece {
    /// An encoder that merges by score: `scores[id]`, the highest first.
    pub(crate) fn from_scores(
        vocabulary: &Vocabulary,
        scores: &[f32],
        prefix: SpacePrefix,
        path: &Path,
    ) -> Result<Self, Error> {
        let merges = merges_by_score(vocabulary, scores, path)?;
        Ok(Self::new(vocabulary, merges, prefix, Cuts::WhereNoMergeCrosses))
    }

    /// An encoder with a ready table of merges.
    pub(crate) fn new(vocabulary: &Vocabulary, merges: MergeTable, prefix: SpacePrefix, cuts: Cuts) -> Self {
        let has_space_inside = |token: &Token| token.piece.trim_start_matches(SPACE_MARK).contains(SPACE_MARK);
        let border = match cuts {
            Cuts::BeforeEverySpace => Border::AnySpace,
            Cuts::WhereNoMergeCrosses if vocabulary.of_kind(TokenKind::Normal).any(|(_, t)| has_space_inside(t)) => {
                Border::None
            }
            Cuts::WhereNoMergeCrosses => Border::SpaceAfterText,
        };
        let user_defined: Vec<(String, u32)> = vocabulary
            .of_kind(TokenKind::UserDefined)
            .map(|(id, token)| (token.piece.replace(SPACE_MARK, " "), id))
            .collect();
        Self {
            chars: CharTable::new(vocabulary),
            merges,
            bytes: byte_tokens(vocabulary),
            unknown: vocabulary.of_kind(TokenKind::Unknown).map(|(id, _)| id).next(),
            user_defined: Matcher::new(user_defined.iter().map(|(piece, id)| (piece.as_str(), *id))),
            prefix,
            border,
        }
    }

    /// Appends the ids of `text`, which stands at `place`; `prefix` is the encoder's own but for templates.
    pub(crate) fn encode(&self, text: &str, place: Place, prefix: SpacePrefix, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut words = Words { encoder: self, symbols: Vec::new(), scratch: Scratch::default(), ids };
        let mut rest = text;
        let mut place = place;
        while let Some((start, end, id)) = self.user_defined.find(rest) {
            words.part(&rest[..start], place, prefix);
            words.ids.push(id);
            rest = &rest[end..];
            place = Place::AfterToken;
        }
        words.part(rest, place, prefix);
    }

    /// A character without a piece becomes its bytes, or one unknown token for a whole run of such characters.
    fn fall_back(&self, character: char, ids: &mut Vec<u32>) {
        match (&self.bytes, self.unknown) {
            (Some(bytes), _) => {
                let mut buffer = [0; 4];
                let utf8 = character.encode_utf8(&mut buffer).bytes();
                ids.extend(utf8.map(|byte| bytes[usize::from(byte)]));
            }
            (None, Some(unknown)) if ids.last() != Some(&unknown) => ids.push(unknown),
            (None, _) => {}
        }
    }
}

/// One call of `encode`.
struct Words<'a> {
    encoder: &'a SentencePiece,
    /// The word so far.
    symbols: Vec<u32>,
    scratch: Scratch,
    ids: &'a mut Vec<u32>,
}

impl Words<'_> {
    fn part(&mut self, part: &str, place: Place, prefix: SpacePrefix) {
        let chars = &self.encoder.chars;
        let space = chars.symbol(SPACE_MARK);
        if prefix.applies(part, place) {
            self.symbols.push(space);
        }
        for character in part.chars() {
            let symbol = if character == ' ' { space } else { chars.symbol(character) };
            let is_border = match self.encoder.border {
                Border::AnySpace => symbol == space,
                Border::SpaceAfterText => symbol == space && self.symbols.last().is_some_and(|&last| last != space),
                Border::None => false,
            };
            if is_border {
                self.flush();
            }
            self.symbols.push(symbol);
        }
        self.flush();
    }

    /// Merges the word and gives out its ids.
    fn flush(&mut self) {
        self.encoder.merges.merge(&mut self.symbols, &mut self.scratch);
        for &symbol in &self.symbols {
            if symbol & OUTSIDE == 0 {
                self.ids.push(symbol);
            } else {
                let character = char::from_u32(symbol & !OUTSIDE).expect("made from a char");
                self.encoder.fall_back(character, self.ids);
            }
        }
        self.symbols.clear();
    }
}

/// Every way to make a piece out of two symbols, ranked by the piece's score.
fn merges_by_score(vocabulary: &Vocabulary, scores: &[f32], path: &Path) -> Result<MergeTable, Error> {
    let ranks = ranks_of(scores);
    // Of Mistral's vocabularies a piece comes of two pairs in the mean.
    let mut merges = MergeTable::with_capacity(2 * vocabulary.len());
    for (id, token) in vocabulary.of_kind(TokenKind::Normal) {
        let piece = token.piece.as_str();
        if piece.len() > LONGEST_PIECE_BYTES {
            let problem = format!("token {id} has {} bytes; pieces have at most {LONGEST_PIECE_BYTES}", piece.len());
            return Err(Error::malformed(path, problem));
        }
        if vocabulary.normal(piece) != Some(id) {
            continue;
        }
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            // A piece's end is seldom a piece, its beginning mostly.
            let Some(right) = symbol_of(vocabulary, right) else { continue };
            let Some(left) = symbol_of(vocabulary, left) else { continue };
            merges.insert(left, right, ranks.get(id as usize).copied().unwrap_or(u32::MAX), id);
        }
    }
    Ok(merges)
}

/// What stands for `piece` while merging; `None` if merging never makes it.
pub(crate) fn symbol_of(vocabulary: &Vocabulary, piece: &str) -> Option<u32> {
    let mut chars = piece.chars();
    let first = chars.next()?;
    let is_single = chars.next().is_none();
    vocabulary.normal(piece).or(is_single.then_some(OUTSIDE | first as u32))
}

/// Dense ranks of `scores`: 0 for the highest, equal scores share one.
fn ranks_of(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut ranks = vec![0; scores.len()];
    let mut rank = 0;
    for pair in order.windows(2) {
        rank += u32::from(scores[pair[0]] != scores[pair[1]]);
        ranks[pair[1]] = rank;
    }
    ranks
}

/// The token of each byte, if the vocabulary has all 256.
fn byte_tokens(vocabulary: &Vocabulary) -> Option<Box<[u32; 256]>> {
    let mut tokens = [None; 256];
    for (id, token) in vocabulary.tokens() {
        if let TokenKind::Byte(byte) = token.kind {
            tokens[usize::from(byte)].get_or_insert(id);
        }
    }
    let all: Vec<u32> = tokens.into_iter().collect::<Option<_>>()?;
    Some(Box::new(all.try_into().expect("256 in, 256 out")))
}

/// What a SentencePiece piece stands for: itself, with spaces for `▁`.
pub(crate) fn surface(token: &Token, bytes: &mut Vec<u8>) {
    let mut buffer = [0; 4];
    for character in token.piece.chars() {
        let character = if character == SPACE_MARK { ' ' } else { character };
        bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
    }
}

/// From characters to symbols: a flat table for the plane where nearly all text lies, a map for the rest.
#[derive(Debug)]
struct CharTable {
    plane: Vec<u32>,
    beyond: HashMap<char, u32>,
}

const PLANE_CHARS: u32 = 1 << 16;

impl CharTable {
    fn new(vocabulary: &Vocabulary) -> Self {
        let mut plane: Vec<u32> = (0..PLANE_CHARS).map(|code| OUTSIDE | code).collect();
        let mut beyond = HashMap::new();
        for (id, token) in vocabulary.of_kind(TokenKind::Normal) {
            let mut chars = token.piece.chars();
            let (Some(character), None) = (chars.next(), chars.next()) else { continue };
            if vocabulary.normal(&token.piece) != Some(id) {
                continue;
            }
            match plane.get_mut(character as usize) {
                Some(symbol) => *symbol = id,
                None => drop(beyond.insert(character, id)),
            }
        }
        Self { plane, beyond }
    }

    fn symbol(&self, character: char) -> u32 {
        match self.plane.get(character as usize) {
            Some(&symbol) => symbol,
            None => self.beyond.get(&character).copied().unwrap_or(OUTSIDE | character as u32),
        }
    }
}

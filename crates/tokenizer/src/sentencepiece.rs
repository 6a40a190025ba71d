//! Encoding as SentencePiece's BPE does it, for vocabularies with scores or with the merge list derived from them.
//!
//! Text becomes characters, with `▁` for a space and one more `▁` in front; neighbours are joined, best score first;
//! characters without a piece fall back to their UTF-8 bytes. In Mistral's vocabularies `▁` only ever begins a piece,
//! so no merge crosses the border in `x▁`: text is cut there and each word is merged alone, which gives the same ids.

use crate::Error;
use crate::matcher::Matcher;
use crate::merge::{MergeTable, OUTSIDE, Scratch};
use crate::vocabulary::{SPACE_MARK, TokenKind, Vocabulary};
use std::collections::HashMap;
use std::path::Path;

/// No real piece is longer, and looking at all splits of a piece costs the square of its length.
const LONGEST_PIECE_BYTES: usize = 1024;

/// Whether text gets a `▁` in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    /// `add_dummy_prefix`: always.
    Add,
    /// Unless the text begins with a space: what newer `tokenizer.json` files do.
    AddUnlessSpace,
    /// Never.
    Omit,
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
    cuts_before_spaces: bool,
}

impl SentencePiece {
    /// An encoder that merges by score: `scores[id]`, the highest first.
    pub(crate) fn from_scores(vocabulary: &Vocabulary, scores: &[f32], path: &Path) -> Result<Self, Error> {
        let ranks = ranks_of(scores);
        let mut merges = MergeTable::default();
        let mergeable = Mergeable::new(vocabulary);
        for (&piece, &id) in &mergeable.ids {
            if piece.len() > LONGEST_PIECE_BYTES {
                let problem =
                    format!("token {id} has {} bytes; pieces have at most {LONGEST_PIECE_BYTES}", piece.len());
                return Err(Error::malformed(path, problem));
            }
            for (cut, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(cut);
                if let (Some(left), Some(right)) = (mergeable.symbol(left), mergeable.symbol(right)) {
                    merges.insert(left, right, ranks.get(id as usize).copied().unwrap_or(u32::MAX), id);
                }
            }
        }
        Ok(Self::new(vocabulary, merges))
    }

    /// An encoder with a ready table of merges.
    pub(crate) fn new(vocabulary: &Vocabulary, merges: MergeTable) -> Self {
        let of_kind = |wanted: TokenKind| vocabulary.tokens().filter(move |(_, token)| token.kind == wanted);
        let has_space_inside = |piece: &str| piece.trim_start_matches(SPACE_MARK).contains(SPACE_MARK);
        let user_defined: Vec<(String, u32)> =
            of_kind(TokenKind::UserDefined).map(|(id, token)| (token.piece.replace(SPACE_MARK, " "), id)).collect();
        Self {
            chars: CharTable::new(vocabulary),
            merges,
            bytes: byte_tokens(vocabulary),
            unknown: of_kind(TokenKind::Unknown).map(|(id, _)| id).next(),
            user_defined: Matcher::new(user_defined.iter().map(|(piece, id)| (piece.as_str(), *id))),
            cuts_before_spaces: !of_kind(TokenKind::Normal).any(|(_, token)| has_space_inside(&token.piece)),
        }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, prefix: SpacePrefix, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let has_prefix = match prefix {
            SpacePrefix::Add => true,
            SpacePrefix::AddUnlessSpace => !text.starts_with([' ', SPACE_MARK]),
            SpacePrefix::Omit => false,
        };
        let mut run = Run { encoder: self, symbols: Vec::new(), scratch: Scratch::default(), ids };
        if has_prefix {
            run.symbols.push(self.chars.symbol(SPACE_MARK));
        }
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if !self.user_defined.is_empty()
                && let Some((length, id)) = self.user_defined.longest_prefix(rest.as_bytes())
            {
                run.flush();
                run.ids.push(id);
                rest = &rest[length..];
                continue;
            }
            run.push(if first == ' ' { SPACE_MARK } else { first });
            rest = &rest[first.len_utf8()..];
        }
        run.flush();
    }
}

/// One call of `encode`.
struct Run<'a> {
    encoder: &'a SentencePiece,
    /// The word so far.
    symbols: Vec<u32>,
    scratch: Scratch,
    ids: &'a mut Vec<u32>,
}

impl Run<'_> {
    fn push(&mut self, character: char) {
        let symbol = self.encoder.chars.symbol(character);
        if character == SPACE_MARK
            && self.encoder.cuts_before_spaces
            && self.symbols.last().is_some_and(|&last| last != symbol)
        {
            self.flush();
        }
        self.symbols.push(symbol);
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

impl SentencePiece {
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

/// The pieces that merging can meet or make, by name.
struct Mergeable<'a> {
    ids: HashMap<&'a str, u32>,
}

impl<'a> Mergeable<'a> {
    fn new(vocabulary: &'a Vocabulary) -> Self {
        let mut ids = HashMap::with_capacity(vocabulary.len());
        for (id, token) in vocabulary.tokens() {
            if token.kind == TokenKind::Normal {
                ids.entry(token.piece.as_str()).or_insert(id);
            }
        }
        Self { ids }
    }

    /// What stands for `piece` while merging; `None` if merging never makes it.
    fn symbol(&self, piece: &str) -> Option<u32> {
        let mut chars = piece.chars();
        let first = chars.next()?;
        let is_single = chars.next().is_none();
        self.ids.get(piece).copied().or(is_single.then_some(OUTSIDE | first as u32))
    }
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

/// From characters to symbols: a flat table for the plane where nearly all text lies, a map for the rest.
#[derive(Debug)]
struct CharTable {
    plane: Vec<u32>,
    beyond: HashMap<char, u32>,
}

const PLANE_CHARS: usize = 1 << 16;

impl CharTable {
    fn new(vocabulary: &Vocabulary) -> Self {
        let mut plane: Vec<u32> = (0..PLANE_CHARS as u32).map(|code| OUTSIDE | code).collect();
        let mut beyond = HashMap::new();
        for (piece, id) in Mergeable::new(vocabulary).ids {
            let mut chars = piece.chars();
            let (Some(character), None) = (chars.next(), chars.next()) else { continue };
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

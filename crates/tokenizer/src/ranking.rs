//! Scores and merge lists: two ways to say in which order pieces are joined, and how one becomes the other.

use crate::merge::OUTSIDE;
use crate::sentencepiece::symbol_of;
use crate::vocabulary::{TokenKind, Vocabulary};

/// What a SentencePiece vocabulary's merges are ordered by; kept for writing it out again.
#[derive(Debug)]
pub(crate) enum Ranking {
    /// By id.
    Scores(Vec<f32>),
    /// Pairs of ids, the best first.
    Merges(Vec<(u32, u32)>),
}

impl Ranking {
    /// A score for every token of `vocabulary`. Out of a merge list, a piece scores by its first merge: 0, -1, -2 …
    pub(crate) fn scores(&self, vocabulary: &Vocabulary) -> Vec<f32> {
        let mut scores = match self {
            Ranking::Scores(scores) => scores.clone(),
            Ranking::Merges(merges) => scores_of_merges(vocabulary, merges),
        };
        scores.resize(vocabulary.len(), 0.0);
        scores
    }

    /// All pairs of tokens that may be joined, the best first.
    pub(crate) fn merges(&self, vocabulary: &Vocabulary) -> Vec<(u32, u32)> {
        match self {
            Ranking::Scores(scores) => merges_of_scores(vocabulary, scores),
            Ranking::Merges(merges) => merges.clone(),
        }
    }
}

fn scores_of_merges(vocabulary: &Vocabulary, merges: &[(u32, u32)]) -> Vec<f32> {
    let mut ranks = vec![None; vocabulary.len()];
    for (rank, &(left, right)) in merges.iter().enumerate() {
        if let Some(joined) = joined(vocabulary, left, right) {
            ranks[joined as usize].get_or_insert(rank);
        }
    }
    let normal = |id: usize| vocabulary.kind(id as u32) == TokenKind::Normal;
    let score = |(id, rank): (usize, Option<usize>)| match rank {
        Some(rank) => -(rank as f32),
        // Pieces that no merge makes come after all that one makes.
        None if normal(id) => -((merges.len() + id) as f32),
        None => 0.0,
    };
    ranks.into_iter().enumerate().map(score).collect()
}

/// Every cut of every piece into two tokens, by the piece's score and then by the tokens' ids, as the converters of
/// transformers order them.
fn merges_of_scores(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<(u32, u32)> {
    let score = |id: u32| scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let mut pieces: Vec<(u32, &str)> =
        vocabulary.of_kind(TokenKind::Normal).map(|(id, token)| (id, token.piece.as_str())).collect();
    pieces.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)));
    let mut merges = Vec::new();
    for (_, piece) in pieces {
        let first = merges.len();
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(left), Some(right)) = (symbol_of(vocabulary, left), symbol_of(vocabulary, right))
                && (left | right) & OUTSIDE == 0
            {
                merges.push((left, right));
            }
        }
        merges[first..].sort();
    }
    merges
}

fn joined(vocabulary: &Vocabulary, left: u32, right: u32) -> Option<u32> {
    vocabulary.id(&format!("{}{}", vocabulary.piece(left)?, vocabulary.piece(right)?))
}

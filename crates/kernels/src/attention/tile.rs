//! One step of online softmax: a block of query rows meets a tile of keys and values.
//!
//! With `s` the scores of a tile and `m` the largest score so far, old and new:
//! `p = e^(s - m')`, `l' = l e^(m - m') + Σ p`, `o' = o e^(m - m') + Σ p v` (Milakov and Gimelshein 2018; FlashAttention).

use std::ops::Range;

use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::exp::exp;
use crate::kv_pages::GROUP_TOKENS;
use crate::lanes::{LANES, Lanes};

/// The keys and values of a tile, and who sees what of it.
pub(crate) struct Tile<'a> {
    /// Keys of each group of 16 tokens; empty where no row sees any of them.
    pub(crate) keys: [&'a [u8]; GROUPS_PER_TILE],
    /// Values likewise.
    pub(crate) values: [&'a [u8]; GROUPS_PER_TILE],
    /// Groups that are there.
    pub(crate) groups: Range<usize>,
    /// Keys of the next tile, to be fetched meanwhile.
    pub(crate) next_keys: [&'a [u8]; GROUPS_PER_TILE],
    /// Position of the first key.
    pub(crate) start: usize,
    /// Position of the block's row 0.
    pub(crate) first_position: usize,
    /// Rows of one token.
    pub(crate) group_rows: usize,
    /// Tokens that a token sees, itself included.
    pub(crate) window: Option<usize>,
}

impl Tile<'_> {
    /// The keys that a row sees, counted from the tile's first. Never empty for rows that [`Tile::rows`] gives.
    #[inline(always)]
    pub(crate) fn visible(&self, row: usize) -> Range<usize> {
        let position = self.first_position + row / self.group_rows;
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first.saturating_sub(self.start)..(position + 1).saturating_sub(self.start).min(TILE)
    }

    /// Of a block of `n_tokens` tokens, the rows that see something of this tile.
    pub(crate) fn rows(&self, n_tokens: usize) -> Range<usize> {
        let first = self.start.saturating_sub(self.first_position);
        // The first key's position plus TILE - 1 is the last; a token sees it if it is less than a window away.
        let end = self.window.map_or(n_tokens, |window| {
            (self.start + TILE - 1).saturating_add(window).saturating_sub(self.first_position).min(n_tokens)
        });
        first * self.group_rows..end * self.group_rows
    }
}

/// How keys and values are stored, and so how they are multiplied.
pub(crate) trait Store {
    /// Makes ready the queries of a block: `work.q` holds them as floats, already scaled.
    fn prepare<V: Lanes>(work: &mut Work, rows: usize);
    /// `work.scores[row, ..] = q · k`, for the groups that are there.
    fn score<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>);
    /// `work.split.values[row] = values[row] * kept[row] + Σ_t p[row, t] v[t]`, over the tokens that a row sees.
    fn weigh<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>);
}

/// Lets `rows` see a tile.
#[inline(always)]
pub(crate) fn see<V: Lanes, S: Store>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
    S::score::<V>(work, rows.clone(), tile);
    for row in rows.clone() {
        soften::<V>(work, row, tile.visible(row));
    }
    S::weigh::<V>(work, rows, tile);
}

/// Turns the scores of a row into weights, and says what is kept of the earlier ones.
#[inline(always)]
fn soften<V: Lanes>(work: &mut Work, row: usize, visible: Range<usize>) {
    let scores = &mut work.scores[row * TILE..][..TILE];
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let sums = &mut work.lane_sums[row * LANES..][..LANES];
    // SAFETY: a row has TILE scores, a multiple of eight, and eight sums.
    unsafe {
        let mut s = [V::splat(f32::NEG_INFINITY); TILE / LANES];
        let mut largest = V::splat(f32::NEG_INFINITY);
        for (i, s) in s.iter_mut().enumerate() {
            *s = V::load(scores.as_ptr().add(i * LANES));
            largest = largest.max(*s);
        }
        let before = work.split.largest[row];
        let now = larger(before, largest.largest());
        let kept = exp(V::splat(before - now));
        let mut sum = V::load(sums.as_ptr()).mul(kept);
        for (i, s) in s.into_iter().enumerate() {
            let p = exp(s.sub(V::splat(now)));
            p.store(scores.as_mut_ptr().add(i * LANES));
            sum = sum.add(p);
        }
        sum.store(sums.as_mut_ptr());
        work.kept[row] = kept.to_array()[0];
        work.split.largest[row] = now;
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The tokens of a group that `visible`, counted from the tile's first, includes.
#[inline(always)]
pub(crate) fn visible_of_group(visible: &Range<usize>, group: usize) -> Range<usize> {
    let start = group * GROUP_TOKENS;
    visible.start.saturating_sub(start).min(GROUP_TOKENS)..visible.end.saturating_sub(start).min(GROUP_TOKENS)
}

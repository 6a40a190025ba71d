//! One step of online softmax: a block of query rows meets a tile of keys and values.
//!
//! With `s` the scores of a tile and `m` the largest score so far, old and new:
//! `p = e^(s - m')`, `l' = l e^(m - m') + Σ p`, `o' = o e^(m - m') + Σ p v` (Milakov and Gimelshein 2018; FlashAttention).

use std::ops::Range;

use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::exp::exp;
use crate::kv_pages::GROUP_TOKENS;
use crate::lanes::{WIDE, Wide};

/// Bytes.
const CACHE_LINE: usize = 64;

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
    /// The keys that the rows of a token of the block see, counted from the tile's first. Never empty for tokens whose
    /// rows [`Tile::rows`] gives.
    fn visible(&self, token: usize) -> Visible {
        let position = self.first_position + token;
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let end = (position + 1).saturating_sub(self.start).min(TILE);
        Visible { start: first.saturating_sub(self.start) as u32, end: end as u32 }
    }

    /// Of some tokens of the block, the rows that see something of this tile.
    pub(crate) fn rows(&self, tokens: Range<usize>) -> Range<usize> {
        let first = self.start.saturating_sub(self.first_position).max(tokens.start);
        // The first key's position plus TILE - 1 is the last; a token sees it if it is less than a window away.
        let end = self.window.map_or(tokens.end, |window| {
            (self.start + TILE - 1).saturating_add(window).saturating_sub(self.first_position).min(tokens.end)
        });
        first * self.group_rows..end * self.group_rows
    }

    /// The groups of which all rows see all tokens.
    pub(crate) fn seen_by_all(&self, visible: &[Visible]) -> Range<usize> {
        let start = visible[visible.len() - 1].start as usize;
        let end = visible[0].end as usize;
        self.groups.start.max(start.div_ceil(GROUP_TOKENS))..self.groups.end.min(end / GROUP_TOKENS)
    }
}

/// How keys and values are stored, and so how they are multiplied.
pub(crate) trait Store {
    /// What the weights of a tile are relative to.
    const REFERENCE: Reference;
    /// Makes ready the queries of a block: `work.q` holds them as floats, already scaled.
    fn prepare<W: Wide>(work: &mut Work, rows: usize);
    /// `work.scores[row, ..] = q · k`, for the groups that are there.
    fn score<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>);
    /// `work.split.values[row] = values[row] * kept[row] + worth[row] * Σ_t p[row, t] v[t]`, over the tokens that a row
    /// sees.
    fn weigh<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>);
}

/// What the weights `e^(score - reference)` of a tile are relative to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reference {
    /// The largest score of all tiles so far: weights can be summed as they are.
    SoFar,
    /// The largest score of the tile: weights use the whole of 0 to 1.
    Tile,
}

/// The tokens of a tile that a row sees, counted from the tile's first.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Visible {
    start: u32,
    end: u32,
}

impl Visible {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The same within a group of the tile, counted from the group's first token.
    #[inline(always)]
    pub(crate) fn of_group(self, group: usize) -> Range<usize> {
        let start = group * GROUP_TOKENS;
        let within = |token: u32| (token as usize).saturating_sub(start).min(GROUP_TOKENS);
        within(self.start)..within(self.end)
    }
}

/// How many of the rows, from the first on, see the same tokens of some groups. What is seen moves on from row to row, so
/// that nothing lies between equals.
#[inline(always)]
pub(crate) fn alike(visible: &[Visible], groups: &Range<usize>) -> usize {
    let [start, end] = [groups.start, groups.end].map(|group| (group * GROUP_TOKENS) as u32);
    let seen = |row: &Visible| (row.start.clamp(start, end), row.end.clamp(start, end));
    let first = seen(&visible[0]);
    if first == seen(&visible[visible.len() - 1]) {
        return visible.len();
    }
    visible.iter().take_while(|row| seen(row) == first).count()
}

/// Lets `rows` see a tile.
#[inline(always)]
pub(crate) fn see<W: Wide, S: Store>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
    for (token, visible) in work.visible[..rows.end].chunks_exact_mut(tile.group_rows).enumerate() {
        visible.fill(tile.visible(token));
    }
    S::score::<W>(work, rows.clone(), tile);
    for row in rows.clone() {
        let scores = &mut work.scores[row * TILE..][..TILE];
        work.reference[row] = largest_visible::<W>(scores, work.visible[row].range(), tile.groups.clone());
    }
    compare::<W, S>(work, rows.clone());
    for row in rows.clone() {
        soften::<W>(work, row, tile.groups.clone());
    }
    S::weigh::<W>(work, rows, tile);
}

/// Hides those scores of the groups that are there which the row must not see; gives the largest of the others.
#[inline(always)]
fn largest_visible<W: Wide>(scores: &mut [f32], visible: Range<usize>, groups: Range<usize>) -> f32 {
    let there = groups.start * GROUP_TOKENS..groups.end * GROUP_TOKENS;
    if visible != there {
        scores[there.start..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..there.end].fill(f32::NEG_INFINITY);
    }
    let mut largest = W::splat(f32::NEG_INFINITY);
    for at in there.step_by(WIDE) {
        // SAFETY: a row has TILE scores, a multiple of sixteen.
        largest = largest.max(unsafe { W::load(scores.as_ptr().add(at)) });
    }
    largest.largest()
}

/// With each row's largest score of the tile in `reference`: finds the largest so far, and what that makes of earlier
/// weights and of the tile's. Sixteen rows at a time, of which some may lie beside `rows`: minus infinity leaves those alone.
#[inline(always)]
fn compare<W: Wide, S: Store>(work: &mut Work, rows: Range<usize>) {
    let blocks = rows.start / WIDE * WIDE..rows.end.next_multiple_of(WIDE);
    let Work { reference, worth, kept, split, .. } = work;
    reference[blocks.start..rows.start].fill(f32::NEG_INFINITY);
    reference[rows.end..blocks.end].fill(f32::NEG_INFINITY);
    for first in blocks.step_by(WIDE) {
        let some = |of: &mut [f32]| of[first..first + WIDE].as_mut_ptr();
        let [reference, worth, kept] = [&mut *reference, worth, kept].map(|of| some(of));
        let largest = some(&mut split.largest);
        // SAFETY: sixteen floats each.
        unsafe {
            let (before, tile) = (W::load(largest), W::load(reference));
            let now = before.max(tile);
            now.store(largest);
            exp(before.sub(now)).store(kept);
            match S::REFERENCE {
                Reference::SoFar => {
                    now.store(reference);
                    W::splat(1.0).store(worth);
                }
                Reference::Tile => exp(tile.sub(now)).store(worth),
            }
        }
    }
}

/// Turns the scores of a row into weights, and sums them.
#[inline(always)]
fn soften<W: Wide>(work: &mut Work, row: usize, groups: Range<usize>) {
    let scores = work.scores[row * TILE..][..TILE].as_mut_ptr();
    let sums = work.lane_sums[row * WIDE..][..WIDE].as_mut_ptr();
    let reference = W::splat(work.reference[row]);
    let mut sum = W::splat(0.0);
    for group in groups {
        // SAFETY: a row has TILE scores, and a group of tokens is sixteen of them.
        unsafe {
            let scores = scores.add(group * GROUP_TOKENS);
            let p = exp(W::load(scores).sub(reference));
            p.store(scores);
            sum = sum.add(p);
        }
    }
    // SAFETY: a row has sixteen sums.
    unsafe {
        let earlier = W::load(sums).mul(W::splat(work.kept[row]));
        sum.fma(W::splat(work.worth[row]), earlier).store(sums);
    }
}

/// Asks for the memory of part `part`, of `length` bytes, of a group.
#[inline(always)]
pub(crate) fn fetch<W: Wide>(group: &[u8], part: usize, length: usize) {
    if group.len() > part * length {
        for at in (0..length).step_by(CACHE_LINE) {
            W::prefetch(group.as_ptr().wrapping_add(part * length + at));
        }
    }
}

/// Asks for those keys of the next tile that lie in groups which this tile has not: the others are asked for meanwhile.
#[inline(always)]
pub(crate) fn fetch_others<W: Wide>(tile: &Tile<'_>) {
    for group in (0..GROUPS_PER_TILE).filter(|group| !tile.groups.contains(group)) {
        fetch::<W>(tile.next_keys[group], 0, tile.next_keys[group].len());
    }
}

/// Where groups lie, with another's place for one that is not there: a request for memory at no address takes long.
#[inline(always)]
pub(crate) fn pointers(groups: &[&[u8]; GROUPS_PER_TILE]) -> Option<[*const u8; GROUPS_PER_TILE]> {
    let any = groups.iter().find(|group| !group.is_empty())?;
    Some(groups.map(|group| if group.is_empty() { any.as_ptr() } else { group.as_ptr() }))
}

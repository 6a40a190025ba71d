//! Keys and values stored as floats, of 32 or 16 bits.
//!
//! Scores of 16 tokens grow side by side over the dimensions; 16 dimensions of the output grow side by side over the
//! tokens. Either way each number loaded serves all rows of a step, and each result is one chain of fused
//! multiply-adds, whatever the number of rows. A step of few rows takes several groups or strips at once: a chain waits
//! for itself, so that the units need eight or more. Every step widens f16 anew: done once for many rows, in memory, it
//! takes longer (5% of a prompt's attention).

use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::steps::{Step, rows_of_step, side_by_side, take};
use crate::attention::tile::{Reference, Store, Tile, Visible, alike, fetch_others, pointers};
use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::kv_pages::{GROUP_TOKENS, STRIP};
use crate::lanes::{WIDE, Wide};

const _: () = assert!(GROUP_TOKENS == WIDE && STRIP == WIDE);

/// A type of float in memory.
pub(crate) trait Element {
    /// Bytes of one.
    const BYTES: usize;
    /// Sixteen of them, from the one at `index`.
    /// # Safety
    /// They must be readable.
    unsafe fn load<W: Wide>(from: *const u8, index: usize) -> W;
}

/// 32 bits.
pub(crate) struct Single;
/// 16 bits.
pub(crate) struct Half;

impl Element for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<W: Wide>(from: *const u8, index: usize) -> W {
        // SAFETY: the caller's promise.
        unsafe { W::load(from.cast::<f32>().add(index)) }
    }
}

impl Element for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<W: Wide>(from: *const u8, index: usize) -> W {
        // SAFETY: the caller's promise.
        unsafe { W::load_f16(from.cast::<u16>().add(index)) }
    }
}

/// Keys and values as floats.
pub(crate) struct Floats<E>(PhantomData<E>);

impl<E: Element> Store for Floats<E> {
    const REFERENCE: Reference = Reference::SoFar;

    #[inline(always)]
    fn prepare<W: Wide>(_: &mut Work, _: usize) {}

    #[inline(always)]
    fn score<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        let mut row = rows.start;
        while row < rows.end {
            let step = Scores::<E> {
                q: work.q[row * work.head_dim..].as_ptr(),
                head_dim: work.head_dim,
                keys: tile.keys.map(<[u8]>::as_ptr),
                ahead: pointers(&tile.values).filter(|_| row == rows.start),
                groups: tile.groups.clone(),
                out: work.scores[row * TILE..].as_mut_ptr(),
                element: PhantomData,
            };
            let n = rows_of_step(rows.end - row, W::SUMS);
            // SAFETY: `n` rows of q and scores exist, and groups that are there have `head_dim` times 16 keys.
            unsafe { take::<W, _>(n, &step) }
            row += n;
        }
    }

    #[inline(always)]
    fn weigh<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        fetch_others::<W>(tile);
        let groups = tile.groups.clone();
        let common = tile.seen_by_all(&work.visible[rows.clone()]);
        if common.start != groups.start || common.is_empty() {
            return weigh_groups::<W, E>(work, rows, tile, groups);
        }
        weigh_groups::<W, E>(work, rows.clone(), tile, common.clone());
        if common.end != groups.end {
            work.kept[rows.clone()].fill(1.0);
            weigh_groups::<W, E>(work, rows, tile, common.end..groups.end);
        }
    }
}

/// Adds the weighted values of some groups of a tile.
#[inline(always)]
fn weigh_groups<W: Wide, E: Element>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>, groups: Range<usize>) {
    let ahead = pointers(&tile.next_keys);
    let mut row = rows.start;
    while row < rows.end {
        let n = rows_of_step(alike(&work.visible[row..rows.end], &groups), W::SUMS);
        let step = Weighing::<E> {
            weights: work.scores[row * TILE..].as_ptr(),
            kept: work.kept[row..].as_ptr(),
            out: work.split.values[row * work.value_dim..].as_mut_ptr(),
            value_dim: work.value_dim,
            values: tile.values.map(<[u8]>::as_ptr),
            ahead: ahead.filter(|_| row == rows.start),
            groups: groups.clone(),
            visible: work.visible[row],
            element: PhantomData,
        };
        // SAFETY: `n` rows exist; the tile has values for all groups that are there.
        unsafe { take::<W, _>(n, &step) }
        row += n;
    }
}

/// Some rows against the keys of a tile.
struct Scores<E> {
    /// `[rows, head_dim]`.
    q: *const f32,
    head_dim: usize,
    /// Of each group.
    keys: [*const u8; GROUPS_PER_TILE],
    /// What will be read next.
    ahead: Option<[*const u8; GROUPS_PER_TILE]>,
    groups: Range<usize>,
    /// `[rows, TILE]`.
    out: *mut f32,
    element: PhantomData<E>,
}

impl<E: Element> Step for Scores<E> {
    #[inline(always)]
    unsafe fn run<W: Wide, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            side_by_side!(W::SUMS, self.groups, score_step::<W, E; R>(self));
        }
    }
}

/// `out[r, t] = Σ_d q[r, d] k[d, t]` for `R` rows and the tokens of `G` groups.
#[inline(always)]
unsafe fn score_step<W: Wide, E: Element, const R: usize, const G: usize>(scores: &Scores<E>, group: usize) {
    let (q, head_dim) = (scores.q, scores.head_dim);
    let keys: [*const u8; G] = some_of(&scores.keys, group);
    let ahead: Option<[*const u8; G]> = scores.ahead.map(|ahead| some_of(&ahead, group));
    let mut sums = [[W::splat(0.0); G]; R];
    for d in 0..head_dim {
        if let Some(ahead) = ahead {
            let at = d * GROUP_TOKENS * E::BYTES;
            ahead.iter().for_each(|ahead| W::prefetch(ahead.wrapping_add(at)));
        }
        // SAFETY: the caller's promise.
        unsafe {
            // Here and below loops, since a closure that is not inlined would lack the instructions.
            let mut k = [W::splat(0.0); G];
            for (k, keys) in k.iter_mut().zip(keys) {
                *k = E::load::<W>(keys, d * GROUP_TOKENS);
            }
            add_products(&mut sums, k, |r| *q.add(r * head_dim + d));
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (g, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { sum.store(scores.out.add(r * TILE + (group + g) * GROUP_TOKENS)) };
        }
    }
}

/// `sums[r, g] += factor(r) x[g]`.
#[inline(always)]
fn add_products<W: Wide, const R: usize, const G: usize>(
    sums: &mut [[W; G]; R],
    x: [W; G],
    factor: impl Fn(usize) -> f32,
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        let factor = W::splat(factor(r));
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = factor.fma(x, *sum);
        }
    }
}

/// `G` places from the one at `first`.
#[inline(always)]
fn some_of<const G: usize>(places: &[*const u8; GROUPS_PER_TILE], first: usize) -> [*const u8; G] {
    std::array::from_fn(|g| places[first + g])
}

/// Rows that see the same tokens of a tile.
struct Weighing<E> {
    /// `[rows, TILE]`.
    weights: *const f32,
    /// `[rows]`.
    kept: *const f32,
    /// `[rows, value_dim]`.
    out: *mut f32,
    value_dim: usize,
    /// Of each group.
    values: [*const u8; GROUPS_PER_TILE],
    /// What will be read next.
    ahead: Option<[*const u8; GROUPS_PER_TILE]>,
    groups: Range<usize>,
    visible: Visible,
    element: PhantomData<E>,
}

impl<E: Element> Step for Weighing<E> {
    #[inline(always)]
    unsafe fn run<W: Wide, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            side_by_side!(W::SUMS, (0..self.value_dim / STRIP), weigh_step::<W, E; R>(self));
        }
    }
}

/// `out[r] = out[r] * kept[r] + Σ_t weights[r, t] v[t]` for `R` rows and `G` strips of 16 dimensions.
#[inline(always)]
unsafe fn weigh_step<W: Wide, E: Element, const R: usize, const G: usize>(step: &Weighing<E>, strip: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let out = |r: usize, g: usize| step.out.add(r * step.value_dim + (strip + g) * STRIP);
        let mut sums = [[W::splat(0.0); G]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let kept = W::splat(*step.kept.add(r));
            for (g, sum) in sums.iter_mut().enumerate() {
                *sum = W::load(out(r, g)).mul(kept);
            }
        }
        for group in step.groups.clone() {
            add_tokens::<W, E, R, G>(&mut sums, step, group, strip);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (g, sum) in sums.into_iter().enumerate() {
                sum.store(out(r, g));
            }
        }
    }
}

/// Adds the weighted values of a group's tokens that the rows see.
#[inline(always)]
unsafe fn add_tokens<W: Wide, E: Element, const R: usize, const G: usize>(
    sums: &mut [[W; G]; R],
    step: &Weighing<E>,
    group: usize,
    strip: usize,
) {
    let place = |t: usize, g: usize| ((strip + g) * GROUP_TOKENS + t) * STRIP * E::BYTES;
    let ahead = step.ahead.map(|ahead| ahead[group]);
    let ask = |t: usize| {
        if let Some(ahead) = ahead {
            (0..G).for_each(|g| W::prefetch(ahead.wrapping_add(place(t, g))));
        }
    };
    let tokens = step.visible.of_group(group);
    (0..tokens.start).chain(tokens.end..GROUP_TOKENS).for_each(ask);
    // SAFETY: the caller's promise.
    unsafe {
        let (values, weights) = (step.values[group], step.weights.add(group * GROUP_TOKENS));
        for t in tokens {
            ask(t);
            let mut v = [W::splat(0.0); G];
            for (g, v) in v.iter_mut().enumerate() {
                *v = E::load(values.add(place(t, g)), 0);
            }
            add_products(sums, v, |r| *weights.add(r * TILE + t));
        }
    }
}

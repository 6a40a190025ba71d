//! Keys and values stored as floats, of 32 or 16 bits.
//!
//! Scores of 16 tokens grow side by side over the dimensions; 16 dimensions of the output grow side by side over the
//! tokens. Either way each number loaded serves all rows of a step, and each result is one chain of fused
//! multiply-adds, whatever the number of rows. When many rows meet a tile of f16, it is widened to f32 first.

use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::tile::{Store, Tile, visible_of_group};
use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, ROWS_PER_STEP, TILE};
use crate::kv_pages::{GROUP_TOKENS, STRIP};
use crate::lanes::{LANES, Lanes};

/// From so many rows on, a tile is widened to f32 once instead of by every step.
const WIDEN_ROWS: usize = 3 * ROWS_PER_STEP;
const CACHE_LINE: usize = 64;

/// A type of float in memory.
pub(crate) trait Element {
    /// Bytes of one.
    const BYTES: usize;
    /// Eight of them, from the one at `index`.
    /// # Safety
    /// They must be readable.
    unsafe fn load<V: Lanes>(from: *const u8, index: usize) -> V;
}

/// 32 bits.
pub(crate) struct Single;
/// 16 bits.
pub(crate) struct Half;

impl Element for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u8, index: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from.cast::<f32>().add(index)) }
    }
}

impl Element for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u8, index: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast::<u16>().add(index)) }
    }
}

/// Keys and values as floats.
pub(crate) struct Floats<E>(PhantomData<E>);

impl<E: Element> Store for Floats<E> {
    #[inline(always)]
    fn prepare<V: Lanes>(_: &mut Work, _: usize) {}

    #[inline(always)]
    fn score<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        for group in tile.groups.clone() {
            let keys = tile.keys[group];
            if E::BYTES < 4 && rows.len() >= WIDEN_ROWS {
                let mut wide = std::mem::take(&mut work.widened);
                widen::<V, E>(keys, &mut wide);
                score_rows::<V, Single>(work, rows.clone(), wide.as_ptr().cast(), group, tile.next_keys[group]);
                work.widened = wide;
            } else {
                score_rows::<V, E>(work, rows.clone(), keys.as_ptr(), group, tile.values[group]);
            }
        }
    }

    #[inline(always)]
    fn weigh<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        if E::BYTES < 4 && rows.len() >= WIDEN_ROWS {
            let mut wide = std::mem::take(&mut work.widened);
            let length = work.value_dim * GROUP_TOKENS;
            let mut values = [std::ptr::null(); GROUPS_PER_TILE];
            for group in tile.groups.clone() {
                let to = &mut wide[group * length..][..length];
                widen::<V, E>(tile.values[group], to);
                values[group] = to.as_ptr().cast();
            }
            weigh_rows::<V, Single>(work, rows, tile, &values);
            work.widened = wide;
        } else {
            weigh_rows::<V, E>(work, rows, tile, &tile.values.map(<[u8]>::as_ptr));
        }
    }
}

/// Widens a group to f32, in the same order.
#[inline(always)]
fn widen<V: Lanes, E: Element>(from: &[u8], to: &mut [f32]) {
    let to = &mut to[..from.len() / E::BYTES];
    for index in (0..to.len()).step_by(LANES) {
        // SAFETY: both hold the same number of elements, a multiple of eight.
        unsafe { E::load::<V>(from.as_ptr(), index).store(to.as_mut_ptr().add(index)) };
    }
}

/// Scores of all `rows` against one group.
#[inline(always)]
fn score_rows<V: Lanes, E: Element>(work: &mut Work, rows: Range<usize>, keys: *const u8, group: usize, ahead: &[u8]) {
    let head_dim = work.head_dim;
    let mut row = rows.start;
    while row < rows.end {
        let q = work.q[row * head_dim..].as_ptr();
        let scores = work.scores[row * TILE + group * GROUP_TOKENS..].as_mut_ptr();
        let step = ROWS_PER_STEP.min(rows.end - row);
        // SAFETY: `step` rows of q and scores exist, and the group has `head_dim` times 16 keys.
        unsafe {
            match step {
                1 => score_step::<V, E, 1>(q, keys, head_dim, scores, ahead),
                2 => score_step::<V, E, 2>(q, keys, head_dim, scores, ahead),
                3 => score_step::<V, E, 3>(q, keys, head_dim, scores, ahead),
                _ => score_step::<V, E, ROWS_PER_STEP>(q, keys, head_dim, scores, ahead),
            }
        }
        row += step;
    }
}

/// `scores[r, t] = Σ_d q[r, d] k[d, t]` for `R` rows and 16 tokens; meanwhile asks for the memory of `ahead`.
#[inline(always)]
unsafe fn score_step<V: Lanes, E: Element, const R: usize>(
    q: *const f32,
    keys: *const u8,
    head_dim: usize,
    scores: *mut f32,
    ahead: &[u8],
) {
    let mut sums = [[V::splat(0.0); 2]; R];
    for d in 0..head_dim {
        if (d * GROUP_TOKENS * E::BYTES).is_multiple_of(CACHE_LINE) {
            V::prefetch(ahead.as_ptr().wrapping_add(d * GROUP_TOKENS * E::BYTES));
        }
        // SAFETY: the caller's promise.
        unsafe {
            let k = [E::load::<V>(keys, d * GROUP_TOKENS), E::load::<V>(keys, d * GROUP_TOKENS + LANES)];
            for (r, sum) in sums.iter_mut().enumerate() {
                let q = V::splat(*q.add(r * head_dim + d));
                sum[0] = q.fma(k[0], sum[0]);
                sum[1] = q.fma(k[1], sum[1]);
            }
        }
    }
    for (r, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            sum[0].store(scores.add(r * TILE));
            sum[1].store(scores.add(r * TILE + LANES));
        }
    }
}

/// Adds the weighted values of a tile to all `rows`.
#[inline(always)]
fn weigh_rows<V: Lanes, E: Element>(
    work: &mut Work,
    rows: Range<usize>,
    tile: &Tile<'_>,
    values: &[*const u8; GROUPS_PER_TILE],
) {
    let mut row = rows.start;
    while row < rows.end {
        let visible = tile.visible(row);
        let alike = (row + 1..rows.end).take(ROWS_PER_STEP - 1).take_while(|&r| tile.visible(r) == visible).count();
        let step = Step {
            weights: work.scores[row * TILE..].as_ptr(),
            kept: work.kept[row..].as_ptr(),
            out: work.split.values[row * work.value_dim..].as_mut_ptr(),
            value_dim: work.value_dim,
            visible,
            values,
            groups: tile.groups.clone(),
        };
        // SAFETY: so many rows exist; the tile has values for all groups that are there.
        unsafe {
            match alike + 1 {
                1 => step.run::<V, E, 1>(),
                2 => step.run::<V, E, 2>(),
                3 => step.run::<V, E, 3>(),
                _ => step.run::<V, E, ROWS_PER_STEP>(),
            }
        }
        row += alike + 1;
    }
}

/// Rows that see the same tokens of a tile.
struct Step<'a> {
    /// `[rows, TILE]`.
    weights: *const f32,
    /// `[rows]`.
    kept: *const f32,
    /// `[rows, value_dim]`.
    out: *mut f32,
    value_dim: usize,
    visible: Range<usize>,
    values: &'a [*const u8; GROUPS_PER_TILE],
    groups: Range<usize>,
}

impl Step<'_> {
    /// `out[r] = out[r] * kept[r] + Σ_t weights[r, t] v[t]` for `R` rows.
    #[inline(always)]
    unsafe fn run<V: Lanes, E: Element, const R: usize>(&self) {
        for strip in 0..self.value_dim / STRIP {
            // SAFETY: the rows have `value_dim` outputs, a multiple of 16.
            unsafe {
                let mut sums = [[V::splat(0.0); 2]; R];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let (out, kept) = (self.out.add(r * self.value_dim + strip * STRIP), V::splat(*self.kept.add(r)));
                    *sum = [V::load(out).mul(kept), V::load(out.add(LANES)).mul(kept)];
                }
                for group in self.groups.clone() {
                    let values = self.values[group].add(strip * GROUP_TOKENS * STRIP * E::BYTES);
                    let weights = self.weights.add(group * GROUP_TOKENS);
                    let tokens = visible_of_group(&self.visible, group);
                    if tokens.len() == GROUP_TOKENS {
                        add_tokens::<V, E, R>(&mut sums, weights, values, 0..GROUP_TOKENS);
                    } else {
                        add_tokens::<V, E, R>(&mut sums, weights, values, tokens);
                    }
                }
                for (r, sum) in sums.into_iter().enumerate() {
                    let out = self.out.add(r * self.value_dim + strip * STRIP);
                    sum[0].store(out);
                    sum[1].store(out.add(LANES));
                }
            }
        }
    }
}

/// Adds 16 dimensions of the weighted values of `tokens` of a group.
#[inline(always)]
unsafe fn add_tokens<V: Lanes, E: Element, const R: usize>(
    sums: &mut [[V; 2]; R],
    weights: *const f32,
    values: *const u8,
    tokens: Range<usize>,
) {
    for t in tokens {
        // SAFETY: a group holds 16 tokens.
        unsafe {
            let v = [E::load::<V>(values, t * STRIP), E::load::<V>(values, t * STRIP + LANES)];
            for (r, sum) in sums.iter_mut().enumerate() {
                let p = V::splat(*weights.add(r * TILE + t));
                sum[0] = p.fma(v[0], sum[0]);
                sum[1] = p.fma(v[1], sum[1]);
            }
        }
    }
}

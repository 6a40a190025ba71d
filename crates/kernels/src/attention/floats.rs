//! Keys and values stored as floats, of 32 or 16 bits.
//!
//! Scores of 16 tokens grow side by side over the dimensions; 16 dimensions of the output grow side by side over the
//! tokens. Either way each number loaded serves all rows of a step, and each result is one chain of fused
//! multiply-adds, whatever the number of rows. Every step widens f16 anew: done once for many rows, in memory, it takes
//! longer (5% of a prompt's attention).

use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::tile::{Reference, Store, Tile, Visible, alike, fetch};
use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::kv_pages::{GROUP_TOKENS, STRIP};
use crate::lanes::{LANES, Lanes};

/// Rows whose products are computed side by side: two registers each, and three for a factor and two numbers.
const ROWS_PER_STEP: usize = 6;
/// Dimensions between two requests for memory.
const FETCH_DIMS: usize = STRIP;

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

/// Calls `$step::<V, E, R>` with as many rows `R` as there are, up to a step.
macro_rules! with_rows {
    ($rows:expr, $step:ident::<$V:ty, $E:ty>($($argument:expr),*)) => {
        match $rows {
            1 => $step::<$V, $E, 1>($($argument),*),
            2 => $step::<$V, $E, 2>($($argument),*),
            3 => $step::<$V, $E, 3>($($argument),*),
            4 => $step::<$V, $E, 4>($($argument),*),
            5 => $step::<$V, $E, 5>($($argument),*),
            _ => $step::<$V, $E, ROWS_PER_STEP>($($argument),*),
        }
    };
}

impl<E: Element> Store for Floats<E> {
    const REFERENCE: Reference = Reference::SoFar;

    #[inline(always)]
    fn prepare<V: Lanes>(_: &mut Work, _: usize) {}

    #[inline(always)]
    fn score<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        for group in tile.groups.clone() {
            score_rows::<V, E>(work, rows.clone(), tile, group);
        }
    }

    #[inline(always)]
    fn weigh<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        for strip in 0..work.value_dim / STRIP {
            tile.next_keys.iter().for_each(|group| fetch::<V>(group, strip, FETCH_DIMS * GROUP_TOKENS * E::BYTES));
            weigh_strip::<V, E>(work, rows.clone(), tile, strip);
        }
    }
}

/// Scores of all `rows` against one group; meanwhile asks for the memory of its values.
#[inline(always)]
fn score_rows<V: Lanes, E: Element>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>, group: usize) {
    let (head_dim, keys) = (work.head_dim, tile.keys[group].as_ptr());
    let mut row = rows.start;
    while row < rows.end {
        let q = work.q[row * head_dim..].as_ptr();
        let scores = work.scores[row * TILE + group * GROUP_TOKENS..].as_mut_ptr();
        let step = ROWS_PER_STEP.min(rows.end - row);
        let ahead = if row == rows.start { tile.values[group] } else { &[] };
        // SAFETY: `step` rows of q and scores exist, and the group has `head_dim` times 16 keys.
        unsafe { with_rows!(step, score_step::<V, E>(q, keys, head_dim, scores, ahead)) }
        row += step;
    }
}

/// `scores[r, t] = Σ_d q[r, d] k[d, t]` for `R` rows and 16 tokens.
#[inline(always)]
unsafe fn score_step<V: Lanes, E: Element, const R: usize>(
    q: *const f32,
    keys: *const u8,
    head_dim: usize,
    scores: *mut f32,
    ahead: &[u8],
) {
    let mut sums = [[V::splat(0.0); 2]; R];
    for part in 0..head_dim.div_ceil(FETCH_DIMS) {
        fetch::<V>(ahead, part, FETCH_DIMS * GROUP_TOKENS * E::BYTES);
        for d in part * FETCH_DIMS..head_dim.min((part + 1) * FETCH_DIMS) {
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
    }
    for (r, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            sum[0].store(scores.add(r * TILE));
            sum[1].store(scores.add(r * TILE + LANES));
        }
    }
}

/// Adds 16 dimensions of a tile's weighted values to all `rows`: these values stay in the first cache meanwhile.
#[inline(always)]
fn weigh_strip<V: Lanes, E: Element>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>, strip: usize) {
    let value_dim = work.value_dim;
    let mut row = rows.start;
    while row < rows.end {
        let n = alike(&work.visible, row, rows.end, ROWS_PER_STEP);
        let step = Step {
            weights: work.scores[row * TILE..].as_ptr(),
            kept: work.kept[row..].as_ptr(),
            out: work.split.values[row * value_dim + strip * STRIP..].as_mut_ptr(),
            value_dim,
            values: tile.values.map(|group| group.as_ptr().wrapping_add(strip * GROUP_TOKENS * STRIP * E::BYTES)),
            groups: tile.groups.clone(),
            visible: work.visible[row],
        };
        // SAFETY: `n` rows exist; the tile has values for all groups that are there.
        unsafe { with_rows!(n, weigh_step::<V, E>(&step)) }
        row += n;
    }
}

/// A strip of rows that see the same tokens of a tile.
struct Step {
    /// `[rows, TILE]`.
    weights: *const f32,
    /// `[rows]`.
    kept: *const f32,
    /// `[rows, value_dim]`, from the strip on.
    out: *mut f32,
    value_dim: usize,
    /// The strip's values of each group.
    values: [*const u8; GROUPS_PER_TILE],
    groups: Range<usize>,
    visible: Visible,
}

/// `out[r] = out[r] * kept[r] + Σ_t weights[r, t] v[t]` for `R` rows and 16 dimensions.
#[inline(always)]
unsafe fn weigh_step<V: Lanes, E: Element, const R: usize>(step: &Step) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        for (r, sum) in sums.iter_mut().enumerate() {
            let (out, kept) = (step.out.add(r * step.value_dim), V::splat(*step.kept.add(r)));
            *sum = [V::load(out).mul(kept), V::load(out.add(LANES)).mul(kept)];
        }
        for group in step.groups.clone() {
            let weights = step.weights.add(group * GROUP_TOKENS);
            let tokens = step.visible.of_group(group);
            if tokens.len() == GROUP_TOKENS {
                add_tokens::<V, E, R>(&mut sums, weights, step.values[group], 0..GROUP_TOKENS);
            } else {
                add_tokens::<V, E, R>(&mut sums, weights, step.values[group], tokens);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let out = step.out.add(r * step.value_dim);
            sum[0].store(out);
            sum[1].store(out.add(LANES));
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

//! Keys and values stored as Q8_0: bytes, with a scale for 32 dimensions of a token.
//!
//! Queries and weights are rounded to 16-bit integers, so that one instruction multiplies and adds two pairs a lane, and
//! sums within a block of dimensions, or a tile of tokens, are exact. A 15-bit fraction of the largest query or weight is
//! 250 times finer than the bytes of the cache. The scales of values are multiplied into the weights:
//! `Σ_t p_t (scale_t v_t) = Σ_t round(p_t scale_t) v_t`.

use std::ops::Range;

use crate::attention::tile::{Reference, Store, Tile, alike, fetch};
use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::kv_pages::{BLOCK, BLOCK_BYTES, GROUP_TOKENS, SCALES_BYTES, STRIP};
use crate::lanes::{LANES, Lanes};

/// Bytes of two dimensions of a group's keys, or of two tokens of a strip of its values.
const PAIR_BYTES: usize = 2 * GROUP_TOKENS;
const LARGEST_INTEGER: f32 = 32767.0;
/// Rows whose products are computed side by side, with two registers each.
const ROWS_PER_STEP: usize = 4;

/// Keys and values as bytes.
pub(crate) struct Bytes;

/// Calls `$step::<V, R>` with as many rows `R` as there are, up to a step.
macro_rules! with_rows {
    ($rows:expr, $step:ident::<$V:ty>($argument:expr)) => {
        match $rows {
            1 => $step::<$V, 1>($argument),
            2 => $step::<$V, 2>($argument),
            3 => $step::<$V, 3>($argument),
            _ => $step::<$V, ROWS_PER_STEP>($argument),
        }
    };
}

impl Store for Bytes {
    const REFERENCE: Reference = Reference::Tile;

    #[inline(always)]
    fn prepare<V: Lanes>(work: &mut Work, rows: usize) {
        for row in 0..rows {
            let at = row * work.head_dim..(row + 1) * work.head_dim;
            work.q_scales[row] = to_integers::<V>(&work.q[at.clone()], &mut work.q_integers[at]);
        }
    }

    #[inline(always)]
    fn score<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        for group in tile.groups.clone() {
            let mut row = rows.start;
            while row < rows.end {
                let group = Scores {
                    q: work.q_integers[row * work.head_dim..].as_ptr(),
                    scales: work.q_scales[row..].as_ptr(),
                    head_dim: work.head_dim,
                    keys: tile.keys[group].as_ptr(),
                    ahead: if row == rows.start { tile.values[group] } else { &[] },
                    out: work.scores[row * TILE + group * GROUP_TOKENS..].as_mut_ptr(),
                };
                let step = ROWS_PER_STEP.min(rows.end - row);
                // SAFETY: `step` rows exist, and the group is whole.
                unsafe { with_rows!(step, score_step::<V>(&group)) }
                row += step;
            }
        }
    }

    #[inline(always)]
    fn weigh<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        let blocks = work.head_dim.div_ceil(BLOCK);
        for block in 0..blocks {
            tile.next_keys.iter().for_each(|group| fetch::<V>(group, block, BLOCK_BYTES));
            let mut row = rows.start;
            while row < rows.end {
                let n = alike(&work.visible, row, rows.end, rows.len());
                weigh_block::<V>(work, row..row + n, tile, block);
                row += n;
            }
        }
    }
}

/// Rounds floats to 15-bit fractions of the largest; gives what an integer is worth. NaN does no harm.
#[inline(always)]
fn to_integers<V: Lanes>(x: &[f32], to: &mut [i16]) -> f32 {
    let largest = x.iter().fold(0.0, |a: f32, b| if b.abs() > a { b.abs() } else { a });
    let inverse = if largest > 0.0 { LARGEST_INTEGER / largest } else { 0.0 };
    for (x, to) in x.chunks(LANES).zip(to.chunks_mut(LANES)) {
        let (mut floats, mut integers) = ([0.0; LANES], [0; LANES]);
        floats[..x.len()].copy_from_slice(x);
        // SAFETY: both arrays hold eight.
        unsafe { V::store_i16(V::load(floats.as_ptr()).mul(V::splat(inverse)).round(), integers.as_mut_ptr()) };
        to.copy_from_slice(&integers[..to.len()]);
    }
    largest / LARGEST_INTEGER
}

/// Some rows against one group of keys.
struct Scores<'a> {
    /// `[rows, head_dim]`.
    q: *const i16,
    /// `[rows]`.
    scales: *const f32,
    head_dim: usize,
    keys: *const u8,
    /// What will be read next.
    ahead: &'a [u8],
    /// `[rows, TILE]`.
    out: *mut f32,
}

/// `out[r, t] = q[r] · k[t]` for `R` rows and 16 tokens.
#[inline(always)]
unsafe fn score_step<V: Lanes, const R: usize>(group: &Scores<'_>) {
    let mut scores = [[V::splat(0.0); 2]; R];
    for block in 0..group.head_dim.div_ceil(BLOCK) {
        fetch::<V>(group.ahead, block, BLOCK_BYTES);
        let dims = block * BLOCK..(block * BLOCK + BLOCK).min(group.head_dim);
        // SAFETY: the caller's promise: whole groups, R rows.
        unsafe {
            let keys = group.keys.add(block * BLOCK_BYTES);
            let mut sums = [[V::zero_int(); 2]; R];
            for pair in 0..dims.len() / 2 {
                let at = keys.add(SCALES_BYTES + pair * PAIR_BYTES).cast::<i8>();
                let k = [V::load_pairs_i8(at), V::load_pairs_i8(at.add(GROUP_TOKENS))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let q = V::splat_pair(group.q.add(r * group.head_dim + dims.start + 2 * pair));
                    sum[0] = V::add_products(sum[0], k[0], q);
                    sum[1] = V::add_products(sum[1], k[1], q);
                }
            }
            let scales = [V::load_f16(keys.cast()), V::load_f16(keys.cast::<u16>().add(LANES))];
            for (score, sum) in scores.iter_mut().zip(sums) {
                score[0] = V::from_int(sum[0]).fma(scales[0], score[0]);
                score[1] = V::from_int(sum[1]).fma(scales[1], score[1]);
            }
        }
    }
    for (r, score) in scores.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            let scale = V::splat(*group.scales.add(r));
            score[0].mul(scale).store(group.out.add(r * TILE));
            score[1].mul(scale).store(group.out.add(r * TILE + LANES));
        }
    }
}

/// The scales of a block of a tile's values, for rows that see the same tokens.
struct Scales {
    /// Relative to the largest, times 32767; zero for tokens that are not seen.
    relative: [f32; TILE],
    /// The largest, over 32767.
    largest: f32,
}

impl Scales {
    #[inline(always)]
    fn of<V: Lanes>(tile: &Tile<'_>, block: usize, visible: Range<usize>) -> Scales {
        let mut relative = [0.0; TILE];
        for group in tile.groups.clone() {
            let scales = tile.values[group][block * BLOCK_BYTES..][..SCALES_BYTES].as_ptr().cast::<u16>();
            let to = relative[group * GROUP_TOKENS..][..GROUP_TOKENS].as_mut_ptr();
            // SAFETY: 16 scales.
            unsafe {
                V::load_f16(scales).store(to);
                V::load_f16(scales.add(LANES)).store(to.add(LANES));
            }
        }
        relative[..visible.start].fill(0.0);
        relative[visible.end..].fill(0.0);
        let mut largest = V::splat(0.0);
        for eight in relative.chunks_exact(LANES) {
            // SAFETY: eight floats.
            largest = largest.max(unsafe { V::load(eight.as_ptr()) });
        }
        let largest = largest.largest();
        let factor = if largest > 0.0 { LARGEST_INTEGER / largest } else { 0.0 };
        relative.iter_mut().for_each(|scale| *scale *= factor);
        Scales { relative, largest: largest / LARGEST_INTEGER }
    }

    /// Weights of a row times these scales, as integers.
    #[inline(always)]
    fn times<V: Lanes>(&self, weights: &[f32], to: &mut [i16]) {
        let (weights, to) = (&weights[..TILE], &mut to[..TILE]);
        for at in (0..TILE).step_by(LANES) {
            // SAFETY: all hold TILE numbers, a multiple of eight.
            unsafe {
                let scaled = V::load(weights.as_ptr().add(at)).mul(V::load(self.relative.as_ptr().add(at)));
                V::store_i16(scaled.round(), to.as_mut_ptr().add(at));
            }
        }
    }
}

/// Adds a block of weighted values to `rows`, which see the same tokens.
#[inline(always)]
fn weigh_block<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>, block: usize) {
    let scales = Scales::of::<V>(tile, block, work.visible[rows.start].range());
    for row in rows.clone() {
        scales.times::<V>(&work.scores[row * TILE..], &mut work.weights[row * TILE..]);
    }
    let strips = (work.value_dim - block * BLOCK).min(BLOCK) / STRIP;
    for strip in 0..strips {
        let at = block * BLOCK_BYTES + SCALES_BYTES + strip * STRIP * GROUP_TOKENS;
        let mut row = rows.start;
        while row < rows.end {
            let step = Step {
                weights: work.weights[row * TILE..].as_ptr(),
                worth: work.worth[row..].as_ptr(),
                kept: work.kept[row..].as_ptr(),
                out: work.split.values[row * work.value_dim + block * BLOCK + strip * STRIP..].as_mut_ptr(),
                value_dim: work.value_dim,
                largest_scale: scales.largest,
                values: tile.values.map(|group| group.as_ptr().wrapping_add(at)),
                groups: tile.groups.clone(),
            };
            let n = ROWS_PER_STEP.min(rows.end - row);
            // SAFETY: `n` rows exist; the tile has values for all groups that are there.
            unsafe { with_rows!(n, weigh_step::<V>(&step)) }
            row += n;
        }
    }
}

/// A strip of some rows.
struct Step {
    /// `[rows, TILE]`.
    weights: *const i16,
    /// `[rows]`.
    worth: *const f32,
    /// `[rows]`.
    kept: *const f32,
    /// `[rows, value_dim]`, from the strip on.
    out: *mut f32,
    value_dim: usize,
    largest_scale: f32,
    /// The strip's values of each group.
    values: [*const u8; GROUPS_PER_TILE],
    groups: Range<usize>,
}

/// `out[r] = out[r] * kept[r] + worth[r] * Σ_t weights[r, t] v[t]` for `R` rows and 16 dimensions.
#[inline(always)]
unsafe fn weigh_step<V: Lanes, const R: usize>(step: &Step) {
    let mut sums = [[V::zero_int(); 2]; R];
    for group in step.groups.clone() {
        for pair in 0..GROUP_TOKENS / 2 {
            // SAFETY: the caller's promise.
            unsafe {
                let values = step.values[group].add(pair * PAIR_BYTES).cast::<i8>();
                let v = [V::load_pairs_i8(values), V::load_pairs_i8(values.add(GROUP_TOKENS))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let p = V::splat_pair(step.weights.add(r * TILE + group * GROUP_TOKENS + 2 * pair));
                    sum[0] = V::add_products(sum[0], v[0], p);
                    sum[1] = V::add_products(sum[1], v[1], p);
                }
            }
        }
    }
    for (r, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let (worth, kept) = (V::splat(*step.worth.add(r) * step.largest_scale), V::splat(*step.kept.add(r)));
            for (half, sum) in sum.into_iter().enumerate() {
                let out = step.out.add(r * step.value_dim + half * LANES);
                V::from_int(sum).fma(worth, V::load(out).mul(kept)).store(out);
            }
        }
    }
}

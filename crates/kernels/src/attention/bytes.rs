//! Keys and values stored as Q8_0: bytes, with a scale for 32 dimensions of a token.
//!
//! Queries and weights are rounded to 16-bit integers, so that one instruction multiplies and adds two pairs a lane, and
//! sums within a block are exact. A 15-bit fraction of the largest query or weight is 250 times finer than the bytes of
//! the cache.

use std::ops::Range;

use crate::attention::tile::{Store, Tile};
use crate::attention::work::Work;
use crate::attention::{ROWS_PER_STEP, TILE};
use crate::kv_pages::{BLOCK, BLOCK_BYTES, GROUP_TOKENS, SCALES_BYTES, STRIP};
use crate::lanes::{LANES, Lanes};

/// Bytes of two dimensions of a group's keys, or of two tokens of a strip of its values.
const PAIR_BYTES: usize = 2 * GROUP_TOKENS;
const LARGEST_INTEGER: f32 = 32767.0;

/// Keys and values as bytes.
pub(crate) struct Bytes;

impl Store for Bytes {
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
            let keys = tile.keys[group];
            let mut row = rows.start;
            while row < rows.end {
                let step = ROWS_PER_STEP.min(rows.end - row);
                let args = Scores {
                    q: work.q_integers[row * work.head_dim..].as_ptr(),
                    scales: work.q_scales[row..].as_ptr(),
                    head_dim: work.head_dim,
                    keys: keys.as_ptr(),
                    ahead: tile.values[group].as_ptr(),
                    out: work.scores[row * TILE + group * GROUP_TOKENS..].as_mut_ptr(),
                };
                // SAFETY: `step` rows exist, and the group is whole.
                unsafe {
                    match step {
                        1 => args.run::<V, 1>(),
                        2 => args.run::<V, 2>(),
                        3 => args.run::<V, 3>(),
                        _ => args.run::<V, ROWS_PER_STEP>(),
                    }
                }
                row += step;
            }
        }
    }

    #[inline(always)]
    fn weigh<V: Lanes>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        let mut row = rows.start;
        while row < rows.end {
            let step = ROWS_PER_STEP.min(rows.end - row);
            match step {
                1 => weigh_step::<V, 1>(work, row, tile),
                2 => weigh_step::<V, 2>(work, row, tile),
                3 => weigh_step::<V, 3>(work, row, tile),
                _ => weigh_step::<V, ROWS_PER_STEP>(work, row, tile),
            }
            row += step;
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

/// `R` rows against one group of keys.
struct Scores {
    /// `[R, head_dim]`.
    q: *const i16,
    /// `[R]`.
    scales: *const f32,
    head_dim: usize,
    keys: *const u8,
    ahead: *const u8,
    /// `[R, TILE]`.
    out: *mut f32,
}

impl Scores {
    #[inline(always)]
    unsafe fn run<V: Lanes, const R: usize>(&self) {
        let mut scores = [[V::splat(0.0); 2]; R];
        for block in 0..self.head_dim.div_ceil(BLOCK) {
            let dims = block * BLOCK..(block * BLOCK + BLOCK).min(self.head_dim);
            // SAFETY: the caller's promise: whole groups, R rows.
            unsafe {
                let keys = self.keys.add(block * BLOCK_BYTES);
                let mut sums = [[V::zero_int(); 2]; R];
                for pair in 0..dims.len() / 2 {
                    let at = keys.add(SCALES_BYTES + pair * PAIR_BYTES).cast::<i8>();
                    let k = [V::load_pairs_i8(at), V::load_pairs_i8(at.add(GROUP_TOKENS))];
                    if pair.is_multiple_of(2) {
                        V::prefetch(self.ahead.wrapping_add(block * BLOCK_BYTES + pair * PAIR_BYTES));
                    }
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let q = V::splat_pair(self.q.add(r * self.head_dim + dims.start + 2 * pair));
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
                let scale = V::splat(*self.scales.add(r));
                score[0].mul(scale).store(self.out.add(r * TILE));
                score[1].mul(scale).store(self.out.add(r * TILE + LANES));
            }
        }
    }
}

/// `out[r] = out[r] * kept[r] + Σ_t p[r, t] v[t]` for `R` rows from `row` on.
#[inline(always)]
fn weigh_step<V: Lanes, const R: usize>(work: &mut Work, row: usize, tile: &Tile<'_>) {
    for block in 0..work.head_dim.div_ceil(BLOCK) {
        let mut worth = [0.0; R];
        for (r, worth) in worth.iter_mut().enumerate() {
            let p = &work.scores[(row + r) * TILE..][..TILE];
            *worth = scaled_weights::<V>(p, tile, block, &mut work.weights[r * TILE..][..TILE]);
        }
        let strips = (work.value_dim - block * BLOCK).min(BLOCK) / STRIP;
        for strip in 0..strips {
            let out = work.split.values[row * work.value_dim + block * BLOCK + strip * STRIP..].as_mut_ptr();
            let at = block * BLOCK_BYTES + SCALES_BYTES + strip * STRIP * GROUP_TOKENS;
            // SAFETY: R rows exist, and whole groups.
            unsafe {
                let sums = add_tokens::<V, R>(work.weights.as_ptr(), tile, at);
                for (r, sum) in sums.into_iter().enumerate() {
                    let (out, worth) = (out.add(r * work.value_dim), V::splat(worth[r]));
                    let kept = V::splat(work.kept[row + r]);
                    V::from_int(sum[0]).fma(worth, V::load(out).mul(kept)).store(out);
                    let out = out.add(LANES);
                    V::from_int(sum[1]).fma(worth, V::load(out).mul(kept)).store(out);
                }
            }
        }
    }
}

/// Weights times the scales of a block of the values, as integers; gives what an integer is worth. Where a weight is
/// zero so is the result, whatever the scale: unused slots may hold anything.
#[inline(always)]
fn scaled_weights<V: Lanes>(p: &[f32], tile: &Tile<'_>, block: usize, to: &mut [i16]) -> f32 {
    let mut scaled = [0.0; TILE];
    let mut largest = V::splat(0.0);
    for group in tile.groups.clone() {
        let scales = tile.values[group][block * BLOCK_BYTES..][..SCALES_BYTES].as_ptr().cast::<u16>();
        for half in [0, LANES] {
            let at = group * GROUP_TOKENS + half;
            // SAFETY: 16 scales, TILE weights.
            unsafe {
                let p = V::load(p.as_ptr().add(at));
                let x = p.mul(V::load_f16(scales.add(half))).where_positive(p);
                x.store(scaled.as_mut_ptr().add(at));
                largest = largest.max(x);
            }
        }
    }
    let largest = largest.largest();
    let inverse = if largest > 0.0 { LARGEST_INTEGER / largest } else { 0.0 };
    for at in (0..TILE).step_by(LANES) {
        // SAFETY: both hold TILE.
        unsafe {
            V::store_i16(V::load(scaled.as_ptr().add(at)).mul(V::splat(inverse)).round(), to.as_mut_ptr().add(at))
        };
    }
    largest / LARGEST_INTEGER
}

/// Sums of weighted values over the tokens of a tile: 16 dimensions of `R` rows. `at` is where the strip lies in a group.
#[inline(always)]
unsafe fn add_tokens<V: Lanes, const R: usize>(weights: *const i16, tile: &Tile<'_>, at: usize) -> [[V::Int; 2]; R] {
    let mut sums = [[V::zero_int(); 2]; R];
    for group in tile.groups.clone() {
        let values = tile.values[group].as_ptr().wrapping_add(at).cast::<i8>();
        for pair in 0..GROUP_TOKENS / 2 {
            // SAFETY: the caller's promise.
            unsafe {
                let values = values.add(pair * PAIR_BYTES);
                let v = [V::load_pairs_i8(values), V::load_pairs_i8(values.add(GROUP_TOKENS))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let p = V::splat_pair(weights.add(r * TILE + group * GROUP_TOKENS + 2 * pair));
                    sum[0] = V::add_products(sum[0], v[0], p);
                    sum[1] = V::add_products(sum[1], v[1], p);
                }
            }
        }
    }
    sums
}

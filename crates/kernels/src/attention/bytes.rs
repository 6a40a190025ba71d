//! Keys and values stored as Q8_0: bytes, with a scale for 32 dimensions of a token.
//!
//! Queries and weights are rounded to 16-bit integers, so that one instruction multiplies and adds two pairs a lane, and
//! sums within a block of dimensions, or a tile of tokens, are exact. A 15-bit fraction of the largest query or weight is
//! 250 times finer than the bytes of the cache. The scales of values are multiplied into the weights:
//! `Σ_t p_t (scale_t v_t) = Σ_t round(p_t scale_t) v_t`.

use std::ops::Range;

use crate::attention::steps::{Step, rows_of_step, side_by_side, take};
use crate::attention::tile::{Reference, Store, Tile, alike, fetch};
use crate::attention::work::Work;
use crate::attention::{GROUPS_PER_TILE, TILE};
use crate::kv_pages::{BLOCK, BLOCK_BYTES, GROUP_TOKENS, SCALES_BYTES, STRIP};
use crate::lanes::{WIDE, Wide};

/// Bytes of two dimensions of a group's keys, or of two tokens of a strip of its values.
const PAIR_BYTES: usize = 2 * GROUP_TOKENS;
const LARGEST_INTEGER: f32 = 32767.0;
const _: () = assert!(GROUP_TOKENS == WIDE && STRIP == WIDE);

/// Keys and values as bytes.
pub(crate) struct Bytes;

impl Store for Bytes {
    const REFERENCE: Reference = Reference::Tile;

    #[inline(always)]
    fn prepare<W: Wide>(work: &mut Work, rows: usize) {
        for row in 0..rows {
            let at = row * work.head_dim..(row + 1) * work.head_dim;
            work.q_scales[row] = to_integers::<W>(&work.q[at.clone()], &mut work.q_integers[at]);
        }
        let Work { q_integers, q_pairs, head_dim, .. } = work;
        for (pair, to) in q_pairs[..rows * *head_dim / 2].chunks_exact_mut(rows).enumerate() {
            for (row, to) in to.iter_mut().enumerate() {
                let at = row * *head_dim + 2 * pair;
                *to = [q_integers[at], q_integers[at + 1]];
            }
        }
    }

    #[inline(always)]
    fn score<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        let mut row = rows.start;
        while row < rows.end {
            let scores = Scores {
                q: work.q_pairs[row..].as_ptr().cast(),
                q_stride: 2 * work.rows,
                scales: work.q_scales[row..].as_ptr(),
                head_dim: work.head_dim,
                keys: tile.keys.map(<[u8]>::as_ptr),
                ahead: if row == rows.start { tile.values } else { Default::default() },
                groups: tile.groups.clone(),
                out: work.scores[row * TILE..].as_mut_ptr(),
            };
            let n = rows_of_step(rows.end - row, W::INT_SUMS);
            // SAFETY: `n` rows exist, and the groups that are there are whole.
            unsafe { take::<W, _>(n, &scores) }
            row += n;
        }
    }

    #[inline(always)]
    fn weigh<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>) {
        let blocks = work.head_dim.div_ceil(BLOCK);
        for block in 0..blocks {
            tile.next_keys.iter().for_each(|group| fetch::<W>(group, block, BLOCK_BYTES));
            let mut row = rows.start;
            while row < rows.end {
                let n = alike(&work.visible[row..rows.end], &tile.groups);
                weigh_block::<W>(work, row..row + n, tile, block);
                row += n;
            }
        }
    }
}

/// Rounds floats to 15-bit fractions of the largest; gives what an integer is worth. NaN does no harm.
#[inline(always)]
fn to_integers<W: Wide>(x: &[f32], to: &mut [i16]) -> f32 {
    let largest = x.iter().fold(0.0, |a: f32, b| if b.abs() > a { b.abs() } else { a });
    let inverse = if largest > 0.0 { LARGEST_INTEGER / largest } else { 0.0 };
    for (x, to) in x.chunks(WIDE).zip(to.chunks_mut(WIDE)) {
        let (mut floats, mut integers) = ([0.0; WIDE], [0; WIDE]);
        floats[..x.len()].copy_from_slice(x);
        // SAFETY: both arrays hold sixteen.
        unsafe { W::store_i16(W::load(floats.as_ptr()).mul(W::splat(inverse)).round(), integers.as_mut_ptr()) };
        to.copy_from_slice(&integers[..to.len()]);
    }
    largest / LARGEST_INTEGER
}

/// Some rows against the keys of a tile.
struct Scores<'a> {
    /// `[head_dim / 2, q_stride]`, pairs.
    q: *const i16,
    q_stride: usize,
    /// `[rows]`.
    scales: *const f32,
    head_dim: usize,
    /// Of each group.
    keys: [*const u8; GROUPS_PER_TILE],
    /// What will be read next.
    ahead: [&'a [u8]; GROUPS_PER_TILE],
    groups: Range<usize>,
    /// `[rows, TILE]`.
    out: *mut f32,
}

impl Step for Scores<'_> {
    #[inline(always)]
    unsafe fn run<W: Wide, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            side_by_side!(W::INT_SUMS, self.groups, score_step::<W; R>(self));
        }
    }
}

/// `out[r, t] = q[r] · k[t]` for `R` rows and the tokens of `G` groups.
#[inline(always)]
unsafe fn score_step<W: Wide, const R: usize, const G: usize>(scores: &Scores<'_>, group: usize) {
    let mut totals = [[W::splat(0.0); G]; R];
    for block in 0..scores.head_dim.div_ceil(BLOCK) {
        (0..G).for_each(|g| fetch::<W>(scores.ahead[group + g], block, BLOCK_BYTES));
        // SAFETY: the caller's promise: whole groups, R rows.
        unsafe {
            let sums = block_products::<W, R, G>(scores, group, block);
            for g in 0..G {
                let scales = W::load_f16(scores.keys[group + g].add(block * BLOCK_BYTES).cast());
                for (total, sum) in totals.iter_mut().zip(sums) {
                    total[g] = W::from_int(sum[g]).fma(scales, total[g]);
                }
            }
        }
    }
    for (r, totals) in totals.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            let scale = W::splat(*scores.scales.add(r));
            for (g, total) in totals.into_iter().enumerate() {
                total.mul(scale).store(scores.out.add(r * TILE + (group + g) * GROUP_TOKENS));
            }
        }
    }
}

/// Sums of the products of the integers of a block of dimensions.
#[inline(always)]
unsafe fn block_products<W: Wide, const R: usize, const G: usize>(
    scores: &Scores<'_>,
    group: usize,
    block: usize,
) -> [[W::Int; G]; R] {
    let pairs = BLOCK.min(scores.head_dim - block * BLOCK) / 2;
    let keys: [*const u8; G] =
        std::array::from_fn(|g| scores.keys[group + g].wrapping_add(block * BLOCK_BYTES + SCALES_BYTES));
    let mut sums = [[W::zero_int(); G]; R];
    // SAFETY: the caller's promise.
    unsafe {
        let mut q = scores.q.add(block * BLOCK / 2 * scores.q_stride);
        for pair in 0..pairs {
            // Here and below a loop, since a closure that is not inlined would lack the instructions.
            let mut k = [W::load_pairs_i8(keys[0].add(pair * PAIR_BYTES).cast()); G];
            for (k, keys) in k.iter_mut().zip(keys).skip(1) {
                *k = W::load_pairs_i8(keys.add(pair * PAIR_BYTES).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = W::splat_pair(q.add(2 * r));
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = W::add_products(*sum, k, q);
                }
            }
            q = q.add(scores.q_stride);
        }
    }
    sums
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
    fn of<W: Wide>(tile: &Tile<'_>, block: usize, visible: Range<usize>) -> Scales {
        let mut relative = [0.0; TILE];
        for group in tile.groups.clone() {
            let scales = tile.values[group][block * BLOCK_BYTES..][..SCALES_BYTES].as_ptr().cast::<u16>();
            // SAFETY: 16 scales, and room for them.
            unsafe { W::load_f16(scales).store(relative[group * GROUP_TOKENS..][..GROUP_TOKENS].as_mut_ptr()) };
        }
        relative[..visible.start].fill(0.0);
        relative[visible.end..].fill(0.0);
        let mut largest = W::splat(0.0);
        for scales in relative.chunks_exact(WIDE) {
            // SAFETY: sixteen floats.
            largest = largest.max(unsafe { W::load(scales.as_ptr()) });
        }
        let largest = largest.largest();
        let factor = if largest > 0.0 { LARGEST_INTEGER / largest } else { 0.0 };
        relative.iter_mut().for_each(|scale| *scale *= factor);
        Scales { relative, largest: largest / LARGEST_INTEGER }
    }

    /// Weights of a row times these scales, as integers.
    #[inline(always)]
    fn times<W: Wide>(&self, weights: &[f32], to: &mut [i16]) {
        let (weights, to) = (&weights[..TILE], &mut to[..TILE]);
        for at in (0..TILE).step_by(WIDE) {
            // SAFETY: all hold TILE numbers, a multiple of sixteen.
            unsafe {
                let scaled = W::load(weights.as_ptr().add(at)).mul(W::load(self.relative.as_ptr().add(at)));
                W::store_i16(scaled.round(), to.as_mut_ptr().add(at));
            }
        }
    }
}

/// Adds a block of weighted values to `rows`, which see the same tokens.
#[inline(always)]
fn weigh_block<W: Wide>(work: &mut Work, rows: Range<usize>, tile: &Tile<'_>, block: usize) {
    let scales = Scales::of::<W>(tile, block, work.visible[rows.start].range());
    for row in rows.clone() {
        scales.times::<W>(&work.scores[row * TILE..], &mut work.weights[row * TILE..]);
    }
    let first = block * BLOCK;
    let mut row = rows.start;
    while row < rows.end {
        let step = Weighing {
            weights: work.weights[row * TILE..].as_ptr(),
            worth: work.worth[row..].as_ptr(),
            kept: work.kept[row..].as_ptr(),
            out: work.split.values[row * work.value_dim + first..].as_mut_ptr(),
            value_dim: work.value_dim,
            largest_scale: scales.largest,
            values: tile.values.map(|group| group.as_ptr().wrapping_add(block * BLOCK_BYTES + SCALES_BYTES)),
            strips: (work.value_dim - first).min(BLOCK) / STRIP,
            groups: tile.groups.clone(),
        };
        let n = rows_of_step(rows.end - row, W::INT_SUMS);
        // SAFETY: `n` rows exist; the tile has values for all groups that are there.
        unsafe { take::<W, _>(n, &step) }
        row += n;
    }
}

/// A block of the values of some rows.
struct Weighing {
    /// `[rows, TILE]`.
    weights: *const i16,
    /// `[rows]`.
    worth: *const f32,
    /// `[rows]`.
    kept: *const f32,
    /// `[rows, value_dim]`, from the block on.
    out: *mut f32,
    value_dim: usize,
    largest_scale: f32,
    /// The block's values of each group.
    values: [*const u8; GROUPS_PER_TILE],
    /// Strips of the block.
    strips: usize,
    groups: Range<usize>,
}

impl Step for Weighing {
    #[inline(always)]
    unsafe fn run<W: Wide, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            side_by_side!(W::INT_SUMS, (0..self.strips), weigh_step::<W; R>(self));
        }
    }
}

/// `out[r] = out[r] * kept[r] + worth[r] * Σ_t weights[r, t] v[t]` for `R` rows and `G` strips of 16 dimensions.
#[inline(always)]
unsafe fn weigh_step<W: Wide, const R: usize, const G: usize>(step: &Weighing, strip: usize) {
    let mut sums = [[W::zero_int(); G]; R];
    for group in step.groups.clone() {
        for pair in 0..GROUP_TOKENS / 2 {
            let at = |g: usize| (strip + g) * STRIP * GROUP_TOKENS + pair * PAIR_BYTES;
            // SAFETY: the caller's promise.
            unsafe {
                let mut v = [W::load_pairs_i8(step.values[group].add(at(0)).cast()); G];
                for (g, v) in v.iter_mut().enumerate().skip(1) {
                    *v = W::load_pairs_i8(step.values[group].add(at(g)).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let p = W::splat_pair(step.weights.add(r * TILE + group * GROUP_TOKENS + 2 * pair));
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = W::add_products(*sum, v, p);
                    }
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let (worth, kept) = (W::splat(*step.worth.add(r) * step.largest_scale), W::splat(*step.kept.add(r)));
            for (g, sum) in sums.into_iter().enumerate() {
                let out = step.out.add(r * step.value_dim + (strip + g) * STRIP);
                W::from_int(sum).fma(worth, W::load(out).mul(kept)).store(out);
            }
        }
    }
}

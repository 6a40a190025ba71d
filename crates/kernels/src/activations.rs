//! The right-hand side of a product: rows of activations, in the order in which the kernels read them.
//!
//! Columns are taken in tiles of 256. A token's tile is a block of 8-bit integers with float scales and the sums that some types
//! of weights need; the blocks of all tokens of a tile lie one after the other, so that a kernel which holds a tile of weights
//! walks straight through them. There are two kinds of blocks, because weights decide what a scale may cover: with blocks of
//! 32 weights, which bring a float each, activations have a scale for every 32 columns as well; with blocks of 256, one for the
//! tile. And where weights are multiplied as floats, the same numbers stand as floats. What is not read is not written.
//!
//! ```text
//! floats: [tile][token][256]
//! integers: [tile][token][112 words of 4 bytes], of which
//!     0..64   codes of columns 4w..4w+4, i8
//!     81..89  minus the sums of 32 codes: of columns 0 and 1 mod 4, and of columns 2 and 3 mod 4, i16 (for weights that are
//!             stored with an offset)
//!   with a scale for the tile:
//!     64      scale, f32
//!     65..81  as 81..89, for 16 codes
//!     89..93  sums of 32 codes in pairs, i16 (for weights that have a minimum)
//!     93..101 sums of 16 codes in pairs
//!   with a scale for 32 columns:
//!     65..73  scales, f32
//!     73..81  scales times the sums of 32 codes, f32 (for weights that have a minimum)
//!   the rest fills seven cache lines
//! ```
//!
//! A scale of its own for each token and tile means that a token's numbers never depend on the others in the batch.

use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::aligned::AlignedVec;
use crate::lanes::Instructions;
use crate::packed_layout::{GROUP, TILE};
use crate::portable::is_multiplied_as_floats;
use crate::shared_slice::SharedSlice;
use crate::{PackedMatrix, ThreadPool};

/// Words that one token takes in the integer part of a tile: whole cache lines, an odd number of them, so that the blocks of
/// many tokens fall on all sets of a cache.
pub(crate) const WORDS: usize = 112;
/// Blocks behind the last one that kernels may read.
const PADDING_ROWS: usize = 16;

/// Where the sections of a tile begin, in words.
pub(crate) mod section {
    pub(crate) const SCALE: usize = 64;
    pub(crate) const GROUP_SCALES: usize = 65;
    pub(crate) const GROUP_SUMS: usize = 73;
    pub(crate) const OFFSET_16: usize = 65;
    pub(crate) const OFFSET_32: usize = 81;
    pub(crate) const SUMS_32: usize = 89;
    pub(crate) const SUMS_16: usize = 93;
    /// Behind the last one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const END: usize = 101;
}

/// Rows of activations `[rows, cols]`, one a token, ready for products with any type of weights.
///
/// The buffers are kept: once the largest batch has been seen, [`set`](Activations::set) does not allocate.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    reads: Reads,
    floats: AlignedVec<f32>,
    /// With a scale for each tile.
    tiles: AlignedVec<u32>,
    /// With a scale for every 32 columns.
    groups: AlignedVec<u32>,
}

/// What weights read of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    floats: bool,
    tiles: bool,
    groups: bool,
}

impl Reads {
    #[cfg(test)]
    pub(crate) const ALL: Reads = Reads { floats: true, tiles: true, groups: true };

    /// What any of these matrices reads.
    pub fn of<'a>(weights: impl IntoIterator<Item = &'a PackedMatrix>) -> Reads {
        weights.into_iter().fold(Reads::default(), |reads, w| {
            let kind = w.element_type();
            let floats = is_multiplied_as_floats(kind);
            let (tiles, groups) = match Scaling::of(kind) {
                _ if floats => (false, false),
                Scaling::Tiles => (true, false),
                Scaling::Groups => (false, true),
            };
            Reads { floats: reads.floats | floats, tiles: reads.tiles | tiles, groups: reads.groups | groups }
        })
    }
}

/// What the integer activations of a type of weights share a scale over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// 256 columns.
    Tiles,
    /// 32 columns.
    Groups,
}

impl Scaling {
    pub(crate) fn of(kind: ElementType) -> Scaling {
        if kind.block_len() == GROUP { Scaling::Groups } else { Scaling::Tiles }
    }
}

impl Activations {
    /// No rows.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Takes the rows `x [rows, cols]` for products with weights that read `reads` of them.
    ///
    /// A row that holds an infinity or a NaN makes its own products NaN where quantized weights meet it, and no others.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn set(&mut self, pool: &ThreadPool, x: &[f32], cols: usize, reads: Reads) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} numbers are no rows of {cols}", x.len());
        self.resize(x.len() / cols, cols, reads);
        let (rows, out) = (self.rows, self.shared());
        pool.run_rows(rows, cols, |row| {
            for (tile, values) in x[row * cols..][..cols].chunks(TILE).enumerate() {
                // SAFETY: every row belongs to one item.
                unsafe { out.store(Instructions::best(), tile, row, values) };
            }
        });
    }

    /// The number of rows, or tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What was written of them.
    pub(crate) fn reads(&self) -> Reads {
        self.reads
    }

    /// Makes room for `rows` rows of `cols`; what they hold is unspecified.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize, reads: Reads) {
        (self.rows, self.cols, self.reads) = (rows, cols, reads);
        let blocks = rows * cols.div_ceil(TILE);
        let words = (blocks + PADDING_ROWS) * WORDS;
        self.floats.resize(if reads.floats { blocks * TILE } else { 0 });
        self.tiles.resize(if reads.tiles { words } else { 0 });
        self.groups.resize(if reads.groups { words } else { 0 });
    }

    /// All rows, for reading.
    pub(crate) fn view(&self) -> ActivationView<'_> {
        self.batch(0..self.rows)
    }

    /// Rows `rows` as a batch of their own. Such a batch must have been written as one, by [`ActivationsMut::batch`].
    pub(crate) fn batch(&self, rows: Range<usize>) -> ActivationView<'_> {
        let first = rows.start * self.cols.div_ceil(TILE);
        ActivationView {
            rows: rows.len(),
            floats: self.floats.as_slice().get(first * TILE..).unwrap_or_default(),
            tiles: self.tiles.as_slice().get(first * WORDS..).unwrap_or_default(),
            groups: self.groups.as_slice().get(first * WORDS..).unwrap_or_default(),
        }
    }

    /// All rows, for writing by several threads.
    pub(crate) fn shared(&mut self) -> ActivationsMut<'_> {
        let tiles = self.cols.div_ceil(TILE);
        ActivationsMut {
            rows: self.rows,
            first: 0,
            tiles,
            reads: self.reads,
            floats: SharedSlice::new(self.floats.as_mut_slice()),
            tile_ints: SharedSlice::new(self.tiles.as_mut_slice()),
            group_ints: SharedSlice::new(self.groups.as_mut_slice()),
        }
    }
}

/// Rows of activations as kernels read them.
#[derive(Clone, Copy)]
pub(crate) struct ActivationView<'a> {
    pub(crate) rows: usize,
    /// From the first row on; behind the last one lie those of other batches, or padding.
    floats: &'a [f32],
    tiles: &'a [u32],
    groups: &'a [u32],
}

impl<'a> ActivationView<'a> {
    /// The integers of a tile of the rows from `row` on, a block for each.
    ///
    /// # Panics
    /// If they were not written.
    pub(crate) fn ints(&self, scaling: Scaling, tile: usize, row: usize) -> &'a [[u32; WORDS]] {
        &self.blocks(scaling)[tile * self.rows + row..(tile + 1) * self.rows]
    }

    /// The integers of a tile of `n` rows from `row` on, of which some may lie behind the last row: what those hold is
    /// unspecified.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn padded_ints(&self, scaling: Scaling, tile: usize, row: usize, n: usize) -> &'a [[u32; WORDS]] {
        &self.blocks(scaling)[tile * self.rows + row..][..n]
    }

    fn blocks(&self, scaling: Scaling) -> &'a [[u32; WORDS]] {
        let words = match scaling {
            Scaling::Tiles => self.tiles,
            Scaling::Groups => self.groups,
        };
        words.as_chunks().0
    }

    /// The floats of a tile of the rows from `row` on.
    pub(crate) fn floats(&self, tile: usize, row: usize) -> &'a [[f32; TILE]] {
        &self.floats.as_chunks().0[tile * self.rows + row..(tile + 1) * self.rows]
    }
}

/// Rows of activations, or a batch of them, that several threads write.
#[derive(Clone, Copy)]
pub(crate) struct ActivationsMut<'a> {
    rows: usize,
    /// The first row of the batch, counted in the whole buffer.
    first: usize,
    tiles: usize,
    reads: Reads,
    floats: SharedSlice<'a, f32>,
    tile_ints: SharedSlice<'a, u32>,
    group_ints: SharedSlice<'a, u32>,
}

impl<'a> ActivationsMut<'a> {
    /// Rows `rows` as a batch of their own, numbered from 0.
    pub(crate) fn batch(&self, rows: Range<usize>) -> ActivationsMut<'a> {
        debug_assert!(self.first == 0 && rows.end <= self.rows);
        ActivationsMut { rows: rows.len(), first: rows.start, ..*self }
    }

    /// Stores one row's `values` of a tile, at most 256 of them; those that lack are zeros.
    ///
    /// # Safety
    /// No other thread uses this tile of the row.
    pub(crate) unsafe fn store(&self, instructions: Instructions, tile: usize, row: usize, values: &[f32]) {
        let mut padded = [0.0; TILE];
        let values = values.try_into().unwrap_or_else(|_| {
            padded[..values.len()].copy_from_slice(values);
            &padded
        });
        // SAFETY: the caller's promise; so below.
        unsafe {
            if self.reads.floats {
                *self.block(&self.floats, tile, row) = *values;
            }
            if self.reads.tiles {
                quantize(instructions, Scaling::Tiles, values, self.block(&self.tile_ints, tile, row));
            }
            if self.reads.groups {
                quantize(instructions, Scaling::Groups, values, self.block(&self.group_ints, tile, row));
            }
        }
    }

    /// Copies a row of `from`, which has as many columns and as much of them, to row `row`.
    ///
    /// # Safety
    /// No other thread uses the row.
    pub(crate) unsafe fn copy(&self, row: usize, from: &ActivationView<'_>, from_row: usize) {
        for tile in 0..self.tiles {
            // SAFETY: the caller's promise.
            unsafe {
                if self.reads.floats {
                    *self.block(&self.floats, tile, row) = from.floats(tile, from_row)[0];
                }
                if self.reads.tiles {
                    *self.block(&self.tile_ints, tile, row) = from.ints(Scaling::Tiles, tile, from_row)[0];
                }
                if self.reads.groups {
                    *self.block(&self.group_ints, tile, row) = from.ints(Scaling::Groups, tile, from_row)[0];
                }
            }
        }
    }

    /// A row's block of a tile in one of the parts.
    ///
    /// # Safety
    /// No other thread uses it.
    unsafe fn block<T, const N: usize>(&self, part: &SharedSlice<'a, T>, tile: usize, row: usize) -> &'a mut [T; N] {
        debug_assert!(row < self.rows && tile < self.tiles);
        let at = self.first * self.tiles + tile * self.rows + row;
        // SAFETY: the caller's promise.
        unsafe { part.part(at * N, N) }.try_into().expect("as many were taken")
    }
}

/// A row's tile as words: codes in -127..=127 with scales of `largest / 127`, and their sums. Where a value is no finite
/// number, codes are 0 and the scale is NaN.
fn quantize(instructions: Instructions, scaling: Scaling, values: &[f32; TILE], words: &mut [u32; WORDS]) {
    match instructions {
        #[cfg(target_arch = "x86_64")]
        _ if instructions != Instructions::Portable && crate::lanes_avx2::Avx2::is_available() => {
            let is_avx512 = instructions != Instructions::Avx2 && crate::lanes_avx512::Avx512::is_available();
            // SAFETY: the machine has the instructions.
            unsafe {
                match scaling {
                    Scaling::Tiles => crate::avx2_activations::quantize_tile(values, words),
                    Scaling::Groups if is_avx512 => crate::avx512_activations::quantize_groups(values, words),
                    Scaling::Groups => crate::avx2_activations::quantize_groups(values, words),
                }
            }
        }
        _ => quantize_portable(scaling, values, words),
    }
}

fn quantize_portable(scaling: Scaling, values: &[f32; TILE], out: &mut [u32; WORDS]) {
    let columns = if scaling == Scaling::Tiles { TILE } else { GROUP };
    let mut codes = [0i8; TILE];
    let mut scales = [0.0; TILE / GROUP];
    for (i, (values, codes)) in values.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)).enumerate() {
        let largest = values.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let (scale, inverse) = scale_and_inverse(largest, values.iter().all(|v| v.is_finite()));
        scales[i] = scale;
        if inverse > 0.0 {
            codes.iter_mut().zip(values).for_each(|(c, v)| *c = (v * inverse).round_ties_even() as i8);
        }
    }
    *out = words(&codes, scales[0]);
    if scaling == Scaling::Groups {
        out[section::SCALE..section::OFFSET_32].fill(0);
        out[section::SUMS_32..].fill(0);
        for (i, (codes, scale)) in codes.chunks_exact(GROUP).zip(scales).enumerate() {
            let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
            out[section::GROUP_SCALES + i] = scale.to_bits();
            out[section::GROUP_SUMS + i] = (scale * sum as f32).to_bits();
        }
    }
}

/// The scale of codes whose largest value is `largest`, and what to multiply by; 0 where all codes are to be 0.
pub(crate) fn scale_and_inverse(largest: f32, finite: bool) -> (f32, f32) {
    let scale = largest / 127.0;
    match finite {
        false => (f32::NAN, 0.0),
        true if scale < f32::MIN_POSITIVE => (0.0, 0.0),
        true => (scale, 127.0 / largest),
    }
}

/// All words of a token.
fn words(codes: &[i8; TILE], scale: f32) -> [u32; WORDS] {
    let pair = |a: i16, b: i16| u32::from(a as u16) | u32::from(b as u16) << 16;
    let mut out = [0; WORDS];
    let mut sums = [[0i16; 2]; TILE / 16];
    for (index, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
        out[index] = u32::from_le_bytes(codes.map(|c| c as u8));
        let [a, b, c, d] = codes.map(i16::from);
        sums[index / 4][0] += a + b;
        sums[index / 4][1] += c + d;
    }
    out[section::SCALE] = scale.to_bits();
    for (index, &[a, b]) in sums.iter().enumerate() {
        out[section::OFFSET_16 + index] = pair(-a, -b);
    }
    for (index, [[a, b], [c, d]]) in sums.as_chunks::<2>().0.iter().enumerate() {
        out[section::OFFSET_32 + index] = pair(-a - c, -b - d);
        out[section::SUMS_16 + index] = pair(a + b, c + d);
    }
    for (index, four) in sums.as_chunks::<4>().0.iter().enumerate() {
        let [first, second, third, fourth] = four.map(|[a, b]| a + b);
        out[section::SUMS_32 + index] = pair(first + second, third + fourth);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 2003) as f32 / 100.0 - 10.0).collect()
    }

    fn quantized(instructions: Instructions, scaling: Scaling, values: &[f32; TILE]) -> [u32; WORDS] {
        let mut words = [u32::MAX; WORDS];
        quantize(instructions, scaling, values, &mut words);
        words
    }

    /// Half a step of the codes, and a rounding of the scale.
    #[test]
    fn integers_are_close_to_the_floats() {
        for (rows, cols) in [(1, 32), (3, 256), (9, 300), (17, 1000)] {
            let x = numbers(rows * cols);
            let mut activations = Activations::new();
            activations.set(&ThreadPool::new(1), &x, cols, Reads::ALL);
            assert_eq!((activations.rows(), activations.cols()), (rows, cols));
            let view = activations.view();
            for (row, tile, k) in (0..rows * cols).map(|i| (i / cols, i % cols / TILE, i % cols % TILE)) {
                let value = x[row * cols + tile * TILE + k];
                assert_eq!(view.floats(tile, row)[0][k], value);
                for (scaling, scale) in
                    [(Scaling::Tiles, section::SCALE), (Scaling::Groups, section::GROUP_SCALES + k / GROUP)]
                {
                    let ints = view.ints(scaling, tile, row)[0];
                    let code = ints[k / 4].to_le_bytes()[k % 4] as i8;
                    let scale = f32::from_bits(ints[scale]);
                    assert!((scale * f32::from(code) - value).abs() <= scale * 0.50001, "{code} * {scale} for {value}");
                }
            }
        }
    }

    #[test]
    fn hostile_values() {
        for instructions in Instructions::all() {
            for (value, scale) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::NAN), (1e-45, 0.0), (0.0, 0.0)] {
                let mut values = [0.0; TILE];
                values[77] = value;
                let mut want = [0; WORDS];
                want[section::SCALE] = scale.to_bits();
                assert_eq!(quantized(instructions, Scaling::Tiles, &values), want);
                let mut want = [0; WORDS];
                want[section::GROUP_SCALES + 77 / GROUP] = scale.to_bits();
                want[section::GROUP_SUMS + 77 / GROUP] = (scale * 0.0).to_bits();
                assert_eq!(quantized(instructions, Scaling::Groups, &values), want);
            }
            for scaling in [Scaling::Tiles, Scaling::Groups] {
                let codes = quantized(instructions, scaling, &[f32::MAX; TILE]);
                assert_eq!(codes[..64], [0x7f7f_7f7f; 64]);
            }
        }
    }

    #[test]
    fn all_instructions_give_the_same_bits() {
        for i in 0..200 {
            let values = std::array::from_fn(|k| numbers(256 * 200)[i * 200 + k] * ((i % 9) as f32 * 4.0).exp2());
            for scaling in [Scaling::Tiles, Scaling::Groups] {
                let portable = quantized(Instructions::Portable, scaling, &values);
                for instructions in Instructions::all() {
                    assert_eq!(quantized(instructions, scaling, &values), portable, "{instructions:?}");
                }
            }
        }
    }

    #[test]
    fn a_copied_batch_equals_one_that_was_set() {
        let (cols, pool) = (700, ThreadPool::new(1));
        let x = numbers(20 * cols);
        let mut all = Activations::new();
        all.set(&pool, &x, cols, Reads::ALL);
        let chosen = [3, 19, 0, 7, 8, 15, 1, 2, 16, 4, 4];
        let (first, second) = (2, 9);
        let mut copies = Activations::new();
        copies.resize(first + second, cols, Reads::ALL);
        for (batch, rows) in [(0..first, &chosen[..first]), (first..first + second, &chosen[first..])] {
            let to = copies.shared().batch(batch.clone());
            for (row, &from) in rows.iter().enumerate() {
                // SAFETY: one thread.
                unsafe { to.copy(row, &all.view(), from) };
            }
            let mut want = Activations::new();
            want.set(
                &pool,
                &rows.iter().flat_map(|r| &x[r * cols..][..cols]).copied().collect::<Vec<_>>(),
                cols,
                Reads::ALL,
            );
            let (batch_len, copied) = (batch.len(), copies.batch(batch));
            for (tile, row) in (0..3 * batch_len).map(|i| (i / batch_len, i % batch_len)) {
                assert_eq!(copied.floats(tile, row), want.view().floats(tile, row));
                for scaling in [Scaling::Tiles, Scaling::Groups] {
                    assert_eq!(copied.ints(scaling, tile, row), want.view().ints(scaling, tile, row));
                }
            }
        }
    }
}

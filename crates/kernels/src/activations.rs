//! The right-hand side of a product: rows of activations, in the order in which the kernels read them.
//!
//! Tokens are taken in groups of eight (the last group may be smaller), columns in tiles of 256. The floats of a tile of `T`
//! tokens lie column by column; beside them stand the same numbers as 8-bit integers with a float scale for each token and
//! tile. Four integers of token 0 are followed by four of token 1 and so on, so that a kernel which holds four columns of
//! eight weight rows in a register multiplies them by one token after the other.
//!
//! ```text
//! floats: [tile][group][column 0..256][T]
//! integers of a tile and group, T times: 256 codes [64][T][4] i8 | scale [T] f32
//!     | minus sums for codes with an offset: of 16 [16][T][2], of 32 [8][T][2] i16 (columns 0, 1 mod 4; columns 2, 3 mod 4)
//!     | sums for minimums: of 32 in pairs [4][T][2], of 16 in pairs [8][T][2] i16
//! ```
//!
//! A scale of its own for each token and tile means that a token's numbers never depend on the others in the batch.

use std::ops::Range;

use crate::ThreadPool;
use crate::aligned::AlignedVec;
use crate::lanes::Instructions;
use crate::packed_layout::TILE;
use crate::shared_slice::SharedSlice;

/// Tokens of a whole group.
pub(crate) const TOKENS: usize = 8;
/// Bytes that one token takes in the integer part of a tile.
pub(crate) const INT_BYTES: usize = 404;
/// Below this many numbers a thread alone is done before the others have come.
const PARALLEL_FROM: usize = 1 << 15;

/// Where the sections of a tile begin, for one token; for `T` tokens, `T` times as far.
pub(crate) mod section {
    pub(crate) const SCALE: usize = 256;
    pub(crate) const OFFSET_16: usize = 260;
    pub(crate) const OFFSET_32: usize = 324;
    pub(crate) const SUMS_32: usize = 356;
    pub(crate) const SUMS_16: usize = 372;
}

/// Rows of activations `[rows, cols]`, one a token, ready for products with any type of weights.
///
/// The buffers are kept: once the largest batch has been seen, [`set`](Activations::set) does not allocate.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    floats: AlignedVec<f32>,
    ints: AlignedVec<u8>,
}

impl Activations {
    /// No rows.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Takes the rows `x [rows, cols]`.
    ///
    /// A row that holds an infinity or a NaN makes its own products NaN where quantized weights meet it, and no others.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn set(&mut self, pool: &ThreadPool, x: &[f32], cols: usize) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} numbers are no rows of {cols}", x.len());
        self.resize(x.len() / cols, cols);
        let (rows, out) = (self.rows, self.shared());
        let set_group = |group: usize, _: usize| {
            for row in group * TOKENS..((group + 1) * TOKENS).min(rows) {
                for (tile, values) in x[row * cols..][..cols].chunks(TILE).enumerate() {
                    // SAFETY: every row belongs to one group.
                    unsafe { out.store(Instructions::best(), tile, row, values) };
                }
            }
        };
        match x.len() < PARALLEL_FROM {
            true => (0..rows.div_ceil(TOKENS)).for_each(|group| set_group(group, 0)),
            false => pool.run(rows.div_ceil(TOKENS), &set_group),
        }
    }

    /// The number of rows, or tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Makes room for `rows` rows of `cols`; what they hold is unspecified.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) {
        (self.rows, self.cols) = (rows, cols);
        let tiles = cols.div_ceil(TILE);
        self.floats.resize(rows * tiles * TILE);
        self.ints.resize(rows * tiles * INT_BYTES);
    }

    /// All rows, for reading.
    pub(crate) fn view(&self) -> ActivationView<'_> {
        let (floats, ints) = (self.floats.as_slice(), self.ints.as_slice());
        ActivationView { rows: self.rows, floats, ints }
    }

    /// Rows `rows` as a batch of their own. Such a batch must have been written as one, by [`ActivationsMut::batch`].
    pub(crate) fn batch(&self, rows: Range<usize>) -> ActivationView<'_> {
        let tiles = self.cols.div_ceil(TILE);
        let part = |size: usize| rows.start * tiles * size..rows.end * tiles * size;
        let (floats, ints) = (&self.floats.as_slice()[part(TILE)], &self.ints.as_slice()[part(INT_BYTES)]);
        ActivationView { rows: rows.len(), floats, ints }
    }

    /// All rows, for writing by several threads.
    pub(crate) fn shared(&mut self) -> ActivationsMut<'_> {
        let tiles = self.cols.div_ceil(TILE);
        let (floats, ints) = (self.floats.as_mut_slice(), self.ints.as_mut_slice());
        ActivationsMut {
            rows: self.rows,
            first: 0,
            tiles,
            floats: SharedSlice::new(floats),
            ints: SharedSlice::new(ints),
        }
    }
}

/// Rows of activations as kernels read them.
#[derive(Clone, Copy)]
pub(crate) struct ActivationView<'a> {
    pub(crate) rows: usize,
    floats: &'a [f32],
    ints: &'a [u8],
}

impl<'a> ActivationView<'a> {
    /// Tokens of group `group`.
    pub(crate) fn tokens(&self, group: usize) -> usize {
        (self.rows - group * TOKENS).min(TOKENS)
    }

    /// The integers of a tile of a group.
    pub(crate) fn ints(&self, tile: usize, group: usize) -> &'a [u8] {
        &self.ints[(tile * self.rows + group * TOKENS) * INT_BYTES..][..self.tokens(group) * INT_BYTES]
    }

    /// The floats of a tile of a group, `[256][tokens]`.
    pub(crate) fn floats(&self, tile: usize, group: usize) -> &'a [f32] {
        &self.floats[(tile * self.rows + group * TOKENS) * TILE..][..self.tokens(group) * TILE]
    }
}

/// Rows of activations, or a batch of them, that several threads write.
#[derive(Clone, Copy)]
pub(crate) struct ActivationsMut<'a> {
    rows: usize,
    /// The first row of the batch, counted in the whole buffer.
    first: usize,
    tiles: usize,
    floats: SharedSlice<'a, f32>,
    ints: SharedSlice<'a, u8>,
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
    /// No other thread uses this tile of the row's group.
    pub(crate) unsafe fn store(&self, instructions: Instructions, tile: usize, row: usize, values: &[f32]) {
        let mut padded = [0.0; TILE];
        padded[..values.len()].copy_from_slice(values);
        // SAFETY: the caller's promise.
        let (floats, ints) =
            unsafe { (self.part(&self.floats, TILE, tile, row), self.part(&self.ints, INT_BYTES, tile, row)) };
        let (tokens, token) = self.place(row);
        let columns = floats[token..].iter_mut().step_by(tokens);
        columns.zip(padded).for_each(|(to, value)| *to = value);
        let block = quantize(instructions, &padded);
        block.write(tokens, token, ints);
    }

    /// Copies a row of `from`, which has as many columns, to row `row`.
    ///
    /// # Safety
    /// No other thread uses the row's group.
    pub(crate) unsafe fn copy(&self, row: usize, from: &ActivationView<'_>, from_row: usize) {
        let (tokens, token) = self.place(row);
        let (from_group, from_token) = (from_row / TOKENS, from_row % TOKENS);
        let from_tokens = from.tokens(from_group);
        for tile in 0..self.tiles {
            // SAFETY: the caller's promise.
            let (floats, ints) =
                unsafe { (self.part(&self.floats, TILE, tile, row), self.part(&self.ints, INT_BYTES, tile, row)) };
            let source = from.floats(tile, from_group)[from_token..].iter().step_by(from_tokens);
            floats[token..].iter_mut().step_by(tokens).zip(source).for_each(|(to, from)| *to = *from);
            let source = from.ints(tile, from_group);
            for (start, width) in SECTIONS {
                let words = ints[start * tokens..(start + width) * tokens].as_chunks_mut::<4>().0;
                let source = source[start * from_tokens..(start + width) * from_tokens].as_chunks::<4>().0;
                let source = source[from_token..].iter().step_by(from_tokens);
                words[token..].iter_mut().step_by(tokens).zip(source).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// How many tokens the row's group has, and which of them the row is.
    fn place(&self, row: usize) -> (usize, usize) {
        let group = row / TOKENS * TOKENS;
        ((self.rows - group).min(TOKENS), row - group)
    }

    /// The numbers of a tile of the row's group.
    ///
    /// # Safety
    /// No other thread uses them.
    unsafe fn part<T>(&self, all: &SharedSlice<'a, T>, size: usize, tile: usize, row: usize) -> &'a mut [T] {
        let (tokens, token) = self.place(row);
        let start = self.first * self.tiles + tile * self.rows + row - token;
        // SAFETY: the caller's promise.
        unsafe { all.part(start * size, tokens * size) }
    }
}

/// Start and length of the sections of a tile, for one token. All of them are made of 4-byte words.
const SECTIONS: [(usize, usize); 6] = [(0, 256), (256, 4), (260, 64), (324, 32), (356, 16), (372, 32)];

/// A row's 256 numbers as integers: `value = scale * code`.
struct QuantizedTile {
    codes: [i8; TILE],
    scale: f32,
}

/// The nearest codes in -127..=127 for a scale of `largest / 127`. Where a value is no finite number, codes are 0 and the
/// scale is NaN.
fn quantize(_: Instructions, values: &[f32; TILE]) -> QuantizedTile {
    let mut largest = 0.0f32;
    let mut finite = true;
    for v in values {
        largest = largest.max(v.abs());
        finite &= v.is_finite();
    }
    let scale = largest / 127.0;
    if !finite {
        return QuantizedTile { codes: [0; TILE], scale: f32::NAN };
    }
    if scale < f32::MIN_POSITIVE {
        return QuantizedTile { codes: [0; TILE], scale: 0.0 };
    }
    let inverse = 127.0 / largest;
    QuantizedTile { codes: values.map(|v| (v * inverse).round_ties_even() as i8), scale }
}

impl QuantizedTile {
    /// Writes the sections of token `token` of `tokens`.
    fn write(&self, tokens: usize, token: usize, out: &mut [u8]) {
        let mut word = |start: usize, index: usize, bytes: [u8; 4]| {
            out[start * tokens + (index * tokens + token) * 4..][..4].copy_from_slice(&bytes);
        };
        let mut sums = [[0i16; 2]; TILE / 16];
        for (index, codes) in self.codes.as_chunks::<4>().0.iter().enumerate() {
            word(0, index, codes.map(|c| c as u8));
            let [a, b, c, d] = codes.map(i16::from);
            sums[index / 4][0] += a + b;
            sums[index / 4][1] += c + d;
        }
        word(section::SCALE, 0, self.scale.to_ne_bytes());
        let pair = |a: i16, b: i16| -> [u8; 4] {
            let ([a, b], [c, d]) = (a.to_ne_bytes(), b.to_ne_bytes());
            [a, b, c, d]
        };
        for (index, &[low, high]) in sums.iter().enumerate() {
            word(section::OFFSET_16, index, pair(-low, -high));
        }
        for (index, [[a, b], [c, d]]) in sums.as_chunks::<2>().0.iter().enumerate() {
            word(section::OFFSET_32, index, pair(-a - c, -b - d));
            word(section::SUMS_16, index, pair(a + b, c + d));
        }
        for (index, four) in sums.as_chunks::<4>().0.iter().enumerate() {
            let [first, second, third, fourth] = four.map(|[a, b]| a + b);
            word(section::SUMS_32, index, pair(first + second, third + fourth));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 2003) as f32 / 100.0 - 10.0).collect()
    }

    /// Half a step of the codes, and a rounding of the scale.
    #[test]
    fn integers_are_close_to_the_floats() {
        for (rows, cols) in [(1, 32), (3, 256), (9, 300), (17, 1000)] {
            let x = numbers(rows * cols);
            let mut activations = Activations::new();
            activations.set(&ThreadPool::new(1), &x, cols);
            assert_eq!((activations.rows(), activations.cols()), (rows, cols));
            let view = activations.view();
            for (row, tile, k) in (0..rows * cols).map(|i| (i / cols, i % cols / TILE, i % cols % TILE)) {
                let (group, token, tokens) = (row / TOKENS, row % TOKENS, view.tokens(row / TOKENS));
                let value = x[row * cols + tile * TILE + k];
                assert_eq!(view.floats(tile, group)[k * tokens + token], value);
                let ints = view.ints(tile, group);
                let code = ints[(k / 4 * tokens + token) * 4 + k % 4] as i8;
                let scale = section::SCALE * tokens + token * 4;
                let scale = f32::from_ne_bytes(ints[scale..scale + 4].try_into().expect("four bytes"));
                assert!((scale * f32::from(code) - value).abs() <= scale * 0.50001, "{code} * {scale} for {value}");
            }
        }
    }

    #[test]
    fn hostile_values() {
        for (value, scale) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::NAN), (1e-45, 0.0), (0.0, 0.0)] {
            let mut values = [0.0; TILE];
            values[77] = value;
            let tile = quantize(Instructions::best(), &values);
            assert_eq!((tile.codes, tile.scale.to_bits()), ([0; TILE], scale.to_bits()));
        }
        let tile = quantize(Instructions::best(), &[f32::MAX; TILE]);
        assert_eq!(tile.codes, [127; TILE]);
    }

    #[test]
    fn a_copied_batch_equals_one_that_was_set() {
        let (cols, pool) = (700, ThreadPool::new(1));
        let x = numbers(20 * cols);
        let mut all = Activations::new();
        all.set(&pool, &x, cols);
        let chosen = [3, 19, 0, 7, 8, 15, 1, 2, 16, 4, 4];
        let (first, second) = (2, 9);
        let mut copies = Activations::new();
        copies.resize(first + second, cols);
        for (batch, rows) in [(0..first, &chosen[..first]), (first..first + second, &chosen[first..])] {
            let to = copies.shared().batch(batch.clone());
            for (row, &from) in rows.iter().enumerate() {
                // SAFETY: one thread.
                unsafe { to.copy(row, &all.view(), from) };
            }
            let mut want = Activations::new();
            want.set(&pool, &rows.iter().flat_map(|r| &x[r * cols..][..cols]).copied().collect::<Vec<_>>(), cols);
            let copied = copies.batch(batch);
            assert!(copied.floats == want.view().floats && copied.ints == want.view().ints);
        }
    }
}

//! The order in which packed weights lie: GGUF's bytes, eight rows interleaved.
//!
//! A matrix is cut into panels of eight rows, a panel into tiles of 256 columns (the last tile of a panel may be shorter), and a
//! tile holds the same bits as the blocks that it is made of, so packing costs no memory. Inside, four bytes of row 0 are
//! followed by four bytes of row 1 and so on: one 32-byte load gives each of the eight 32-bit lanes its own row, sums stay in
//! their lanes, and no horizontal addition is ever needed.
//!
//! ```text
//! matrix = panel 0, panel 1, …        panel = tile 0, tile 1, …        tile = sections, in the order of the table
//! section of D dwords a row: row 0's dword 0, row 1's dword 0, … row 7's dword 0, row 0's dword 1, …
//! ```
//!
//! What the dwords hold is GGUF's own (see `blocks.rs`), but for codes of 3, 5 and 6 bits, whose low and high bits GGUF keeps
//! apart: they are put together as `dense_codes.rs` has it. The i-quants with large tables (`IQ2_*`, `IQ3_*`) lie row after row
//! as GGUF has them.
//!
//! | type | a tile of `s` groups of 32 | bytes for s = 8 |
//! | --- | --- | --- |
//! | F32, F16, BF16 | column after column, eight rows each | 8192, 4096, 4096 |
//! | Q4_0, Q8_0, IQ4_NL | `d` `[s][8]` f16; codes `[s][4]` dwords, of Q8_0 `[s][8]` | 1152, 2176, 1152 |
//! | Q4_1 | `d`, `m` `[s][8]` f16; codes `[s][4]` | 1280 |
//! | Q5_0 | `d`; dense codes `[s][5]` | 1408 |
//! | Q5_1 | `d`, `m`; dense codes `[s][5]` | 1536 |
//! | Q2_K | `d`, `dmin` `[8]` f16; scales `[4]`; codes `[16]` | 672 |
//! | Q3_K | scales `[3]`; dense codes `[8][3]`; `d` | 880 |
//! | Q4_K | `d`, `dmin`; scales `[3]`; codes `[32]` | 1152 |
//! | Q5_K | `d`, `dmin`; scales `[3]`; dense codes `[8][5]` | 1408 |
//! | Q6_K | scales `[4]`; dense codes `[8][6]`; `d` | 1680 |
//! | IQ4_XS | `d`; high bits of scales `[8]` u16; low bits `[1]`; codes `[32]` | 1088 |

use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::dense_codes::{self, DwordBytes, Dwords, Source};
use crate::interleave::{self, Rows};

/// Rows of a panel.
pub(crate) const ROWS: usize = 8;
/// Columns of a whole tile, and activations that share a scale.
pub(crate) const TILE: usize = 256;
/// Weights of the smallest blocks.
pub(crate) const GROUP: usize = 32;

/// The cache lines of a tile of `bytes` that are asked for along with group `group` of the one before: an eighth of them.
#[inline(always)]
pub(crate) fn lines_of_group(bytes: usize, group: usize) -> Range<usize> {
    let lines = bytes.div_ceil(64);
    group * lines / (TILE / GROUP)..(group + 1) * lines / (TILE / GROUP)
}

/// Bytes of a tile of `cols` columns, at most 256 and a whole number of blocks.
pub(crate) fn tile_bytes(kind: ElementType, cols: usize) -> usize {
    debug_assert!(cols <= TILE && cols.is_multiple_of(kind.block_len()));
    ROWS * cols / kind.block_len() * kind.block_bytes()
}

/// Packs one tile: `rows` holds eight rows of `row_bytes` each, of which the blocks of this tile begin at byte `at`.
pub(crate) fn pack_tile(kind: ElementType, rows: &[u8], row_bytes: usize, at: usize, cols: usize, tile: &mut [u8]) {
    use ElementType::*;
    let bytes = cols / kind.block_len() * kind.block_bytes();
    for row in 0..ROWS {
        interleave::soon(ahead(rows, row * row_bytes + at + 2 * bytes, bytes));
    }
    let mut out = Sections { blocks: Rows::new(rows, row_bytes).from(at), tile };
    match kind {
        F32 => out.interleave::<4>(0, cols),
        F16 | BF16 => out.interleave::<2>(0, cols),
        Q4_0 | Q8_0 | IQ4_NL => out.scaled_blocks(kind.block_bytes(), 1, cols / GROUP),
        Q4_1 => out.scaled_blocks(kind.block_bytes(), 2, cols / GROUP),
        Q5_0 => out.five_bit_blocks(kind.block_bytes(), 1, cols / GROUP),
        Q5_1 => out.five_bit_blocks(kind.block_bytes(), 2, cols / GROUP),
        Q2_K => {
            out.halves::<2>(80);
            out.interleave::<4>(0, 4);
            out.interleave::<4>(16, 16);
        }
        Q3_K => {
            out.interleave::<4>(96, 3);
            out.dense::<HighsThenLows, 3, 24>(TILE, 0);
            out.halves::<1>(108);
        }
        Q4_K => {
            out.halves::<2>(0);
            out.interleave::<4>(4, 35);
        }
        Q5_K => {
            out.halves::<2>(0);
            out.interleave::<4>(4, 3);
            out.dense::<HighsThenLows, 5, 40>(TILE, 16);
        }
        Q6_K => {
            out.interleave::<4>(192, 4);
            out.dense::<NibblesThenPairs, 6, 48>(TILE, 0);
            out.halves::<1>(208);
        }
        IQ4_XS => {
            out.halves::<2>(0);
            out.interleave::<4>(4, 33);
        }
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => {
            for row in 0..ROWS {
                out.put(out.blocks.row(row, bytes));
            }
        }
    }
    debug_assert!(out.tile.is_empty(), "the sections fill the tile");
}

/// What `bytes` has of the `len` bytes at `at`.
fn ahead(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let at = at.min(bytes.len());
    &bytes[at..bytes.len().min(at + len)]
}

/// The blocks of eight rows, and the part of the tile that is not yet written.
struct Sections<'a, 't> {
    blocks: Rows<'a>,
    tile: &'t mut [u8],
}

impl Sections<'_, '_> {
    fn put(&mut self, bytes: &[u8]) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.tile = rest;
    }

    /// `count` elements of `SIZE` bytes from byte `from` of every row, in turn.
    fn interleave<const SIZE: usize>(&mut self, from: usize, count: usize) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(count * SIZE * ROWS);
        if SIZE == 4 {
            interleave::words(self.blocks.from(from), here);
        } else {
            interleave::one_by_one::<SIZE>(self.blocks.from(from), here);
        }
        self.tile = rest;
    }

    /// `COUNT` 16-bit numbers from byte `from`.
    fn halves<const COUNT: usize>(&mut self, from: usize) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(COUNT * 2 * ROWS);
        interleave::halves::<COUNT>(self.blocks.from(from), here);
        self.tile = rest;
    }

    /// Dense codes of `columns` columns, which `S` reads from the `WORDS` dwords that each row has from byte `from` on.
    fn dense<S: Source<BITS, WORDS>, const BITS: usize, const WORDS: usize>(&mut self, columns: usize, from: usize) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(BITS * ROWS * columns / 8);
        let mut words = [[0; 4 * ROWS]; WORDS];
        interleave::words(self.blocks.from(from), words.as_flattened_mut());
        dense_codes::put_groups::<S, BITS, WORDS>(&words, here);
        self.tile = rest;
    }

    /// Blocks of 32 that hold `floats` float16 (a scale, a minimum), and codes.
    fn scaled_blocks(&mut self, block_bytes: usize, floats: usize, groups: usize) {
        self.block_floats(block_bytes, floats, groups);
        for group in 0..groups {
            self.interleave::<4>(group * block_bytes + 2 * floats, (block_bytes - 2 * floats) / 4);
        }
    }

    /// Blocks of 32 that hold `floats` float16, 32 fifth bits, and nibbles.
    fn five_bit_blocks(&mut self, block_bytes: usize, floats: usize, groups: usize) {
        self.block_floats(block_bytes, floats, groups);
        for group in 0..groups {
            self.dense::<FifthsOfBlock, 5, 5>(GROUP, group * block_bytes + 2 * floats);
        }
    }

    /// The floats of such blocks.
    fn block_floats(&mut self, block_bytes: usize, floats: usize, groups: usize) {
        for float in 0..floats {
            (0..groups).for_each(|group| self.halves::<1>(group * block_bytes + 2 * float));
        }
    }
}

#[inline(always)]
fn dwords(bytes: &DwordBytes) -> Dwords {
    let (bytes, _) = bytes.as_chunks();
    std::array::from_fn(|row| u32::from_le_bytes(bytes[row]))
}

/// `(byte >> from) & mask` of all bytes.
#[inline(always)]
fn bits(bytes: &DwordBytes, from: usize, mask: u8) -> Dwords {
    dwords(bytes).map(|word| word >> from & u32::from_le_bytes([mask; 4]))
}

/// `low | high << by`.
#[inline(always)]
fn with_high(low: Dwords, high: Dwords, by: usize) -> Dwords {
    std::array::from_fn(|row| low[row] | high[row] << by)
}

/// Codes of Q3_K and Q5_K: the highest bits of all groups, then low ones, of as many groups in a byte as it has room for.
struct HighsThenLows;

impl<const BITS: usize, const WORDS: usize> Source<BITS, WORDS> for HighsThenLows {
    #[inline(always)]
    fn codes(words: &[DwordBytes; WORDS], group: usize, i: usize) -> Dwords {
        let n_low = BITS - 1;
        let in_byte = 8 / n_low;
        let low = bits(&words[8 + group / in_byte * 8 + i], group % in_byte * n_low, (1 << n_low) - 1);
        with_high(low, bits(&words[i], group, 1), n_low)
    }
}

/// Codes of Q6_K: low bits, then high ones.
struct NibblesThenPairs;

impl Source<6, 48> for NibblesThenPairs {
    #[inline(always)]
    fn codes(words: &[DwordBytes; 48], group: usize, i: usize) -> Dwords {
        let (half, quarter) = (group / 4, group % 4);
        let low = bits(&words[half * 16 + quarter % 2 * 8 + i], quarter / 2 * 4, 15);
        with_high(low, bits(&words[32 + half * 8 + i], quarter * 2, 3), 4)
    }
}

/// Codes of a block of Q5_0 or Q5_1: 32 fifth bits, then low ones.
struct FifthsOfBlock;

impl Source<5, 5> for FifthsOfBlock {
    #[inline(always)]
    fn codes(words: &[DwordBytes; 5], _: usize, i: usize) -> Dwords {
        // Four neighbouring bits to the lowest of four bytes.
        let fifth = dwords(&words[0]).map(|bits| ((bits >> (4 * i) & 15) * 0x0020_4081) & 0x0101_0101);
        with_high(bits(&words[1 + i % 4], i / 4 * 4, 15), fifth, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_costs_no_memory() {
        for kind in ElementType::all() {
            let per_row = kind.row_bytes(TILE).expect("whole blocks");
            assert_eq!(tile_bytes(kind, TILE), ROWS * per_row, "{kind}");
        }
    }
}

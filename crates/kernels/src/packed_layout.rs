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
//! What the dwords hold is GGUF's own (see `blocks.rs`), with two exceptions. The float16 scales of Q4_0, Q4_1, Q5_0 and
//! Q5_1, one for 32 weights, become [fixed-point numbers](fixed_point) with an exponent for 256 weights, so that the inner
//! loop stays in integers; and the fifth bits of Q5_0 and Q5_1 are regrouped so that bit `g` of byte `i` belongs to weight
//! `4g + i`. The i-quants with large tables (`IQ2_*`, `IQ3_*`) lie row after row as GGUF has them.
//!
//! | type | a tile of `s` groups of 32 (`p = max(s, 4)`) | bytes for s = 8 |
//! | --- | --- | --- |
//! | F32, F16, BF16 | column after column, eight rows each | 8192, 4096, 4096 |
//! | Q4_0 | scales `[p][8]` i16; codes `[s][4]` dwords | 1152 |
//! | Q4_1 | scales, minimums `[p][8]` i16; codes `[s][4]` | 1280 |
//! | Q5_0 | scales; fifth bits `[s][1]`; codes `[s][4]` | 1408 |
//! | Q5_1 | scales, minimums; fifth bits `[s][1]`; codes `[s][4]` | 1536 |
//! | Q8_0, IQ4_NL | `d` `[s][8]` f16; codes `[s][8]` or `[s][4]` | 2176, 1152 |
//! | Q2_K | `d`, `dmin` `[8]` f16; scales `[4]`; codes `[16]` | 672 |
//! | Q3_K | scales `[3]`; high bits `[8]`; codes `[16]`; `d` | 880 |
//! | Q4_K | `d`, `dmin`; scales `[3]`; codes `[32]` | 1152 |
//! | Q5_K | `d`, `dmin`; scales `[3]`; fifth bits `[8]`; codes `[32]` | 1408 |
//! | Q6_K | scales `[4]`; low bits `[32]`; high bits `[16]`; `d` | 1680 |
//! | IQ4_XS | `d`; high bits of scales `[8]` u16; low bits `[1]`; codes `[32]` | 1088 |

use half::f16;
use octet_checkpoint::ElementType;

/// Rows of a panel.
pub(crate) const ROWS: usize = 8;
/// Columns of a whole tile, and activations that share a scale.
pub(crate) const TILE: usize = 256;
/// Weights of the smallest blocks.
pub(crate) const GROUP: usize = 32;
/// Bits of all fixed-point minimums.
pub(crate) const MINIMUM_BITS: u32 = 13;
/// Bits of the fixed-point scales of Q4_0: times its codes, -8 to 7, they fit 16 bits with sign.
pub(crate) const WIDE_SCALE_BITS: u32 = 12;
/// Bits of the fixed-point scales of Q4_1, Q5_0 and Q5_1, whose codes are up to twice as large.
pub(crate) const NARROW_SCALE_BITS: u32 = 11;

/// Where the fixed-point scales of a tile of `groups` groups end: bytes of one `[p][8]` i16 section.
pub(crate) const fn scale_bytes(groups: usize) -> usize {
    let padded = if groups < 4 { 4 } else { groups };
    padded * ROWS * 2
}

/// Bytes of a tile of `cols` columns, at most 256 and a whole number of blocks.
pub(crate) fn tile_bytes(kind: ElementType, cols: usize) -> usize {
    use ElementType::*;
    debug_assert!(cols <= TILE && cols.is_multiple_of(kind.block_len()));
    let groups = cols / GROUP;
    match kind {
        Q4_0 => scale_bytes(groups) + groups * 128,
        Q4_1 => 2 * scale_bytes(groups) + groups * 128,
        Q5_0 => scale_bytes(groups) + groups * 160,
        Q5_1 => 2 * scale_bytes(groups) + groups * 160,
        _ => ROWS * cols / kind.block_len() * kind.block_bytes(),
    }
}

/// Packs one tile: `rows` holds eight rows of `row_bytes` each, of which the blocks of this tile begin at byte `at`.
pub(crate) fn pack_tile(kind: ElementType, rows: &[u8], row_bytes: usize, at: usize, cols: usize, tile: &mut [u8]) {
    use ElementType::*;
    let bytes = cols / kind.block_len() * kind.block_bytes();
    let blocks: [&[u8]; ROWS] = std::array::from_fn(|row| &rows[row * row_bytes + at..][..bytes]);
    let mut out = Sections { blocks, tile };
    match kind {
        F32 => out.interleave::<4>(0, cols),
        F16 | BF16 => out.interleave::<2>(0, cols),
        Q4_0 | Q4_1 | Q5_0 | Q5_1 => out.small_blocks(kind, cols / GROUP),
        Q8_0 | IQ4_NL => out.scaled_blocks(kind.block_bytes(), cols / GROUP),
        Q2_K => {
            out.halves(80, 2);
            out.interleave::<4>(0, 4);
            out.interleave::<4>(16, 16);
        }
        Q3_K => {
            out.interleave::<4>(96, 3);
            out.interleave::<4>(0, 8);
            out.interleave::<4>(32, 16);
            out.halves(108, 1);
        }
        Q4_K => {
            out.halves(0, 2);
            out.interleave::<4>(4, 35);
        }
        Q5_K => {
            out.halves(0, 2);
            out.interleave::<4>(4, 43);
        }
        Q6_K => {
            out.interleave::<4>(192, 4);
            out.interleave::<4>(0, 48);
            out.halves(208, 1);
        }
        IQ4_XS => {
            out.halves(0, 2);
            out.interleave::<4>(4, 33);
        }
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => {
            for block in blocks {
                out.put(block);
            }
        }
    }
    debug_assert!(out.tile.is_empty(), "the sections fill the tile");
}

/// The blocks of eight rows, and the part of the tile that is not yet written.
struct Sections<'a, 't> {
    blocks: [&'a [u8]; ROWS],
    tile: &'t mut [u8],
}

impl Sections<'_, '_> {
    fn put(&mut self, bytes: &[u8]) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.tile = rest;
    }

    /// `count` elements of `SIZE` bytes from byte `from` of every row, element by element.
    fn interleave<const SIZE: usize>(&mut self, from: usize, count: usize) {
        let tile = std::mem::take(&mut self.tile);
        let (here, rest) = tile.split_at_mut(count * SIZE * ROWS);
        for (row, block) in self.blocks.iter().enumerate() {
            let elements = block[from..][..count * SIZE].as_chunks::<SIZE>().0;
            let places = here.as_chunks_mut::<SIZE>().0[row..].iter_mut().step_by(ROWS);
            places.zip(elements).for_each(|(place, element)| *place = *element);
        }
        self.tile = rest;
    }

    /// `count` 16-bit numbers from byte `from`.
    fn halves(&mut self, from: usize, count: usize) {
        self.interleave::<2>(from, count);
    }

    /// Q8_0 and IQ4_NL: a scale and codes in every block of 32.
    fn scaled_blocks(&mut self, block_bytes: usize, groups: usize) {
        for group in 0..groups {
            self.halves(group * block_bytes, 1);
        }
        for group in 0..groups {
            self.interleave::<4>(group * block_bytes + 2, (block_bytes - 2) / 4);
        }
    }

    /// Q4_0, Q4_1, Q5_0, Q5_1.
    fn small_blocks(&mut self, kind: ElementType, groups: usize) {
        use ElementType::*;
        let block_bytes = kind.block_bytes();
        let bits = if kind == Q4_0 { WIDE_SCALE_BITS } else { NARROW_SCALE_BITS };
        let float = |row: &[u8], group: usize, at: usize| {
            let at = group * block_bytes + at;
            f16::from_le_bytes([row[at], row[at + 1]]).to_f32()
        };
        self.fixed_points(groups, bits, |row, group| float(row, group, 0));
        if kind == Q4_1 {
            self.fixed_points(groups, MINIMUM_BITS, |row, group| float(row, group, 2));
        }
        if kind == Q5_1 {
            // Its codes are read as -16..=15, so that their sums fit 16 bits.
            let minimum = |row: &[u8], group| float(row, group, 2) + 16.0 * float(row, group, 0);
            self.fixed_points(groups, MINIMUM_BITS, minimum);
        }
        let codes_at = block_bytes - 16;
        if matches!(kind, Q5_0 | Q5_1) {
            for group in 0..groups {
                for row in 0..ROWS {
                    let at = group * block_bytes + codes_at - 4;
                    let block: [u8; 4] = self.blocks[row][at..at + 4].try_into().expect("four bytes");
                    self.put(&fifth_bits(u32::from_le_bytes(block)).to_le_bytes());
                }
            }
        }
        for group in 0..groups {
            self.interleave::<4>(group * block_bytes + codes_at, 4);
        }
    }

    /// One `[p][8]` i16 section of fixed-point numbers.
    fn fixed_points(&mut self, groups: usize, bits: u32, value: impl Fn(&[u8], usize) -> f32) {
        let rows: [[i16; 8]; ROWS] = std::array::from_fn(|row| {
            let mut values = [0.0; 8];
            (0..groups).for_each(|group| values[group] = value(self.blocks[row], group));
            fixed_point(&values, bits)
        });
        for group in 0..groups.max(4) {
            for row in rows {
                self.put(&row[group].to_le_bytes());
            }
        }
    }
}

/// Bit `g` of byte `i` of the result is bit `4g + i` of `bits`: an 8 x 4 transpose.
fn fifth_bits(bits: u32) -> u32 {
    let mut out = 0;
    for g in 0..8 {
        for i in 0..4 {
            out |= (bits >> (4 * g + i) & 1) << (8 * i + g);
        }
    }
    out
}

/// Eight floats as integers of `bits` bits and sign times one power of two, `2^(exponent - 127)`.
///
/// The largest takes all its bits, so float16 values keep their 11 bits unless they are far below the largest of the eight
/// (for 13 bits: below a quarter), and the error is below `2^-bits` of the largest. An integer takes the upper 14 bits of a
/// result; the lowest two of the first four hold the exponent, lowest bits first. Exponent 255 stands for a number that is
/// infinite or NaN, and makes all eight so.
fn fixed_point(values: &[f32; 8], bits: u32) -> [i16; 8] {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let (numbers, exponent) = if !values.iter().all(|v| v.is_finite()) {
        ([1 << (bits - 1); 8], 255)
    } else if largest == 0.0 {
        ([0; 8], 127)
    } else {
        // largest / unit is in 2^(bits-1)..2^bits. Sums of float16 are above 2^-25 or zero, so nothing here is subnormal.
        let exponent = (largest.to_bits() >> 23) as i32 + 1 - bits as i32;
        let unit = f32::from_bits((exponent.max(1) as u32) << 23);
        let most = ((1 << bits) - 1) as f32;
        (values.map(|v| (v / unit).round_ties_even().clamp(-most, most) as i16), exponent.max(1))
    };
    std::array::from_fn(|i| numbers[i] << 2 | if i < 4 { (exponent >> (2 * i)) as i16 & 3 } else { 0 })
}

/// The numbers that [`fixed_point`] made of eight, and their unit.
pub(crate) fn fixed_point_values(packed: [i16; 8]) -> ([i16; 8], f32) {
    let exponent = (0..4).fold(0, |e, i| e | (packed[i] as u32 & 3) << (2 * i));
    (packed.map(|p| p >> 2), f32::from_bits(exponent << 23))
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

    #[test]
    fn float16_scales_survive_as_fixed_point() {
        let halves = [1.0, -0.3, 0.77, 0.5, 0.26, -0.9, 0.333, 0.0].map(|v| f16::from_f32(v).to_f32());
        for factor in [1.0, 2f32.powi(15), 2f32.powi(-12)] {
            let values = halves.map(|v| v * factor);
            let (numbers, unit) = fixed_point_values(fixed_point(&values, MINIMUM_BITS));
            let exact = values.map(|v| v / unit);
            assert_eq!(numbers.map(f32::from), exact, "all are above a quarter of the largest");
        }
        let (numbers, unit) = fixed_point_values(fixed_point(&[1e-3, 1.0, 0.0, -1e-7, 0.1, 0.2, 0.3, 0.4], 13));
        for (n, v) in numbers.into_iter().zip([1e-3, 1.0, 0.0, -1e-7, 0.1, 0.2, 0.3, 0.4]) {
            assert!((f32::from(n) * unit - v).abs() <= 2f32.powi(-13));
        }
    }

    #[test]
    fn hostile_scales() {
        let (numbers, unit) = fixed_point_values(fixed_point(&[0.0; 8], 13));
        assert_eq!((numbers, unit), ([0; 8], 1.0));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0; 8];
            values[5] = bad;
            let (numbers, unit) = fixed_point_values(fixed_point(&values, 13));
            assert!(unit.is_infinite() && numbers.iter().all(|n| *n != 0));
        }
        for v in [f32::MAX, f32::MIN_POSITIVE, 1e-45, 65504.0 * 17.0, 2f32.powi(-24)] {
            fixed_point(&[v, -v, 0.0, v, v, v, v, v], 12);
        }
    }

    #[test]
    fn fifth_bits_are_transposed() {
        for weight in 0..32 {
            let (g, i) = (weight / 4, weight % 4);
            assert_eq!(fifth_bits(1 << weight), 1 << (8 * i + g));
        }
    }
}

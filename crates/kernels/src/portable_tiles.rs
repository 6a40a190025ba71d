//! Packed tiles of quantized weights as plain numbers.

use half::f16;
use octet_checkpoint::ElementType;

use crate::activations::{WORDS, section};
use crate::blocks::IQ4_LEVELS;
use crate::dense_codes;
use crate::packed_layout::{GROUP, ROWS, TILE};

/// A tile of eight rows: `weight = d * scale * code + dmin * minimum`, or `weight = d * code + m` with floats of its 32.
pub(crate) struct Codes {
    /// `[row][column]`.
    codes: [[i8; TILE]; ROWS],
    /// Of 16 columns each.
    scales: [[i32; TILE / 16]; ROWS],
    minimums: Option<[[i32; TILE / 16]; ROWS]>,
    d: [f32; ROWS],
    dmin: [f32; ROWS],
    /// The scales and minimums of types with blocks of 32.
    groups: Option<Groups>,
}

/// Floats of 32 columns each, `[row][group]`.
#[derive(Clone, Copy)]
struct Groups {
    d: [[f32; TILE / GROUP]; ROWS],
    minimums: Option<[[f32; TILE / GROUP]; ROWS]>,
}

impl Codes {
    /// `y +` row `row` times a token's tile of activations.
    pub(crate) fn row_product(&self, row: usize, x: &[u32; WORDS], y: f32) -> f32 {
        let code = |k: usize| i32::from(x[k / 4].to_le_bytes()[k % 4] as i8);
        let float = |word: usize| f32::from_bits(x[word]);
        let products = |k: usize| i32::from(self.codes[row][k]) * code(k);
        if let Some(groups) = &self.groups {
            return (0..TILE / GROUP).fold(y, |y, group| {
                let sum: i32 = (group * GROUP..(group + 1) * GROUP).map(products).sum();
                let y = (groups.d[row][group] * float(section::GROUP_SCALES + group)).mul_add(sum as f32, y);
                groups.minimums.map_or(y, |m| m[row][group].mul_add(float(section::GROUP_SUMS + group), y))
            });
        }
        let x_scale = float(section::SCALE);
        let sum = |numbers: &[i32; TILE / 16], of: &dyn Fn(usize) -> i32| -> i32 {
            numbers.iter().enumerate().map(|(i, s)| s * (i * 16..i * 16 + 16).map(of).sum::<i32>()).sum()
        };
        let y = (self.d[row] * x_scale).mul_add(sum(&self.scales[row], &products) as f32, y);
        match &self.minimums {
            Some(minimums) => (self.dmin[row] * x_scale).mul_add(sum(&minimums[row], &code) as f32, y),
            None => y,
        }
    }

    /// Reads a tile of `cols` columns of a type that is not multiplied as floats.
    pub(crate) fn unpack(kind: ElementType, tile: &[u8], cols: usize) -> Codes {
        use ElementType::*;
        let mut out = Codes {
            codes: [[0; TILE]; ROWS],
            scales: [[0; TILE / 16]; ROWS],
            minimums: None,
            d: [0.0; ROWS],
            dmin: [0.0; ROWS],
            groups: None,
        };
        let groups = cols / GROUP;
        match kind {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => scaled_blocks(kind, tile, groups, &mut out),
            Q2_K => q2_k(tile, &mut out),
            Q3_K => q3_k(tile, &mut out),
            Q4_K => q4_k(tile, &mut out),
            Q5_K => q5_k(tile, &mut out),
            Q6_K => q6_k(tile, &mut out),
            IQ4_XS => iq4_xs(tile, &mut out),
            _ => unreachable!("{kind} is multiplied as floats"),
        }
        out
    }
}

/// Byte `index` of row `row` of a section of interleaved dwords.
fn byte(section: &[u8], row: usize, index: usize) -> u8 {
    section[index / 4 * ROWS * 4 + row * 4 + index % 4]
}

/// Number `index` of row `row` of a section of interleaved float16.
fn half(section: &[u8], row: usize, index: usize) -> f32 {
    let at = (index * ROWS + row) * 2;
    f16::from_le_bytes([section[at], section[at + 1]]).to_f32()
}

/// Codes of all rows and columns.
fn codes(out: &mut Codes, cols: usize, code: impl Fn(usize, usize) -> i8) {
    for (row, codes) in out.codes.iter_mut().enumerate() {
        codes[..cols].iter_mut().enumerate().for_each(|(k, c)| *c = code(row, k));
    }
}

/// Numbers for every row and 16 columns.
fn sixteenths(number: impl Fn(usize, usize) -> i32) -> [[i32; TILE / 16]; ROWS] {
    std::array::from_fn(|row| std::array::from_fn(|i| number(row, i)))
}

fn scaled_blocks(kind: ElementType, tile: &[u8], groups: usize, out: &mut Codes) {
    use ElementType::*;
    let floats = |section: &[u8]| -> [[f32; TILE / GROUP]; ROWS] {
        let float = |row: usize, group: usize| if group < groups { half(section, row, group) } else { 0.0 };
        std::array::from_fn(|row| std::array::from_fn(|group| float(row, group)))
    };
    let section_bytes = groups * ROWS * 2;
    let (section, mut bytes) = tile.split_at(section_bytes);
    let d = floats(section);
    let mut minimums = None;
    if matches!(kind, Q4_1 | Q5_1) {
        let (section, after) = bytes.split_at(section_bytes);
        (minimums, bytes) = (Some(floats(section)), after);
    }
    if kind == Q5_1 {
        // Its codes are read as -16..=15, so that sums of them fit 16 bits.
        minimums = minimums.map(|m| std::array::from_fn(|r| std::array::from_fn(|g| 16f32.mul_add(d[r][g], m[r][g]))));
    }
    let offset = match kind {
        Q4_1 => 0,
        Q4_0 => 8,
        _ => 16,
    };
    codes(out, groups * GROUP, |row, k| {
        let (group, i) = (k / GROUP, k % GROUP);
        match kind {
            Q8_0 => byte(bytes, row, k) as i8,
            IQ4_NL => iq4(bytes, row, k),
            Q5_0 | Q5_1 => dense::<5>(bytes, row, k) as i8 - offset,
            _ => (byte(bytes, row, group * 16 + i % 16) >> (i / 16 * 4) & 15) as i8 - offset,
        }
    });
    out.groups = Some(Groups { d, minimums });
}

/// Column `k` of codes in blocks of 16 bytes, low nibbles first, that stand for levels.
fn iq4(bytes: &[u8], row: usize, k: usize) -> i8 {
    let nibble = byte(bytes, row, k / 32 * 16 + k % 16) >> (k % 32 / 16 * 4) & 15;
    IQ4_LEVELS[usize::from(nibble)]
}

fn iq4_xs(tile: &[u8], out: &mut Codes) {
    let (d, high, low, bytes) = (&tile[..16], &tile[16..32], &tile[32..64], &tile[64..]);
    out.d = std::array::from_fn(|row| half(d, row, 0));
    out.scales = sixteenths(|row, i| {
        let group = i / 2;
        let high = u16::from_le_bytes([high[2 * row], high[2 * row + 1]]) >> (2 * group) & 3;
        let low = byte(low, row, group / 2) >> (group % 2 * 4) & 15;
        i32::from(low) + (i32::from(high) << 4) - 32
    });
    codes(out, TILE, |row, k| iq4(bytes, row, k));
}

/// Column `k` of dense codes.
fn dense<const BITS: usize>(section: &[u8], row: usize, k: usize) -> u8 {
    let group = &section[k / GROUP * GROUP * BITS..];
    dense_codes::code::<BITS>(k % GROUP, |vector, i| byte(group, row, 4 * vector + i))
}

/// Two-bit codes of 256 columns in 64 bytes.
fn two_bits(section: &[u8], row: usize, k: usize) -> u8 {
    byte(section, row, k / 128 * 32 + k % 32) >> (k % 128 / 32 * 2) & 3
}

fn q2_k(tile: &[u8], out: &mut Codes) {
    let (d, scales, bytes) = (&tile[..32], &tile[32..160], &tile[160..]);
    out.d = std::array::from_fn(|row| half(d, row, 0));
    out.dmin = std::array::from_fn(|row| -half(d, row, 1));
    out.scales = sixteenths(|row, i| i32::from(byte(scales, row, i) & 15));
    out.minimums = Some(sixteenths(|row, i| i32::from(byte(scales, row, i) >> 4)));
    codes(out, TILE, |row, k| two_bits(bytes, row, k) as i8);
}

fn q3_k(tile: &[u8], out: &mut Codes) {
    let (scales, bytes, d) = (&tile[..96], &tile[96..864], &tile[864..]);
    out.d = std::array::from_fn(|row| half(d, row, 0));
    out.scales = sixteenths(|row, i| {
        let low = byte(scales, row, i % 8) >> (i / 8 * 4) & 15;
        let high = byte(scales, row, 8 + i % 4) >> (i / 4 * 2) & 3;
        i32::from(low | high << 4) - 32
    });
    codes(out, TILE, |row, k| dense::<3>(bytes, row, k) as i8 - 4);
}

/// Scales and minimums of Q4_K and Q5_K.
fn scales_and_minimums(tile: &[u8], out: &mut Codes) {
    let (d, scales) = (&tile[..32], &tile[32..128]);
    out.d = std::array::from_fn(|row| half(d, row, 0));
    out.dmin = std::array::from_fn(|row| -half(d, row, 1));
    let at = |row: usize, i: usize| i32::from(byte(scales, row, i));
    out.scales = sixteenths(|row, i| match i / 2 {
        group @ 0..4 => at(row, group) & 63,
        group => at(row, group + 4) & 15 | at(row, group - 4) >> 6 << 4,
    });
    out.minimums = Some(sixteenths(|row, i| match i / 2 {
        group @ 0..4 => at(row, group + 4) & 63,
        group => at(row, group + 4) >> 4 | at(row, group) >> 6 << 4,
    }));
}

/// Four-bit codes of 256 columns in 128 bytes, 64 columns in 32 bytes.
fn four_bits(section: &[u8], row: usize, k: usize) -> u8 {
    byte(section, row, k / 64 * 32 + k % 32) >> (k % 64 / 32 * 4) & 15
}

fn q4_k(tile: &[u8], out: &mut Codes) {
    scales_and_minimums(tile, out);
    codes(out, TILE, |row, k| four_bits(&tile[128..], row, k) as i8);
}

fn q5_k(tile: &[u8], out: &mut Codes) {
    scales_and_minimums(tile, out);
    codes(out, TILE, |row, k| dense::<5>(&tile[128..], row, k) as i8);
}

fn q6_k(tile: &[u8], out: &mut Codes) {
    let (scales, bytes, d) = (&tile[..128], &tile[128..1664], &tile[1664..]);
    out.d = std::array::from_fn(|row| half(d, row, 0));
    out.scales = sixteenths(|row, i| i32::from(byte(scales, row, i) as i8));
    codes(out, TILE, |row, k| dense::<6>(bytes, row, k) as i8 - 32);
}

//! Blocks of 32 weights: one scale, in the `_1` types one minimum, and 4, 5 or 8 bits a weight.
//!
//! Four-bit codes lie in two halves: the low nibble of byte `i` is weight `i`, the high one weight `i + 16`. The fifth bits
//! of a block lie together, bit `i` for weight `i`.

use super::{f16_at, u32_at};

/// The values of the non-linear 4-bit codes of IQ4_NL and IQ4_XS.
pub(crate) const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..], out, |_, q| d * (f32::from(q) - 8.0));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, minimum) = (f16_at(block, 0), f16_at(block, 2));
    nibbles(&block[4..], out, |_, q| d * f32::from(q) + minimum);
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, fifth) = (f16_at(block, 0), u32_at(block, 2));
    nibbles(&block[6..], out, |i, q| d * (f32::from(with_fifth_bit(q, fifth, i)) - 16.0));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, minimum, fifth) = (f16_at(block, 0), f16_at(block, 2), u32_at(block, 4));
    nibbles(&block[8..], out, |i, q| d * f32::from(with_fifth_bit(q, fifth, i)) + minimum);
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(q as i8);
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..], out, |_, q| d * f32::from(IQ4_LEVELS[usize::from(q)]));
}

/// Weight `i` is `value(i, code)`; `codes` is 16 bytes, `out` 32 weights.
pub(super) fn nibbles(codes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (first, second) = out.split_at_mut(16);
    for (i, ((low, high), &byte)) in first.iter_mut().zip(second).zip(codes).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + 16, byte >> 4);
    }
}

fn with_fifth_bit(q: u8, fifth: u32, i: usize) -> u8 {
    q | ((fifth >> i & 1) << 4) as u8
}

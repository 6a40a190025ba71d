//! The i-quants: a code names a point of a code-book (4 or 8 magnitudes at once), and signs stand beside it.
//!
//! The XXS and XS types store the signs of eight weights in 7 bits: the number of minuses is even, so the eighth follows
//! from the others.

use super::small_blocks::{IQ4_LEVELS, nibbles};
use super::{f16_at, grids, u16_at, u32_at};

pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high, low, codes) = (f16_at(block, 0), u16_at(block, 2), &block[4..8], &block[8..]);
    for (group, (out, codes)) in out.chunks_exact_mut(32).zip(codes.chunks_exact(16)).enumerate() {
        let low = low[group / 2] >> (group % 2 * 4) & 15;
        let high = (high >> (2 * group) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        nibbles(codes, out, |_, q| scale * f32::from(IQ4_LEVELS[usize::from(q)]));
    }
}

pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let (d, codes, tails) = (f16_at(block, 0), &block[2..66], &block[66..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let tail = u32_at(tails, group * 4);
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.5;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let signs = even_signs(tail >> (7 * i));
            let at = group * 8 + i * 2;
            for (half, out) in out.chunks_exact_mut(4).enumerate() {
                point(&grids::IQ3_XXS[usize::from(codes[at + half])], scale, signs >> (4 * half), out);
            }
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let (d, codes, high) = (f16_at(block, 0), &block[2..66], &block[66..74]);
    let (signs, scales) = (&block[74..106], &block[106..110]);
    for (i, out) in out.chunks_exact_mut(4).enumerate() {
        let group = i / 8;
        let scale = d * f32::from(1 + 2 * (scales[group / 2] >> (group % 2 * 4) & 15));
        let code = usize::from(codes[i]) | usize::from(high[group] >> (i % 8) & 1) << 8;
        point(&grids::IQ3_S[code], scale, signs[i / 2] >> (i % 2 * 4), out);
    }
}

pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (out, group) in out.chunks_exact_mut(32).zip(block[2..].chunks_exact(8)) {
        let tail = u32_at(group, 4);
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.25;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            point(&grids::IQ2_XXS[usize::from(group[i])], scale, even_signs(tail >> (7 * i)), out);
        }
    }
}

pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let (d, codes, scales) = (f16_at(block, 0), &block[2..66], &block[66..]);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = u16_at(codes, i * 2);
        let point_index = usize::from(code & 511);
        point(&grids::IQ2_XS[point_index], iq2_scale(d, scales, i), even_signs(u32::from(code >> 9)), out);
    }
}

pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let (d, codes, signs) = (f16_at(block, 0), &block[2..34], &block[34..66]);
    let (high, scales) = (&block[66..74], &block[74..]);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = usize::from(codes[i]) | usize::from(high[i / 4] >> (i % 4 * 2) & 3) << 8;
        point(&grids::IQ2_S[code], iq2_scale(d, scales, i), signs[i], out);
    }
}

/// The scale of the `i`-th eight weights of IQ2_XS and IQ2_S, which give each 16 weights four bits.
fn iq2_scale(d: f32, scales: &[u8], i: usize) -> f32 {
    d * (0.5 + f32::from(scales[i / 4] >> (i / 2 % 2 * 4) & 15)) * 0.25
}

/// Seven signs, and the eighth that makes the number of minuses even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Writes a point of a code-book, scaled; weight `j` is negative where bit `j` of `signs` is set.
fn point(magnitudes: &[u8], scale: f32, signs: u8, out: &mut [f32]) {
    for (j, (x, &magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = scale * f32::from(magnitude);
        *x = if signs >> j & 1 == 1 { -value } else { value };
    }
}

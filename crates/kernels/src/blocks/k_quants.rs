//! The K types: 256 weights share float16 scales; groups of 16 or 32 have small integer scales of their own.
//!
//! Names as in the format: `d` scales the group scales, `dmin` the group minimums, `ql`/`qs` are the low bits of the codes,
//! `qh`/`hmask` the high ones. Codes of different groups share a byte: 2-bit codes of the groups at distance 32 lie in one
//! byte, lowest first; so do 4-bit codes.

use super::f16_at;

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (codes, shift) = two_bits(qs, group);
        let (scale, minimum) = (d * f32::from(scales[group] & 15), dmin * f32::from(scales[group] >> 4));
        for (x, &byte) in out.iter_mut().zip(codes) {
            *x = scale * f32::from(byte >> shift & 3) - minimum;
        }
    }
}

pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (hmask, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (codes, shift) = two_bits(qs, group);
        let high = &hmask[group % 2 * 16..];
        let scale = d * f32::from(q3_k_scale(scales, group));
        for ((x, &byte), &mask) in out.iter_mut().zip(codes).zip(high) {
            let high = (mask >> (group / 2) & 1) << 2;
            *x = scale * (f32::from(byte >> shift & 3 | high) - 4.0);
        }
    }
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin, scales, qs) = (f16_at(block, 0), f16_at(block, 2), &block[4..16], &block[16..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, group);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (x, &byte) in out.iter_mut().zip(&qs[group / 2 * 32..]) {
            *x = scale * f32::from(byte >> (group % 2 * 4) & 15) - minimum;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin, scales) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
    let (qh, qs) = (&block[16..48], &block[48..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, group);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for ((x, &byte), &high) in out.iter_mut().zip(&qs[group / 2 * 32..]).zip(qh) {
            let code = byte >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
            *x = scale * f32::from(code) - minimum;
        }
    }
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (ql, qh, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (codes, shift) = two_bits(qh, group);
        // Each half of 128 has 64 bytes of low nibbles: its first 64 weights are low, its last 64 high.
        let low = &ql[group / 8 * 64 + group % 4 * 16..];
        let low_shift = group % 8 / 4 * 4;
        let scale = d * f32::from(scales[group] as i8);
        for ((x, &high), &low) in out.iter_mut().zip(codes).zip(low) {
            *x = scale * (f32::from(low >> low_shift & 15 | (high >> shift & 3) << 4) - 32.0);
        }
    }
}

/// The bytes that hold the 2-bit codes of group `group` (of 16), and how far to shift them.
fn two_bits(codes: &[u8], group: usize) -> (&[u8], usize) {
    let at = group / 8 * 32 + group % 2 * 16;
    (&codes[at..at + 16], group % 8 / 2 * 2)
}

/// The 6-bit scale of a group of Q3_K: 16 low nibbles in 8 bytes, then the 16 high pairs of bits in 4.
fn q3_k_scale(scales: &[u8], group: usize) -> i8 {
    let low = scales[group % 8] >> (group / 8 * 4) & 15;
    let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale and minimum of a group (of 8) of Q4_K and Q5_K. Of the 12 bytes the first four hold the scales of groups
/// 0 to 3, the next four their minimums; the last four the low nibbles of groups 4 to 7, whose high pairs of bits lie on top
/// of the first eight bytes.
fn scale_and_minimum(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (scales[group] & 63, scales[group + 4] & 63);
    }
    let (low, scale_top, minimum_top) = (scales[group + 4], scales[group - 4] >> 6, scales[group] >> 6);
    (low & 15 | scale_top << 4, low >> 4 | minimum_top << 4)
}

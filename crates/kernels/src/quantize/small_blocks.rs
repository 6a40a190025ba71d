//! Encoding of blocks of 32 weights; `blocks/small_blocks.rs` says what the bytes mean.

use half::f16;
use octet_checkpoint::ElementType;

use super::codes::{Codes, Integers, Iq4};
use super::f16_within;
use super::fit::{self, Fan, Minimum};
use super::groups::{Groups, from_array, inverse, negative};
use super::weighting::Weighted;
use crate::lanes::{LANES, Lanes};

/// With 8 bits no weight is worth clipping; what can be won is the half step beyond the last code.
const FAN_8_BITS: [Fan; 1] = [Fan(125.9, 127.49, 12)];
const FAN_5_BITS: [Fan; 2] = [Fan(-17.6, -12.8, 20), Fan(12.0, 16.5, 20)];
const FAN_4_BITS: [Fan; 2] = [Fan(-8.8, -6.4, 20), Fan(5.6, 7.7, 20)];
const FAN_IQ4: [Fan; 2] = [Fan(-139.7, -101.6, 12), Fan(90.4, 124.3, 12)];
const ENDS: Fan = Fan(-0.02, 0.1, 5);

/// Up to eight blocks: their scale, their minimum where the type has one, and codes in two's complement.
struct Found {
    d: [f16; LANES],
    m: [f16; LANES],
    codes: [[u8; 32]; LANES],
}

/// Encodes the eight blocks of a chunk, or as many as `out` holds.
#[inline(always)]
pub(super) fn encode<V: Lanes>(kind: ElementType, chunk: &Weighted, out: &mut [u8]) {
    let groups: Groups<V, 32> = Groups::read(chunk, 0);
    let found = match kind {
        ElementType::Q4_1 | ElementType::Q5_1 => {
            with_minimum(&groups, if kind == ElementType::Q4_1 { 15.0 } else { 31.0 })
        }
        ElementType::IQ4_NL => with_scale(&groups, Iq4, &FAN_IQ4),
        _ => {
            let (codes, fan): (_, &[Fan]) = match kind {
                ElementType::Q4_0 => (Integers(-8.0, 7.0), &FAN_4_BITS),
                ElementType::Q5_0 => (Integers(-16.0, 15.0), &FAN_5_BITS),
                ElementType::Q8_0 => (Integers(-127.0, 127.0), &FAN_8_BITS),
                _ => unreachable!("{kind} has no blocks of 32 that we write"),
            };
            with_scale(&groups, codes, fan)
        }
    };
    for (j, out) in out.chunks_exact_mut(kind.block_bytes()).enumerate() {
        write(kind, &found, j, out);
    }
}

#[inline(always)]
fn with_scale<V: Lanes>(groups: &Groups<V, 32>, codes: impl Codes, fan: &[Fan]) -> Found {
    let d = fit::scales(groups, codes, fan).scale.to_array().map(f16_within);
    with_codes(groups, codes, d, [f16::ZERO; LANES])
}

#[inline(always)]
fn with_minimum<V: Lanes>(groups: &Groups<V, 32>, highest: f32) -> Found {
    let found = fit::affine(groups, highest, Minimum::Free, ENDS);
    let d = found.scale.to_array().map(f16_within);
    let m = negative(found.minimum).to_array().map(f16_within);
    with_codes(groups, Integers(0.0, highest), d, m)
}

/// The nearest codes under the scales as they are stored.
#[inline(always)]
fn with_codes<V: Lanes>(groups: &Groups<V, 32>, codes: impl Codes, d: [f16; LANES], m: [f16; LANES]) -> Found {
    let (per_step, low) = (inverse(from_array::<V>(d.map(f16::to_f32))), from_array::<V>(m.map(f16::to_f32)));
    let mut found = Found { d, m, codes: [[0; 32]; LANES] };
    for (i, x) in groups.x.iter().enumerate() {
        let levels = codes.nearest(x.sub(low).mul(per_step)).to_array();
        for (block, level) in found.codes.iter_mut().zip(levels) {
            block[i] = codes.code(level);
        }
    }
    found
}

/// Writes block `j`.
fn write(kind: ElementType, found: &Found, j: usize, out: &mut [u8]) {
    let (d, m, q) = (found.d[j].to_le_bytes(), found.m[j].to_le_bytes(), &found.codes[j]);
    out[..2].copy_from_slice(&d);
    match kind {
        ElementType::Q8_0 => out[2..].copy_from_slice(q),
        ElementType::IQ4_NL => nibbles(q, &mut out[2..]),
        ElementType::Q4_0 => nibbles(&q.map(|q| q.wrapping_add(8)), &mut out[2..]),
        ElementType::Q5_0 => five_bits(&q.map(|q| q.wrapping_add(16)), &mut out[2..]),
        ElementType::Q4_1 => {
            out[2..4].copy_from_slice(&m);
            nibbles(q, &mut out[4..]);
        }
        _ => {
            out[2..4].copy_from_slice(&m);
            five_bits(q, &mut out[4..]);
        }
    }
}

/// The low four bits of code `i` and, above them, of code `i + 16`.
pub(super) fn nibbles(q: &[u8], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = q[i] & 15 | q[i + 16] << 4;
    }
}

/// The fifth bits, bit `i` of code `i`, and the nibbles after them.
fn five_bits(q: &[u8; 32], out: &mut [u8]) {
    let fifth = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
    out[..4].copy_from_slice(&fifth.to_le_bytes());
    nibbles(q, &mut out[4..]);
}

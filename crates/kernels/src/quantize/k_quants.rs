//! Encoding of blocks of 256 weights: what is found by `super_blocks.rs`, in the bytes that `blocks/k_quants.rs` explains.

use octet_checkpoint::ElementType;

use super::codes::{Integers, Iq4};
use super::fit::Fan;
use super::small_blocks::nibbles;
use super::super_blocks::{Affine, Block, Symmetric, with_minimums, with_scales};
use super::weighting::Weighted;
use crate::lanes::Lanes;

const Q2_K: Affine = Affine { highest: 3.0, highest_step: 15.0, ends: Fan(-0.02, 0.18, 6) };
const Q4_K: Affine = Affine { highest: 15.0, highest_step: 63.0, ends: Fan(-0.03, 0.12, 6) };
const Q5_K: Affine = Affine { highest: 31.0, highest_step: 63.0, ends: Fan(-0.02, 0.07, 6) };

const Q3_K: Symmetric<Integers> = Symmetric {
    codes: Integers(-4.0, 3.0),
    fan: [Fan(-4.6, -3.0, 12), Fan(2.4, 3.6, 12)],
    steps: Integers(-32.0, 31.0),
};
const Q6_K: Symmetric<Integers> = Symmetric {
    codes: Integers(-32.0, 31.0),
    fan: [Fan(-33.0, -29.5, 14), Fan(29.0, 31.7, 14)],
    steps: Integers(-128.0, 127.0),
};
const IQ4_XS: Symmetric<Iq4> =
    Symmetric { codes: Iq4, fan: [Fan(-139.7, -101.6, 12), Fan(90.4, 124.3, 12)], steps: Integers(-32.0, 31.0) };

/// Encodes one block.
#[inline(always)]
pub(super) fn encode<V: Lanes>(kind: ElementType, chunk: &Weighted, out: &mut [u8]) {
    let block = match kind {
        ElementType::Q2_K => with_minimums::<V, 16, 2>(chunk, Q2_K),
        ElementType::Q4_K | ElementType::Q5_K => {
            with_minimums::<V, 32, 1>(chunk, if kind == ElementType::Q4_K { Q4_K } else { Q5_K })
        }
        ElementType::IQ4_XS => with_scales::<V, _, 32, 1>(chunk, IQ4_XS),
        _ => with_scales::<V, _, 16, 2>(chunk, if kind == ElementType::Q3_K { Q3_K } else { Q6_K }),
    };
    write(kind, &block, out);
}

fn write(kind: ElementType, block: &Block, out: &mut [u8]) {
    match kind {
        ElementType::Q2_K => q2_k(out, block),
        ElementType::Q3_K => q3_k(out, block),
        ElementType::Q4_K => q4_k(out, block),
        ElementType::Q5_K => q5_k(out, block),
        ElementType::Q6_K => q6_k(out, block),
        ElementType::IQ4_XS => iq4_xs(out, block),
        _ => unreachable!("{kind} has no blocks of 256 that we write"),
    }
}

fn q2_k(out: &mut [u8], block: &Block) {
    for (group, byte) in out[..16].iter_mut().enumerate() {
        *byte = block.scales[group] | block.minimums[group] << 4;
    }
    two_bits(&block.codes, &mut out[16..80], |q| q);
    out[80..82].copy_from_slice(&block.d.to_le_bytes());
    out[82..84].copy_from_slice(&block.dmin.to_le_bytes());
}

fn q3_k(out: &mut [u8], block: &Block) {
    let codes = block.codes.map(|q| q.wrapping_add(4));
    let (hmask, rest) = out.split_at_mut(32);
    hmask.fill(0);
    for (i, q) in codes.iter().enumerate() {
        hmask[i % 32] |= (q >> 2) << (i / 32);
    }
    two_bits(&codes, &mut rest[..64], |q| q);
    let scales = &mut rest[64..76];
    scales.fill(0);
    for (group, scale) in block.scales.iter().enumerate() {
        let scale = scale.wrapping_add(32);
        scales[group % 8] |= (scale & 15) << (group / 8 * 4);
        scales[8 + group % 4] |= (scale >> 4) << (group / 4 * 2);
    }
    rest[76..].copy_from_slice(&block.d.to_le_bytes());
}

fn q4_k(out: &mut [u8], block: &Block) {
    affine_head(out, block);
    low_nibbles(&block.codes, &mut out[16..]);
}

fn q5_k(out: &mut [u8], block: &Block) {
    affine_head(out, block);
    let (qh, qs) = out[16..].split_at_mut(32);
    qh.fill(0);
    for (i, q) in block.codes.iter().enumerate() {
        qh[i % 32] |= (q >> 4) << (i / 32);
    }
    low_nibbles(&block.codes, qs);
}

fn q6_k(out: &mut [u8], block: &Block) {
    let codes = block.codes.map(|q| q.wrapping_add(32));
    for (i, byte) in out[..128].iter_mut().enumerate() {
        let at = i / 64 * 128 + i % 64;
        *byte = codes[at] & 15 | codes[at + 64] << 4;
    }
    two_bits(&codes, &mut out[128..192], |q| q >> 4);
    out[192..208].copy_from_slice(&block.scales);
    out[208..].copy_from_slice(&block.d.to_le_bytes());
}

fn iq4_xs(out: &mut [u8], block: &Block) {
    let (mut high, mut low) = (0u16, [0u8; 4]);
    for (group, scale) in block.scales[..8].iter().enumerate() {
        let scale = scale.wrapping_add(32);
        low[group / 2] |= (scale & 15) << (group % 2 * 4);
        high |= u16::from(scale >> 4) << (2 * group);
    }
    out[..2].copy_from_slice(&block.d.to_le_bytes());
    out[2..4].copy_from_slice(&high.to_le_bytes());
    out[4..8].copy_from_slice(&low);
    for (codes, out) in block.codes.chunks_exact(32).zip(out[8..].chunks_exact_mut(16)) {
        nibbles(codes, out);
    }
}

/// `d`, `dmin` and the packed 6-bit scales and minimums of Q4_K and Q5_K.
fn affine_head(out: &mut [u8], block: &Block) {
    out[..2].copy_from_slice(&block.d.to_le_bytes());
    out[2..4].copy_from_slice(&block.dmin.to_le_bytes());
    for group in 0..4 {
        let (scale, minimum) = (block.scales[group + 4], block.minimums[group + 4]);
        out[4 + group] = block.scales[group] | (scale >> 4) << 6;
        out[8 + group] = block.minimums[group] | (minimum >> 4) << 6;
        out[12 + group] = scale & 15 | minimum << 4;
    }
}

/// The low four bits of codes at distance 32 in one byte.
fn low_nibbles(codes: &[u8; 256], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = i / 32 * 64 + i % 32;
        *byte = codes[at] & 15 | codes[at + 32] << 4;
    }
}

/// Two bits of four codes at distance 32 in one byte.
fn two_bits(codes: &[u8; 256], out: &mut [u8], bits: impl Fn(u8) -> u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = i / 32 * 128 + i % 32;
        *byte = (0..4).fold(0, |byte, k| byte | (bits(codes[at + 32 * k]) & 3) << (2 * k));
    }
}

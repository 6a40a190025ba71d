//! What the bytes of a quantized row mean.
//!
//! A row is a sequence of blocks of 32 or 256 weights. A block holds small integers `q` and one or more scales, and a weight
//! is `scale * q` or `scale * q - minimum`. This file and its children are the definition of each format, in plain code that
//! is always right; the fast kernels are tested against it.
//!
//! Example, Q4_0: 18 bytes hold a float16 `d` and 16 bytes `b`; weight `i` is `d * ((b[i] & 15) - 8)` and weight `i + 16` is
//! `d * ((b[i] >> 4) - 8)`.

mod grids;
mod i_quants;
mod k_quants;
mod small_blocks;

use half::{bf16, f16};
use octet_checkpoint::ElementType;

pub(crate) use small_blocks::IQ4_LEVELS;

/// Decodes a row: `bytes` holds `out.len()` weights of type `kind`.
///
/// Any bytes decode: a scale that is infinite or NaN makes its weights so, and nothing else.
///
/// # Panics
/// If `bytes` is not exactly as long as `kind` says for `out.len()` weights.
pub fn dequantize_row(kind: ElementType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), kind.row_bytes(out.len()), "bytes of a row of {} weights in {kind}", out.len());
    match kind {
        ElementType::F32 => blocks(bytes, out, |b: &[u8; 4], x: &mut [f32; 1]| x[0] = f32::from_le_bytes(*b)),
        ElementType::F16 => blocks(bytes, out, |b: &[u8; 2], x: &mut [f32; 1]| x[0] = f16_at(b, 0)),
        ElementType::BF16 => {
            blocks(bytes, out, |b: &[u8; 2], x: &mut [f32; 1]| x[0] = bf16::from_le_bytes(*b).to_f32());
        }
        ElementType::Q4_0 => blocks(bytes, out, small_blocks::q4_0),
        ElementType::Q4_1 => blocks(bytes, out, small_blocks::q4_1),
        ElementType::Q5_0 => blocks(bytes, out, small_blocks::q5_0),
        ElementType::Q5_1 => blocks(bytes, out, small_blocks::q5_1),
        ElementType::Q8_0 => blocks(bytes, out, small_blocks::q8_0),
        ElementType::IQ4_NL => blocks(bytes, out, small_blocks::iq4_nl),
        ElementType::Q2_K => blocks(bytes, out, k_quants::q2_k),
        ElementType::Q3_K => blocks(bytes, out, k_quants::q3_k),
        ElementType::Q4_K => blocks(bytes, out, k_quants::q4_k),
        ElementType::Q5_K => blocks(bytes, out, k_quants::q5_k),
        ElementType::Q6_K => blocks(bytes, out, k_quants::q6_k),
        ElementType::IQ4_XS => blocks(bytes, out, i_quants::iq4_xs),
        ElementType::IQ3_XXS => blocks(bytes, out, i_quants::iq3_xxs),
        ElementType::IQ3_S => blocks(bytes, out, i_quants::iq3_s),
        ElementType::IQ2_XXS => blocks(bytes, out, i_quants::iq2_xxs),
        ElementType::IQ2_XS => blocks(bytes, out, i_quants::iq2_xs),
        ElementType::IQ2_S => blocks(bytes, out, i_quants::iq2_s),
    }
}

/// Applies `decode` to each block of `BYTES` bytes and its `LEN` weights.
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let ((bytes, no_bytes), (out, no_weights)) = (bytes.as_chunks(), out.as_chunks_mut());
    assert!(no_bytes.is_empty() && no_weights.is_empty() && bytes.len() == out.len(), "whole blocks");
    for (block, weights) in bytes.iter().zip(out) {
        decode(block, weights);
    }
}

/// The float16 at `bytes[at..at + 2]`.
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_bits(u16_at(bytes, at)).to_f32()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

//! Writes 32 dimensions of a token's key and value into those of its group.

use crate::kv_pages::layout::{BLOCK, GROUP_TOKENS, KvType, SCALES_BYTES, STRIP};
use crate::lanes::{LANES, Lanes, load_some};

/// Stores `key` and `value`, at most 32 dimensions of both, as token `slot` (below 16) of a group whose bytes of these
/// dimensions are `keys` and `values`.
#[inline(always)]
pub(crate) fn encode<V: Lanes>(
    kind: KvType,
    slot: usize,
    (key, keys): (&[f32], &mut [u8]),
    (value, values): (&[f32], &mut [u8]),
) {
    assert!(slot < GROUP_TOKENS && key.len() <= BLOCK && key.len() == value.len(), "one token's part of a block");
    match kind {
        KvType::F32 => {
            let number = |x: f32| x.to_ne_bytes();
            key.iter().enumerate().for_each(|(d, &x)| put(keys, d * GROUP_TOKENS + slot, number(x)));
            let at = |d: usize| (d / STRIP * GROUP_TOKENS + slot) * STRIP + d % STRIP;
            value.iter().enumerate().for_each(|(d, &x)| put(values, at(d), number(x)));
        }
        KvType::F16 => {
            key_f16::<V>(key, slot, keys);
            value_f16::<V>(value, slot, values);
        }
        KvType::Q8_0 => {
            q8_0::<V>(key, slot, keys, |d| (d / 2) * 2 * GROUP_TOKENS + slot * 2 + d % 2);
            q8_0::<V>(value, slot, values, |d| {
                (d / STRIP) * STRIP * GROUP_TOKENS + (slot / 2) * 2 * STRIP + (d % STRIP) * 2 + slot % 2
            });
        }
    }
}

/// Writes the element at `index` of an array of `N` bytes each.
#[inline(always)]
fn put<const N: usize>(to: &mut [u8], index: usize, bytes: [u8; N]) {
    to[index * N..][..N].copy_from_slice(&bytes);
}

/// Eight numbers, or fewer, as f16.
#[inline(always)]
fn halves<V: Lanes>(x: &[f32]) -> [u16; LANES] {
    let mut halves = [0; LANES];
    // SAFETY: eight halves.
    unsafe { load_some::<V>(x, 0.0).store_f16(halves.as_mut_ptr()) };
    halves
}

#[inline(always)]
fn key_f16<V: Lanes>(key: &[f32], slot: usize, to: &mut [u8]) {
    let rows = to.as_chunks_mut::<{ 2 * GROUP_TOKENS }>().0;
    for (x, rows) in key.chunks(LANES).zip(rows.chunks_mut(LANES)) {
        for (row, half) in rows.iter_mut().zip(halves::<V>(x)) {
            row.as_chunks_mut().0[slot] = half.to_ne_bytes();
        }
    }
}

#[inline(always)]
fn value_f16<V: Lanes>(value: &[f32], slot: usize, to: &mut [u8]) {
    let strips = to.as_chunks_mut::<{ 2 * GROUP_TOKENS * STRIP }>().0;
    for (x, strip) in value.chunks(STRIP).zip(strips) {
        let row = &mut strip.as_chunks_mut::<{ 2 * STRIP }>().0[slot];
        for (x, to) in x.chunks(LANES).zip(row.as_chunks_mut::<{ 2 * LANES }>().0) {
            let halves = halves::<V>(x);
            to.as_chunks_mut().0.iter_mut().zip(halves).take(x.len()).for_each(|(to, half)| *to = half.to_ne_bytes());
        }
    }
}

/// `at`: where a dimension goes, after the scales.
#[inline(always)]
fn q8_0<V: Lanes>(x: &[f32], slot: usize, to: &mut [u8], at: impl Fn(usize) -> usize) {
    let largest = x.iter().fold(0.0, |a: f32, b| if b.abs() > a { b.abs() } else { a });
    let (scale, bits) = as_f16::<V>(largest / 127.0);
    put(to, slot, bits.to_ne_bytes());
    // By the scale as it is stored, so that its rounding does no harm twice.
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (d, x) in x.iter().enumerate() {
        let q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
        to[SCALES_BYTES + at(d)] = q as u8;
    }
}

/// The nearest f16, as a number and as bits.
#[inline(always)]
fn as_f16<V: Lanes>(x: f32) -> (f32, u16) {
    let mut halves = [0; LANES];
    // SAFETY: eight halves.
    let rounded = unsafe {
        V::splat(x).store_f16(halves.as_mut_ptr());
        V::load_f16(halves.as_ptr())
    };
    (rounded.to_array()[0], halves[0])
}

//! Writes the key and the value of one token and head into their group.

use crate::kv_pages::layout::{BLOCK, BLOCK_BYTES, GROUP_TOKENS, KvType, SCALES_BYTES, STRIP};
use crate::lanes::{Instructions, Kernel, LANES, Lanes};

/// Stores `key` and `value`, both `[head_dim]`, as token `slot` (below 16) of a group whose bytes are `keys` and `values`.
pub(crate) fn encode(
    kind: KvType,
    slot: usize,
    (key, keys): (&[f32], &mut [u8]),
    (value, values): (&[f32], &mut [u8]),
) {
    match kind {
        KvType::F32 => {
            let number = |x: f32| x.to_ne_bytes();
            key.iter().enumerate().for_each(|(d, &x)| put(keys, key_index(d, slot), number(x)));
            value.iter().enumerate().for_each(|(d, &x)| put(values, value_index(d, slot), number(x)));
        }
        KvType::F16 => {
            Instructions::best().run(EncodeF16 { row: key, to: keys, index: |d| key_index(d, slot) });
            Instructions::best().run(EncodeF16 { row: value, to: values, index: |d| value_index(d, slot) });
        }
        KvType::Q8_0 => {
            let at = |d: usize| (d / 2) * 2 * GROUP_TOKENS + slot * 2 + d % 2;
            Instructions::best().run(EncodeQ8 { row: key, to: keys, slot, at });
            let at =
                |d: usize| (d / STRIP) * STRIP * GROUP_TOKENS + (slot / 2) * 2 * STRIP + (d % STRIP) * 2 + slot % 2;
            Instructions::best().run(EncodeQ8 { row: value, to: values, slot, at });
        }
    }
}

/// Index of dimension `d` of token `slot` among a group's keys.
#[inline(always)]
fn key_index(d: usize, slot: usize) -> usize {
    d * GROUP_TOKENS + slot
}

/// Index of dimension `d` of token `slot` among a group's values.
#[inline(always)]
fn value_index(d: usize, slot: usize) -> usize {
    (d / STRIP * GROUP_TOKENS + slot) * STRIP + d % STRIP
}

/// Writes the element at `index` of an array of `N` bytes each.
#[inline(always)]
fn put<const N: usize>(to: &mut [u8], index: usize, bytes: [u8; N]) {
    to[index * N..][..N].copy_from_slice(&bytes);
}

struct EncodeF16<'a, F> {
    row: &'a [f32],
    to: &'a mut [u8],
    index: F,
}

impl<F: Fn(usize) -> usize> Kernel for EncodeF16<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        for (chunk, x) in self.row.chunks(LANES).enumerate() {
            let (mut floats, mut halves) = ([0.0; LANES], [0; LANES]);
            floats[..x.len()].copy_from_slice(x);
            // SAFETY: both arrays hold eight.
            unsafe { V::load(floats.as_ptr()).store_f16(halves.as_mut_ptr()) };
            for (i, half) in halves[..x.len()].iter().enumerate() {
                put(self.to, (self.index)(chunk * LANES + i), half.to_ne_bytes());
            }
        }
    }
}

struct EncodeQ8<'a, F> {
    row: &'a [f32],
    to: &'a mut [u8],
    slot: usize,
    /// Where a dimension of a block goes, after the block's scales.
    at: F,
}

impl<F: Fn(usize) -> usize> Kernel for EncodeQ8<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        for (block, x) in self.row.chunks(BLOCK).enumerate() {
            let to = &mut self.to[block * BLOCK_BYTES..];
            let largest = x.iter().fold(0.0, |a: f32, b| if b.abs() > a { b.abs() } else { a });
            let (scale, bits) = as_f16::<V>(largest / 127.0);
            put(to, self.slot, bits.to_ne_bytes());
            // By the scale as it is stored, so that its rounding does no harm twice.
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (d, x) in x.iter().enumerate() {
                let q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                to[SCALES_BYTES + (self.at)(d)] = q as u8;
            }
        }
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

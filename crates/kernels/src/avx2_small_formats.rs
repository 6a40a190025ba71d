//! How AVX2 reads packed tiles of types with codes in blocks of 32: a block's 16 bytes hold columns 0 to 15 in their low
//! nibbles and columns 16 to 31 in their high ones.

use std::arch::x86_64::*;

use crate::avx2_integers::{Format, WideFormat};
use crate::avx2_k_formats::{dense, halves, moved, pair_dense};
use crate::blocks::IQ4_LEVELS;
use crate::quads::side_by_side;

/// Vector `i` of the nibbles of a group.
#[inline(always)]
unsafe fn nibbles(group: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller's promise: the group has the vector.
    unsafe {
        let v = _mm256_loadu_si256(group.add(i % 4 * 32).cast());
        if i < 4 { moved::<0, 0>(v, 15) } else { moved::<4, 0>(v, 15) }
    }
}

/// Two vectors from memory side by side.
#[inline(always)]
pub(crate) unsafe fn loaded([a, b]: [*const u8; 2]) -> __m512i {
    // SAFETY: the caller's promise: they are there, and the machine has AVX-512.
    unsafe { side_by_side(_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast())) }
}

/// Vector `i` of the nibbles of two groups.
#[inline(always)]
unsafe fn pair_nibbles([a, b]: [*const u8; 2], i: usize) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let both = loaded([a.add(i % 4 * 32), b.add(i % 4 * 32)]);
        let nibbles = if i < 4 { both } else { _mm512_srli_epi16::<4>(both) };
        _mm512_and_si512(nibbles, _mm512_set1_epi8(15))
    }
}

/// The levels that they stand for.
#[inline(always)]
unsafe fn pair_levels(groups: [*const u8; 2], i: usize) -> __m512i {
    // SAFETY: as above; there are sixteen levels.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
        _mm512_shuffle_epi8(table, pair_nibbles(groups, i))
    }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: see `packed_layout.rs`.
#[derive(Clone, Copy)]
pub(crate) struct SmallBlocks<const OFFSET_BITS: i32, const MINIMUM: bool, const FIFTH: bool> {
    d: *const u8,
    minimums: *const u8,
    codes: *const u8,
}

pub(crate) type Q4_0 = SmallBlocks<3, false, false>;
pub(crate) type Q4_1 = SmallBlocks<0, true, false>;
pub(crate) type Q5_0 = SmallBlocks<4, false, true>;
pub(crate) type Q5_1 = SmallBlocks<4, true, true>;

impl<const O: i32, const M: bool, const F: bool> Format for SmallBlocks<O, M, F> {
    const FLOAT_SCALES: bool = true;
    const SUM_COLUMNS: usize = 32;
    const OFFSET_BITS: i32 = O;
    const MINIMUM_COLUMNS: usize = if M { 32 } else { 0 };
    const BYTES: usize = 1152 + if M { 128 } else { 0 } + if F { 256 } else { 0 };
    type Group = *const u8;

    #[inline(always)]
    unsafe fn new(tile: *const u8, groups: usize) -> Self {
        let section = 16 * groups;
        // SAFETY: the caller's promise: these sections are there; so everywhere in this file.
        unsafe {
            SmallBlocks {
                d: tile,
                minimums: tile.add(if M { section } else { 0 }),
                codes: tile.add(if M { 2 * section } else { section }),
            }
        }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.codes.add(group * if F { 160 } else { 128 }) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const u8, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { if F { dense::<5>(*group, i) } else { nibbles(*group, i) } }
    }
    #[inline(always)]
    unsafe fn scale(&self, _: usize) -> __m256i {
        unreachable!("scales are floats")
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.d.add(16 * group)) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, group: usize) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let minimum = halves(self.minimums.add(16 * group));
            // Codes of five bits stand for `code - 16`.
            if F { _mm256_fmadd_ps(_mm256_set1_ps(16.0), self.d(group), minimum) } else { minimum }
        }
    }
}

impl<const O: i32, const M: bool, const F: bool> WideFormat for SmallBlocks<O, M, F> {
    #[inline(always)]
    unsafe fn pair_codes([a, b]: [&*const u8; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { if F { pair_dense::<5>([*a, *b], i) } else { pair_nibbles([*a, *b], i) } }
    }
}

/// The levels that the nibbles of a group stand for.
#[inline(always)]
unsafe fn levels(group: *const u8, i: usize) -> __m256i {
    // SAFETY: as above; there are sixteen levels.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles(group, i))
    }
}

/// Q8_0 and IQ4_NL: float scales and signed codes.
#[derive(Clone, Copy)]
pub(crate) struct ScaledBlocks<const LEVELS: bool> {
    tile: *const u8,
    codes: *const u8,
}

pub(crate) type Q8_0 = ScaledBlocks<false>;
pub(crate) type Iq4Nl = ScaledBlocks<true>;

impl<const LEVELS: bool> Format for ScaledBlocks<LEVELS> {
    const SIGNED: bool = true;
    const FLOAT_SCALES: bool = true;
    const SUM_COLUMNS: usize = 32;
    const BYTES: usize = if LEVELS { 1152 } else { 2176 };
    type Group = *const u8;

    #[inline(always)]
    unsafe fn new(tile: *const u8, groups: usize) -> Self {
        // SAFETY: as above.
        ScaledBlocks { tile, codes: unsafe { tile.add(16 * groups) } }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.codes.add(group * if LEVELS { 128 } else { 256 }) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const u8, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe {
            match LEVELS {
                true => levels(*group, i),
                false => _mm256_loadu_si256(group.add(i * 32).cast()),
            }
        }
    }
    #[inline(always)]
    unsafe fn scale(&self, _: usize) -> __m256i {
        unreachable!("scales are floats")
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile.add(16 * group)) }
    }
}

impl<const LEVELS: bool> WideFormat for ScaledBlocks<LEVELS> {
    #[inline(always)]
    unsafe fn pair_codes([a, b]: [&*const u8; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { if LEVELS { pair_levels([*a, *b], i) } else { loaded([a.add(i * 32), b.add(i * 32)]) } }
    }
}

/// IQ4_XS: levels, and scales of 6 bits minus 32.
#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs {
    tile: *const u8,
    /// Low nibbles of the scales: byte `i` of a lane has those of groups `2i` and `2i + 1`.
    low: __m256i,
    /// High pairs of bits of the scales: bits `2g` and `2g + 1` of a lane have those of group `g`.
    high: __m256i,
}

impl Format for Iq4Xs {
    const SIGNED: bool = true;
    const SUM_COLUMNS: usize = 32;
    const BYTES: usize = 1088;
    type Group = *const u8;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        // SAFETY: as above.
        unsafe {
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(tile.add(16).cast()));
            Iq4Xs { tile, low: _mm256_loadu_si256(tile.add(32).cast()), high }
        }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.tile.add(64 + group * 128) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const u8, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { levels(*group, i) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        let group = (run / 2) as i32;
        // SAFETY: as above.
        unsafe {
            let low = _mm256_srl_epi32(self.low, _mm_cvtsi32_si128(4 * group));
            let high = _mm256_srl_epi32(self.high, _mm_cvtsi32_si128(2 * group));
            let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
            let high = _mm256_and_si256(high, _mm256_set1_epi32(3));
            let scale = _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32::<4>(high)), _mm256_set1_epi32(32));
            // Twice in 16 bits.
            _mm256_or_si256(_mm256_and_si256(scale, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32::<16>(scale))
        }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile) }
    }
}

impl WideFormat for Iq4Xs {
    #[inline(always)]
    unsafe fn pair_codes([a, b]: [&*const u8; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { pair_levels([*a, *b], i) }
    }
}

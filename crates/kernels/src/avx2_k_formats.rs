//! How AVX2 reads packed tiles of the K types: blocks of 256, scales of 4, 6 or 8 bits for 16 or 32 columns.
//!
//! Groups are 32 columns, runs 16. Codes of several groups share their bytes, so a group is an address and a shift.

use std::arch::x86_64::*;

use crate::avx2_integers::{Format, WideFormat};
use crate::quads::side_by_side;

/// Vector `index` (of 32 bytes) from byte `start` on.
#[inline(always)]
unsafe fn vector(tile: *const u8, start: usize, index: usize) -> __m256i {
    // SAFETY: the caller's promise: the tile has it.
    unsafe { _mm256_loadu_si256(tile.add(start + 32 * index).cast()) }
}

/// Eight float16 as floats.
#[inline(always)]
pub(crate) unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise: they are there.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Every byte shifted right by a number of bits that is not known before, and masked. A shift by a vector of counts is one
/// step for the processor, that by a single count two.
#[inline(always)]
unsafe fn shifted(v: __m256i, shift: __m256i, mask: u8) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe { _mm256_and_si256(_mm256_srlv_epi32(v, shift), _mm256_set1_epi8(mask as i8)) }
}

/// A number of bits for [`shifted`], or, with AVX-512, for a rotation to the right.
#[inline(always)]
unsafe fn shift(bits: i32) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe { _mm256_set1_epi32(bits) }
}

/// Every byte shifted by bits known before, right from `from` to a lower `to` or left to a higher one, and masked.
#[inline(always)]
pub(crate) unsafe fn moved<const FROM: i32, const TO: i32>(v: __m256i, mask: u8) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe {
        let moved = match FROM >= TO {
            true => _mm256_srl_epi16(v, _mm_cvtsi32_si128(FROM - TO)),
            false => _mm256_sll_epi16(v, _mm_cvtsi32_si128(TO - FROM)),
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
    }
}

/// A shuffle's control that puts bytes of every lane in another order, or zeros for -1.
const fn control(order: [i8; 4]) -> [i8; 32] {
    let mut control = [-1i8; 32];
    let mut i = 0;
    while i < 32 {
        if order[i % 4] >= 0 {
            control[i] = order[i % 4] + (i % 16 / 4 * 4) as i8;
        }
        i += 1;
    }
    control
}

#[inline(always)]
unsafe fn shuffle(v: __m256i, control: &'static [i8; 32]) -> __m256i {
    // SAFETY: the caller's machine has AVX2; the control has 32 bytes.
    unsafe { _mm256_shuffle_epi8(v, _mm256_loadu_si256(control.as_ptr().cast())) }
}

/// Byte `index` of every lane, as an unsigned number twice in 16 bits.
#[inline(always)]
unsafe fn twice_unsigned(v: __m256i, index: usize) -> __m256i {
    static CONTROLS: [[i8; 32]; 4] =
        [control([0, -1, 0, -1]), control([1, -1, 1, -1]), control([2, -1, 2, -1]), control([3, -1, 3, -1])];
    // SAFETY: the caller's machine has AVX2.
    unsafe { shuffle(v, &CONTROLS[index]) }
}

/// Byte `index` of every lane, as a signed number twice in 16 bits.
#[inline(always)]
unsafe fn twice_signed(v: __m256i, index: usize) -> __m256i {
    static CONTROLS: [[i8; 32]; 4] =
        [control([-1, 0, -1, 0]), control([-1, 1, -1, 1]), control([-1, 2, -1, 2]), control([-1, 3, -1, 3])];
    // SAFETY: the caller's machine has AVX2.
    unsafe { _mm256_srai_epi16::<8>(shuffle(v, &CONTROLS[index])) }
}

/// Bytes `index` (0 or 2) and `index + 1` of every lane, as unsigned numbers of 16 bits.
#[inline(always)]
unsafe fn two_unsigned(v: __m256i, index: usize) -> __m256i {
    static CONTROLS: [[i8; 32]; 2] = [control([0, -1, 1, -1]), control([2, -1, 3, -1])];
    // SAFETY: the caller's machine has AVX2.
    unsafe { shuffle(v, &CONTROLS[index / 2]) }
}

/// Codes of a group: vectors of low bits, vectors of high bits, and where in their bytes the group's are.
pub(crate) struct KGroup {
    low: *const u8,
    low_shift: __m256i,
    high: *const u8,
    high_shift: __m256i,
    /// Rotates high bits to the right, to where they stand above the low ones.
    high_turn: __m256i,
    /// The same as shifts, of which one is by nothing.
    high_left: __m256i,
    high_right: __m256i,
}

impl KGroup {
    /// Of a group, its low bits begin at bit `low_bit` of the bytes at `low`, its high bits at `high_bit` of those at `high`; a
    /// code has `n_low` low bits.
    #[inline(always)]
    unsafe fn new(low: *const u8, low_bit: usize, high: *const u8, high_bit: usize, n_low: usize) -> KGroup {
        let turn = high_bit as i32 - n_low as i32;
        // SAFETY: the caller's machine has AVX2.
        unsafe {
            KGroup {
                low,
                low_shift: shift(low_bit as i32),
                high,
                high_shift: shift(high_bit as i32),
                high_turn: shift(turn),
                high_left: shift((-turn).max(0)),
                high_right: shift(turn.max(0)),
            }
        }
    }

    /// Vectors of the low bits, `0 <= vector < 8`, in runs of four that lie side by side.
    #[inline(always)]
    unsafe fn low(&self, i: usize, mask: u8) -> __m256i {
        // SAFETY: the caller's promise: the group has the vector.
        unsafe { shifted(vector(self.low, 0, i), self.low_shift, mask) }
    }

    /// Vectors of the high bits.
    #[inline(always)]
    unsafe fn high(&self, i: usize, mask: u8) -> __m256i {
        // SAFETY: as above.
        unsafe { shifted(vector(self.high, 0, i), self.high_shift, mask) }
    }

    /// Vectors of the high bits where they stand above the low ones. One step less than `high` and a shift where the compiler
    /// knows the group, one more where it does not.
    #[inline(always)]
    unsafe fn raised(&self, i: usize, mask: u8) -> __m256i {
        // SAFETY: as above.
        unsafe { shifted(_mm256_sllv_epi32(vector(self.high, 0, i), self.high_left), self.high_right, mask) }
    }

    /// Vectors of the low bits of two groups side by side.
    #[inline(always)]
    unsafe fn pair_low(groups: [&KGroup; 2], i: usize, mask: i8) -> __m512i {
        // SAFETY: as above, and the caller's machine has AVX-512.
        unsafe { _mm512_and_si512(KGroup::pair_low_unmasked(groups, i), _mm512_set1_epi8(mask)) }
    }

    #[inline(always)]
    unsafe fn pair_low_unmasked([a, b]: [&KGroup; 2], i: usize) -> __m512i {
        // SAFETY: as above; both groups are the same of their tiles.
        unsafe {
            let both = side_by_side(vector(a.low, 0, i), vector(b.low, 0, i));
            _mm512_srlv_epi32(both, side_by_side(a.low_shift, a.low_shift))
        }
    }

    /// Vectors of codes of `LOW + HIGH` bits of two groups: what a rotation brings from other bytes is masked away.
    #[inline(always)]
    unsafe fn joined<const LOW: u32, const HIGH: u32>(groups: [&KGroup; 2], i: usize) -> __m512i {
        /// Bits of `a` where `c` has ones, of `b` where it has zeros.
        const CHOOSE: i32 = 0b1110_0100;
        let (low_mask, mask) = ((1i8 << LOW) - 1, (1i8 << (LOW + HIGH)) - 1);
        let [a, b] = groups;
        // SAFETY: as above.
        unsafe {
            let low = KGroup::pair_low_unmasked(groups, i);
            let high = side_by_side(vector(a.high, 0, i), vector(b.high, 0, i));
            let high = _mm512_rorv_epi32(high, side_by_side(a.high_turn, a.high_turn));
            let both = _mm512_ternarylogic_epi32::<CHOOSE>(low, high, _mm512_set1_epi8(low_mask));
            _mm512_and_si512(both, _mm512_set1_epi8(mask))
        }
    }
}

/// Scales and minimums of 6 bits, of Q4_K and Q5_K: four groups in each vector.
#[derive(Clone, Copy)]
struct SixBits {
    scales: [__m256i; 2],
    minimums: [__m256i; 2],
}

impl SixBits {
    #[inline(always)]
    unsafe fn new(at: *const u8) -> SixBits {
        // SAFETY: the caller's promise: three vectors are there.
        unsafe {
            let (a, b, c) = (vector(at, 0, 0), vector(at, 0, 1), vector(at, 0, 2));
            let upper = |low: __m256i, top: __m256i| _mm256_or_si256(low, moved::<6, 4>(top, 0x30));
            SixBits {
                scales: [moved::<0, 0>(a, 63), upper(moved::<0, 0>(c, 15), a)],
                minimums: [moved::<0, 0>(b, 63), upper(moved::<4, 0>(c, 15), b)],
            }
        }
    }
}

/// Minus a float, in all lanes.
#[inline(always)]
unsafe fn negated(v: __m256) -> __m256 {
    // SAFETY: the caller's machine has AVX.
    unsafe { _mm256_xor_ps(v, _mm256_set1_ps(-0.0)) }
}

/// Q4_K and, with fifth bits, Q5_K; see `packed_layout.rs`, so for the others.
#[derive(Clone, Copy)]
pub(crate) struct Q45K<const FIFTH: bool> {
    tile: *const u8,
    scales: SixBits,
}

// In what follows `% 2` and `% 4` only tell the compiler that indices are in bounds.

pub(crate) type Q4K = Q45K<false>;
pub(crate) type Q5K = Q45K<true>;

impl<const FIFTH: bool> Format for Q45K<FIFTH> {
    /// A group's sum of fifth bits would not fit 16 bits: 32 / 2 * 31 * 127.
    const SUM_COLUMNS: usize = if FIFTH { 16 } else { 32 };
    const SCALE_COLUMNS: usize = 32;
    const MINIMUM_COLUMNS: usize = 32;
    const BYTES: usize = if FIFTH { 1408 } else { 1152 };
    type Group = KGroup;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        // SAFETY: the caller's promise; so everywhere in this file.
        Q45K { tile, scales: unsafe { SixBits::new(tile.add(32)) } }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> KGroup {
        // SAFETY: as above.
        unsafe {
            let low = self.tile.add(if FIFTH { 384 } else { 128 } + group / 2 * 256);
            KGroup::new(low, group % 2 * 4, self.tile.add(128), group, 4)
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let low = group.low(i, 15);
            match FIFTH {
                false => low,
                true => _mm256_or_si256(low, _mm256_slli_epi16::<4>(group.high(i, 1))),
            }
        }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { twice_unsigned(self.scales.scales[run / 8 % 2], run % 8 / 2) }
    }
    #[inline(always)]
    unsafe fn minimums(&self, pair: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { two_unsigned(self.scales.minimums[pair / 2 % 2], pair % 2 * 2) }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { negated(halves(self.tile.add(16))) }
    }
}

impl<const FIFTH: bool> WideFormat for Q45K<FIFTH> {
    const UNSIGNED_BITS: Option<(u32, u32)> = Some((if FIFTH { 5 } else { 4 }, 6));

    #[inline(always)]
    unsafe fn pair_codes(groups: [&KGroup; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { if FIFTH { KGroup::joined::<4, 1>(groups, i) } else { KGroup::pair_low(groups, i, 15) } }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Q6K {
    tile: *const u8,
}

impl Format for Q6K {
    const SUM_COLUMNS: usize = 16;
    const OFFSET_BITS: i32 = 5;
    const BYTES: usize = 1680;
    /// High bits lie behind all low ones: half a tile ahead they would come too late.
    const AHEAD: usize = 8;
    type Group = KGroup;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Q6K { tile }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> KGroup {
        let (half, quarter) = (group / 4, group % 4);
        // SAFETY: as above.
        unsafe {
            let low = self.tile.add(128 + half * 512 + quarter % 2 * 256);
            KGroup::new(low, quarter / 2 * 4, self.tile.add(1152 + half * 256), quarter * 2, 4)
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_or_si256(group.low(i, 15), group.raised(i, 0x30)) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { twice_signed(vector(self.tile, 0, run / 4), run % 4) }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile.add(1664)) }
    }
}

impl WideFormat for Q6K {
    #[inline(always)]
    unsafe fn pair_codes(groups: [&KGroup; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { KGroup::joined::<4, 2>(groups, i) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Q3K {
    tile: *const u8,
    /// Four runs in each vector, plus 32.
    scales: [__m256i; 4],
}

impl Format for Q3K {
    const SUM_COLUMNS: usize = 16;
    const SMALL_SUMS: bool = true;
    const OFFSET_BITS: i32 = 2;
    const BYTES: usize = 880;
    type Group = KGroup;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        // SAFETY: as above.
        let scales = unsafe {
            let (a, b, top) = (vector(tile, 0, 0), vector(tile, 0, 1), vector(tile, 0, 2));
            [
                _mm256_or_si256(moved::<0, 0>(a, 15), moved::<0, 4>(top, 0x30)),
                _mm256_or_si256(moved::<0, 0>(b, 15), moved::<2, 4>(top, 0x30)),
                _mm256_or_si256(moved::<4, 0>(a, 15), moved::<4, 4>(top, 0x30)),
                _mm256_or_si256(moved::<4, 0>(b, 15), moved::<6, 4>(top, 0x30)),
            ]
        };
        Q3K { tile, scales }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> KGroup {
        // SAFETY: as above.
        unsafe { KGroup::new(self.tile.add(352 + group / 4 * 256), group % 4 * 2, self.tile.add(96), group, 2) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_or_si256(group.low(i, 3), _mm256_slli_epi16::<2>(group.high(i, 1))) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi16(twice_unsigned(self.scales[run / 4 % 4], run % 4), _mm256_set1_epi16(32)) }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile.add(864)) }
    }
}

impl WideFormat for Q3K {
    #[inline(always)]
    unsafe fn pair_codes(groups: [&KGroup; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { KGroup::joined::<2, 1>(groups, i) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Q2K {
    tile: *const u8,
}

impl Format for Q2K {
    const SUM_COLUMNS: usize = 16;
    const SMALL_SUMS: bool = true;
    const MINIMUM_COLUMNS: usize = 16;
    const BYTES: usize = 672;
    type Group = KGroup;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Q2K { tile }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> KGroup {
        // SAFETY: as above.
        unsafe {
            let low = self.tile.add(160 + group / 4 * 256);
            KGroup::new(low, group % 4 * 2, low, 0, 0)
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { group.low(i, 3) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { twice_unsigned(moved::<0, 0>(vector(self.tile, 32, run / 4), 15), run % 4) }
    }
    #[inline(always)]
    unsafe fn minimums(&self, pair: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { two_unsigned(moved::<4, 0>(vector(self.tile, 32, pair / 2), 15), pair % 2 * 2) }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { halves(self.tile) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, _: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { negated(halves(self.tile.add(16))) }
    }
}

impl WideFormat for Q2K {
    const UNSIGNED_BITS: Option<(u32, u32)> = Some((2, 4));

    #[inline(always)]
    unsafe fn pair_codes(groups: [&KGroup; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { KGroup::pair_low(groups, i, 3) }
    }
}

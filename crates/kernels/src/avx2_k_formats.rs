//! How AVX2 reads packed tiles of the K types: blocks of 256, scales of 4, 6 or 8 bits for 16 or 32 columns.
//!
//! Groups are 32 columns, runs 16. Codes of 2 and 4 bits share their bytes with those of other groups, so a
//! group is an address and a shift; those of 3, 5 and 6 bits are dense (see `dense_codes.rs`).

use std::arch::x86_64::*;

use crate::avx2_integers::{Format, WideFormat};
use crate::dense_codes::{Piece, pieces};
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

/// Vector `i` of a group's dense codes of `BITS` bits.
#[inline(always)]
pub(crate) unsafe fn dense<const BITS: usize>(group: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller's promise: the group is there.
    unsafe {
        let piece = |Piece { vector: at, mask, right }| {
            let bits = _mm256_and_si256(vector(group, 0, at), _mm256_set1_epi8(mask as i8));
            _mm256_srl_epi16(bits, _mm_cvtsi32_si128(right as i32))
        };
        let [a, b, c] = pieces::<BITS>(i).map(piece);
        _mm256_or_si256(_mm256_or_si256(a, b), c)
    }
}

/// The same of two groups side by side.
#[inline(always)]
pub(crate) unsafe fn pair_dense<const BITS: usize>([a, b]: [*const u8; 2], i: usize) -> __m512i {
    // SAFETY: as above, and the caller's machine has AVX-512.
    unsafe {
        let piece = |Piece { vector: at, mask, right }| {
            let bits = side_by_side(vector(a, 0, at), vector(b, 0, at));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi8(mask as i8));
            _mm512_srl_epi16(bits, _mm_cvtsi32_si128(right as i32))
        };
        let [a, b, c] = pieces::<BITS>(i).map(piece);
        _mm512_or_si512(_mm512_or_si512(a, b), c)
    }
}

/// Where a group's codes lie: in bytes that they share with other groups' from some bit on, or in their own.
pub(crate) struct KGroup {
    at: *const u8,
    shift: __m256i,
}

impl KGroup {
    #[inline(always)]
    unsafe fn new(at: *const u8, first_bit: usize) -> KGroup {
        // SAFETY: the caller's machine has AVX2.
        KGroup { at, shift: unsafe { _mm256_set1_epi32(first_bit as i32) } }
    }

    /// Vector `i` of codes, `i < 8`. A shift by a vector of counts is one step for the processor, that by a single count two.
    #[inline(always)]
    unsafe fn codes(&self, i: usize, mask: u8) -> __m256i {
        // SAFETY: the caller's promise: the group is there.
        unsafe { _mm256_and_si256(_mm256_srlv_epi32(vector(self.at, 0, i), self.shift), _mm256_set1_epi8(mask as i8)) }
    }

    /// The same of two groups side by side.
    #[inline(always)]
    unsafe fn pair_codes([a, b]: [&KGroup; 2], i: usize, mask: u8) -> __m512i {
        // SAFETY: as above, and the caller's machine has AVX-512; both groups are the same of their tiles.
        unsafe {
            let both = side_by_side(vector(a.at, 0, i), vector(b.at, 0, i));
            let codes = _mm512_srlv_epi32(both, side_by_side(a.shift, a.shift));
            _mm512_and_si512(codes, _mm512_set1_epi8(mask as i8))
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
            match FIFTH {
                false => KGroup::new(self.tile.add(128 + group / 2 * 256), group % 2 * 4),
                true => KGroup::new(self.tile.add(128 + group * 160), 0),
            }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { if FIFTH { dense::<5>(group.at, i) } else { group.codes(i, 15) } }
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
        unsafe {
            if FIFTH { pair_dense::<5>(groups.map(|group| group.at), i) } else { KGroup::pair_codes(groups, i, 15) }
        }
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
    type Group = *const u8;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Q6K { tile }
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.tile.add(128 + group * 192) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const u8, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { dense::<6>(*group, i) }
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
    unsafe fn pair_codes([a, b]: [&*const u8; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { pair_dense::<6>([*a, *b], i) }
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
    type Group = *const u8;

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
    unsafe fn group(&self, group: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.tile.add(96 + group * 96) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const u8, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { dense::<3>(*group, i) }
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
    unsafe fn pair_codes([a, b]: [&*const u8; 2], i: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { pair_dense::<3>([*a, *b], i) }
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
        unsafe { KGroup::new(self.tile.add(160 + group / 4 * 256), group % 4 * 2) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &KGroup, i: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { group.codes(i, 3) }
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
        unsafe { KGroup::pair_codes(groups, i, 3) }
    }
}

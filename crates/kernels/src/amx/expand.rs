//! Weights out of their packed form into planes of 8 bits, in the order that a tile register wants.

use std::arch::x86_64::*;

use crate::avx2_integers::WideFormat;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::Pair;

/// Of a tile of two panels, 64 rows (of four columns each) of 16 dwords, one for each row of weights.
pub(super) type Plane = [u8; 2 * ROWS * TILE];

/// Unpacks `N` groups of 32 columns, from `FIRST` on, into their part of two planes; see [`Planes`].
#[inline(always)]
pub(super) unsafe fn expand<F: WideFormat, const FIRST: usize, const N: usize>(
    pair: &Pair<F>,
    low: &mut Plane,
    high: &mut Plane,
) {
    let first = 2 * ROWS * GROUP * FIRST;
    let (low, high) = (&mut low[first..][..2 * ROWS * GROUP * N], &mut high[first..][..2 * ROWS * GROUP * N]);
    let (low, high) = (low.as_mut_ptr().cast::<__m512i>(), high.as_mut_ptr().cast::<__m512i>());
    // SAFETY: the caller's promise, see `multiply`; the parts have eight vectors for each group.
    unsafe {
        let mut scales = [Scale::of::<F>(_mm512_setzero_si512()); N];
        for vector in 0..8 {
            if !F::FLOAT_SCALES && vector % (F::SCALE_COLUMNS / 4) == 0 {
                for (n, scale) in scales.iter_mut().enumerate() {
                    *scale = Scale::of::<F>(pair.scale(2 * (FIRST + n) + vector / 4));
                }
            }
            // All before any is written: neighbouring groups share bytes, which are read once then.
            let mut codes = [_mm512_setzero_si512(); N];
            for (n, codes) in codes.iter_mut().enumerate() {
                *codes = pair.codes(FIRST + n, vector);
            }
            for (n, (codes, scale)) in codes.into_iter().zip(&scales).enumerate() {
                let (low, high) = (low.add(8 * n + vector), high.add(8 * n + vector));
                match const { Planes::of::<F>() } {
                    Planes::Codes => low.write(without_offset::<F>(codes)),
                    Planes::Products => low.write(_mm512_mullo_epi16(codes, scale.all)),
                    Planes::Halves => {
                        let [l, h] = scaled_halves(codes, scale);
                        low.write(l);
                        high.write(h);
                    }
                    Planes::Bytes => {
                        let [l, h] = scaled_bytes::<F>(codes, scale);
                        low.write(l);
                        high.write(h);
                    }
                }
            }
        }
    }
}

/// What the planes hold of a weight.
pub(super) enum Planes {
    /// The low one its code; the scale is a float.
    Codes,
    /// The low one code times scale, which fits 8 bits.
    Products,
    /// The lower two bits of its code and the upper ones, each times the scale, which fits 8 bits.
    Halves,
    /// The bytes of code times scale.
    Bytes,
}

impl Planes {
    pub(super) const fn of<F: WideFormat>() -> Planes {
        match F::UNSIGNED_BITS {
            _ if F::FLOAT_SCALES => Planes::Codes,
            Some((codes, scales)) => {
                assert!(!F::SIGNED && F::OFFSET_BITS == 0, "unsigned codes stand for themselves");
                match (codes + scales <= 8, codes <= 4 && 2 + scales <= 8) {
                    (true, _) => Planes::Products,
                    (_, true) => Planes::Halves,
                    _ => Planes::Bytes,
                }
            }
            None => Planes::Bytes,
        }
    }
}

/// The scale of sixteen rows for a run of columns.
#[derive(Clone, Copy)]
struct Scale {
    /// In all columns, 16 bits.
    all: __m512i,
    /// In the first of two columns and in the second, 8 bits; zeros in the other.
    even: __m512i,
    odd: __m512i,
    /// Times what codes are too high by.
    offset: __m512i,
}

const ODD_BYTES: u64 = 0xAAAA_AAAA_AAAA_AAAA;

impl Scale {
    #[inline(always)]
    unsafe fn of<F: WideFormat>(all: __m512i) -> Scale {
        // SAFETY: the caller's machine has AVX-512 BW; so everywhere below.
        unsafe {
            let (even, odd) = (_mm512_maskz_mov_epi8(!ODD_BYTES, all), _mm512_slli_epi16::<8>(all));
            Scale { all, even, odd, offset: _mm512_sll_epi16(all, _mm_cvtsi32_si128(F::OFFSET_BITS)) }
        }
    }
}

#[inline(always)]
unsafe fn without_offset<F: WideFormat>(codes: __m512i) -> __m512i {
    // SAFETY: as above.
    unsafe { if F::OFFSET_BITS == 0 { codes } else { _mm512_sub_epi8(codes, _mm512_set1_epi8(1 << F::OFFSET_BITS)) } }
}

/// The halves of 64 codes of up to four bits, times the scales of their rows: a product of 16 bits is that of both its bytes,
/// since nothing is carried over.
#[inline(always)]
unsafe fn scaled_halves(codes: __m512i, scale: &Scale) -> [__m512i; 2] {
    // SAFETY: as above.
    unsafe {
        let two_bits = _mm512_set1_epi8(3);
        let low = _mm512_and_si512(codes, two_bits);
        let high = _mm512_and_si512(_mm512_srli_epi16::<2>(codes), two_bits);
        [_mm512_mullo_epi16(low, scale.all), _mm512_mullo_epi16(high, scale.all)]
    }
}

/// Low and high bytes of 64 codes times the scales of their rows.
#[inline(always)]
unsafe fn scaled_bytes<F: WideFormat>(codes: __m512i, scale: &Scale) -> [__m512i; 2] {
    // SAFETY: as above.
    unsafe {
        let (even, odd) = if F::SIGNED {
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes));
            (_mm512_mullo_epi16(even, scale.all), _mm512_mullo_epi16(_mm512_srai_epi16::<8>(codes), scale.all))
        } else {
            let (even, odd) = (_mm512_maddubs_epi16(codes, scale.even), _mm512_maddubs_epi16(codes, scale.odd));
            match F::OFFSET_BITS {
                0 => (even, odd),
                _ => (_mm512_sub_epi16(even, scale.offset), _mm512_sub_epi16(odd, scale.offset)),
            }
        };
        let low = _mm512_mask_blend_epi8(ODD_BYTES, even, _mm512_slli_epi16::<8>(odd));
        let high = _mm512_mask_blend_epi8(ODD_BYTES, _mm512_srli_epi16::<8>(even), odd);
        [low, high]
    }
}

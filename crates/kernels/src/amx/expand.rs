//! Weights out of their packed form: codes, or the two bytes of codes times scales, in the order that a tile register wants.

use std::arch::x86_64::*;

use super::Scratch;
use crate::avx2::prefetch;
use crate::avx2_integers::{WideFormat, minimum_pairs};
use crate::packed_layout::GROUP;
use crate::quads::{QuadWork, floats_side_by_side, side_by_side};

/// Unpacks a tile of panels `2 pair` and `2 pair + 1`.
#[inline(always)]
pub(super) unsafe fn expand<F: WideFormat>(work: &QuadWork, pair: usize, out: &mut Scratch) {
    let groups = work.cols / GROUP;
    let tiles = [work.tiles[2 * pair], work.tiles[2 * pair + 1]];
    let next = [work.next[2 * pair], work.next[2 * pair + 1]];
    // SAFETY: the caller's promise, see `multiply`; the planes have 64 vectors.
    unsafe {
        let (a, b) = (F::new(tiles[0], groups), F::new(tiles[1], groups));
        let low = out.low[pair].as_mut_ptr().cast::<__m512i>();
        let high = out.high[pair].as_mut_ptr().cast::<__m512i>();
        for group in 0..groups {
            let lines = F::BYTES.div_ceil(64);
            for line in group * lines / 8..(group + 1) * lines / 8 {
                next.iter().for_each(|tile| prefetch(tile.wrapping_add(line * 64)));
            }
            let (codes_a, codes_b) = (a.group(group), b.group(group));
            let mut scale = _mm512_setzero_si512();
            for vector in 0..8 {
                if !F::FLOAT_SCALES && vector % (F::SCALE_COLUMNS / 4) == 0 {
                    let run = 2 * group + vector / 4;
                    scale = side_by_side(a.scale(run), b.scale(run));
                }
                let codes = F::pair_codes([&codes_a, &codes_b], vector);
                let at = 8 * group + vector;
                if F::FLOAT_SCALES {
                    let offset = _mm512_set1_epi8(if F::OFFSET_BITS == 0 { 0 } else { 1 << F::OFFSET_BITS });
                    low.add(at).write(_mm512_sub_epi8(codes, offset));
                } else {
                    let [l, h] = scaled_bytes::<F>(codes, scale);
                    low.add(at).write(l);
                    high.add(at).write(h);
                }
            }
        }
        for group in 0..if F::FLOAT_SCALES { groups } else { 1 } {
            out.d[pair][group] = floats_side_by_side(a.d(group), b.d(group));
            if F::MINIMUM_COLUMNS > 0 {
                out.dmin[pair][group] = floats_side_by_side(a.dmin(group), b.dmin(group));
            }
        }
        if F::MINIMUM_COLUMNS > 0 && !F::FLOAT_SCALES {
            let pairs = minimum_pairs::<F>(groups);
            for p in 0..pairs {
                out.minimums[pair][p] = side_by_side(a.minimums(p), b.minimums(p));
            }
            out.minimums[pair][pairs..].fill(_mm512_setzero_si512());
        }
    }
}

/// Low and high bytes of 64 codes times the scales of their rows.
#[inline(always)]
unsafe fn scaled_bytes<F: WideFormat>(codes: __m512i, scale: __m512i) -> [__m512i; 2] {
    const ODD_BYTES: u64 = 0xAAAA_AAAA_AAAA_AAAA;
    // SAFETY: the caller's machine has AVX-512 BW.
    unsafe {
        let (even, odd) = if F::SIGNED {
            (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes)), _mm512_srai_epi16::<8>(codes))
        } else {
            (_mm512_and_si512(codes, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(codes))
        };
        let offset = _mm512_set1_epi16(if F::OFFSET_BITS == 0 { 0 } else { 1 << F::OFFSET_BITS });
        let even = _mm512_mullo_epi16(_mm512_sub_epi16(even, offset), scale);
        let odd = _mm512_mullo_epi16(_mm512_sub_epi16(odd, offset), scale);
        let low = _mm512_mask_blend_epi8(ODD_BYTES, even, _mm512_slli_epi16::<8>(odd));
        let high = _mm512_mask_blend_epi8(ODD_BYTES, _mm512_srli_epi16::<8>(even), odd);
        [low, high]
    }
}

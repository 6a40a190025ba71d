//! Activations as integers, by AVX-512: all groups of a tile side by side.

use std::arch::x86_64::*;

use crate::activations::{WORDS, section};
use crate::packed_layout::{GROUP, TILE};

const GROUPS: usize = TILE / GROUP;

/// Number `i` of eight: the eight 32-bit lanes of `$lanes[i]`, folded by `$with`.
macro_rules! fold {
    ($with:ident, $lanes:expr) => {{
        let [a, b, c, d, e, f, g, h] = $lanes;
        let two = |a, b| $with(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let four = |a, b| $with(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let (first, second) = (four(two(a, b), two(c, d)), four(two(e, f), two(g, h)));
        $with(_mm256_permute2x128_si256::<0x20>(first, second), _mm256_permute2x128_si256::<0x31>(first, second))
    }};
}

/// A row's 256 values as words with a scale for every 32 (see `activations.rs`).
///
/// # Safety
/// The machine must have AVX2, and F, BW and VL of AVX-512.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantize_groups(values: &[f32; TILE], words: &mut [u32; WORDS]) {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut largest = [_mm256_setzero_si256(); GROUPS];
    for (largest, values) in largest.iter_mut().zip(values.as_chunks::<GROUP>().0) {
        // SAFETY: 32 floats.
        let [a, b] =
            unsafe { [_mm512_loadu_si512(values.as_ptr().cast()), _mm512_loadu_si512(values[16..].as_ptr().cast())] };
        // As integers the bits of absolute values are in order, and infinities and NaN come last.
        let most = _mm512_max_epi32(_mm512_and_si512(a, magnitude), _mm512_and_si512(b, magnitude));
        *largest = _mm256_max_epi32(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
    }
    let largest = fold!(_mm256_max_epi32, largest);
    let infinity = _mm256_set1_epi32(f32::INFINITY.to_bits() as i32);
    if _mm256_cmpge_epi32_mask(largest, infinity) != 0 {
        // SAFETY: the caller's promise.
        return unsafe { crate::avx2_activations::quantize_groups(values, words) };
    }
    // As `scale_and_inverse`.
    let (largest, most) = (_mm256_castsi256_ps(largest), _mm256_set1_ps(127.0));
    let scales = _mm256_div_ps(largest, most);
    let is_large = _mm256_cmp_ps_mask::<_CMP_GE_OQ>(scales, _mm256_set1_ps(f32::MIN_POSITIVE));
    let scales = _mm256_maskz_mov_ps(is_large, scales);
    let mut inverses = [0.0; GROUPS];
    // SAFETY: eight floats.
    unsafe { _mm256_storeu_ps(inverses.as_mut_ptr(), _mm256_maskz_div_ps(is_large, most, largest)) };

    let mut pairs = [_mm256_setzero_si256(); GROUPS];
    for quarter in 0..GROUPS / 2 {
        let mut codes = [_mm512_setzero_si512(); 4];
        for (i, codes) in codes.iter_mut().enumerate() {
            // SAFETY: sixteen floats.
            let x = unsafe { _mm512_loadu_ps(values[64 * quarter + 16 * i..].as_ptr()) };
            *codes = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverses[2 * quarter + i / 2])));
        }
        let [a, b, c, d] = codes;
        // Packing works in each quarter of a register by itself; this puts the words in order again.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let codes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let codes = _mm512_permutexvar_epi32(order, codes);
        // SAFETY: sixteen words.
        unsafe { _mm512_storeu_si512(words[16 * quarter..][..16].as_mut_ptr().cast(), codes) };
        let sums = _mm512_maddubs_epi16(_mm512_set1_epi8(1), codes);
        pairs[2 * quarter] = _mm512_castsi512_si256(sums);
        pairs[2 * quarter + 1] = _mm512_extracti64x4_epi64::<1>(sums);
    }
    let pairs = fold!(_mm256_add_epi16, pairs);
    let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    words[section::SCALE] = 0;
    let mut put = |section: usize, eight: __m256i| {
        // SAFETY: eight words.
        unsafe { _mm256_storeu_si256(words[section..section + GROUPS].as_mut_ptr().cast(), eight) };
    };
    put(section::GROUP_SCALES, _mm256_castps_si256(scales));
    put(section::GROUP_SUMS, _mm256_castps_si256(_mm256_mul_ps(scales, sums)));
    put(section::OFFSET_32, _mm256_sub_epi16(_mm256_setzero_si256(), pairs));
    words[section::SUMS_32..].fill(0);
}

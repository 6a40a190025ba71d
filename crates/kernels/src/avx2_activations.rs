//! Activations as integers, by AVX2.

use std::arch::x86_64::*;

use crate::activations::{WORDS, scale_and_inverse, section};
use crate::packed_layout::{GROUP, TILE};

/// A row's 256 values as words with one scale (see `activations.rs`).
///
/// # Safety
/// The machine must have AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn quantize_tile(values: &[f32; TILE], words: &mut [u32; WORDS]) {
    let (largest, finite) = largest(values);
    let (scale, inverse) = scale_and_inverse(largest, finite);
    words[section::END..].fill(0);
    if inverse == 0.0 {
        words.fill(0);
    } else {
        for (index, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
            // SAFETY: the words of group `index` of 32 columns, in every section.
            unsafe { quantize_group(values, inverse, index, words.as_mut_ptr()) };
        }
    }
    words[section::SCALE] = scale.to_bits();
}

/// The same with a scale for every 32 values.
///
/// # Safety
/// The machine must have AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn quantize_groups(values: &[f32; TILE], words: &mut [u32; WORDS]) {
    let (mut scales, mut sums) = ([0; TILE / GROUP], [0; TILE / GROUP]);
    for (index, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
        let (largest, finite) = largest(values);
        let (scale, inverse) = scale_and_inverse(largest, finite);
        let mut sum = 0;
        if inverse == 0.0 {
            words[8 * index..8 * index + 8].fill(0);
            words[section::OFFSET_32 + index] = 0;
        } else {
            // SAFETY: the words of group `index` of 32 columns, in every section.
            unsafe { quantize_group(values, inverse, index, words.as_mut_ptr()) };
            sum = (words[section::SUMS_32 + index / 2] >> (index % 2 * 16)) as i16;
        }
        (scales[index], sums[index]) = (scale.to_bits(), (scale * f32::from(sum)).to_bits());
    }
    words[section::SCALE] = 0;
    words[section::GROUP_SCALES..section::GROUP_SUMS].copy_from_slice(&scales);
    words[section::GROUP_SUMS..section::OFFSET_32].copy_from_slice(&sums);
    words[section::SUMS_32..].fill(0);
}

/// The largest absolute value, and whether all are finite.
#[target_feature(enable = "avx2")]
fn largest<const N: usize>(values: &[f32; N]) -> (f32, bool) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    // As integers the bits of absolute values are in order, and infinities and NaN come last.
    let mut largest = _mm256_setzero_si256();
    for values in values.as_chunks::<8>().0 {
        // SAFETY: eight floats.
        let v = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(v, magnitude)));
    }
    let half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    let half = _mm_max_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
    let half = _mm_max_epi32(half, _mm_shuffle_epi32::<0b10_11_00_01>(half));
    let largest = f32::from_bits(_mm_cvtsi128_si32(half) as u32);
    (largest, largest.is_finite())
}

/// # Safety
/// `words` must have the sections of a tile, and `index` be below 8.
#[target_feature(enable = "avx2")]
unsafe fn quantize_group(values: &[f32; 32], inverse: f32, index: usize, words: *mut u32) {
    let inverse = _mm256_set1_ps(inverse);
    let eight = |at: usize| {
        // SAFETY: `at` is 0, 8, 16 or 24.
        let v = unsafe { _mm256_loadu_ps(values.as_ptr().add(at)) };
        _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse))
    };
    let (low, high) = (_mm256_packs_epi32(eight(0), eight(8)), _mm256_packs_epi32(eight(16), eight(24)));
    // Packing works in each half by itself; this puts the words in order again.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    // Pairs of columns; then per half (16 columns) the sum of the even pairs and that of the odd ones in every dword.
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
    let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
    let minus = _mm256_sub_epi16(_mm256_setzero_si256(), pairs);
    let (first, second) = (_mm256_castsi256_si128(minus), _mm256_extracti128_si256::<1>(minus));
    let sums = |half: __m128i| -_mm_cvtsi128_si32(_mm_madd_epi16(half, _mm_set1_epi16(1)));
    let (a, b) = (sums(first), sums(second));
    // SAFETY: all places are in the sections, by the caller's promise. The last one writes half of a word.
    unsafe {
        _mm256_storeu_si256(words.add(8 * index).cast(), codes);
        *words.add(section::OFFSET_16 + 2 * index) = _mm_cvtsi128_si32(first) as u32;
        *words.add(section::OFFSET_16 + 2 * index + 1) = _mm_cvtsi128_si32(second) as u32;
        *words.add(section::OFFSET_32 + index) = _mm_cvtsi128_si32(_mm_add_epi16(first, second)) as u32;
        *words.add(section::SUMS_16 + index) = (a as u32 & 0xffff) | (b as u32) << 16;
        *words.add(section::SUMS_32).cast::<i16>().add(index) = (a + b) as i16;
    }
}

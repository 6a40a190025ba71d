//! Products with float weights by AVX2: one chain of fused multiply-adds for each row and token, column after column.

use std::arch::x86_64::*;

use crate::avx2::prefetch;
use crate::packed_layout::{ROWS, TILE};
use crate::tile_walk::TileWork;

/// A float type as packed tiles hold it, `[column][8 rows]`.
pub(crate) trait FloatFormat {
    /// Bytes of a column.
    const COLUMN_BYTES: usize;

    /// The eight weights of a column.
    ///
    /// # Safety
    /// The machine must have AVX2 and F16C, and the column be there.
    unsafe fn load(column: *const u8) -> __m256;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl FloatFormat for F32 {
    const COLUMN_BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(column.cast()) }
    }
}

impl FloatFormat for F16 {
    const COLUMN_BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(column.cast())) }
    }
}

impl FloatFormat for Bf16 {
    const COLUMN_BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> __m256 {
        // SAFETY: the caller's promise. A bf16 is the upper half of a float.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(column.cast())))) }
    }
}

/// A [`TileKernel`](crate::tile_walk::TileKernel).
///
/// # Safety
/// See there.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn float_tile<F: FloatFormat, const T: usize>(work: &TileWork) {
    // A chain takes four cycles for each step, so a kernel should have eight or more of them: rows or tokens.
    let at_once = match T {
        1 | 2 => 4,
        3 | 4 => 2,
        _ => 1,
    };
    let mut panel = 0;
    while panel < work.panels {
        // SAFETY: the caller's promise; as many panels as are left.
        unsafe {
            match (work.panels - panel).min(at_once) {
                4 => add_products::<F, 4, T>(work, panel),
                2 | 3 => add_products::<F, 2, T>(work, panel),
                _ => add_products::<F, 1, T>(work, panel),
            }
        }
        panel += match (work.panels - panel).min(at_once) {
            3 => 2,
            n => n,
        };
    }
}

/// Panels `first..first + P`.
#[inline(always)]
unsafe fn add_products<F: FloatFormat, const P: usize, const T: usize>(work: &TileWork, first: usize) {
    const COLUMNS_OF_A_LINE: usize = 4;
    // SAFETY: the caller's promise, see `float_tile`.
    unsafe {
        let tile = work.tile.add(first * work.panel_bytes);
        let x = work.x.cast::<f32>();
        let mut sums = [[_mm256_setzero_ps(); T]; P];
        for start in (0..work.cols).step_by(COLUMNS_OF_A_LINE) {
            if work.ahead > 0 {
                for p in 0..P {
                    let at = tile.wrapping_add(p * work.panel_bytes + work.ahead + start * F::COLUMN_BYTES);
                    prefetch(at);
                    if F::COLUMN_BYTES * COLUMNS_OF_A_LINE > 64 {
                        prefetch(at.wrapping_add(64));
                    }
                }
            }
            for column in start..(start + COLUMNS_OF_A_LINE).min(work.cols) {
                for (p, sums) in sums.iter_mut().enumerate() {
                    let w = F::load(tile.add(p * work.panel_bytes + column * F::COLUMN_BYTES));
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm256_fmadd_ps(w, _mm256_set1_ps(*x.add(t * TILE + column)), *sum);
                    }
                }
            }
        }
        for (p, of_panel) in sums.iter().enumerate() {
            for (t, sum) in of_panel.iter().enumerate() {
                let y = work.sums.add((first + p) * work.sums_stride + t).cast::<f32>();
                _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), *sum));
            }
        }
    }
    const { assert!(ROWS == 8) };
}

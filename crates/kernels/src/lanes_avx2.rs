//! [`Lanes`] in AVX2, FMA and F16C instructions.

use std::arch::x86_64::*;

use crate::lanes::{Kernel, LANES, Lanes, Vector};

/// Eight floats in a register.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

impl Avx2 {
    /// Of a register.
    #[inline(always)]
    pub(crate) fn of(x: __m256) -> Self {
        Avx2(x)
    }

    /// Whether this machine has the instructions.
    #[inline]
    pub(crate) fn is_available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }
}

/// Runs `kernel` on [`Avx2`].
///
/// # Safety
/// The machine must have AVX2, FMA and F16C.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

// SAFETY of every block below: `Avx2` is used only under `run`, on a machine that has the instructions; loads and stores
// are unaligned, of memory that the caller vouches for.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Avx2 {
    const N: usize = LANES;
    type Int = __m256i;
    type Pairs = __m256i;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx2(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx2(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_add_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_sub_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_div_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Avx2(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_max_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Avx2(unsafe { _mm256_min_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn round(self) -> Self::Int {
        unsafe { _mm256_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Avx2(unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit.0), self.0) })
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Avx2(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0))) })
    }
    #[inline(always)]
    fn zero_int() -> Self::Int {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn from_int(n: Self::Int) -> Self {
        Avx2(unsafe { _mm256_cvtepi32_ps(n) })
    }
    #[inline(always)]
    unsafe fn store_i16(n: Self::Int, to: *mut i16) {
        unsafe {
            let packed = _mm256_packs_epi32(n, n);
            let in_order = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(in_order));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs {
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs {
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int {
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehdup_ps(four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehl_ps(two, two)))
        }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehdup_ps(four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehl_ps(two, two)))
        }
    }
}

// SAFETY: as above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { run(kernel) }
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Avx2(unsafe { _mm256_permute_ps::<0b10_11_00_01>(self.0) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    fn where_positive(self, gate: Self) -> Self {
        Avx2(unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(gate.0, _mm256_setzero_ps()), self.0) })
    }
}

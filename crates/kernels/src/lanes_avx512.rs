//! [`Wide`] in AVX-512 instructions.

use std::arch::x86_64::*;

use crate::lanes::{Vector, WIDE, Wide, WideKernel};
use crate::lanes_avx2::Avx2;

/// Sixteen floats in a register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Avx512 {
    /// Whether this machine has the instructions.
    #[inline]
    pub(crate) fn is_available() -> bool {
        crate::avx2::has_vnni()
    }
}

/// Runs `kernel` on [`Avx512`].
///
/// # Safety
/// The machine must have AVX2, FMA, F16C, and of AVX-512 F, BW, VL and VNNI.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn run<K: WideKernel>(kernel: K) {
    kernel.run::<Avx512>()
}

/// `f` of both halves.
#[inline(always)]
fn halves(x: __m512, f: impl Fn(Avx2, Avx2) -> Avx2) -> Avx2 {
    // SAFETY: there is an `Avx512`, so the machine has the instructions.
    unsafe {
        let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x));
        f(Avx2::of(_mm512_castps512_ps256(x)), Avx2::of(_mm256_castpd_ps(high)))
    }
}

impl Wide for Avx512 {
    // Half of the 32 registers: the compiler loads the factors of many rows before it uses the first.
    const SUMS: usize = 16;
    const INT_SUMS: usize = 16;

    fn apart<K: WideKernel>(kernel: K) {
        // SAFETY: there is an `Avx512`, so the machine has the instructions.
        unsafe { run(kernel) }
    }
}

// SAFETY of every block below: `Avx512` is used only under `run`, on a machine that has the instructions; loads and stores
// are unaligned, of memory that the caller vouches for.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Avx512 {
    const N: usize = WIDE;
    type Int = __m512i;
    type Pairs = __m512i;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_add_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_sub_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_div_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_max_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_min_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn round(self) -> Self::Int {
        unsafe { _mm512_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Avx512(unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, limit.0), self.0) })
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Avx512(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0))) })
    }

    #[inline(always)]
    fn zero_int() -> Self::Int {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn from_int(n: Self::Int) -> Self {
        Avx512(unsafe { _mm512_cvtepi32_ps(n) })
    }
    #[inline(always)]
    unsafe fn store_i16(n: Self::Int, to: *mut i16) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(n)) }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int {
        unsafe { _mm512_dpwssd_epi32(acc, a, b) }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        halves(self.0, Avx2::add).sum()
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        halves(self.0, Avx2::max).largest()
    }
}

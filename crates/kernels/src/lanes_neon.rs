//! [`Lanes`] in NEON instructions, which every 64-bit ARM processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::lanes::{Kernel, LANES, Lanes, Vector};

/// Eight floats in two registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

impl Neon {
    /// Whether this machine has the instructions of our kernels: NEON with dot products.
    #[inline]
    pub(crate) fn is_available() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }

    /// Of two registers.
    #[inline(always)]
    pub(crate) fn of([low, high]: [float32x4_t; 2]) -> Self {
        Neon(low, high)
    }

    /// The two registers.
    #[inline(always)]
    pub(crate) fn halves(self) -> [float32x4_t; 2] {
        [self.0, self.1]
    }

    /// `f` of both halves.
    #[inline(always)]
    fn each(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Neon(f(self.0), f(self.1))
    }

    /// `f` of both halves of `self` and `b`.
    #[inline(always)]
    fn with(self, b: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Neon(f(self.0, b.0), f(self.1, b.1))
    }
}

/// Runs `kernel` on [`Neon`].
#[inline(never)]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// `x` where `mask` is set, else 0.
#[inline(always)]
fn masked(mask: uint32x4_t, x: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x))) }
}

#[inline(always)]
fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// Asks for the cache line of `at`, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address does nothing that a program could see.
    unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
}

// SAFETY of every block below: every 64-bit ARM processor has NEON; loads and stores are unaligned, of memory that the caller vouches for; assembly reads and
// writes the registers that it names.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Neon {
    const N: usize = LANES;
    type Int = [int32x4_t; 2];
    type Pairs = [int16x8_t; 2];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Neon(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Neon(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // In assembly, since conversions of f16 are not stable in the oldest Rust that we support.
        unsafe {
            let (low, high): (float32x4_t, float32x4_t);
            asm!("fcvtl {low:v}.4s, {halves:v}.4h", "fcvtl2 {high:v}.4s, {halves:v}.8h",
                halves = in(vreg) vld1q_u16(from), low = out(vreg) low, high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags));
            Neon(low, high)
        }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        unsafe { self.with(b, |a, b| vaddq_f32(a, b)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        unsafe { self.with(b, |a, b| vsubq_f32(a, b)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        unsafe { self.with(b, |a, b| vmulq_f32(a, b)) }
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        unsafe { self.with(b, |a, b| vdivq_f32(a, b)) }
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Neon(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.with(b, larger)
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        unsafe { self.with(b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    fn round(self) -> Self::Int {
        unsafe { [vcvtnq_s32_f32(self.0), vcvtnq_s32_f32(self.1)] }
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, limit: Self) -> Self {
        unsafe {
            let kept = |y, x, limit| masked(vmvnq_u32(vcltq_f32(x, limit)), y);
            Neon(kept(self.0, x.0, limit.0), kept(self.1, x.1, limit.1))
        }
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        unsafe { self.each(|x| vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(x)))) }
    }
    #[inline(always)]
    fn zero_int() -> Self::Int {
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    fn from_int(n: Self::Int) -> Self {
        unsafe { Neon(vcvtq_f32_s32(n[0]), vcvtq_f32_s32(n[1])) }
    }
    #[inline(always)]
    unsafe fn store_i16(n: Self::Int, to: *mut i16) {
        unsafe { vst1q_s16(to, vcombine_s16(vqmovn_s32(n[0]), vqmovn_s32(n[1]))) }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs {
        unsafe {
            let bytes = vld1q_s8(from);
            [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)]
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs {
        unsafe {
            let pair = from.cast::<i32>().read_unaligned();
            [vreinterpretq_s16_s32(vdupq_n_s32(pair)); 2]
        }
    }
    #[inline(always)]
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int {
        unsafe {
            let of = |a, b| vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
            [vaddq_s32(acc[0], of(a[0], b[0])), vaddq_s32(acc[1], of(a[1], b[1]))]
        }
    }
    #[inline(always)]
    fn prefetch(at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = vaddq_f32(self.0, self.1);
            let two = vpadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        unsafe {
            let four = larger(self.0, self.1);
            let two = larger(vuzp1q_f32(four, four), vuzp2q_f32(four, four));
            let (first, second) = (vgetq_lane_f32::<0>(two), vgetq_lane_f32::<1>(two));
            if first > second { first } else { second }
        }
    }
}

// SAFETY: as above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Neon {
    fn apart<K: Kernel>(kernel: K) -> K::Output {
        run(kernel)
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        self.each(|x| unsafe { vrev64q_f32(x) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe {
            let halves: uint16x8_t;
            asm!("fcvtn {halves:v}.4h, {low:v}.4s", "fcvtn2 {halves:v}.8h, {high:v}.4s",
                halves = out(vreg) halves, low = in(vreg) self.0, high = in(vreg) self.1,
                options(pure, nomem, nostack, preserves_flags));
            vst1q_u16(to, halves);
        }
    }
    #[inline(always)]
    fn where_positive(self, gate: Self) -> Self {
        unsafe { self.with(gate, |x, gate| masked(vcgtzq_f32(gate), x)) }
    }
}

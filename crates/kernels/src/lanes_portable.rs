//! [`Lanes`] as plain arrays: what the other instructions must equal.

use half::f16;

use crate::lanes::{Kernel, LANES, Lanes, Vector};

/// Lanes as plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

/// `f` of every lane index.
#[inline(always)]
fn lanes<T>(f: impl Fn(usize) -> T) -> [T; LANES] {
    [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)]
}

impl Vector for Portable {
    const N: usize = LANES;
    type Int = [i32; LANES];
    type Pairs = [[i16; 2]; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; arrays of f32 have the alignment of f32.
        Portable(unsafe { *from.cast() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = self.0 }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Portable(lanes(|i| f16::from_bits(unsafe { *from.add(i) }).to_f32()))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Portable(lanes(|i| self.0[i] + b.0[i]))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Portable(lanes(|i| self.0[i] - b.0[i]))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Portable(lanes(|i| self.0[i] * b.0[i]))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Portable(lanes(|i| self.0[i] / b.0[i]))
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Portable(lanes(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Portable(lanes(|i| if self.0[i] > b.0[i] { self.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Portable(lanes(|i| if self.0[i] < b.0[i] { self.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn round(self) -> Self::Int {
        lanes(|i| self.0[i].round_ties_even() as i32)
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Portable(lanes(|i| if x.0[i] < limit.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Portable(lanes(|i| f32::from_bits(self.0[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn zero_int() -> Self::Int {
        [0; LANES]
    }
    #[inline(always)]
    fn from_int(n: Self::Int) -> Self {
        Portable(lanes(|i| n[i] as f32))
    }
    #[inline(always)]
    unsafe fn store_i16(n: Self::Int, to: *mut i16) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = lanes(|i| n[i].clamp(i16::MIN as i32, i16::MAX as i32) as i16) }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs {
        // SAFETY: the caller's promise.
        lanes(|i| unsafe { [*from.add(2 * i) as i16, *from.add(2 * i + 1) as i16] })
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs {
        // SAFETY: the caller's promise.
        [unsafe { [*from, *from.add(1)] }; LANES]
    }
    #[inline(always)]
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int {
        lanes(|i| {
            let products = a[i][0] as i32 * b[i][0] as i32 + a[i][1] as i32 * b[i][1] as i32;
            acc[i].wrapping_add(products)
        })
    }
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let [a, b, c, d, e, f, g, h] = self.0;
        larger(larger(larger(a, e), larger(b, f)), larger(larger(c, g), larger(d, h)))
    }
}

impl Lanes for Portable {
    #[inline(never)]
    fn apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Portable>()
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Portable(lanes(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = lanes(|i| f16::from_f32(self.0[i]).to_bits()) }
    }
    #[inline(always)]
    fn where_positive(self, gate: Self) -> Self {
        Portable(lanes(|i| if gate.0[i] > 0.0 { self.0[i] } else { 0.0 }))
    }
}

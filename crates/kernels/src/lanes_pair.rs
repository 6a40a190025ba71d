//! Sixteen lanes as twice eight: what [`Wide`] is where registers hold no more.

use crate::lanes::{InPairs, LANES, Lanes, Vector, WIDE, Wide, WideKernel};

/// The first eight lanes and the others.
#[derive(Clone, Copy)]
pub(crate) struct Pair<V>(V, V);

impl<V: Lanes> Pair<V> {
    /// `f` of both halves of `self` and `b`.
    #[inline(always)]
    fn with(self, b: Self, f: impl Fn(V, V) -> V) -> Self {
        Pair(f(self.0, b.0), f(self.1, b.1))
    }
}

impl<V: Lanes> Wide for Pair<V> {
    // Twelve registers, where there are 16 of AVX2 or, in halves, 32 of NEON.
    const SUMS: usize = 6;
    // AVX2 needs a register more for products.
    const INT_SUMS: usize = 4;

    fn apart<K: WideKernel>(kernel: K) {
        V::apart(InPairs(kernel))
    }
}

// SAFETY of every block below: the caller's promise holds for both halves.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<V: Lanes> Vector for Pair<V> {
    const N: usize = WIDE;
    type Int = (V::Int, V::Int);
    type Pairs = (V::Pairs, V::Pairs);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Pair(V::splat(x), V::splat(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Pair(V::load(from), V::load(from.add(LANES))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            self.0.store(to);
            self.1.store(to.add(LANES));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe { Pair(V::load_f16(from), V::load_f16(from.add(LANES))) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.with(b, V::add)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.with(b, V::sub)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.with(b, V::mul)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.with(b, V::div)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Pair(self.0.fma(b.0, c.0), self.1.fma(b.1, c.1))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.with(b, V::max)
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.with(b, V::min)
    }
    #[inline(always)]
    fn round(self) -> Self::Int {
        (self.0.round(), self.1.round())
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Pair(self.0.zero_where_less(x.0, limit.0), self.1.zero_where_less(x.1, limit.1))
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Pair(self.0.low_bits_to_exponent(), self.1.low_bits_to_exponent())
    }

    #[inline(always)]
    fn zero_int() -> Self::Int {
        (V::zero_int(), V::zero_int())
    }
    #[inline(always)]
    fn from_int(n: Self::Int) -> Self {
        Pair(V::from_int(n.0), V::from_int(n.1))
    }
    #[inline(always)]
    unsafe fn store_i16(n: Self::Int, to: *mut i16) {
        unsafe {
            V::store_i16(n.0, to);
            V::store_i16(n.1, to.add(LANES));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs {
        unsafe { (V::load_pairs_i8(from), V::load_pairs_i8(from.add(2 * LANES))) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs {
        let pair = unsafe { V::splat_pair(from) };
        (pair, pair)
    }
    #[inline(always)]
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int {
        (V::add_products(acc.0, a.0, b.0), V::add_products(acc.1, a.1, b.1))
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        V::prefetch(at);
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.add(self.1).sum()
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.max(self.1).largest()
    }
}

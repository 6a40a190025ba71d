//! Eight floats at a time: the few operations that attention, norms and softmax are written in, once for all machines.
//!
//! A kernel is generic over [`Lanes`]. [`Portable`] does each operation with plain arrays; `lanes_avx2.rs` does it with
//! one instruction, `lanes_neon.rs` with two. Every operation gives the same bits on both, so a kernel does too: the portable version is not
//! another text that could differ, it is the same text on other numbers.
//!
//! ```text
//! struct Sum<'a>(&'a [f32]);                       // the arguments
//! impl Kernel for Sum<'_> { fn run<V: Lanes>(self) -> f32 { … V::splat(0.0) … } }
//! let sum = Instructions::best().run(Sum(&x));     // picks the instructions
//! ```
//!
//! `run`, and every generic function under it, is `#[inline(always)]`: it takes its instruction set from the function
//! that it ends up in.

#[cfg(target_arch = "x86_64")]
use crate::lanes_avx2::Avx2;
#[cfg(target_arch = "aarch64")]
use crate::lanes_neon::Neon;
use half::f16;

/// Floats in a [`Lanes`].
pub(crate) const LANES: usize = 8;

/// Eight f32 lanes, and the integers that are made from and into them.
///
/// Values exist only on machines that have the instructions: [`Instructions::run`] sees to it.
pub(crate) trait Lanes: Copy {
    /// Eight i32 lanes.
    type Int: Copy;
    /// Sixteen i16, two in each of eight lanes.
    type Pairs: Copy;

    /// `x` in every lane.
    fn splat(x: f32) -> Self;
    /// Eight floats from memory.
    /// # Safety
    /// They must be readable.
    unsafe fn load(from: *const f32) -> Self;
    /// Eight floats to memory.
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, to: *mut f32);
    /// Eight f16, widened.
    /// # Safety
    /// They must be readable.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Eight f16, rounded to nearest even.
    /// # Safety
    /// They must be writable.
    unsafe fn store_f16(self, to: *mut u16);
    /// The lanes in order.
    fn to_array(self) -> [f32; LANES];
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `if self > b { self } else { b }`: of a NaN and a number, the second.
    fn max(self, b: Self) -> Self;
    /// `if self < b { self } else { b }`.
    fn min(self, b: Self) -> Self;
    /// `if gate > 0 { self } else { 0 }`: whatever `self` is.
    fn where_positive(self, gate: Self) -> Self;
    /// The nearest integers, ties to even; any number where there is none.
    fn round(self) -> Self::Int;
    /// `if x < limit { 0 } else { self }`: a NaN in `x` leaves `self`.
    fn zero_where_less(self, x: Self, limit: Self) -> Self;
    /// The low nine bits of each float moved into sign and exponent. From `1.5 · 2^23 + n`, whose low bits are `n`, this
    /// makes `2^(n - 127)`.
    fn low_bits_to_exponent(self) -> Self;

    /// Eight zeros.
    fn zero_int() -> Self::Int;
    /// The integers as floats.
    fn from_int(n: Self::Int) -> Self;
    /// Eight integers as i16, saturated.
    /// # Safety
    /// They must be writable.
    unsafe fn store_i16(n: Self::Int, to: *mut i16);
    /// Sixteen i8, widened.
    /// # Safety
    /// They must be readable.
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs;
    /// The same two i16 in every lane, from memory.
    /// # Safety
    /// They must be readable.
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs;
    /// `acc + a.0 * b.0 + a.1 * b.1` in every lane.
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int;

    /// Neighbouring lanes exchanged: `b a d c f e h g`.
    fn swap_pairs(self) -> Self;

    /// Asks for the cache line of `at`, which need not exist.
    fn prefetch(at: *const u8);

    /// Sum of the lanes `a` to `h`: `((a + e) + (b + f)) + ((c + g) + (d + h))`.
    fn sum(self) -> f32;
    /// Largest lane, compared in the order of [`sum`](Lanes::sum).
    fn largest(self) -> f32;
}

/// The first eight of `x`, or what there is of them and then `otherwise`.
#[inline(always)]
pub(crate) fn load_some<V: Lanes>(x: &[f32], otherwise: f32) -> V {
    if x.len() >= LANES {
        // SAFETY: eight floats.
        return unsafe { V::load(x.as_ptr()) };
    }
    let mut padded = [otherwise; LANES];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: eight floats.
    unsafe { V::load(padded.as_ptr()) }
}

/// Puts eight floats to the beginning of `to`, or as many as fit.
#[inline(always)]
pub(crate) fn store_some<V: Lanes>(x: V, to: &mut [f32]) {
    if to.len() >= LANES {
        // SAFETY: eight floats.
        unsafe { x.store(to.as_mut_ptr()) };
    } else {
        to.copy_from_slice(&x.to_array()[..to.len()]);
    }
}

/// A computation that can run on any [`Lanes`].
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// Computes; to be `#[inline(always)]`.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// Which instructions to use: each name includes those before it. Where a machine lacks what is asked for, the best that it
/// has is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// Those that every machine has.
    #[cfg_attr(any(target_arch = "aarch64", target_arch = "x86_64"), allow(dead_code))]
    Portable,
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    #[allow(dead_code)]
    Avx2,
    /// VNNI of AVX-512, for products with quantized weights.
    #[cfg(target_arch = "x86_64")]
    #[allow(dead_code)]
    Vnni,
    /// AMX, for many tokens.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Instructions {
    /// The fastest of this machine.
    pub(crate) fn best() -> Instructions {
        #[cfg(target_arch = "x86_64")]
        return Instructions::Amx;
        #[cfg(target_arch = "aarch64")]
        return Instructions::Neon;
        #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
        Instructions::Portable
    }

    /// All that there are, also those that this machine lacks.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Instructions> {
        #[cfg(target_arch = "x86_64")]
        return vec![Instructions::Portable, Instructions::Avx2, Instructions::Vnni, Instructions::Amx];
        #[cfg(target_arch = "aarch64")]
        return vec![Instructions::Portable, Instructions::Neon];
        #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
        vec![Instructions::Portable]
    }

    /// Runs `kernel` with these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            _ if self != Instructions::Portable && Avx2::is_available() => {
                // SAFETY: the machine has the instructions.
                unsafe { crate::lanes_avx2::run(kernel) }
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon if Neon::is_available() => crate::lanes_neon::run(kernel),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// Lanes as plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

/// `f` of every lane index.
#[inline(always)]
fn lanes<T>(f: impl Fn(usize) -> T) -> [T; LANES] {
    [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)]
}

impl Lanes for Portable {
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
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = lanes(|i| f16::from_f32(self.0[i]).to_bits()) }
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
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
    fn where_positive(self, gate: Self) -> Self {
        Portable(lanes(|i| if gate.0[i] > 0.0 { self.0[i] } else { 0.0 }))
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
    fn swap_pairs(self) -> Self {
        Portable(lanes(|i| self.0[i ^ 1]))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every float operation, on eight numbers each of `a` and `b`.
    struct Each([f32; 8], [f32; 8]);

    impl Kernel for Each {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<V: Lanes>(self) -> Vec<u32> {
            // SAFETY: all pointers are to arrays of the right length.
            unsafe {
                let (a, b) = (V::load(self.0.as_ptr()), V::load(self.1.as_ptr()));
                let mut halves = [0u16; 8];
                b.store_f16(halves.as_mut_ptr());
                // Of a NaN and a number `max` gives the second: only numbers are rounded.
                let n = V::splat(60.0).min(b.max(V::splat(-60.0))).round();
                let mut shorts = [0i16; 8];
                V::store_i16(V::splat(1e6).min(a.max(V::splat(-1e6))).round(), shorts.as_mut_ptr());
                let bytes: [i8; 16] = std::array::from_fn(|i| (i as i8).wrapping_mul(37) ^ shorts[i / 2] as i8);
                let products = V::add_products(n, V::load_pairs_i8(bytes.as_ptr()), V::splat_pair(shorts.as_ptr()));
                let all = [
                    a.add(b),
                    a.sub(b),
                    a.mul(b),
                    a.div(b),
                    a.fma(b, a),
                    a.max(b),
                    a.min(b),
                    a.where_positive(b),
                    a.zero_where_less(b, V::splat(1.5)),
                    a.low_bits_to_exponent(),
                    V::load_f16(halves.as_ptr()),
                    V::from_int(products),
                    a.swap_pairs(),
                    V::splat(a.sum()),
                    V::splat(a.largest()),
                ];
                // Which NaN comes out is the one thing that instructions do not agree on.
                let bits = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
                let shorts = shorts.iter().map(|&s| s as u32);
                all.iter().flat_map(|v| v.to_array().map(bits)).chain(shorts).collect()
            }
        }
    }

    #[test]
    fn every_operation_gives_the_same_bits_on_all_instructions() {
        let hard =
            [0.0, -0.0, 1.5, -2.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-38, 3e38, 65519.9, 1e5];
        let mut state = 1u32;
        for _ in 0..2000 {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let pick = state >> 8;
                if pick.is_multiple_of(5) {
                    hard[(pick / 5) as usize % hard.len()]
                } else {
                    (pick as f32 / 1e6 - 8.0) * 9.7
                }
            };
            let (a, b) = (std::array::from_fn(|_| next()), std::array::from_fn(|_| next()));
            assert_eq!(Instructions::best().run(Each(a, b)), Instructions::Portable.run(Each(a, b)), "{a:?} {b:?}");
        }
    }
}

//! Some floats at a time: the few operations that attention, norms and softmax are written in, once for all machines.
//!
//! A kernel is generic over [`Lanes`], which are eight, or over [`Wide`], which are sixteen; what both can do is a
//! [`Vector`]. `lanes_portable.rs` does each operation with plain arrays, `lanes_avx2.rs` with one instruction,
//! `lanes_neon.rs` with two. Sixteen are one register of AVX-512 (`lanes_avx512.rs`), elsewhere a pair of eights
//! (`lanes_pair.rs`). Every operation gives the same bits on all of them, so a kernel does too: the portable version is not
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
#[cfg(target_arch = "x86_64")]
use crate::lanes_avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use crate::lanes_neon::Neon;
use crate::lanes_pair::Pair;
use crate::lanes_portable::Portable;

/// Floats in a [`Lanes`].
pub(crate) const LANES: usize = 8;
/// Floats in a [`Wide`].
pub(crate) const WIDE: usize = 16;

/// N f32 lanes, and the integers that are made from and into them.
///
/// Values exist only on machines that have the instructions: [`Instructions::run`] sees to it.
pub(crate) trait Vector: Copy {
    /// Lanes.
    const N: usize;
    /// N i32.
    type Int: Copy;
    /// 2N i16, two in each lane.
    type Pairs: Copy;

    /// `x` in every lane.
    fn splat(x: f32) -> Self;
    /// N floats from memory.
    /// # Safety
    /// They must be readable.
    unsafe fn load(from: *const f32) -> Self;
    /// N floats to memory.
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, to: *mut f32);
    /// N f16, widened.
    /// # Safety
    /// They must be readable.
    unsafe fn load_f16(from: *const u16) -> Self;
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
    /// The nearest integers, ties to even; any number where there is none.
    fn round(self) -> Self::Int;
    /// `if x < limit { 0 } else { self }`: a NaN in `x` leaves `self`.
    fn zero_where_less(self, x: Self, limit: Self) -> Self;
    /// The low nine bits of each float moved into sign and exponent. From `1.5 · 2^23 + n`, whose low bits are `n`, this
    /// makes `2^(n - 127)`.
    fn low_bits_to_exponent(self) -> Self;

    /// Zeros.
    fn zero_int() -> Self::Int;
    /// The integers as floats.
    fn from_int(n: Self::Int) -> Self;
    /// The integers as i16, saturated.
    /// # Safety
    /// They must be writable.
    unsafe fn store_i16(n: Self::Int, to: *mut i16);
    /// 2N i8, widened.
    /// # Safety
    /// They must be readable.
    unsafe fn load_pairs_i8(from: *const i8) -> Self::Pairs;
    /// The same two i16 in every lane, from memory.
    /// # Safety
    /// They must be readable.
    unsafe fn splat_pair(from: *const i16) -> Self::Pairs;
    /// `acc + a.0 * b.0 + a.1 * b.1` in every lane.
    fn add_products(acc: Self::Int, a: Self::Pairs, b: Self::Pairs) -> Self::Int;

    /// Asks for the cache line of `at`, which need not exist.
    fn prefetch(at: *const u8);

    /// Sum of the lanes: halves are added until one is left. Of the lanes `a` to `h`:
    /// `((a + e) + (b + f)) + ((c + g) + (d + h))`; sixteen are first added to eight, `a` to `i` and so on.
    fn sum(self) -> f32;
    /// Largest lane, compared in the order of [`sum`](Vector::sum).
    fn largest(self) -> f32;
}

/// Eight lanes.
pub(crate) trait Lanes: Vector {
    /// Eight f16, rounded to nearest even.
    /// # Safety
    /// They must be writable.
    unsafe fn store_f16(self, to: *mut u16);
    /// The lanes in order.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: eight floats.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }
    /// `if gate > 0 { self } else { 0 }`: whatever `self` is.
    fn where_positive(self, gate: Self) -> Self;
    /// Neighbouring lanes exchanged: `b a d c f e h g`.
    fn swap_pairs(self) -> Self;
    /// Runs a part of a kernel in a function of its own.
    fn apart<K: Kernel>(kernel: K) -> K::Output;
}

/// Sixteen lanes: the tokens of a group of keys, or the dimensions of a strip of values.
pub(crate) trait Wide: Vector {
    /// Sums of floats that the registers can hold, beside what is added to them.
    const SUMS: usize;
    /// Sums of products of integers likewise.
    const INT_SUMS: usize;
    /// Runs a part of a kernel in a function of its own: the time to compile a function grows with the square of its size.
    fn apart<K: WideKernel>(kernel: K);
}

/// The first N of `x`, or what there is of them and then `otherwise`.
#[inline(always)]
pub(crate) fn load_some<V: Vector>(x: &[f32], otherwise: f32) -> V {
    if x.len() >= V::N {
        // SAFETY: N floats.
        return unsafe { V::load(x.as_ptr()) };
    }
    let mut padded = [otherwise; WIDE];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: N floats, at most sixteen.
    unsafe { V::load(padded.as_ptr()) }
}

/// Puts N floats to the beginning of `to`, or as many as fit.
#[inline(always)]
pub(crate) fn store_some<V: Vector>(x: V, to: &mut [f32]) {
    if to.len() >= V::N {
        // SAFETY: N floats.
        unsafe { x.store(to.as_mut_ptr()) };
    } else {
        let mut all = [0.0; WIDE];
        // SAFETY: N floats, at most sixteen.
        unsafe { x.store(all.as_mut_ptr()) };
        to.copy_from_slice(&all[..to.len()]);
    }
}

/// A computation that can run on any [`Lanes`].
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// Computes; to be `#[inline(always)]`.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// A computation that can run on any [`Wide`].
pub(crate) trait WideKernel {
    /// Computes; to be `#[inline(always)]`.
    fn run<W: Wide>(self);
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
    /// AVX-512 with VNNI: products with quantized weights, and attention.
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

    /// Runs `kernel` with these instructions.
    pub(crate) fn run_wide<K: WideKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni | Instructions::Amx if Avx512::is_available() => {
                // SAFETY: the machine has the instructions.
                unsafe { crate::lanes_avx512::run(kernel) }
            }
            _ => self.run(InPairs(kernel)),
        }
    }
}

/// A kernel of sixteen lanes on twice eight.
pub(crate) struct InPairs<K>(pub(crate) K);

impl<K: WideKernel> Kernel for InPairs<K> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        self.0.run::<Pair<V>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which NaN comes out is the one thing that instructions do not agree on.
    fn bits(x: f32) -> u32 {
        if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
    }

    /// Every operation of a [`Vector`] on `N` numbers each of `a` and `b`, the second of which are given as f16 too.
    #[inline(always)]
    fn each_of_vector<V: Vector, const N: usize>(a: &[f32; N], b: &[f32; N], halves: &[u16; N]) -> Vec<u32> {
        // SAFETY: all pointers are to arrays of the right length.
        unsafe {
            let (a, b) = (V::load(a.as_ptr()), V::load(b.as_ptr()));
            // Of a NaN and a number `max` gives the second: only numbers are rounded.
            let n = V::splat(60.0).min(b.max(V::splat(-60.0))).round();
            let mut shorts = [0i16; N];
            V::store_i16(V::splat(1e6).min(a.max(V::splat(-1e6))).round(), shorts.as_mut_ptr());
            let bytes: Vec<i8> = (0..2 * N).map(|i| (i as i8).wrapping_mul(37) ^ shorts[i / 2] as i8).collect();
            let products = V::add_products(n, V::load_pairs_i8(bytes.as_ptr()), V::splat_pair(shorts.as_ptr()));
            let all = [
                a.add(b),
                a.sub(b),
                a.mul(b),
                a.div(b),
                a.fma(b, a),
                a.max(b),
                a.min(b),
                a.zero_where_less(b, V::splat(1.5)),
                a.low_bits_to_exponent(),
                V::load_f16(halves.as_ptr()),
                V::from_int(products),
                V::from_int(V::zero_int()),
                V::splat(a.sum()),
                V::splat(a.largest()),
            ];
            let lanes = all.into_iter().flat_map(|x| {
                let mut lanes = [0.0; N];
                x.store(lanes.as_mut_ptr());
                lanes.map(bits)
            });
            lanes.chain(shorts.map(|short| short as u32)).collect()
        }
    }

    /// Every operation of eight lanes, on as many numbers each of `a` and `b`.
    struct Each([f32; 8], [f32; 8]);

    impl Kernel for Each {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<V: Lanes>(self) -> Vec<u32> {
            let mut halves = [0u16; 8];
            // SAFETY: all pointers are to arrays of the right length.
            let (a, b) = unsafe {
                let (a, b) = (V::load(self.0.as_ptr()), V::load(self.1.as_ptr()));
                b.store_f16(halves.as_mut_ptr());
                (a, b)
            };
            let of_eight = [a.where_positive(b), a.swap_pairs()].into_iter().flat_map(|x| x.to_array().map(bits));
            each_of_vector::<V, 8>(&self.0, &self.1, &halves).into_iter().chain(of_eight).collect()
        }
    }

    /// Pseudo-random numbers, one in five of them hard.
    fn hard_numbers() -> impl FnMut() -> f32 {
        let hard =
            [0.0, -0.0, 1.5, -2.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-38, 3e38, 65519.9, 1e5];
        let mut state = 1u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = state >> 8;
            if pick.is_multiple_of(5) {
                hard[(pick / 5) as usize % hard.len()]
            } else {
                (pick as f32 / 1e6 - 8.0) * 9.7
            }
        }
    }

    #[test]
    fn every_operation_gives_the_same_bits_on_all_instructions() {
        let mut numbers = hard_numbers();
        for _ in 0..2000 {
            let (a, b) = (std::array::from_fn(|_| numbers()), std::array::from_fn(|_| numbers()));
            assert_eq!(Instructions::best().run(Each(a, b)), Instructions::Portable.run(Each(a, b)), "{a:?} {b:?}");
        }
    }

    /// Every operation of sixteen lanes, on as many numbers each of `a` and `b`, to `out`.
    struct EachWide<'a>([f32; WIDE], [f32; WIDE], &'a mut Vec<u32>);

    impl WideKernel for EachWide<'_> {
        #[inline(always)]
        fn run<W: Wide>(self) {
            let halves = self.1.map(|x| half::f16::from_f32(x).to_bits());
            *self.2 = each_of_vector::<W, WIDE>(&self.0, &self.1, &halves);
        }
    }

    #[test]
    fn every_wide_operation_gives_the_same_bits_on_all_instructions() {
        let mut numbers = hard_numbers();
        for _ in 0..2000 {
            let (a, b) = (std::array::from_fn(|_| numbers()), std::array::from_fn(|_| numbers()));
            let of = |instructions: Instructions| {
                let mut out = Vec::new();
                instructions.run_wide(EachWide(a, b, &mut out));
                out
            };
            for instructions in Instructions::all() {
                assert_eq!(of(instructions), of(Instructions::Portable), "{instructions:?}: {a:?} {b:?}");
            }
        }
    }
}

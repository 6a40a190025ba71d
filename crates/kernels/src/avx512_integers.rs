//! Products of few tokens by VNNI in 512 bits: two panels side by side, sixteen rows in the lanes of a vector, and four panels
//! at a time, so that a word of activations that was spread over the lanes meets 32 rows, and a core reads four streams evenly.
//!
//! The integers and the float operations are those of `avx2_integers.rs`, in the same order, so the bits are the same too.
//! Signed codes are made unsigned by adding 128; what that adds to a sum is taken off where the sum begins, as the offsets of
//! other types are.

use std::arch::x86_64::*;
use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, WORDS, section};
use crate::avx2::prefetch;
use crate::avx2_integers::{WideFormat, minimum_pairs};
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, lines_of_group};
use crate::quads::{PANELS, Pair, QuadSums, QuadWork, for_each_tile, of_format};

/// Most tokens that are multiplied at once: their sums, of integers and of floats, fill half of the registers. Of more than four
/// tokens that leaves room for one pair of panels.
const TOKENS: usize = 8;

/// Multiplies a tile of four panels by tokens.
type Kernel = unsafe fn(&QuadWork);

fn kernel(kind: ElementType) -> Option<Kernel> {
    of_format!(kind, multiply)
}

/// Whether there is a kernel for the type.
pub(crate) fn multiplies(kind: ElementType) -> bool {
    kernel(kind).is_some()
}

/// See [`for_each_tile`].
///
/// # Safety
/// The machine must have VNNI, F, BW and VL of AVX-512.
pub(crate) unsafe fn panels(
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    tokens: Range<usize>,
    sums: &mut [QuadSums],
) {
    let kernel = kernel(shape.kind).expect("the caller asked whether there is one");
    for_each_tile(shape, bytes, x, (tokens, TOKENS), sums, |work| {
        // SAFETY: the machine has the instructions; tiles, activations and sums are there.
        unsafe { kernel(work) };
    });
}

/// A [`Kernel`].
///
/// # Safety
/// The machine must have the instructions; what [`QuadWork`] points to must be there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<F: WideFormat>(work: &QuadWork) {
    let groups = work.cols / GROUP;
    // SAFETY: the caller's promise; behind the last token's activations lie as many as fill eight.
    unsafe {
        // Written out: a closure would be compiled without the instructions.
        let [a, b, c, d] = work.tiles;
        let quad = [Pair::new(a, b, groups), Pair::new(c, d, groups)];
        for first in (0..work.tokens).step_by(TOKENS) {
            let n = (work.tokens - first).min(TOKENS);
            let (x, sums) = (work.x.add(first).cast(), work.sums.add(first));
            // Memory is asked for along with the first tokens.
            let next = (first == 0).then_some(&work.next);
            match n {
                1 => some_tokens::<F, 2, 1>(&quad, work, next, Tokens(x), n, sums, 0),
                2 => some_tokens::<F, 2, 2>(&quad, work, next, Tokens(x), n, sums, 0),
                3 | 4 => some_tokens::<F, 2, 4>(&quad, work, next, Tokens(x), n, sums, 0),
                _ => {
                    some_tokens::<F, 1, TOKENS>(&quad, work, next, Tokens(x), n, sums, 0);
                    some_tokens::<F, 1, TOKENS>(&quad, work, None, Tokens(x), n, sums, 1);
                }
            }
        }
    }
}

/// Unsigned codes: of signed ones plus 128.
#[inline(always)]
unsafe fn unsigned_codes<F: WideFormat>(pair: &Pair<F>, group: usize, vector: usize) -> __m512i {
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let codes = pair.codes(group, vector);
        if F::SIGNED { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) } else { codes }
    }
}

/// The words of a tile of activations of `T` tokens.
struct Tokens<const T: usize>(*const u32);

impl<const T: usize> Tokens<T> {
    /// Word `word` of token `token` in all lanes.
    #[inline(always)]
    unsafe fn word(&self, word: usize, token: usize) -> __m512i {
        // SAFETY: the tile has the word.
        unsafe { _mm512_set1_epi32(self.0.add(token * WORDS + word).cast::<i32>().read()) }
    }

    /// The same as a float: a scale, or a sum.
    #[inline(always)]
    unsafe fn float(&self, word: usize, token: usize) -> __m512 {
        // SAFETY: the tile has the word.
        unsafe { _mm512_castsi512_ps(self.word(word, token)) }
    }
}

type Pairs<'a, F, const P: usize> = [&'a Pair<F>; P];
/// Sums of `T` tokens and `P` pairs.
type Ints<const P: usize, const T: usize> = [[__m512i; T]; P];
type Floats<const P: usize, const T: usize> = [[__m512; T]; P];

/// `P` pairs from `first_pair` on times `T` tokens, of which the first `n` count.
#[inline(always)]
unsafe fn some_tokens<F: WideFormat, const P: usize, const T: usize>(
    quad: &[Pair<F>; 2],
    work: &QuadWork,
    next: Option<&[*const u8; PANELS]>,
    x: Tokens<T>,
    n: usize,
    sums: *mut QuadSums,
    first_pair: usize,
) {
    let pairs: &Pairs<'_, F, P> = &std::array::from_fn(|p| &quad[(first_pair + p) % 2]);
    // SAFETY: the caller's promise, see `multiply`; sums behind the last token are neither read nor written.
    unsafe {
        let at = |pair: usize, t: usize| sums.add(t.min(n - 1)).cast::<f32>().add(2 * ROWS * (first_pair + pair));
        let mut y: Floats<P, T> = [[_mm512_setzero_ps(); T]; P];
        for (pair, y) in y.iter_mut().enumerate() {
            for (t, y) in y.iter_mut().enumerate() {
                *y = _mm512_maskz_loadu_ps(work.goes_on, at(pair, t));
            }
        }
        let mut ints: Ints<P, T> = [[_mm512_setzero_si512(); T]; P];
        let groups = work.cols / GROUP;
        // A loop, not written out: in a longer body the compiler runs out of registers.
        for group in 0..groups {
            if let Some(next) = next {
                for line in lines_of_group(F::BYTES, group) {
                    next.iter().for_each(|tile| prefetch(tile.wrapping_add(line * 64)));
                }
            }
            if F::FLOAT_SCALES {
                let sums = run_sums(pairs, group, 0..8, section::OFFSET_32 + group, &x);
                end_group(pairs, group, &x, &sums, &mut y);
            } else if F::SCALE_COLUMNS == 32 {
                let sums = run_sums(pairs, group, 0..8, section::OFFSET_32 + group, &x);
                scale_run(pairs, 2 * group, &sums, &mut ints);
            } else {
                for run in 0..2 {
                    let minus_sum = section::OFFSET_16 + 2 * group + run;
                    let sums = run_sums(pairs, group, 4 * run..4 * run + 4, minus_sum, &x);
                    scale_run(pairs, 2 * group + run, &sums, &mut ints);
                }
            }
        }
        if !F::FLOAT_SCALES {
            end_tile(pairs, groups, &x, &ints, &mut y);
        }
        for (pair, y) in y.into_iter().enumerate() {
            y.into_iter().enumerate().take(n).for_each(|(t, y)| _mm512_storeu_ps(at(pair, t), y));
        }
    }
}

/// `Σ code x` over the columns of a scale, some of a group's vectors; word `minus_sum` holds `-Σx` of those.
#[inline(always)]
unsafe fn run_sums<F: WideFormat, const P: usize, const T: usize>(
    pairs: &Pairs<'_, F, P>,
    group: usize,
    vectors: Range<usize>,
    minus_sum: usize,
    x: &Tokens<T>,
) -> Ints<P, T> {
    let offset_bits = if F::SIGNED { 7 } else { F::OFFSET_BITS };
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let offset = _mm512_set1_epi16(1 << offset_bits);
        let mut start = [_mm512_setzero_si512(); T];
        if offset_bits > 0 {
            for (t, start) in start.iter_mut().enumerate() {
                *start = _mm512_madd_epi16(x.word(minus_sum, t), offset);
            }
        }
        let mut sums = [start; P];
        for vector in vectors {
            let mut codes = [_mm512_setzero_si512(); P];
            // Loops, not closures: those would be compiled without the instructions where they are not inlined.
            for (codes, pair) in codes.iter_mut().zip(pairs) {
                *codes = unsigned_codes(pair, group, vector);
            }
            for t in 0..T {
                let word = x.word(8 * group + vector, t);
                for (sums, codes) in sums.iter_mut().zip(codes) {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], codes, word);
                }
            }
        }
        sums
    }
}

/// Adds sums times their integer scale.
#[inline(always)]
unsafe fn scale_run<F: WideFormat, const P: usize, const T: usize>(
    pairs: &Pairs<'_, F, P>,
    run: usize,
    sums: &Ints<P, T>,
    ints: &mut Ints<P, T>,
) {
    for (pair, weights) in pairs.iter().enumerate() {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe {
            let twice = weights.scale(run);
            for (int, &sum) in ints[pair].iter_mut().zip(&sums[pair]) {
                *int = if F::SMALL_SUMS {
                    // The upper half of a sum that fits 16 bits is only its sign.
                    _mm512_dpwssd_epi32(*int, sum, _mm512_srli_epi32::<16>(twice))
                } else {
                    _mm512_add_epi32(*int, _mm512_mullo_epi32(sum, _mm512_srai_epi32::<16>(twice)))
                };
            }
        }
    }
}

/// The float end of a group with a scale of its own.
#[inline(always)]
unsafe fn end_group<F: WideFormat, const P: usize, const T: usize>(
    pairs: &Pairs<'_, F, P>,
    group: usize,
    x: &Tokens<T>,
    sums: &Ints<P, T>,
    y: &mut Floats<P, T>,
) {
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        for (pair, (y, sums)) in y.iter_mut().zip(sums).enumerate() {
            let d = pairs[pair].d(group);
            for (t, (y, &sum)) in y.iter_mut().zip(sums).enumerate() {
                let scale = _mm512_mul_ps(d, x.float(section::GROUP_SCALES + group, t));
                *y = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), *y);
            }
            if F::MINIMUM_COLUMNS > 0 {
                let minimum = pairs[pair].dmin(group);
                for (t, y) in y.iter_mut().enumerate() {
                    *y = _mm512_fmadd_ps(minimum, x.float(section::GROUP_SUMS + group, t), *y);
                }
            }
        }
    }
}

/// The float end of a tile of integer scales.
#[inline(always)]
unsafe fn end_tile<F: WideFormat, const P: usize, const T: usize>(
    pairs: &Pairs<'_, F, P>,
    groups: usize,
    x: &Tokens<T>,
    ints: &Ints<P, T>,
    y: &mut Floats<P, T>,
) {
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let minimums = minimum_sums(pairs, groups, x);
        for (pair, (y, ints)) in y.iter_mut().zip(ints).enumerate() {
            let d = pairs[pair].d(0);
            for (t, (y, &int)) in y.iter_mut().zip(ints).enumerate() {
                let x_scale = x.float(section::SCALE, t);
                *y = _mm512_fmadd_ps(_mm512_mul_ps(d, x_scale), _mm512_cvtepi32_ps(int), *y);
                if F::MINIMUM_COLUMNS > 0 {
                    let scale = _mm512_mul_ps(pairs[pair].dmin(0), x_scale);
                    *y = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(minimums[pair][t]), *y);
                }
            }
        }
    }
}

/// `Σ minimum Σx` over the tile.
#[inline(always)]
unsafe fn minimum_sums<F: WideFormat, const P: usize, const T: usize>(
    pairs: &Pairs<'_, F, P>,
    groups: usize,
    x: &Tokens<T>,
) -> Ints<P, T> {
    // SAFETY: as below.
    let mut sums: Ints<P, T> = unsafe { [[_mm512_setzero_si512(); T]; P] };
    if F::MINIMUM_COLUMNS == 0 {
        return sums;
    }
    let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
    for index in 0..minimum_pairs::<F>(groups) {
        for (pair, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise, see `multiply`.
            unsafe {
                let minimums = pairs[pair].minimums(index);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_dpwssd_epi32(*sum, minimums, x.word(first_word + index, t));
                }
            }
        }
    }
    sums
}

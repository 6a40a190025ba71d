//! Lines of matrices in the order in which AMX reads tiles, cut into pieces where they are f32, and asking for them early.

use std::arch::x86_64::*;

use super::{BLOCK, LINES, Lines, PIECES, Right, STEP, WORDS};
use crate::avx2::prefetch;

/// Cuts lines at depths `part` into pieces; `IS_B`: in the order of the right-hand side. Gives whether all numbers were bf16.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack<const IS_B: bool>(
    from: Lines<f32>,
    part: std::ops::Range<usize>,
    steps: usize,
    out: &mut [u32],
) -> bool {
    let mut rest = _mm512_setzero_si512();
    for (tile, out) in out.chunks_exact_mut(steps * PIECES * WORDS).enumerate() {
        for (step, out) in out.chunks_exact_mut(PIECES * WORDS).enumerate() {
            let lines = from.lines.saturating_sub(tile * LINES).min(LINES);
            let first = part.start + step * STEP;
            let depth = part.end.saturating_sub(first).min(STEP);
            // SAFETY: the caller's promise: `lines` and `depth` keep within the matrix, also where both are 0.
            unsafe {
                let start = from.values.wrapping_add(tile * LINES * from.line_stride + first * from.k_stride);
                let along_k = from.k_stride == 1;
                fetch_next_tile(from, start, depth);
                let mut pieces = [[_mm512_setzero_si512(); PIECES]; LINES];
                for (i, pieces) in pieces.iter_mut().enumerate() {
                    *pieces = if along_k {
                        let at = start.wrapping_add(i * from.line_stride);
                        let depth = if i < lines { depth } else { 0 };
                        let (x, y) = (load(at, depth), load(at.wrapping_add(LINES), depth.saturating_sub(LINES)));
                        split::<true>(x, y, &mut rest)
                    } else {
                        let row =
                            |k: usize| load(start.wrapping_add(k * from.k_stride), if k < depth { lines } else { 0 });
                        split::<false>(row(2 * i), row(2 * i + 1), &mut rest)
                    };
                }
                for (p, out) in out.chunks_exact_mut(WORDS).enumerate() {
                    let mut vectors = [_mm512_setzero_si512(); LINES];
                    vectors.iter_mut().zip(&pieces).for_each(|(vector, pieces)| *vector = pieces[p]);
                    if along_k == IS_B {
                        transpose(&mut vectors);
                    }
                    vectors.iter().zip(out.chunks_exact_mut(LINES)).for_each(|(v, out)| {
                        _mm512_store_si512(out.as_mut_ptr().cast(), *v);
                    });
                }
            }
        }
    }
    _mm512_test_epi32_mask(rest, rest) == 0
}

/// Asks for the sixteen lines after those that begin at `start`, at as many depths.
#[inline(always)]
fn fetch_next_tile(from: Lines<f32>, start: *const f32, depth: usize) {
    let next = start.wrapping_add(LINES * from.line_stride);
    if from.k_stride == 1 {
        for line in 0..LINES {
            let at = next.wrapping_add(line * from.line_stride);
            prefetch(at.cast());
            prefetch(at.wrapping_add(LINES).cast());
        }
    } else {
        (0..depth).for_each(|k| prefetch(next.wrapping_add(k * from.k_stride).cast()));
    }
}

/// Puts two tiles of lines at depths `part` in the order of the right-hand side, one piece each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn pack_bf16(from: Lines<u16>, part: std::ops::Range<usize>, steps: usize, out: &mut [u32]) {
    let first_words = |n: usize| ((1u64 << n) - 1) as u32;
    let lines = from.lines.min(BLOCK);
    let (first_tile, second_tile) = out.split_at_mut(steps * WORDS);
    let tiles = first_tile.chunks_exact_mut(WORDS).zip(second_tile.chunks_exact_mut(WORDS));
    for (step, (first_out, second_out)) in tiles.enumerate() {
        let first = part.start + step * STEP;
        let depth = part.end.saturating_sub(first).min(STEP);
        let start = from.values.wrapping_add(first * from.k_stride);
        // SAFETY: the caller's promise: `lines` and `depth` keep within the matrix, also where both are 0; tiles hold as much.
        unsafe {
            let store = |out: &mut [u32], i: usize, vector: __m512i| {
                _mm512_store_si512(out[i * LINES..][..LINES].as_mut_ptr().cast(), vector);
            };
            if from.k_stride == 1 {
                for (tile, out) in [first_out, second_out].into_iter().enumerate() {
                    let mut vectors = [_mm512_setzero_si512(); LINES];
                    let own = vectors.iter_mut().enumerate().take(lines.saturating_sub(tile * LINES));
                    for (i, vector) in own {
                        let at = start.wrapping_add((tile * LINES + i) * from.line_stride);
                        *vector = _mm512_maskz_loadu_epi16(first_words(depth), at.cast());
                    }
                    transpose(&mut vectors);
                    vectors.iter().enumerate().for_each(|(i, vector)| store(out, i, *vector));
                }
            } else {
                let row = |k: usize| {
                    let mask = if k < depth { first_words(lines) } else { 0 };
                    _mm512_maskz_loadu_epi16(mask, start.wrapping_add(k * from.k_stride).cast())
                };
                for i in 0..LINES {
                    let (even, odd) = (row(2 * i), row(2 * i + 1));
                    store(first_out, i, _mm512_permutex2var_epi16(even, paired_words(0), odd));
                    store(second_out, i, _mm512_permutex2var_epi16(even, paired_words(LINES), odd));
                }
            }
        }
    }
}

/// Words `first` to `first + 15` of a vector, each before its neighbour of another vector.
#[inline(always)]
unsafe fn paired_words(first: usize) -> __m512i {
    const PAIRED: [[u16; 32]; 2] = {
        let mut words = [[0; 32]; 2];
        let mut i = 0;
        while i < 64 {
            words[i / 32][i % 32] = (i / 2) as u16 + if i % 2 == 1 { 32 } else { 0 };
            i += 1;
        }
        words
    };
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(PAIRED[first / LINES].as_ptr().cast()) }
}

/// The first `n` of sixteen floats, and zeros.
#[inline(always)]
unsafe fn load(at: *const f32, n: usize) -> __m512 {
    // SAFETY: so many are readable by the caller's promise; the others are not touched.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << n.min(LINES)) - 1) as u16, at) }
}

/// The three pieces of 32 floats, two in a dword: neighbours of a line, or of the same place in two lines.
#[inline(always)]
unsafe fn split<const NEIGHBOURS: bool>(mut x: __m512, mut y: __m512, rest: &mut __m512i) -> [__m512i; PIECES] {
    // SAFETY: the caller's machine has AVX-512 BW.
    unsafe {
        let high = _mm512_set1_epi32(0xFFFF_0000u32 as i32);
        let cut = |x: __m512| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), high));
        let join = |x: __m512, y: __m512| {
            let (x, y) = (_mm512_castps_si512(x), _mm512_castps_si512(y));
            match NEIGHBOURS {
                true => _mm512_permutex2var_epi16(x, odd_words(), y),
                false => _mm512_or_si512(_mm512_srli_epi32::<16>(x), _mm512_and_si512(y, high)),
            }
        };
        let first = join(x, y);
        (x, y) = (_mm512_sub_ps(x, cut(x)), _mm512_sub_ps(y, cut(y)));
        *rest = _mm512_or_si512(*rest, _mm512_or_si512(_mm512_castps_si512(x), _mm512_castps_si512(y)));
        let second = join(x, y);
        (x, y) = (_mm512_sub_ps(x, cut(x)), _mm512_sub_ps(y, cut(y)));
        [first, second, join(x, y)]
    }
}

/// The high words of sixteen dwords and sixteen more.
#[inline(always)]
unsafe fn odd_words() -> __m512i {
    const ODD: [u16; 32] = {
        let mut words = [0; 32];
        let mut i = 0;
        while i < 32 {
            words[i] = 2 * i as u16 + 1;
            i += 1;
        }
        words
    };
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) }
}

/// Exchanges rows and columns of sixteen vectors of sixteen dwords.
#[inline(always)]
unsafe fn transpose(v: &mut [__m512i; LINES]) {
    // SAFETY: the caller's machine has AVX-512.
    unsafe {
        let mut t = *v;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
        }
        // Quarter q of u[4 i + j] holds column 4 q + j of rows 4 i to 4 i + 3.
        let mut u = t;
        for i in 0..4 {
            u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for j in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(u[j], u[4 + j]);
            let odd = _mm512_shuffle_i32x4::<0xDD>(u[j], u[4 + j]);
            let even_low = _mm512_shuffle_i32x4::<0x88>(u[8 + j], u[12 + j]);
            let odd_low = _mm512_shuffle_i32x4::<0xDD>(u[8 + j], u[12 + j]);
            v[j] = _mm512_shuffle_i32x4::<0x88>(even, even_low);
            v[8 + j] = _mm512_shuffle_i32x4::<0xDD>(even, even_low);
            v[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_low);
            v[12 + j] = _mm512_shuffle_i32x4::<0xDD>(odd, odd_low);
        }
    }
}

/// Memory that is read soon: so many runs of bytes.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    start: *const u8,
    pub(super) count: usize,
    stride: usize,
    bytes: usize,
}

impl Runs {
    /// The first two tiles of lines at these depths.
    pub(super) fn new(b: Right, part: std::ops::Range<usize>) -> Runs {
        match b {
            Right::F32(b) => Runs::of(b, part),
            Right::Bf16(b) => Runs::of(b, part),
        }
    }

    fn of<T>(from: Lines<T>, part: std::ops::Range<usize>) -> Runs {
        let (lines, depth, size) = (from.lines.min(BLOCK), part.len(), size_of::<T>());
        let start = from.values.wrapping_add(part.start * from.k_stride).cast();
        let (count, stride, length) =
            if from.k_stride == 1 { (lines, from.line_stride, depth) } else { (depth, from.k_stride, lines) };
        Runs { start, count: if lines == 0 { 0 } else { count }, stride: stride * size, bytes: length * size }
    }

    /// Asks for some of them.
    pub(super) fn fetch(&self, runs: std::ops::Range<usize>) {
        for run in runs {
            let start = self.start.wrapping_add(run * self.stride);
            for at in (0..self.bytes).step_by(64) {
                // SAFETY: fetching touches nothing, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
            }
        }
    }
}

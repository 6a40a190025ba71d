//! Products of f32 matrices by AMX, which multiplies bf16 sixteen times as fast as AVX-512 multiplies f32.
//!
//! The 24 bits of a float are cut into three bf16: `x = x0 + x1 + x2`, exactly. Of the nine products of two such sums the six
//! largest are made; what is left out is below 2^-22 of the result, as much as f32 sums round anyway:
//!
//! ```text
//! a b ≈ a0 b0 + a0 b1 + a1 b0 + a0 b2 + a1 b1 + a2 b0
//! ```
//! Where `b` was stored in bf16, as frozen weights often are, b1 and b2 are zero and three products are left; if it lies in
//! memory so, it is read as it lies. The tile registers sum in f32 over at most 256 columns, or 640 of bf16; those sums are added up in f32 in
//! order. So a number of the result has the same bits whatever part of the result is computed with it.
//!
//! Pieces lie tile by tile as the instruction reads them: of `a` sixteen rows of 32 columns, of `b` sixteen pairs of rows of
//! sixteen columns, `[tile][32 columns or rows][piece][1 KiB]`, with one piece where `b` lies in bf16, else three. Letters: m, n, k are rows and columns of the result, and what is
//! summed over; a line is a row of `a` or a column of `b`, and a step is 32 of k.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

use crate::aligned::AlignedVec;
use crate::float_matmul::Target;

/// Lines of a tile.
const LINES: usize = 16;
/// Of k, in a tile.
const STEP: usize = 32;
/// Of k, between two sums in memory: as much as lets both operands' pieces stay in the second cache.
const DEPTH: usize = 256;
/// The same where `b` has one piece.
const BF16_DEPTH: usize = 640;
/// Words of a piece of a tile.
const WORDS: usize = 256;
const PIECES: usize = 3;

/// A matrix whose element of line `l` at depth `k` is `values[l * line_stride + k * k_stride]`; one of the strides is 1. `T` is
/// f32, or u16 for the bits of bf16, which may lie at any address.
#[derive(Clone, Copy)]
pub(crate) struct Lines<T> {
    pub(crate) values: *const T,
    pub(crate) lines: usize,
    pub(crate) line_stride: usize,
    pub(crate) k_stride: usize,
}

/// The right-hand side.
#[derive(Clone, Copy)]
pub(crate) enum Right {
    F32(Lines<f32>),
    Bf16(Lines<u16>),
}

impl Right {
    fn lines(self) -> usize {
        match self {
            Right::F32(b) => b.lines,
            Right::Bf16(b) => b.lines,
        }
    }
}

/// Where results go: rows of `n` floats, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Results {
    pub(crate) start: *mut f32,
    pub(crate) stride: usize,
    pub(crate) scale: f32,
    pub(crate) target: Target,
}

thread_local! {
    static PACKED: RefCell<[AlignedVec<u32>; 2]> = RefCell::default();
}

/// Whether this machine has AMX with bf16, and the system lets us use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    const BF16: u32 = 1 << 22;
    let has_bf16 = || __cpuid_count(7, 0).edx & BF16 != 0 && is_x86_feature_detected!("avx512vl");
    *AVAILABLE.get_or_init(|| crate::amx::is_available() && has_bf16())
}

/// Whether a product is worth it: tiles that are mostly padding are not.
pub(crate) fn suits(m: usize, n: usize, k: usize, strides: [usize; 4]) -> bool {
    let [a_line, a_k, b_line, b_k] = strides;
    m.min(n) >= LINES && k >= LINES && (a_line == 1 || a_k == 1) && (b_line == 1 || b_k == 1)
}

/// `y [a.lines, b.lines]` (+)= `scale · Σ_k a b`.
///
/// # Safety
/// [`is_available`] must be true; the elements of `a` and `b` up to depth `k` must be readable, those of `y` writable and
/// nobody else's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn product(a: Lines<f32>, b: Right, k: usize, y: Results) {
    PACKED.with_borrow_mut(|[packed_a, packed_b]| {
        let (most, b_pieces) = if matches!(b, Right::Bf16(_)) { (BF16_DEPTH, 1) } else { (DEPTH, PIECES) };
        let parts = k.div_ceil(most).max(1);
        let depth = k.div_ceil(parts).next_multiple_of(STEP);
        let steps = depth / STEP;
        let words = |lines: usize, pieces: usize| lines.next_multiple_of(2 * LINES) / LINES * steps * pieces * WORDS;
        packed_a.resize(words(a.lines, PIECES));
        packed_b.resize(words(b.lines(), b_pieces));
        // SAFETY: the caller's promise, here and below; both buffers hold as many tiles.
        unsafe {
            // All as sixteen rows of 64 bytes.
            crate::amx::configure_registers([(LINES, 64); 8]);
            for first in (0..k).step_by(depth) {
                let part = first..k.min(first + depth);
                pack::<false>(a, part.clone(), steps, packed_a.as_mut_slice());
                let is_exact = match b {
                    Right::F32(b) => pack::<true>(b, part, steps, packed_b.as_mut_slice()),
                    Right::Bf16(b) => {
                        pack_bf16(b, part, steps, packed_b.as_mut_slice());
                        true
                    }
                };
                let y = Results { target: if first == 0 { y.target } else { Target::Sum }, ..y };
                let packed = [packed_a.as_slice(), packed_b.as_slice()];
                let mut sums = Sums([[[0.0; LINES]; LINES]; 4]);
                for col in (0..b.lines()).step_by(2 * LINES) {
                    for row in (0..a.lines).step_by(2 * LINES) {
                        let [a_tiles, b_tiles] = [(packed[0], row, PIECES), (packed[1], col, b_pieces)]
                            .map(|(p, line, pieces)| p.as_ptr().add(line / LINES * steps * pieces * WORDS));
                        match is_exact {
                            true => multiply_bf16(a_tiles, (b_tiles, b_pieces), steps, &mut sums),
                            false => multiply_f32(a_tiles, b_tiles, steps, &mut sums),
                        }
                        add(&sums, [row, col], [a.lines, b.lines()], y);
                    }
                }
            }
            asm!("tilerelease", options(nostack));
        }
    });
}

/// Of two by two tiles `[row of tiles][column of tiles][row][column]`.
#[repr(align(64))]
struct Sums([[[f32; LINES]; LINES]; 4]);

/// Cuts lines at depths `part` into pieces; `IS_B`: in the order of the right-hand side. Gives whether all numbers were bf16.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack<const IS_B: bool>(
    from: Lines<f32>,
    part: std::ops::Range<usize>,
    steps: usize,
    out: &mut [u32],
) -> bool {
    let mut rest = _mm512_setzero_si512();
    let tiles = from.lines.next_multiple_of(2 * LINES) / LINES;
    for (tile, out) in out.chunks_exact_mut(steps * PIECES * WORDS).take(tiles).enumerate() {
        for (step, out) in out.chunks_exact_mut(PIECES * WORDS).enumerate() {
            let lines = from.lines.saturating_sub(tile * LINES).min(LINES);
            let first = part.start + step * STEP;
            let depth = part.end.saturating_sub(first).min(STEP);
            // SAFETY: the caller's promise: `lines` and `depth` keep within the matrix, also where both are 0.
            unsafe {
                let start = from.values.wrapping_add(tile * LINES * from.line_stride + first * from.k_stride);
                let along_k = from.k_stride == 1;
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

/// Puts lines at depths `part` in the order of the right-hand side, one piece each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_bf16(from: Lines<u16>, part: std::ops::Range<usize>, steps: usize, out: &mut [u32]) {
    let tiles = from.lines.next_multiple_of(2 * LINES) / LINES;
    let first_words = |n: usize| (1u64 << n) as u32;
    for (tile, out) in out.chunks_exact_mut(steps * WORDS).take(tiles).enumerate() {
        for (step, out) in out.chunks_exact_mut(WORDS).enumerate() {
            let lines = from.lines.saturating_sub(tile * LINES).min(LINES);
            let first = part.start + step * STEP;
            let depth = part.end.saturating_sub(first).min(STEP);
            let start = from.values.wrapping_add(tile * LINES * from.line_stride + first * from.k_stride);
            let mut vectors = [_mm512_setzero_si512(); LINES];
            // SAFETY: the caller's promise: `lines` and `depth` keep within the matrix, also where both are 0.
            unsafe {
                if from.k_stride == 1 {
                    for (i, vector) in vectors.iter_mut().enumerate().take(lines) {
                        let mask = first_words(depth).wrapping_sub(1);
                        *vector = _mm512_maskz_loadu_epi16(mask, start.wrapping_add(i * from.line_stride).cast());
                    }
                    transpose(&mut vectors);
                } else {
                    let mask = first_words(lines).wrapping_sub(1) as u16;
                    let row = |k: usize| {
                        let mask = if k < depth { mask } else { 0 };
                        let at = start.wrapping_add(k * from.k_stride).cast();
                        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at))
                    };
                    for (i, vector) in vectors.iter_mut().enumerate() {
                        *vector = _mm512_or_si512(row(2 * i), _mm512_slli_epi32::<16>(row(2 * i + 1)));
                    }
                }
                vectors.iter().zip(out.chunks_exact_mut(LINES)).for_each(|(v, out)| {
                    _mm512_store_si512(out.as_mut_ptr().cast(), *v);
                });
            }
        }
    }
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

/// Sums over all steps of two tiles of `a` (registers 4 and 5) times two of `b` (6 and 7), in registers 0 to 3: the lines say what
/// happens in a step.
macro_rules! tile_sums {
    (($a:ident, $b:ident, $b_pieces:expr, $steps:ident, $sums:ident), $($line:literal),* $(,)?) => {{
        let b_step = $b_pieces * WORDS * 4;
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            $($line,)*
            "add {a}, 3072", "add {a_next}, 3072", "add {b}, {b_step}", "add {b_next}, {b_step}",
            "dec {left}",
            "jnz 2b",
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 1024], tmm1",
            "tilestored [{out} + {stride} + 2048], tmm2",
            "tilestored [{out} + {stride} + 3072], tmm3",
            a = inout(reg) $a => _,
            a_next = inout(reg) $a.wrapping_byte_add($steps * PIECES * WORDS * 4) => _,
            b = inout(reg) $b => _,
            b_next = inout(reg) $b.wrapping_byte_add($steps * b_step) => _,
            b_step = in(reg) b_step,
            left = inout(reg) $steps => _,
            out = in(reg) $sums.0.as_mut_ptr(),
            stride = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

/// Sums of two tiles of `a` times two of `b` whose numbers are bf16, in so many pieces: a2 b0, a1 b0, a0 b0.
///
/// # Safety
/// Both have two tiles of `steps` steps, at least one; the tile registers are set up.
#[inline(always)]
unsafe fn multiply_bf16(a: *const u32, (b, b_pieces): (*const u32, usize), steps: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_sums!(
            (a, b, b_pieces, steps, sums),
            "tileloadd tmm6, [{b} + {stride}]\ntileloadd tmm4, [{a} + {stride} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b_next} + {stride}]\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride} + 2048]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {stride} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
        )
    }
}

/// Sums of two tiles of `a` times two of `b`: a2 b0, a1 b0, a1 b1, a0 b1, a0 b2, a0 b0, so that of two neighbours one is loaded.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn multiply_f32(a: *const u32, b: *const u32, steps: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_sums!(
            (a, b, PIECES, steps, sums),
            "tileloadd tmm6, [{b} + {stride}]\ntileloadd tmm4, [{a} + {stride} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b_next} + {stride}]\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride} + 2048]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {stride} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {stride} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b_next} + {stride} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_next} + {stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {stride} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b_next} + {stride} + 2048]",
            "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b_next} + {stride}]",
            "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7",
        )
    }
}

/// Puts the sums of two by two tiles, whose first row and column are `at`, where they belong in a result of `size`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn add(sums: &Sums, at: [usize; 2], size: [usize; 2], y: Results) {
    let scale = _mm512_set1_ps(y.scale);
    for (tile, sums) in sums.0.iter().enumerate() {
        let (row, col) = (at[0] + tile / 2 * LINES, at[1] + tile % 2 * LINES);
        let n = size[1].saturating_sub(col).min(LINES);
        let mask = ((1u32 << n) - 1) as u16;
        for (i, sums) in sums.iter().enumerate().take(size[0].saturating_sub(row)) {
            // SAFETY: the caller's promise; masked places are not touched.
            unsafe {
                let to = y.start.wrapping_add((row + i) * y.stride + col);
                let sum = _mm512_mul_ps(scale, _mm512_load_ps(sums.as_ptr()));
                let before = match y.target {
                    Target::Fresh => _mm512_setzero_ps(),
                    Target::Sum => _mm512_maskz_loadu_ps(mask, to),
                };
                _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, sum));
            }
        }
    }
}

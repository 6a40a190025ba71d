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
/// Lines of two tiles, which are multiplied with two others.
const BLOCK: usize = 2 * LINES;
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

    /// The lines from `first` on.
    fn from(self, first: usize) -> Right {
        match self {
            Right::F32(b) => Right::F32(b.from(first)),
            Right::Bf16(b) => Right::Bf16(b.from(first)),
        }
    }
}

impl<T> Lines<T> {
    fn from(self, first: usize) -> Lines<T> {
        let first = first.min(self.lines);
        Lines { values: self.values.wrapping_add(first * self.line_stride), lines: self.lines - first, ..self }
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
/// All of `a` at a depth is cut at once, for it is read again for every 32 lines of `b`; those are cut just before, and so are
/// still near when they are multiplied. What comes next is fetched from memory meanwhile.
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
        packed_a.resize(a.lines.next_multiple_of(BLOCK) / LINES * steps * PIECES * WORDS);
        packed_b.resize(2 * steps * b_pieces * WORDS);
        // SAFETY: the caller's promise, here and below; both buffers hold as many tiles.
        unsafe {
            // All as sixteen rows of 64 bytes.
            crate::amx::configure_registers([(LINES, 64); 8]);
            for first in (0..k).step_by(depth) {
                let part = first..k.min(first + depth);
                pack::<false>(a, part.clone(), steps, packed_a.as_mut_slice());
                let y = Results { target: if first == 0 { y.target } else { Target::Sum }, ..y };
                for col in (0..b.lines()).step_by(BLOCK) {
                    let is_exact = match b.from(col) {
                        Right::F32(b) => pack::<true>(b, part.clone(), steps, packed_b.as_mut_slice()),
                        Right::Bf16(b) => {
                            pack_bf16(b, part.clone(), steps, packed_b.as_mut_slice());
                            true
                        }
                    };
                    let packed = Packed { a: packed_a.as_slice(), b: packed_b.as_slice(), steps, b_pieces, is_exact };
                    let next = Runs::new(b.from(col + BLOCK), part.clone());
                    multiply_block(&packed, [a.lines, b.lines()], col, next, y);
                }
            }
            asm!("tilerelease", options(nostack));
        }
    });
}

/// Operands in pieces: all lines of `a`, and two tiles of `b`.
struct Packed<'p> {
    a: &'p [u32],
    b: &'p [u32],
    steps: usize,
    b_pieces: usize,
    /// Whether all numbers of `b` are bf16.
    is_exact: bool,
}

/// All rows of a result of `size`, for the columns from `col` on that two tiles hold.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn multiply_block(packed: &Packed<'_>, size: [usize; 2], col: usize, next: Runs, y: Results) {
    let mut sums = Sums([[[0.0; LINES]; LINES]; 4]);
    let blocks = size[0].div_ceil(BLOCK);
    for block in 0..blocks {
        let row = block * BLOCK;
        next.fetch(block * next.count / blocks..(block + 1) * next.count / blocks);
        let to = (y.start.wrapping_add(row * y.stride + col), 4 * y.stride);
        // SAFETY: the caller's promise; the buffers hold these tiles.
        unsafe {
            let a = packed.a.as_ptr().add(row / LINES * packed.steps * PIECES * WORDS);
            match packed.is_exact {
                true => multiply_bf16(a, (packed.b.as_ptr(), packed.b_pieces), packed.steps, to, &mut sums),
                false => multiply_f32(a, packed.b.as_ptr(), packed.steps, to, &mut sums),
            }
            add(&sums, [row, col], size, y);
        }
    }
}

/// Memory that is read soon: so many runs of bytes.
#[derive(Clone, Copy)]
struct Runs {
    start: *const u8,
    count: usize,
    stride: usize,
    bytes: usize,
}

impl Runs {
    /// The first two tiles of lines at these depths.
    fn new(b: Right, part: std::ops::Range<usize>) -> Runs {
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
    fn fetch(&self, runs: std::ops::Range<usize>) {
        for run in runs {
            let start = self.start.wrapping_add(run * self.stride);
            for at in (0..self.bytes).step_by(64) {
                // SAFETY: fetching touches nothing, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
            }
        }
    }
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
unsafe fn fetch_next_tile(from: Lines<f32>, start: *const f32, depth: usize) {
    let next = start.wrapping_add(LINES * from.line_stride);
    // SAFETY: fetching touches nothing, whatever the address.
    unsafe {
        if from.k_stride == 1 {
            for line in 0..LINES {
                let at = next.wrapping_add(line * from.line_stride);
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(LINES).cast());
            }
        } else {
            (0..depth).for_each(|k| _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(k * from.k_stride).cast()));
        }
    }
}

/// Puts two tiles of lines at depths `part` in the order of the right-hand side, one piece each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_bf16(from: Lines<u16>, part: std::ops::Range<usize>, steps: usize, out: &mut [u32]) {
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

/// Sums over all steps of two tiles of `a` (registers 4 and 5) times two of `b` (6 and 7), in registers 0 to 3: the lines say what
/// happens in a step. Each step also asks for two rows of the result, which are written next.
macro_rules! tile_sums {
    (($a:ident, $b:ident, $b_pieces:expr, $steps:ident, $to:ident, $sums:ident), $($line:literal),* $(,)?) => {{
        let b_step = $b_pieces * WORDS * 4;
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "prefetchw [{to}]", "prefetchw [{to} + 64]", "add {to}, {to_stride}",
            "prefetchw [{to}]", "prefetchw [{to} + 64]", "add {to}, {to_stride}",
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
            to = inout(reg) $to.0 => _,
            to_stride = in(reg) $to.1,
            out = in(reg) $sums.0.as_mut_ptr(),
            stride = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

/// Sums of two tiles of `a` times two of `b` whose numbers are bf16, in so many pieces: a2 b0, a1 b0, a0 b0. `to` is where the
/// result's rows begin, and how many bytes they are apart.
///
/// # Safety
/// Both have two tiles of `steps` steps, at least one; the tile registers are set up.
#[inline(always)]
unsafe fn multiply_bf16(
    a: *const u32,
    (b, b_pieces): (*const u32, usize),
    steps: usize,
    to: (*mut f32, usize),
    sums: &mut Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_sums!(
            (a, b, b_pieces, steps, to, sums),
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
unsafe fn multiply_f32(a: *const u32, b: *const u32, steps: usize, to: (*mut f32, usize), sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_sums!(
            (a, b, PIECES, steps, to, sums),
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
    let [rows, cols] = [0, 1].map(|i| (size[i] - at[i]).min(BLOCK));
    let masks = [0, LINES].map(|first| ((1u32 << cols.saturating_sub(first).min(LINES)) - 1) as u16);
    let [left, right] = [0, 1].map(|tile| sums.0[tile].iter().chain(&sums.0[2 + tile]));
    let mut to = y.start.wrapping_add(at[0] * y.stride + at[1]);
    for (left, right) in left.zip(right).take(rows) {
        for (sums, first, mask) in [(left, 0, masks[0]), (right, LINES, masks[1])] {
            // SAFETY: the caller's promise; masked places are not touched.
            unsafe {
                let to = to.wrapping_add(first);
                let sum = _mm512_mul_ps(scale, _mm512_load_ps(sums.as_ptr()));
                let before = match y.target {
                    Target::Fresh => _mm512_setzero_ps(),
                    Target::Sum => _mm512_maskz_loadu_ps(mask, to),
                };
                _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, sum));
            }
        }
        to = to.wrapping_add(y.stride);
    }
}

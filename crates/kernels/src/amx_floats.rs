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

mod pack;

use pack::{Runs, pack, pack_bf16};

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

/// Whether a product is worth it: tiles that are mostly padding are not, unless `b` would have to be turned into floats first.
pub(crate) fn suits([m, n, k]: [usize; 3], strides: [usize; 4], b_is_bf16: bool) -> bool {
    let [a_line, a_k, b_line, b_k] = strides;
    let is_large = n.min(k) >= LINES && (b_is_bf16 || m >= LINES);
    is_large && (a_line == 1 || a_k == 1) && (b_line == 1 || b_k == 1)
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

/// Of two by two tiles `[row of tiles][column of tiles][row][column]`.
#[repr(align(64))]
struct Sums([[[f32; LINES]; LINES]; 4]);

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

//! Products of many tokens by AVX2: a tile of four panels is unpacked into the first cache, codes to bytes and scales to what
//! the inner loop wants, and multiplied by two tokens at a time (four, where codes are signed).
//!
//! The steps are written in assembly, because the compiler takes additions of integers for a tree that it may reorder, needs
//! more registers for that than there are, and loses up to a third of the speed to memory.
//!
//! The integers and the float operations are those of `avx2_integers.rs`, in the same order, so the bits are the same too.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, section};
use crate::avx2::prefetch;
use crate::avx2_integers::{Format, Tokens, minimum_pairs};
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::{PANELS, QuadSums, QuadWork, for_each_tile, of_format};

mod signed;
mod unsigned;

type Kernel = unsafe fn(&QuadWork);

fn kernel(kind: ElementType) -> Option<Kernel> {
    of_format!(kind, multiply)
}

/// From how many tokens on the type is multiplied here, if at all: below, the unpacking costs more than it saves. As measured.
pub(crate) fn from_tokens(kind: ElementType) -> Option<usize> {
    use ElementType::*;
    kernel(kind).map(|_| match kind {
        Q8_0 | IQ4_NL | IQ4_XS => 12,
        Q3_K => 4,
        _ => 5,
    })
}

/// See [`for_each_tile`].
///
/// # Safety
/// The machine must have AVX2, FMA and F16C.
pub(crate) unsafe fn panels(
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    tokens: Range<usize>,
    sums: &mut [QuadSums],
) {
    let kernel = kernel(shape.kind).expect("the caller asked from how many tokens on");
    for_each_tile(shape, bytes, x, (tokens, signed::TOKENS), sums, |work| {
        // SAFETY: the machine has the instructions; tiles, activations and sums are there.
        unsafe { kernel(work) };
    });
}

/// A number or four codes of each of the eight rows of a panel.
type Ints = __m256i;
type Floats = __m256;

/// A tile of four panels, of any integer type. What a type does not use is not initialised.
#[repr(C, align(64))]
struct UnpackedQuad {
    codes: [[MaybeUninit<Ints>; PANELS]; TILE / 4],
    scales: [[MaybeUninit<Ints>; PANELS]; TILE / 16],
    minimums: [[MaybeUninit<Ints>; PANELS]; TILE / GROUP],
    d: [[MaybeUninit<Floats>; PANELS]; TILE / GROUP],
    dmin: [[MaybeUninit<Floats>; PANELS]; TILE / GROUP],
}

/// A [`Kernel`].
///
/// # Safety
/// The machine must have the instructions; what [`QuadWork`] points to must be there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<F: Format>(work: &QuadWork) {
    let groups = work.cols / GROUP;
    let mut quad = MaybeUninit::<UnpackedQuad>::uninit();
    // SAFETY: its parts may be uninitialised themselves.
    let quad = unsafe { quad.assume_init_mut() };
    for panel in 0..PANELS {
        // SAFETY: the caller's promise.
        unsafe { unpack::<F>(work.tiles[panel], groups, panel, quad) };
    }
    // Where sums of tokens go that only fill a step.
    let mut no_one: QuadSums = [0.0; PANELS * ROWS];
    let no_one = no_one.as_mut_ptr();
    // SAFETY: the caller's promise; behind the last token's activations lie as many as fill a step.
    unsafe {
        if work.goes_on == 0 {
            std::slice::from_raw_parts_mut(work.sums, work.tokens).fill([0.0; PANELS * ROWS]);
        }
        let sums = |token: usize| if token < work.tokens { work.sums.add(token).cast::<f32>() } else { no_one };
        let step = if F::SIGNED { signed::TOKENS } else { unsigned::TOKENS };
        // Some of the next tile's lines at each step: all at once would keep everything else waiting.
        let lines = (F::BYTES * work.next_cols / TILE).div_ceil(64);
        let (mut asked, at_once) = (0, lines.div_ceil(work.tokens.div_ceil(step)));
        for first in (0..work.tokens).step_by(step) {
            let until = (asked + at_once).min(lines);
            for line in asked..until {
                work.next.iter().for_each(|next| prefetch(next.wrapping_add(line * 64)));
            }
            asked = until;
            let x = work.x.add(first).cast::<u32>();
            if F::SIGNED {
                let sums = [sums(first), sums(first + 1), sums(first + 2), sums(first + 3)];
                signed::multiply::<F>(quad, groups, x, sums, 0);
                signed::multiply::<F>(quad, groups, x, sums, signed::PANELS_AT_ONCE);
            } else {
                unsigned::multiply::<F>(quad, groups, x, [sums(first), sums(first + 1)]);
            }
        }
    }
}

/// Unpacks the tile of a panel.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<F: Format>(tile: *const u8, groups: usize, panel: usize, quad: &mut UnpackedQuad) {
    // SAFETY: the caller's promise.
    unsafe {
        let format = F::new(tile, groups);
        for group in 0..groups {
            let codes = format.group(group);
            for vector in 0..8 {
                quad.codes[8 * group + vector][panel].write(format.codes(&codes, vector));
            }
            if F::FLOAT_SCALES {
                quad.d[group][panel].write(format.d(group));
                if F::MINIMUM_COLUMNS > 0 {
                    quad.dmin[group][panel].write(format.dmin(group));
                }
            } else {
                quad.scales[2 * group][panel].write(format.scale(2 * group));
                quad.scales[2 * group + 1][panel].write(format.scale(2 * group + 1));
            }
        }
        if !F::FLOAT_SCALES {
            quad.d[0][panel].write(format.d(0));
            if F::MINIMUM_COLUMNS > 0 {
                for pair in 0..minimum_pairs::<F>(groups) {
                    quad.minimums[pair][panel].write(format.minimums(pair));
                }
                quad.dmin[0][panel].write(format.dmin(0));
            }
        }
    }
}

/// Sums of some tokens and panels.
#[repr(C, align(64))]
struct Sums<const P: usize, const T: usize>([[Ints; P]; T]);

impl<const P: usize, const T: usize> Sums<P, T> {
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        Sums([[_mm256_setzero_si256(); P]; T])
    }
}

/// The float end of a tile with integer scales: of one token and `P` panels from `first_panel` on.
///
/// # Safety
/// As for [`multiply`]; `quad` must hold what `F` uses.
#[inline(always)]
unsafe fn finish<F: Format, const P: usize>(
    quad: &UnpackedQuad,
    groups: usize,
    x: Tokens<1>,
    ints: &[Ints; P],
    first_panel: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut minimums = [_mm256_setzero_si256(); P];
        if F::MINIMUM_COLUMNS > 0 {
            let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
            for pair in 0..minimum_pairs::<F>(groups) {
                let x_sums = x.word(first_word + pair, 0);
                for (p, sum) in minimums.iter_mut().enumerate() {
                    let minimum = quad.minimums[pair][first_panel + p].assume_init();
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(minimum, x_sums));
                }
            }
        }
        let x_scale = x.float(section::SCALE, 0);
        for p in 0..P {
            let (panel, at) = (first_panel + p, sums.add(ROWS * (first_panel + p)));
            let d = _mm256_mul_ps(quad.d[0][panel].assume_init(), x_scale);
            let mut y = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(ints[p]), _mm256_loadu_ps(at));
            if F::MINIMUM_COLUMNS > 0 {
                let dmin = _mm256_mul_ps(quad.dmin[0][panel].assume_init(), x_scale);
                y = _mm256_fmadd_ps(dmin, _mm256_cvtepi32_ps(minimums[p]), y);
            }
            _mm256_storeu_ps(at, y);
        }
    }
}

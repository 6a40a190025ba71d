//! Products of many tokens by AVX2: a tile of four panels is unpacked into the first cache, codes to bytes and scales to what
//! the inner loop wants, and multiplied by two tokens at a time.
//!
//! The steps are written in assembly, because the compiler takes additions of integers for a tree that it may reorder, needs
//! more registers for that than there are, and loses up to a third of the speed to memory.
//!
//! The integers and the float operations are those of `avx2_integers.rs`, in the same order, so the bits are the same too.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, WORDS, section};
use crate::avx2::prefetch;
use crate::avx2_integers::{Format, minimum_pairs};
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::{PANELS, QuadSums, QuadWork, for_each_tile, of_format};

mod signed;
mod unsigned;

/// Tokens of a step.
const TOKENS: usize = 2;

type Kernel = unsafe fn(&QuadWork);

fn kernel(kind: ElementType) -> Option<Kernel> {
    of_format!(kind, multiply)
}

/// From how many tokens on the type is multiplied here, if at all: below, the unpacking costs more than it saves. As measured.
pub(crate) fn from_tokens(kind: ElementType) -> Option<usize> {
    use ElementType::*;
    kernel(kind).map(|_| match kind {
        Q8_0 => 10,
        IQ4_NL | IQ4_XS => 6,
        Q2_K | Q3_K => 4,
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
    for_each_tile(shape, bytes, x, (tokens, TOKENS), sums, |work| {
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
    /// Four columns of the panels; twice as much where codes are signed, and stand in 16 bits.
    codes: [[MaybeUninit<Ints>; PANELS]; TILE / 2],
    /// Of signed codes: minus the sums of products of neighbours, of all groups that share a scale.
    minus_pairs: [[MaybeUninit<Ints>; PANELS]; TILE / GROUP],
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
        unsafe {
            if F::SIGNED {
                signed::unpack::<F>(work.tiles[panel], groups, panel, quad);
            } else {
                unpack::<F>(work.tiles[panel], groups, panel, quad);
            }
        }
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
        // Some of the next tile's lines at each step: all at once would keep everything else waiting.
        let lines = (F::BYTES * work.next_cols / TILE).div_ceil(64);
        let (mut asked, at_once) = (0, lines.div_ceil(work.tokens.div_ceil(TOKENS)));
        for first in (0..work.tokens).step_by(TOKENS) {
            let until = (asked + at_once).min(lines);
            for line in asked..until {
                work.next.iter().for_each(|next| prefetch(next.wrapping_add(line * 64)));
            }
            asked = until;
            let x = work.x.add(first).cast::<u32>();
            let sums = [sums(first), sums(first + 1)];
            if F::SIGNED {
                signed::multiply::<F>(quad, groups, x, sums);
            } else {
                unsigned::multiply::<F>(quad, groups, x, sums);
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

/// Sums of the tokens and panels of a step.
#[repr(C, align(64))]
struct Sums([[Ints; PANELS]; TOKENS]);

impl Sums {
    #[target_feature(enable = "avx2")]
    fn zero() -> Sums {
        Sums([[_mm256_setzero_si256(); PANELS]; TOKENS])
    }
}

/// Assembly of the given lines on the sums of two tokens and four panels, `$s`; `=> _` where they are not wanted afterwards.
macro_rules! on_sums {
    ($s:ident $(=> $end:tt)?, $($line:expr,)+ ; $($operands:tt)+) => {
        asm!(
            $($line,)+
            s00 = inout(ymm_reg) $s[0][0] $(=> $end)?, s01 = inout(ymm_reg) $s[0][1] $(=> $end)?,
            s02 = inout(ymm_reg) $s[0][2] $(=> $end)?, s03 = inout(ymm_reg) $s[0][3] $(=> $end)?,
            s10 = inout(ymm_reg) $s[1][0] $(=> $end)?, s11 = inout(ymm_reg) $s[1][1] $(=> $end)?,
            s12 = inout(ymm_reg) $s[1][2] $(=> $end)?, s13 = inout(ymm_reg) $s[1][3] $(=> $end)?,
            $($operands)+
        )
    };
}
use on_sums;

/// A line for each panel.
macro_rules! each_panel {
    ($line:ident $(, $token:literal)?) => {
        concat!($line!($($token,)? 0), $line!($($token,)? 1), $line!($($token,)? 2), $line!($($token,)? 3))
    };
}
use each_panel;

/// The sum in 16 or 32 bits of a token and a panel.
macro_rules! sum {
    ($token:literal, $panel:literal) => {
        concat!("{s", $token, $panel, "}")
    };
}
use sum;

/// That sum = `$operation` of it and `$other`.
macro_rules! update_sum {
    ($operation:literal, $token:literal, $panel:literal, $other:expr) => {
        concat!($operation, " ", sum!($token, $panel), ", ", sum!($token, $panel), ", ", $other, "\n")
    };
}
use update_sum;

/// The integer of a token and a panel in memory.
macro_rules! int {
    ($token:literal, $panel:literal) => {
        concat!("[{ints} + 128*", $token, " + 32*", $panel, "]")
    };
}
use int;

/// The sum of products with a panel's minimums in `{s..}`, two tokens.
macro_rules! minimum_products {
    ($panel:literal) => {
        concat!(
            "vmovdqa {c}, [{minimums} + 32*",
            $panel,
            "]\n",
            "vpmaddwd {m}, {c}, {b}\n",
            "vpmaddwd {c}, {c}, {b1}\n",
            update_sum!("vpaddd", 0, $panel, "{m}"),
            update_sum!("vpaddd", 1, $panel, "{c}"),
        )
    };
}

/// `$to` = the integer `$from` times two scales, added to the float in memory; the activations' scale is in `{b}`.
macro_rules! scaled_float {
    ($from:expr, $to:expr, $token:literal, $panel:literal) => {
        concat!(
            "vmulps {m}, {b}, [{d} + 32*",
            $panel,
            "]\nvcvtdq2ps ",
            $to,
            ", ",
            $from,
            "\nvfmadd213ps ",
            $to,
            ", {m}, [{sums",
            $token,
            "} + 32*",
            $panel,
            "]\n",
        )
    };
}
use scaled_float;

/// Puts a float to memory.
macro_rules! put_float {
    ($float:expr, $token:literal, $panel:literal) => {
        concat!("vmovups [{sums", $token, "} + 32*", $panel, "], ", $float, "\n")
    };
}
use put_float;

/// [`scaled_float`] of an integer in memory, in `{c}`.
macro_rules! float_end {
    ($token:literal, $panel:literal) => {
        scaled_float!(int!($token, $panel), "{c}", $token, $panel)
    };
}

/// The same put to memory.
macro_rules! put_end {
    ($token:literal, $panel:literal) => {
        concat!(float_end!($token, $panel), put_float!("{c}", $token, $panel))
    };
}

/// The same after the sum of minimums, which is in `{s..}`.
macro_rules! put_end_with_minimum {
    ($token:literal, $panel:literal) => {
        concat!(
            float_end!($token, $panel),
            "vmulps {m}, {b}, [{dmin} + 32*",
            $panel,
            "]\nvcvtdq2ps ",
            sum!($token, $panel),
            ", ",
            sum!($token, $panel),
            "\nvfmadd213ps ",
            sum!($token, $panel),
            ", {m}, {c}\n",
            put_float!(sum!($token, $panel), $token, $panel),
        )
    };
}

/// The float end of a tile with integer scales.
///
/// # Safety
/// As for [`multiply`]; `quad` must hold what `F` uses, and `sums` point to the sums of two tokens.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<F: Format>(quad: &UnpackedQuad, groups: usize, x: *const u32, ints: &Sums, sums: [*mut f32; TOKENS]) {
    let (d, ints) = (quad.d[0].as_ptr(), ints.0.as_ptr());
    // SAFETY: the caller's promise; the assembly reads and writes what it points to, and nothing else.
    unsafe {
        let scale = x.add(section::SCALE);
        if F::MINIMUM_COLUMNS == 0 {
            asm!(
                "vbroadcastss {b}, dword ptr [{scale}]",
                each_panel!(put_end, 0),
                "vbroadcastss {b}, dword ptr [{scale} + {token}]",
                each_panel!(put_end, 1),
                scale = in(reg) scale, token = const WORDS * 4, d = in(reg) d, ints = in(reg) ints,
                sums0 = in(reg) sums[0], sums1 = in(reg) sums[1],
                b = out(ymm_reg) _, m = out(ymm_reg) _, c = out(ymm_reg) _,
                options(nostack, preserves_flags)
            );
        } else {
            let words = x.add(if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 });
            let s = [[_mm256_setzero_si256(); PANELS]; TOKENS];
            on_sums!(s => _,
                "2:",
                "vpbroadcastd {b}, dword ptr [{words}]", "vpbroadcastd {b1}, dword ptr [{words} + {token}]",
                each_panel!(minimum_products),
                "add {words}, 4", "add {minimums}, 128", "dec {pairs}", "jnz 2b",
                "vbroadcastss {b}, dword ptr [{scale}]",
                each_panel!(put_end_with_minimum, 0),
                "vbroadcastss {b}, dword ptr [{scale} + {token}]",
                each_panel!(put_end_with_minimum, 1),;
                words = inout(reg) words => _, minimums = inout(reg) quad.minimums.as_ptr() => _,
                pairs = inout(reg) minimum_pairs::<F>(groups) => _, dmin = in(reg) quad.dmin[0].as_ptr(),
                scale = in(reg) scale, token = const WORDS * 4, d = in(reg) d, ints = in(reg) ints,
                sums0 = in(reg) sums[0], sums1 = in(reg) sums[1],
                b = out(ymm_reg) _, b1 = out(ymm_reg) _, m = out(ymm_reg) _, c = out(ymm_reg) _,
                options(nostack)
            );
        }
    }
}

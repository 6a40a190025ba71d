//! Unsigned codes: two tokens times a quad.
//!
//! That makes eight sums in 16 bits: they, the four codes of a step and its products fill the sixteen registers. Of the four
//! pipes that Zen 3 has for vectors two multiply; a step of 256 products keeps those busy for four cycles, and needs six loads.
//! Sums begin with their first products, not with zeros: an addition less of eight.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{
    Ints, Sums, TOKENS, UnpackedQuad, each_panel, finish, int, on_sums, put_float, scaled_float, sum, update_sum,
};
use crate::activations::{WORDS, section};
use crate::avx2_integers::Format;
use crate::quads::PANELS;

/// Where sums in 16 bits of a token begin: see [`start`](crate::avx2_integers::start).
macro_rules! begin {
    (nothing, $token:literal) => {
        ""
    };
    (offset, $token:literal) => {
        concat!("vpbroadcastd {m2}, dword ptr [{minus} + {token}*", $token, "]\nvpsllw {m2}, {m2}, {bits}\n")
    };
}

macro_rules! first_product {
    (nothing, $token:literal, $panel:literal) => {
        concat!("vpmaddubsw ", sum!($token, $panel), ", {q", $panel, "}, {b}\n")
    };
    (offset, $token:literal, $panel:literal) => {
        concat!(first_product!(nothing, $token, $panel), update_sum!("vpaddw", $token, $panel, "{m2}"),)
    };
}

macro_rules! first_products {
    ($begin:ident, $token:literal) => {
        concat!(
            begin!($begin, $token),
            "vpbroadcastd {b}, dword ptr [{x} + {token}*",
            $token,
            "]\n",
            first_product!($begin, $token, 0),
            first_product!($begin, $token, 1),
            first_product!($begin, $token, 2),
            first_product!($begin, $token, 3),
        )
    };
}

/// Four columns of 32 rows times two tokens: `{s..}` = products of the codes at `{codes}` and the words at `{x}`.
macro_rules! first_step {
    ($begin:ident) => {
        concat!(
            "vmovdqa {q0}, [{codes}]\n",
            "vmovdqa {q1}, [{codes} + 32]\n",
            "vmovdqa {q2}, [{codes} + 64]\n",
            "vmovdqa {q3}, [{codes} + 96]\n",
            first_products!($begin, 0),
            first_products!($begin, 1),
        )
    };
}

/// The same for columns `4 vector ..+ 4`, added to the sums.
macro_rules! unsigned_step {
    ($vector:literal) => {
        concat!(
            "vmovdqa {q0}, [{codes} + 128*",
            $vector,
            "]\n",
            "vmovdqa {q1}, [{codes} + 128*",
            $vector,
            " + 32]\n",
            "vpbroadcastd {b}, dword ptr [{x} + 4*",
            $vector,
            "]\n",
            "vpmaddubsw {m0}, {q0}, {b}\n",
            "vpmaddubsw {m1}, {q1}, {b}\n",
            "vmovdqa {q2}, [{codes} + 128*",
            $vector,
            " + 64]\n",
            "vmovdqa {q3}, [{codes} + 128*",
            $vector,
            " + 96]\n",
            "vpaddw {s00}, {s00}, {m0}\n",
            "vpmaddubsw {m2}, {q2}, {b}\n",
            "vpaddw {s01}, {s01}, {m1}\n",
            "vpmaddubsw {m0}, {q3}, {b}\n",
            "vpbroadcastd {b}, dword ptr [{x} + 4*",
            $vector,
            " + {token}]\n",
            "vpaddw {s02}, {s02}, {m2}\n",
            "vpmaddubsw {m1}, {q0}, {b}\n",
            "vpaddw {s03}, {s03}, {m0}\n",
            "vpmaddubsw {m2}, {q1}, {b}\n",
            "vpaddw {s10}, {s10}, {m1}\n",
            "vpmaddubsw {m0}, {q2}, {b}\n",
            "vpaddw {s11}, {s11}, {m2}\n",
            "vpmaddubsw {m1}, {q3}, {b}\n",
            "vpaddw {s12}, {s12}, {m0}\n",
            "vpaddw {s13}, {s13}, {m1}\n",
        )
    };
}

/// A sum in 16 bits times its scale, added to the sum in memory.
macro_rules! scaled_sum {
    ($token:literal, $panel:literal) => {
        concat!(
            update_sum!("vpmaddwd", $token, $panel, concat!("[{scales} + 32*", $panel, "]")),
            update_sum!("vpaddd", $token, $panel, int!($token, $panel)),
            "vmovdqa ",
            int!($token, $panel),
            ", ",
            sum!($token, $panel),
            "\n",
        )
    };
}

/// [`scaled_float`] of a sum in 16 bits, in its place.
macro_rules! float_sum {
    ($token:literal, $panel:literal) => {
        concat!(
            update_sum!("vpmaddwd", $token, $panel, "{ones}"),
            scaled_float!(sum!($token, $panel), sum!($token, $panel), $token, $panel),
        )
    };
}

/// Adds a minimum times the activations' sum, which is in `{c}`.
macro_rules! add_minimum {
    ($token:literal, $panel:literal) => {
        concat!("vfmadd231ps ", sum!($token, $panel), ", {c}, [{dmin} + 32*", $panel, "]\n")
    };
}

/// Puts the float to memory.
macro_rules! put_sum {
    ($token:literal, $panel:literal) => {
        put_float!(sum!($token, $panel), $token, $panel)
    };
}

/// Two tokens times a quad of unsigned codes.
///
/// # Safety
/// As for [`multiply`](super::multiply); `quad` must hold what `F` uses, and `sums` point to the sums of two tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Format>(quad: &UnpackedQuad, groups: usize, x: *const u32, sums: [*mut f32; TOKENS]) {
    let mut ints = Sums::zero();
    let codes = quad.codes.as_ptr();
    // SAFETY: the caller's promise; the assembly reads and writes what it points to, and nothing else.
    unsafe {
        for group in 0..groups {
            let minus = if F::SUM_COLUMNS == 16 { section::OFFSET_16 + 2 * group } else { section::OFFSET_32 + group };
            let mut s = first_vectors::<F>(codes.add(8 * group), x.add(8 * group), x.add(minus));
            if F::SUM_COLUMNS == 16 {
                add_scaled(&mut s, quad.scales[2 * group].as_ptr(), &mut ints);
                s = first_vectors::<F>(codes.add(8 * group + 4), x.add(8 * group + 4), x.add(minus + 1));
            } else {
                more_vectors(codes.add(8 * group + 4), x.add(8 * group + 4), &mut s);
            }
            if F::FLOAT_SCALES {
                add_floats::<F>(quad, group, x, &mut s, sums);
            } else {
                add_scaled(&mut s, quad.scales[2 * group + 1].as_ptr(), &mut ints);
            }
        }
        if !F::FLOAT_SCALES {
            finish::<F>(quad, groups, x, &ints, sums);
        }
    }
}

type ShortSums = [[Ints; PANELS]; TOKENS];

/// The products of 16 columns; `minus` has minus the activations' sum.
///
/// # Safety
/// Codes and activations must be there, and the machine have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn first_vectors<F: Format>(
    codes: *const [MaybeUninit<Ints>; PANELS],
    x: *const u32,
    minus: *const u32,
) -> ShortSums {
    let (s00, s01, s02, s03, s10, s11, s12, s13): (Ints, Ints, Ints, Ints, Ints, Ints, Ints, Ints);
    macro_rules! vectors {
        ($begin:ident, $($operands:tt)*) => {
            asm!(first_step!($begin), unsigned_step!(1), unsigned_step!(2), unsigned_step!(3),
                s00 = out(ymm_reg) s00, s01 = out(ymm_reg) s01, s02 = out(ymm_reg) s02, s03 = out(ymm_reg) s03,
                s10 = out(ymm_reg) s10, s11 = out(ymm_reg) s11, s12 = out(ymm_reg) s12, s13 = out(ymm_reg) s13,
                codes = in(reg) codes, x = in(reg) x, token = const WORDS * 4, $($operands)*
                q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, q2 = out(ymm_reg) _, q3 = out(ymm_reg) _,
                b = out(ymm_reg) _, m0 = out(ymm_reg) _, m1 = out(ymm_reg) _, m2 = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags)
            )
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        if F::OFFSET_BITS == 0 {
            vectors!(nothing,);
        } else {
            vectors!(offset, minus = in(reg) minus, bits = const F::OFFSET_BITS,);
        }
    }
    [[s00, s01, s02, s03], [s10, s11, s12, s13]]
}

/// Adds the products of 16 more columns.
///
/// # Safety
/// Codes and activations must be there, and the machine have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn more_vectors(codes: *const [MaybeUninit<Ints>; PANELS], x: *const u32, s: &mut ShortSums) {
    // SAFETY: the caller's promise.
    unsafe {
        on_sums!(s, unsigned_step!(0), unsigned_step!(1), unsigned_step!(2), unsigned_step!(3),;
            codes = in(reg) codes, x = in(reg) x, token = const WORDS * 4,
            q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, q2 = out(ymm_reg) _, q3 = out(ymm_reg) _,
            b = out(ymm_reg) _, m0 = out(ymm_reg) _, m1 = out(ymm_reg) _, m2 = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

/// Adds sums times the four scales to `ints`.
///
/// # Safety
/// The scales must be there, and the machine have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_scaled(s: &mut ShortSums, scales: *const MaybeUninit<Ints>, ints: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        on_sums!(s,
            each_panel!(scaled_sum, 0),
            each_panel!(scaled_sum, 1),;
            scales = in(reg) scales, ints = in(reg) ints,
            options(nostack, preserves_flags)
        );
    }
}

/// Adds sums times the float scales of a group to `sums`.
///
/// # Safety
/// As for [`multiply`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_floats<F: Format>(
    quad: &UnpackedQuad,
    group: usize,
    x: *const u32,
    s: &mut ShortSums,
    sums: [*mut f32; TOKENS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (scales, group_sums) = (x.add(section::GROUP_SCALES + group), x.add(section::GROUP_SUMS + group));
        let d = quad.d[group].as_ptr();
        if F::MINIMUM_COLUMNS > 0 {
            on_sums!(s,
                "vbroadcastss {b}, dword ptr [{scale}]", "vbroadcastss {c}, dword ptr [{sum}]",
                each_panel!(float_sum, 0), each_panel!(add_minimum, 0), each_panel!(put_sum, 0),
                "vbroadcastss {b}, dword ptr [{scale} + {token}]", "vbroadcastss {c}, dword ptr [{sum} + {token}]",
                each_panel!(float_sum, 1), each_panel!(add_minimum, 1), each_panel!(put_sum, 1),;
                scale = in(reg) scales, sum = in(reg) group_sums, token = const WORDS * 4, d = in(reg) d, dmin = in(reg) quad.dmin[group].as_ptr(),
                sums0 = in(reg) sums[0], sums1 = in(reg) sums[1], ones = in(ymm_reg) _mm256_set1_epi16(1),
                b = out(ymm_reg) _, c = out(ymm_reg) _, m = out(ymm_reg) _,
                options(nostack, preserves_flags)
            );
        } else {
            on_sums!(s,
                "vbroadcastss {b}, dword ptr [{scale}]",
                each_panel!(float_sum, 0), each_panel!(put_sum, 0),
                "vbroadcastss {b}, dword ptr [{scale} + {token}]",
                each_panel!(float_sum, 1), each_panel!(put_sum, 1),;
                scale = in(reg) scales, token = const WORDS * 4, d = in(reg) d,
                sums0 = in(reg) sums[0], sums1 = in(reg) sums[1], ones = in(ymm_reg) _mm256_set1_epi16(1),
                b = out(ymm_reg) _, m = out(ymm_reg) _,
                options(nostack, preserves_flags)
            );
        }
    }
}

//! Signed codes: four tokens times two panels of a quad, so that a code's magnitude serves four tokens.
//!
//! Products of two signed bytes leave no room for a second sum in 16 bits, so they are widened at once.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Ints, Sums, UnpackedQuad, finish};
use crate::activations::{WORDS, section};
use crate::avx2_integers::{Format, Tokens};
use crate::packed_layout::ROWS;

/// Tokens of a step.
pub(super) const TOKENS: usize = 4;
/// Panels of a step.
pub(super) const PANELS_AT_ONCE: usize = 2;

/// Four columns of a token: `{i..}` += products of the codes in `{q..}`, of magnitudes `{a..}`, and the words at `{x}`.
macro_rules! signed_token {
    ($token:literal, $vector:literal) => {
        concat!(
            "vpbroadcastd {b}, dword ptr [{x} + 4*",
            $vector,
            " + {token}*",
            $token,
            "]\n",
            "vpsignb {m}, {b}, {q0}\n",
            "vpsignb {b}, {b}, {q1}\n",
            "vpmaddubsw {m}, {a0}, {m}\n",
            "vpmaddubsw {b}, {a1}, {b}\n",
            "vpmaddwd {m}, {m}, [{scales}]\n",
            "vpmaddwd {b}, {b}, [{scales} + 32]\n",
            "vpaddd {i",
            $token,
            "0}, {i",
            $token,
            "0}, {m}\n",
            "vpaddd {i",
            $token,
            "1}, {i",
            $token,
            "1}, {b}\n",
        )
    };
}

macro_rules! signed_step {
    ($vector:literal) => {
        concat!(
            "vmovdqa {q0}, [{codes} + 128*",
            $vector,
            "]\n",
            "vmovdqa {q1}, [{codes} + 128*",
            $vector,
            " + 32]\n",
            "vpabsb {a0}, {q0}\n",
            "vpabsb {a1}, {q1}\n",
            signed_token!(0, $vector),
            signed_token!(1, $vector),
            signed_token!(2, $vector),
            signed_token!(3, $vector),
        )
    };
}

/// Four tokens times two panels of signed codes, from `panel` on.
///
/// # Safety
/// As for [`multiply`](super::multiply); `quad` must hold what `F` uses, and `sums` point to the sums of four tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Format>(
    quad: &UnpackedQuad,
    groups: usize,
    x: *const u32,
    sums: [*mut f32; TOKENS],
    panel: usize,
) {
    let mut ints = Sums::<PANELS_AT_ONCE, TOKENS>::zero();
    let ones = Sums([[_mm256_set1_epi16(1); PANELS_AT_ONCE]]);
    // SAFETY: the caller's promise; the assembly reads what it points to, and nothing else.
    unsafe {
        for group in 0..groups {
            let i = &mut ints.0;
            let codes = quad.codes.as_ptr().add(8 * group).cast::<Ints>().add(panel);
            let scales = if F::FLOAT_SCALES {
                ones.0.as_ptr().cast()
            } else {
                quad.scales[2 * group].as_ptr().add(panel).cast::<Ints>()
            };
            asm!(
                signed_step!(0), signed_step!(1), signed_step!(2), signed_step!(3),
                signed_step!(4), signed_step!(5), signed_step!(6), signed_step!(7),
                i00 = inout(ymm_reg) i[0][0], i01 = inout(ymm_reg) i[0][1], i10 = inout(ymm_reg) i[1][0], i11 = inout(ymm_reg) i[1][1],
                i20 = inout(ymm_reg) i[2][0], i21 = inout(ymm_reg) i[2][1], i30 = inout(ymm_reg) i[3][0], i31 = inout(ymm_reg) i[3][1],
                codes = in(reg) codes, x = in(reg) x.add(8 * group), token = const WORDS * 4, scales = in(reg) scales,
                q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, a0 = out(ymm_reg) _, a1 = out(ymm_reg) _,
                b = out(ymm_reg) _, m = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags)
            );
            if F::FLOAT_SCALES {
                for (token, i) in i.iter_mut().enumerate() {
                    let x_scale = Tokens::<TOKENS>(x).float(section::GROUP_SCALES + group, token);
                    for (p, i) in i.iter_mut().enumerate() {
                        let at = sums[token].add(ROWS * (panel + p));
                        let scale = _mm256_mul_ps(quad.d[group][panel + p].assume_init(), x_scale);
                        _mm256_storeu_ps(at, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(*i), _mm256_loadu_ps(at)));
                        *i = _mm256_setzero_si256();
                    }
                }
            }
        }
        if !F::FLOAT_SCALES {
            for (token, sums) in sums.into_iter().enumerate() {
                finish::<F, PANELS_AT_ONCE>(quad, groups, Tokens(x.add(token * WORDS)), &ints.0[token], panel, sums);
            }
        }
    }
}

//! Signed codes: two tokens times a quad, by half as many products.
//!
//! Products of two signed bytes leave no room for a second sum in 16 bits, and to widen each takes as long as to multiply. So
//! codes are widened to 16 bits before, and two products are had of one (S. Winograd, "A new algorithm for inner product", 1968):
//!
//! ```text
//! q0 x0 + q1 x1 = (q0 + x1)(q1 + x0) - q0 q1 - x0 x1
//! ```
//!
//! What is taken off is summed once for all tokens, and once for all rows. Integer scales are multiplied into the codes before,
//! so that there is one sum for the whole tile. Everything is an exact integer: factors fit 16 bits, and sums may wrap in 32 bits
//! on their way, but end at the true value, which fits.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{Ints, Sums, TOKENS, UnpackedQuad, finish, on_sums, sum, update_sum};
use crate::activations::{WORDS, section};
use crate::avx2_integers::Format;
use crate::avx2_steps::Tokens;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::PANELS;

const GROUPS: usize = TILE / GROUP;

/// A group of 32 codes in 16 bits: of columns 0 and 2 mod 4, and of columns 1 and 3.
type Halves = [Ints; 2];

/// The codes of the tokens of a step, widened.
#[repr(C, align(64))]
struct Widened {
    /// Of the groups that the tile has.
    codes: [[MaybeUninit<Halves>; GROUPS]; TOKENS],
    /// Minus the sums of products of neighbours: of the token's groups, or in the first one of all.
    minus_pairs: [[i32; GROUPS]; TOKENS],
}

/// Four columns of a panel of two tokens: `{s..}` += products of sums of the codes at `{codes}` and those in `{e.}` and `{o.}`.
macro_rules! panel_step {
    ($vector:literal, $panel:literal) => {
        concat!(
            "vmovdqa {q0}, [{codes} + 256*",
            $vector,
            " + 64*",
            $panel,
            "]\n",
            "vmovdqa {q1}, [{codes} + 256*",
            $vector,
            " + 64*",
            $panel,
            " + 32]\n",
            "vpaddw {a}, {q0}, {o0}\n",
            "vpaddw {b}, {q1}, {e0}\n",
            "vpaddw {q0}, {q0}, {o1}\n",
            "vpaddw {q1}, {q1}, {e1}\n",
            "vpmaddwd {a}, {a}, {b}\n",
            "vpmaddwd {q0}, {q0}, {q1}\n",
            update_sum!("vpaddd", 0, $panel, "{a}"),
            update_sum!("vpaddd", 1, $panel, "{q0}"),
        )
    };
}

/// Four columns of 32 rows times two tokens.
macro_rules! step {
    ($vector:literal) => {
        concat!(
            "vpbroadcastd {e0}, dword ptr [{x} + 4*",
            $vector,
            "]\n",
            "vpbroadcastd {o0}, dword ptr [{x} + 4*",
            $vector,
            " + 32]\n",
            "vpbroadcastd {e1}, dword ptr [{x} + 4*",
            $vector,
            " + {token}]\n",
            "vpbroadcastd {o1}, dword ptr [{x} + 4*",
            $vector,
            " + {token} + 32]\n",
            panel_step!($vector, 0),
            panel_step!($vector, 1),
            panel_step!($vector, 2),
            panel_step!($vector, 3),
        )
    };
}

/// Two tokens times a quad of signed codes.
///
/// # Safety
/// As for [`multiply`](super::multiply); `quad` must hold what `F` uses, and `sums` point to the sums of two tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Format>(quad: &UnpackedQuad, groups: usize, x: *const u32, sums: [*mut f32; TOKENS]) {
    let mut widened =
        Widened { codes: [[const { MaybeUninit::uninit() }; GROUPS]; TOKENS], minus_pairs: [[0; GROUPS]; TOKENS] };
    // SAFETY: the caller's promise.
    unsafe {
        for token in 0..TOKENS {
            widen::<F>(x.add(token * WORDS), groups, &mut widened, token);
        }
        if !F::FLOAT_SCALES {
            let s = products(quad, &widened, 0, groups);
            finish::<F>(quad, groups, x, &s, sums);
            return;
        }
        for group in 0..groups {
            let s = products(quad, &widened, group, 1);
            for (token, s) in s.0.iter().enumerate() {
                let x_scale = Tokens::<TOKENS>(x).float(section::GROUP_SCALES + group, token);
                for (panel, &s) in s.iter().enumerate() {
                    let at = sums[token].add(ROWS * panel);
                    let scale = _mm256_mul_ps(quad.d[group][panel].assume_init(), x_scale);
                    _mm256_storeu_ps(at, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(s), _mm256_loadu_ps(at)));
                }
            }
        }
    }
}

/// The sums of products of `groups` groups from `first` on, at least one.
///
/// # Safety
/// As for [`multiply`]; `x` must hold these groups.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products(quad: &UnpackedQuad, x: &Widened, first: usize, groups: usize) -> Sums {
    // SAFETY: the caller's promise; the assembly reads what it points to, and nothing else.
    unsafe {
        let mut s: [[Ints; PANELS]; TOKENS] = std::array::from_fn(|token| {
            let minus_pairs = _mm256_set1_epi32(x.minus_pairs[token][first]);
            std::array::from_fn(|panel| _mm256_add_epi32(minus_pairs, quad.minus_pairs[first][panel].assume_init()))
        });
        // The loop is here, because the compiler would unroll it, and the first cache of instructions does not hold that.
        on_sums!(s,
            "2:",
            step!(0), step!(1), step!(2), step!(3), step!(4), step!(5), step!(6), step!(7),
            "add {codes}, 2048", "add {x}, 64", "dec {groups}", "jnz 2b",;
            codes = inout(reg) quad.codes.as_ptr().add(16 * first) => _, x = inout(reg) &raw const x.codes[0][first] => _,
            groups = inout(reg) groups => _, token = const size_of::<[Halves; GROUPS]>(),
            e0 = out(ymm_reg) _, o0 = out(ymm_reg) _, e1 = out(ymm_reg) _, o1 = out(ymm_reg) _,
            q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, a = out(ymm_reg) _, b = out(ymm_reg) _,
            options(pure, readonly, nostack)
        );
        Sums(s)
    }
}

/// Codes in 16 bits: of columns 0 and 2 mod 4, and of columns 1 and 3.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(codes: Ints) -> Halves {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(codes)), _mm256_srai_epi16::<8>(codes)]
}

/// The group at which the sum that `group` belongs to begins.
fn first_of_sum<F: Format>(group: usize) -> usize {
    if F::FLOAT_SCALES { group } else { 0 }
}

/// `sum` minus the products of neighbours.
#[inline]
#[target_feature(enable = "avx2")]
fn minus_pairs(sum: Ints, [even, odd]: Halves) -> Ints {
    _mm256_sub_epi32(sum, _mm256_madd_epi16(even, odd))
}

/// Puts a token's codes at `x` to their place.
///
/// # Safety
/// `x` must point to a block of activations, and the machine have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen<F: Format>(x: *const u32, groups: usize, out: &mut Widened, token: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut minus = [_mm256_setzero_si256(); GROUPS];
        for group in 0..groups {
            let codes = halves(_mm256_loadu_si256(x.add(8 * group).cast()));
            out.codes[token][group].write(codes);
            let sum = &mut minus[first_of_sum::<F>(group)];
            *sum = minus_pairs(*sum, codes);
        }
        // The sum of each vector's numbers.
        let two = |i: usize| _mm256_hadd_epi32(minus[i], minus[i + 1]);
        let (low, high) = (_mm256_hadd_epi32(two(0), two(2)), _mm256_hadd_epi32(two(4), two(6)));
        let sums = _mm256_add_epi32(
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        );
        _mm256_storeu_si256(out.minus_pairs[token].as_mut_ptr().cast(), sums);
    }
}

/// Unpacks the tile of a panel. Integer scales are multiplied into the codes.
///
/// # Safety
/// As for [`multiply`](super::multiply).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack<F: Format>(tile: *const u8, groups: usize, panel: usize, quad: &mut UnpackedQuad) {
    // SAFETY: the caller's promise.
    unsafe {
        let format = F::new(tile, groups);
        let mut minus = [_mm256_setzero_si256(); GROUPS];
        for group in 0..groups {
            let (at, sum) = (format.group(group), &mut minus[first_of_sum::<F>(group)]);
            for vector in 0..8 {
                let mut codes = halves(format.codes(&at, vector));
                if !F::FLOAT_SCALES {
                    codes = codes.map(|codes| _mm256_mullo_epi16(codes, format.scale(2 * group)));
                }
                *sum = minus_pairs(*sum, codes);
                // Two rows of `codes` for four columns: of panels 0 and 1, and of panels 2 and 3.
                let row = &mut quad.codes[2 * (8 * group + vector) + panel / 2];
                row[2 * (panel % 2)].write(codes[0]);
                row[2 * (panel % 2) + 1].write(codes[1]);
            }
        }
        for (first, &sum) in minus.iter().enumerate().take(first_of_sum::<F>(groups - 1) + 1) {
            quad.minus_pairs[first][panel].write(sum);
            quad.d[first][panel].write(format.d(first));
        }
    }
}

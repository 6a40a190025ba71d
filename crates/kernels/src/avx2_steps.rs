//! The innermost steps of `avx2_integers.rs` in assembly: four columns of some panels times every token.
//!
//! The compiler takes additions of integers for a tree that it may reorder. It multiplies far ahead of the additions, runs out
//! of registers, and moves more sums from and to memory than it adds up.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::activations::WORDS;

/// Bytes from a token's words to the next token's.
const TOKEN: usize = WORDS * 4;
/// Bytes of the words of four columns.
const VECTOR: usize = 4;

/// The words of a tile of activations of `T` tokens.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<const T: usize>(pub(crate) *const u32);

impl<const T: usize> Tokens<T> {
    /// Word `word` of token `token` in all lanes.
    ///
    /// # Safety
    /// The tile must be there, and the machine have AVX2.
    #[inline(always)]
    pub(crate) unsafe fn word(self, word: usize, token: usize) -> __m256i {
        // SAFETY: the tile has the word.
        unsafe { _mm256_set1_epi32(self.0.add(token * WORDS + word).cast::<i32>().read()) }
    }

    /// The same as a float: a scale, or a sum.
    ///
    /// # Safety
    /// As for `word`.
    #[inline(always)]
    pub(crate) unsafe fn float(self, word: usize, token: usize) -> __m256 {
        // SAFETY: the tile has the word.
        unsafe { _mm256_castsi256_ps(self.word(word, token)) }
    }
}

/// Steps for vectors of codes, written out: a compiler that finds a loop too long for that would have to find out while it runs
/// where codes lie.
macro_rules! each_vector {
    ($v:ident in $($vector:literal)+ $step:block) => {
        $({
            const $v: usize = $vector;
            $step
        })+
    };
}
pub(crate) use each_vector;

/// Does `$step::<P, T, V, token>($arguments)` for every token of `T`, up to eight.
macro_rules! every_token {
    ($step:ident $arguments:tt) => {
        every_token!($step $arguments; 0 1 2 3 4 5 6 7)
    };
    ($step:ident $arguments:tt; $($token:literal)*) => {{
        $(if $token < T {
            $step::<P, T, V, $token> $arguments;
        })*
    }};
}

/// Assembly of the lines for `P` panels: the token's word comes to `{x}`, `{m}` is free, and so is `{x}` after the last panel.
macro_rules! on_panels {
    ($line:ident, $q:ident, $s:ident, $x:ident, $direction:ident, $($free:tt)*) => {
        match P {
            1 => asm!(
                "vpbroadcastd {x}, dword ptr [{at} + {token} + {vector}]",
                $line!(0, "{x}"),
                at = in(reg) $x, token = const K * TOKEN, vector = const V * VECTOR,
                x = out(ymm_reg) _,
                q0 = in(ymm_reg) $q[0], s0 = $direction(ymm_reg) $s[0][K],
                options(nostack, preserves_flags, readonly)
            ),
            2 => asm!(
                "vpbroadcastd {x}, dword ptr [{at} + {token} + {vector}]",
                $line!(0, "{m}"), $line!(1, "{x}"),
                at = in(reg) $x, token = const K * TOKEN, vector = const V * VECTOR,
                x = out(ymm_reg) _, $($free)*
                q0 = in(ymm_reg) $q[0], s0 = $direction(ymm_reg) $s[0][K],
                q1 = in(ymm_reg) $q[1], s1 = $direction(ymm_reg) $s[1][K],
                options(nostack, preserves_flags, readonly)
            ),
            4 => asm!(
                "vpbroadcastd {x}, dword ptr [{at} + {token} + {vector}]",
                $line!(0, "{m}"), $line!(1, "{m}"), $line!(2, "{m}"), $line!(3, "{x}"),
                at = in(reg) $x, token = const K * TOKEN, vector = const V * VECTOR,
                x = out(ymm_reg) _, $($free)*
                q0 = in(ymm_reg) $q[0], s0 = $direction(ymm_reg) $s[0][K],
                q1 = in(ymm_reg) $q[1], s1 = $direction(ymm_reg) $s[1][K],
                q2 = in(ymm_reg) $q[2], s2 = $direction(ymm_reg) $s[2][K],
                q3 = in(ymm_reg) $q[3], s3 = $direction(ymm_reg) $s[3][K],
                options(nostack, preserves_flags, readonly)
            ),
            _ => unreachable!("{P} panels side by side"),
        }
    };
}

/// The sum of a panel is its product: sums need not be zero before.
macro_rules! product {
    ($panel:literal, $free:literal) => {
        concat!("vpmaddubsw {s", $panel, "}, {q", $panel, "}, {x}")
    };
}

/// A product is added to the sum of a panel.
macro_rules! add_product {
    ($panel:literal, $free:literal) => {
        concat!("vpmaddubsw ", $free, ", {q", $panel, "}, {x}\nvpaddw {s", $panel, "}, {s", $panel, "}, ", $free)
    };
}

/// `short[panel][token]` += `maddubs(q[panel], x[token])`, in 16 bits, of the columns of vector `V` from `x` on; `=` where that
/// begins the sums.
///
/// # Safety
/// The machine must have AVX2. `x` must point to a word of the first token in a tile of activations of `T` tokens, with `V`
/// others behind it.
#[inline(always)]
pub(crate) unsafe fn add_products<const P: usize, const T: usize, const V: usize>(
    short: &mut [[__m256i; T]; P],
    q: [__m256i; P],
    x: *const u32,
    begins: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { every_token!(add_product(short, q, x, begins)) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_product<const P: usize, const T: usize, const V: usize, const K: usize>(
    s: &mut [[__m256i; T]; P],
    q: [__m256i; P],
    x: *const u32,
    begins: bool,
) {
    // SAFETY: the caller's promise: the assembly reads a word of the token, and nothing else.
    unsafe {
        if begins {
            on_panels!(product, q, s, x, out,)
        } else {
            on_panels!(add_product, q, s, x, inout, m = out(ymm_reg) _,)
        }
    }
}

/// `ints[panel][token]` += `madd(maddubs(|q[panel]|, sign(x[token], q[panel])), scale[panel])`, in 32 bits.
///
/// # Panics
/// If there are more than two panels.
///
/// # Safety
/// As for [`add_products`].
#[inline(always)]
pub(crate) unsafe fn add_signed_products<const P: usize, const T: usize, const V: usize>(
    ints: &mut [[__m256i; T]; P],
    q: [__m256i; P],
    scales: [__m256i; P],
    x: *const u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut magnitudes = q;
        for magnitude in &mut magnitudes {
            *magnitude = _mm256_abs_epi8(*magnitude);
        }
        every_token!(add_signed_product(ints, [q, magnitudes, scales], x));
    }
}

/// A signed product is added to the sum of a panel.
macro_rules! add_signed {
    ($panel:literal, $free:literal) => {
        concat!(
            "vpsignb ",
            $free,
            ", {x}, {q",
            $panel,
            "}\nvpmaddubsw ",
            $free,
            ", {a",
            $panel,
            "}, ",
            $free,
            "\nvpmaddwd ",
            $free,
            ", ",
            $free,
            ", {c",
            $panel,
            "}\nvpaddd {s",
            $panel,
            "}, {s",
            $panel,
            "}, ",
            $free
        )
    };
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_signed_product<const P: usize, const T: usize, const V: usize, const K: usize>(
    s: &mut [[__m256i; T]; P],
    [q, a, c]: [[__m256i; P]; 3],
    x: *const u32,
) {
    // SAFETY: as above.
    unsafe {
        match P {
            1 => asm!(
                "vpbroadcastd {x}, dword ptr [{at} + {token} + {vector}]",
                add_signed!(0, "{x}"),
                at = in(reg) x, token = const K * TOKEN, vector = const V * VECTOR, x = out(ymm_reg) _,
                q0 = in(ymm_reg) q[0], a0 = in(ymm_reg) a[0], c0 = in(ymm_reg) c[0], s0 = inout(ymm_reg) s[0][K],
                options(nostack, preserves_flags, readonly)
            ),
            2 => asm!(
                "vpbroadcastd {x}, dword ptr [{at} + {token} + {vector}]",
                add_signed!(0, "{m}"), add_signed!(1, "{x}"),
                at = in(reg) x, token = const K * TOKEN, vector = const V * VECTOR,
                x = out(ymm_reg) _, m = out(ymm_reg) _,
                q0 = in(ymm_reg) q[0], a0 = in(ymm_reg) a[0], c0 = in(ymm_reg) c[0], s0 = inout(ymm_reg) s[0][K],
                q1 = in(ymm_reg) q[1], a1 = in(ymm_reg) a[1], c1 = in(ymm_reg) c[1], s1 = inout(ymm_reg) s[1][K],
                options(nostack, preserves_flags, readonly)
            ),
            _ => unreachable!("{P} panels side by side"),
        }
    }
}

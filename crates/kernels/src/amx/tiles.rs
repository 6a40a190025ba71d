//! Integer scales: tile products of the low and the high planes over all 256 columns, and one float end for them.

use std::arch::asm;
use std::arch::x86_64::*;

use super::expand::{Plane, Planes, expand};
use super::{Block, PAIR_ROWS, Scratch, TOKENS, TileProduct};
use crate::activations::{WORDS, section};
use crate::avx2_integers::{WideFormat, minimum_pairs};
use crate::packed_layout::{GROUP, TILE};
use crate::quads::{Pair, QuadWork};

/// Integer scales: low and high products of both pairs, a sum for each over all columns.
#[inline(always)]
pub(super) unsafe fn by_tiles<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    // SAFETY: the caller's promise, see `multiply`; blocks of weights with integer scales fill a tile.
    unsafe {
        let pairs = [work.pair::<F>(0), work.pair::<F>(1)];
        let ends = [TileEnd::of(&pairs[0]), TileEnd::of(&pairs[1])];
        let Scratch { low, high, products } = scratch;
        let (mut now, mut then) = products.split_at_mut(8);
        let mut block = work.block(0);
        // Weights are unpacked a step before they are multiplied: they have reached the cache then.
        macro_rules! unpack {
            ($step:literal) => {
                for (pair, weights) in pairs.iter().enumerate() {
                    work.prefetch::<F>(pair, 2 * $step);
                    work.prefetch::<F>(pair, 2 * $step + 1);
                    expand::<F, { 2 * $step }, 2>(weights, &mut low[pair], &mut high[pair]);
                }
            };
        }
        unpack!(0);
        unpack!(1);
        add_products::<F>(0, block.x, low, high);
        unpack!(2);
        add_products::<F>(1, block.x, low, high);
        unpack!(3);
        add_products::<F>(2, block.x, low, high);
        add_products::<F>(3, block.x, low, high);
        store_products(now);
        let last = (work.tokens - 1) / TOKENS;
        for index in 1..=last {
            let before = std::mem::replace(&mut block, work.block(index));
            std::mem::swap(&mut now, &mut then);
            // Written out, so that nothing but these instructions stands between the products.
            macro_rules! step {
                ($step:literal: $($token:literal)*) => {
                    add_products::<F>($step, block.x, low, high);
                    $( end_tile::<F>(before, $token, &ends, then); )*
                };
            }
            step!(0: 0 1 2 3);
            step!(1: 4 5 6 7);
            step!(2: 8 9 10 11);
            step!(3: 12 13 14 15);
            store_products(now);
        }
        for token in 0..work.tokens - last * TOKENS {
            end_tile::<F>(block, token, &ends, now);
        }
    }
}

/// Adds the products of columns `64 step ..+ 64` to tile registers 0 to 3: sixteen tokens times the low and the high plane of
/// both pairs. Step 0 begins at zero. The compiler uses no tile registers, so they keep what they hold between calls.
#[inline(always)]
unsafe fn add_products<F: WideFormat>(step: usize, x: *const [u32; WORDS], low: &[Plane; 2], high: &[Plane; 2]) {
    /// `$high_product` takes the high plane: with or without sign.
    macro_rules! products {
        ($high_product:literal) => {
            asm!(
                "tileloadd tmm4, [{x} + {x_stride}]",
                "tileloadd tmm6, [{low} + {stride}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {stride}]",
                concat!($high_product, " tmm1, tmm4, tmm7"),
                "tileloadd tmm6, [{low} + {stride} + {pair}]",
                "tdpbsud tmm2, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {stride} + {pair}]",
                concat!($high_product, " tmm3, tmm4, tmm7"),
                x = in(reg) x.cast::<u8>().add(64 * step),
                low = in(reg) low.as_ptr().cast::<u8>().add(1024 * step),
                high = in(reg) high.as_ptr().cast::<u8>().add(1024 * step),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                pair = const PAIR_ROWS * TILE,
                options(nostack, readonly),
            )
        };
    }
    // SAFETY: the planes have four tiles, the tokens' blocks four times 64 columns; the tile registers are set up for it.
    unsafe {
        if step == 0 {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        match const { Planes::of::<F>() } {
            Planes::Codes | Planes::Products => asm!(
                "tileloadd tmm4, [{x} + {x_stride}]",
                "tileloadd tmm6, [{low} + {stride}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{low} + {stride} + {pair}]",
                "tdpbsud tmm2, tmm4, tmm7",
                x = in(reg) x.cast::<u8>().add(64 * step),
                low = in(reg) low.as_ptr().cast::<u8>().add(1024 * step),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                pair = const PAIR_ROWS * TILE,
                options(nostack, readonly),
            ),
            Planes::Halves => products!("tdpbsud"),
            Planes::Bytes => products!("tdpbssd"),
        }
    }
}

/// Writes tile registers 0 to 3 to `out` 0 to 3.
#[inline(always)]
unsafe fn store_products(out: &mut [TileProduct]) {
    // SAFETY: there is room for four.
    unsafe {
        asm!(
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 1024], tmm1",
            "tilestored [{out} + {stride} + 2048], tmm2",
            "tilestored [{out} + {stride} + 3072], tmm3",
            out = in(reg) out[..4].as_mut_ptr(),
            stride = in(reg) 64usize,
            options(nostack),
        );
    }
}

/// What the float end of integer scales needs of the weights of a pair.
struct TileEnd {
    d: __m512,
    dmin: __m512,
    minimums: [__m512i; TILE / GROUP],
}

impl TileEnd {
    #[inline(always)]
    unsafe fn of<F: WideFormat>(pair: &Pair<F>) -> TileEnd {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe {
            let (zeros, mut minimums) = (_mm512_setzero_ps(), [_mm512_setzero_si512(); TILE / GROUP]);
            if F::MINIMUM_COLUMNS > 0 {
                for (p, minimums) in minimums.iter_mut().enumerate().take(minimum_pairs::<F>(TILE / GROUP)) {
                    *minimums = pair.minimums(p);
                }
            }
            TileEnd { d: pair.d(0), dmin: if F::MINIMUM_COLUMNS > 0 { pair.dmin(0) } else { zeros }, minimums }
        }
    }
}

/// The float end of integer scales, for a token and both pairs.
#[inline(always)]
unsafe fn end_tile<F: WideFormat>(block: Block, token: usize, ends: &[TileEnd; 2], products: &[TileProduct]) {
    let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let x = (*block.x.add(token)).as_ptr().cast::<i32>();
        let x_scale = _mm512_set1_ps(x.add(section::SCALE).cast::<f32>().read());
        let mut minimum = [_mm512_setzero_si512(); 2];
        if F::MINIMUM_COLUMNS > 0 {
            for p in 0..minimum_pairs::<F>(TILE / GROUP) {
                let pair_of_sums = _mm512_set1_epi32(x.add(first_word + p).read());
                for (sum, end) in minimum.iter_mut().zip(ends) {
                    *sum = _mm512_dpwssd_epi32(*sum, end.minimums[p], pair_of_sums);
                }
            }
        }
        for (pair, end) in ends.iter().enumerate() {
            let at = block.sums.add(token).cast::<f32>().add(pair * PAIR_ROWS);
            let low = _mm512_load_si512(products[2 * pair][token].as_ptr().cast());
            let high = products[2 * pair + 1][token].as_ptr().cast();
            let sum = match const { Planes::of::<F>() } {
                Planes::Codes | Planes::Products => low,
                Planes::Halves => _mm512_add_epi32(low, _mm512_slli_epi32::<2>(_mm512_load_si512(high))),
                Planes::Bytes => _mm512_add_epi32(low, _mm512_slli_epi32::<8>(_mm512_load_si512(high))),
            };
            let d = _mm512_mul_ps(end.d, x_scale);
            let mut y = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(block.goes_on, at));
            if F::MINIMUM_COLUMNS > 0 {
                y = _mm512_fmadd_ps(_mm512_mul_ps(end.dmin, x_scale), _mm512_cvtepi32_ps(minimum[pair]), y);
            }
            _mm512_storeu_ps(at, y);
        }
    }
}

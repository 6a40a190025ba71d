//! Float scales: a tile product for each group of 32 columns, and a float end for each.

use std::arch::asm;
use std::arch::x86_64::*;

use super::expand::expand;
use super::{Block, PAIR_ROWS, Scratch, TOKENS, TileProduct};
use crate::activations::{WORDS, section};
use crate::avx2_integers::WideFormat;
use crate::packed_layout::{GROUP, TILE};
use crate::quads::{Pair, QuadWork};

/// A step of `group_products`: tile `$sum` = sixteen tokens (tile `$at`) times group `$group` (tile `$plane`). Tile `$before` holds
/// the product of the group before.
macro_rules! group_step {
    (
        $group:tt,
        $sum:literal,
        $at:literal,
        $plane:literal,
        $before:literal,
        ($groups:expr, $x:expr, $codes:expr, $out:expr, $begin:ident, $end:ident)
    ) => {
        $begin!($group);
        if $group < $groups {
            asm!(
                concat!("tilezero ", $sum),
                concat!("tileloadd ", $at, ", [{x} + {x_stride}]"),
                concat!("tileloadd ", $plane, ", [{codes} + {stride}]"),
                concat!("tdpbssd ", $sum, ", ", $at, ", ", $plane),
                x = in(reg) $x.cast::<u8>().add(GROUP * $group),
                codes = in(reg) $codes.as_ptr().add(PAIR_ROWS * GROUP * $group),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                options(nostack, readonly),
            );
        }
        if (1..=$groups).contains(&$group) {
            store_group_product!($before, $out.as_mut_ptr().add($group).sub(1));
        }
        $end!($group);
    };
}

macro_rules! store_group_product {
    ($sum:literal, $to:expr) => {
        asm!(
            concat!("tilestored [{out} + {stride}], ", $sum),
            out = in(reg) $to,
            stride = in(reg) 64usize,
            options(nostack),
        )
    };
}

macro_rules! nothing {
    ($group:tt) => {};
}

/// `$out` = sixteen tokens at `$x` times each of `$groups` groups of 32 columns, at most eight, of a plane of signed codes. `$begin`
/// stands before the product of its group, `$end` behind it, both for all eight. A product is stored behind the next one, when
/// it is done: the processor would wait for it.
macro_rules! group_products {
    ($groups:expr, $x:expr, $codes:expr, $out:expr, $begin:ident, $end:ident) => {
        group_step!(0, "tmm0", "tmm4", "tmm6", "tmm3", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(1, "tmm1", "tmm5", "tmm7", "tmm0", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(2, "tmm2", "tmm4", "tmm6", "tmm1", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(3, "tmm3", "tmm5", "tmm7", "tmm2", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(4, "tmm0", "tmm4", "tmm6", "tmm3", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(5, "tmm1", "tmm5", "tmm7", "tmm0", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(6, "tmm2", "tmm4", "tmm6", "tmm1", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(7, "tmm3", "tmm5", "tmm7", "tmm2", ($groups, $x, $codes, $out, $begin, $end));
        if $groups == TILE / GROUP {
            store_group_product!("tmm3", $out.as_mut_ptr().add(TILE / GROUP - 1));
        }
    };
}

/// Float scales: a product for each group of 32 columns, one pair after the other.
#[inline(always)]
pub(super) unsafe fn by_groups<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    const GROUPS: usize = TILE / GROUP;
    let groups = work.cols / GROUP;
    let Scratch { low: [codes, _], high: [unused, _], products } = scratch;
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        for pair in 0..2 {
            let weights = work.pair::<F>(pair);
            let (mut now, mut then) = products.split_at_mut(GROUPS);
            let mut block = work.block(0);
            // Weights are unpacked some groups before they are multiplied: they have reached the cache then.
            macro_rules! unpack {
                ($first:literal) => {
                    work.prefetch::<F>(pair, $first);
                    work.prefetch::<F>(pair, $first + 1);
                    if $first + 1 < groups {
                        expand::<F, $first, 2>(&weights, codes, unused);
                    } else if $first < groups {
                        expand::<F, $first, 1>(&weights, codes, unused);
                    }
                };
            }
            macro_rules! unpack_ahead {
                (0) => {
                    unpack!(2)
                };
                (2) => {
                    unpack!(4)
                };
                (4) => {
                    unpack!(6)
                };
                ($group:tt) => {};
            }
            unpack!(0);
            group_products!(groups, block.x, codes, now, unpack_ahead, nothing);
            // In registers, through all blocks.
            let scales = GroupEnd::of(&weights, groups);
            let last = (work.tokens - 1) / TOKENS;
            for index in 1..=last {
                let before = std::mem::replace(&mut block, work.block(index));
                std::mem::swap(&mut now, &mut then);
                macro_rules! end {
                    ($group:literal) => {
                        end_groups::<F>(groups, before, [2 * $group, 2 * $group + 1], pair, &scales, then)
                    };
                }
                group_products!(groups, block.x, codes, now, nothing, end);
            }
            let left = work.tokens - last * TOKENS;
            for token in (0..left).step_by(2) {
                end_groups::<F>(groups, block, [token, (token + 1).min(left - 1)], pair, &scales, now);
            }
        }
    }
}

/// What the float end of float scales needs of the weights of a pair.
struct GroupEnd {
    d: [__m512; TILE / GROUP],
    dmin: [__m512; TILE / GROUP],
}

impl GroupEnd {
    #[inline(always)]
    unsafe fn of<F: WideFormat>(pair: &Pair<F>, groups: usize) -> GroupEnd {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe {
            let mut end = GroupEnd { d: [_mm512_setzero_ps(); 8], dmin: [_mm512_setzero_ps(); 8] };
            for group in 0..groups {
                end.d[group] = pair.d(group);
                if F::MINIMUM_COLUMNS > 0 {
                    end.dmin[group] = pair.dmin(group);
                }
            }
            end
        }
    }
}

/// The float end of float scales, for a pair and two tokens, which may be the same.
#[inline(always)]
unsafe fn end_groups<F: WideFormat>(
    groups: usize,
    block: Block,
    tokens: [usize; 2],
    pair: usize,
    GroupEnd { d, dmin }: &GroupEnd,
    products: &[TileProduct],
) {
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let at = |t: usize| block.sums.add(tokens[t]).cast::<f32>().add(pair * PAIR_ROWS);
        let mut y = [_mm512_maskz_loadu_ps(block.goes_on, at(0)), _mm512_maskz_loadu_ps(block.goes_on, at(1))];
        // A macro, since a closure is called rather than inlined, and its scales stay in registers only if it is written out.
        macro_rules! add {
            ($($group:expr),*) => { $(
                for (t, y) in y.iter_mut().enumerate() {
                    let x = (*block.x.add(tokens[t])).as_ptr().cast::<f32>();
                    let sum = _mm512_load_si512(products[$group][tokens[t]].as_ptr().cast());
                    let x_scale = _mm512_set1_ps(x.add(section::GROUP_SCALES + $group).read());
                    *y = _mm512_fmadd_ps(_mm512_mul_ps(d[$group], x_scale), _mm512_cvtepi32_ps(sum), *y);
                    if F::MINIMUM_COLUMNS > 0 {
                        let x_sum = _mm512_set1_ps(x.add(section::GROUP_SUMS + $group).read());
                        *y = _mm512_fmadd_ps(dmin[$group], x_sum, *y);
                    }
                }
            )* };
        }
        if groups == TILE / GROUP {
            add!(0, 1, 2, 3, 4, 5, 6, 7);
        } else {
            for group in 0..groups {
                add!(group);
            }
        }
        _mm512_storeu_ps(at(0), y[0]);
        _mm512_storeu_ps(at(1), y[1]);
    }
}

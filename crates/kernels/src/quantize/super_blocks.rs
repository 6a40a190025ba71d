//! The search for all that a block of 256 weights stores.
//!
//! Its groups of 16 or 32 have a scale and perhaps a minimum, which are small integers in steps of the block's float16 `d`
//! and `dmin`: `x = d * scale * q - dmin * minimum`. We fit every group by itself, choose the steps, and try for each group
//! the neighbouring integers too. With codes and integers fixed, `d` and `dmin` solve a linear equation; from those we begin
//! anew, and keep the best.

use half::f16;

use super::codes::{Codes, Integers};
use super::f16_within;
use super::fit::{self, Fan, Minimum};
use super::groups::{Groups, choose, inverse, negative};
use super::weighting::Weighted;
use crate::lanes::{LANES, Lanes};

/// How often the integers and `d`, `dmin` are found anew from each other.
const PASSES: usize = 3;

/// A type whose groups have a minimum; its codes begin at 0.
pub(super) struct Affine {
    /// Highest code.
    pub(super) highest: f32,
    /// Highest integer of a group's scale or minimum.
    pub(super) highest_step: f32,
    /// Shares of a group's range by which its ends may move inwards.
    pub(super) ends: Fan,
}

/// A type without minimums.
pub(super) struct Symmetric<C> {
    pub(super) codes: C,
    /// What the extreme weight of a group may be, in steps of its scale.
    pub(super) fan: [Fan; 2],
    /// Integers that a group's scale can be.
    pub(super) steps: Integers,
}

/// What a block stores: integers in two's complement, and as many scales and minimums as it has groups.
pub(super) struct Block {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; 16],
    pub(super) minimums: [u8; 16],
    pub(super) codes: [u8; 256],
}

/// Fits `HALVES` times eight groups of `N` weights with scales and minimums.
#[inline(always)]
pub(super) fn with_minimums<V: Lanes, const N: usize, const HALVES: usize>(chunk: &Weighted, kind: Affine) -> Block {
    let halves = read::<V, N, HALVES>(chunk);
    let mut wanted = [zeros(); HALVES];
    let mut start = Pair { scale: 0.0f32, minimum: 0.0f32 };
    for (groups, wanted) in halves.iter().zip(&mut wanted) {
        let found = fit::affine(groups, kind.highest, Minimum::NotNegative, kind.ends);
        *wanted = Pair { scale: found.scale, minimum: found.minimum };
        start.scale = start.scale.max(found.scale.largest() / kind.highest_step);
        start.minimum = start.minimum.max(found.minimum.largest() / kind.highest_step);
    }
    let steps = Integers(0.0, kind.highest_step);
    let search = Search { halves, wanted, codes: Integers(0.0, kind.highest), scales: steps, minimums: steps };
    search.run(start, &[0.0, -1.0, 1.0])
}

/// Fits `HALVES` times eight groups of `N` weights with scales alone.
#[inline(always)]
pub(super) fn with_scales<V: Lanes, C: Codes, const N: usize, const HALVES: usize>(
    chunk: &Weighted,
    kind: Symmetric<C>,
) -> Block {
    let halves = read::<V, N, HALVES>(chunk);
    let mut wanted = [zeros(); HALVES];
    let mut extreme = 0.0f32;
    for (groups, wanted) in halves.iter().zip(&mut wanted) {
        wanted.scale = fit::scales(groups, kind.codes, &kind.fan).scale;
        for scale in wanted.scale.to_array() {
            extreme = if scale.abs() > extreme.abs() { scale } else { extreme };
        }
    }
    let start = Pair { scale: extreme / kind.steps.0, minimum: 0.0 };
    let minimums = Integers(0.0, 0.0);
    let search = Search { halves, wanted, codes: kind.codes, scales: kind.steps, minimums };
    search.run(start, &[0.0])
}

/// Reads a block as `HALVES` times eight groups of `N`.
#[inline(always)]
fn read<V: Lanes, const N: usize, const HALVES: usize>(chunk: &Weighted) -> [Groups<V, N>; HALVES] {
    let mut halves = [Groups { x: [V::splat(0.0); N], counts: [V::splat(0.0); N] }; HALVES];
    for (h, groups) in halves.iter_mut().enumerate() {
        *groups = Groups::read(chunk, h);
    }
    halves
}

/// Something of scales, and the same of minimums.
#[derive(Clone, Copy, Default)]
struct Pair<T> {
    scale: T,
    minimum: T,
}

#[inline(always)]
fn zeros<V: Lanes>() -> Pair<V> {
    Pair { scale: V::splat(0.0), minimum: V::splat(0.0) }
}

struct Search<V, C, const N: usize, const HALVES: usize> {
    halves: [Groups<V, N>; HALVES],
    /// What fits each group best by itself.
    wanted: [Pair<V>; HALVES],
    codes: C,
    /// Integers that a group's scale can be.
    scales: Integers,
    /// Integers that a group's minimum can be.
    minimums: Integers,
}

impl<V: Lanes, C: Codes, const N: usize, const HALVES: usize> Search<V, C, N, HALVES> {
    /// Starts from the unit of scales and minimums `start`; a group's minimum may move by `minimum_moves` from the nearest.
    #[inline(always)]
    fn run(&self, start: Pair<f32>, minimum_moves: &[f32]) -> Block {
        let (mut least, mut best) = (f32::INFINITY, (Pair::default(), [zeros(); HALVES]));
        let mut unit = start;
        for _ in 0..PASSES {
            let stored = Pair { scale: f16_within(unit.scale), minimum: f16_within(unit.minimum) };
            unit = Pair { scale: stored.scale.to_f32(), minimum: stored.minimum.to_f32() };
            let (mut error, mut steps, mut equations) = (0.0, [zeros(); HALVES], Equations::default());
            for (h, steps) in steps.iter_mut().enumerate() {
                let left;
                (*steps, left) = self.best_steps(h, unit, minimum_moves);
                error += left.sum();
                self.add_equations(h, unit, *steps, &mut equations);
            }
            if error < least {
                (least, best) = (error, (stored, steps));
            }
            unit = equations.solve(unit);
        }
        self.finish(best.0, best.1)
    }

    /// The integers near those wanted that leave the least error, and that error.
    #[inline(always)]
    fn best_steps(&self, h: usize, unit: Pair<f32>, minimum_moves: &[f32]) -> (Pair<V>, V) {
        let wanted = &self.wanted[h];
        let nearest = Pair {
            scale: wanted.scale.mul(inverse(V::splat(unit.scale))),
            minimum: wanted.minimum.mul(inverse(V::splat(unit.minimum))),
        };
        let mut best = zeros();
        let mut least = V::splat(f32::MAX);
        for scale_move in [0.0, -1.0, 1.0] {
            let scale = self.scales.nearest(nearest.scale.add(V::splat(scale_move)));
            for minimum_move in minimum_moves {
                let minimum = self.minimums.nearest(nearest.minimum.add(V::splat(*minimum_move)));
                let error = self.error(h, unit, Pair { scale, minimum });
                let gain = least.sub(error);
                best.scale = choose(best.scale, scale, gain);
                best.minimum = choose(best.minimum, minimum, gain);
                least = least.min(error);
            }
        }
        (best, least)
    }

    #[inline(always)]
    fn error(&self, h: usize, unit: Pair<f32>, steps: Pair<V>) -> V {
        let scale = V::splat(unit.scale).mul(steps.scale);
        let minimum = V::splat(unit.minimum).mul(steps.minimum);
        let (per_step, minus_scale) = (inverse(scale), negative(scale));
        let mut error = V::splat(0.0);
        for (x, w) in self.halves[h].x.iter().zip(&self.halves[h].counts) {
            let above = x.add(minimum);
            let r = minus_scale.fma(self.codes.nearest(above.mul(per_step)), above);
            error = w.mul(r).fma(r, error);
        }
        error
    }

    /// Adds what a half says about `d` and `dmin`, its codes and integers fixed.
    #[inline(always)]
    fn add_equations(&self, h: usize, unit: Pair<f32>, steps: Pair<V>, equations: &mut Equations) {
        let minimum = V::splat(unit.minimum).mul(steps.minimum);
        let per_step = inverse(V::splat(unit.scale).mul(steps.scale));
        let [mut n, mut q1, mut q2, mut x1, mut xq] = [V::splat(0.0); 5];
        for (x, w) in self.halves[h].x.iter().zip(&self.halves[h].counts) {
            let q = self.codes.nearest(x.add(minimum).mul(per_step));
            let wq = w.mul(q);
            n = n.add(*w);
            q1 = q1.add(wq);
            q2 = wq.fma(q, q2);
            x1 = w.fma(*x, x1);
            xq = wq.fma(*x, xq);
        }
        equations.ss += steps.scale.mul(steps.scale).mul(q2).sum();
        equations.sm -= steps.scale.mul(steps.minimum).mul(q1).sum();
        equations.mm += steps.minimum.mul(steps.minimum).mul(n).sum();
        equations.sx += steps.scale.mul(xq).sum();
        equations.mx -= steps.minimum.mul(x1).sum();
    }

    /// The codes for these scales.
    #[inline(always)]
    fn finish(&self, stored: Pair<f16>, steps: [Pair<V>; HALVES]) -> Block {
        let (d, dmin) = (stored.scale, stored.minimum);
        let mut block = Block { d, dmin, scales: [0; 16], minimums: [0; 16], codes: [0; 256] };
        for (h, (half, steps)) in self.halves.iter().zip(steps).enumerate() {
            let minimum = V::splat(dmin.to_f32()).mul(steps.minimum);
            let per_step = inverse(V::splat(d.to_f32()).mul(steps.scale));
            for (i, x) in half.x.iter().enumerate() {
                let levels = self.codes.nearest(x.add(minimum).mul(per_step)).to_array();
                for (j, level) in levels.into_iter().enumerate() {
                    block.codes[(h * LANES + j) * N + i] = self.codes.code(level);
                }
            }
            for j in 0..LANES {
                block.scales[h * LANES + j] = self.scales.code(steps.scale.to_array()[j]);
                block.minimums[h * LANES + j] = self.minimums.code(steps.minimum.to_array()[j]);
            }
        }
        block
    }
}

/// The normal equations of `x = d * (scale * q) - dmin * minimum`, summed over a block.
#[derive(Default)]
struct Equations {
    ss: f32,
    sm: f32,
    mm: f32,
    sx: f32,
    mx: f32,
}

impl Equations {
    /// The best `d` and `dmin`; `old` where the equations do not determine them.
    #[inline(always)]
    fn solve(&self, old: Pair<f32>) -> Pair<f32> {
        let determinant = self.ss * self.mm - self.sm * self.sm;
        if self.mm == 0.0 {
            return if self.ss > 0.0 { Pair { scale: self.sx / self.ss, minimum: 0.0 } } else { old };
        }
        if determinant <= 1e-6 * self.ss * self.mm {
            return old;
        }
        let scale = (self.mm * self.sx - self.sm * self.mx) / determinant;
        let minimum = (self.ss * self.mx - self.sm * self.sx) / determinant;
        Pair { scale, minimum: minimum.max(0.0) }
    }
}

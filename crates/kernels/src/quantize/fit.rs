//! The search for the scale (and minimum) with which small integers come closest to a group of weights.
//!
//! The error of a group is `sum w (x - decoded)^2`, where `w` says how much each weight counts. For fixed integers the best scale solves a linear equation;
//! for a fixed scale the best integers are the nearest. So: try a fan of scales around the one that just fits the largest
//! weight, solve for the best scale of each, keep the best, and go on alternating from there.

use super::codes::Codes;
use super::groups::{Groups, choose, clamp, inverse, negative};
use crate::lanes::Lanes;

/// How often codes and scale are found anew from each other, after the fan.
const ALTERNATIONS: usize = 2;

/// Numbers worth trying: from `.0` to `.1`, `.2` of them at even distances.
#[derive(Clone, Copy)]
pub(super) struct Fan(pub(super) f32, pub(super) f32, pub(super) usize);

impl Fan {
    #[inline(always)]
    fn values(self) -> impl Iterator<Item = f32> {
        let step = (self.1 - self.0) / (self.2 - 1) as f32;
        (0..self.2).map(move |i| self.0 + step * i as f32)
    }
}

/// Scales and the error that they leave, group by group.
#[derive(Clone, Copy)]
pub(super) struct Scales<V> {
    pub(super) scale: V,
    error: V,
}

impl<V: Lanes> Scales<V> {
    #[inline(always)]
    fn keep_better(&mut self, other: Scales<V>) {
        let gain = self.error.sub(other.error);
        self.scale = choose(self.scale, other.scale, gain);
        self.error = self.error.min(other.error);
    }
}

/// The scales that fit best without a minimum. `fan`: what the extreme weight of a group may be, in steps of its scale.
#[inline(always)]
pub(super) fn scales<V: Lanes, const N: usize>(groups: &Groups<V, N>, codes: impl Codes, fan: &[Fan]) -> Scales<V> {
    let per_extreme = inverse(groups.extreme());
    let mut best = Scales { scale: V::splat(0.0), error: V::splat(f32::MAX) };
    let steps = fan.iter().flat_map(|fan| fan.values()).map(Some);
    for steps in steps.chain([None; ALTERNATIONS]) {
        let per_step = match steps {
            Some(steps) => V::splat(steps).mul(per_extreme),
            None => inverse(best.scale),
        };
        best.keep_better(solve_scale(groups, codes, per_step));
    }
    best
}

/// The best scale for the codes that are nearest under the scale `1 / per_step`.
///
/// Works on what that scale leaves over, `r = x - q / per_step`: `sum w r q / sum w q^2` corrects the scale, and nothing
/// cancels.
#[inline(always)]
fn solve_scale<V: Lanes, const N: usize>(groups: &Groups<V, N>, codes: impl Codes, per_step: V) -> Scales<V> {
    let minus_start = negative(inverse(per_step));
    let [mut rr, mut rq, mut qq] = [V::splat(0.0); 3];
    for (x, w) in groups.x.iter().zip(&groups.counts) {
        let q = codes.nearest(x.mul(per_step));
        let r = minus_start.fma(q, *x);
        let (wr, wq) = (w.mul(r), w.mul(q));
        rr = wr.fma(r, rr);
        rq = wr.fma(q, rq);
        qq = wq.fma(q, qq);
    }
    let correction = rq.mul(inverse(qq));
    Scales { scale: correction.sub(minus_start), error: rr.sub(correction.mul(rq)) }
}

/// Scales and what is subtracted, `x = scale * q - minimum`, and the error that they leave, group by group.
#[derive(Clone, Copy)]
pub(super) struct Affine<V> {
    pub(super) scale: V,
    pub(super) minimum: V,
    error: V,
}

impl<V: Lanes> Affine<V> {
    #[inline(always)]
    fn keep_better(&mut self, other: Affine<V>) {
        let gain = self.error.sub(other.error);
        self.scale = choose(self.scale, other.scale, gain);
        self.minimum = choose(self.minimum, other.minimum, gain);
        self.error = self.error.min(other.error);
    }
}

/// Which minimums a format can store.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Minimum {
    /// Any number.
    Free,
    /// Only what moves the codes down: 0 must be in reach of every group.
    NotNegative,
}

/// The scales and minimums that fit best with the integers from 0 to `highest`.
///
/// `ends`: shares of a group's range by which its ends may move inwards.
#[inline(always)]
pub(super) fn affine<V: Lanes, const N: usize>(
    groups: &Groups<V, N>,
    highest: f32,
    kind: Minimum,
    ends: Fan,
) -> Affine<V> {
    let (mut low, high) = groups.range();
    if kind == Minimum::NotNegative {
        low = low.min(V::splat(0.0));
    }
    let range = high.sub(low);
    let mut best = Affine { scale: V::splat(0.0), minimum: V::splat(0.0), error: V::splat(f32::MAX) };
    let moves = ends.values().flat_map(|up| ends.values().map(move |down| Some((up, down))));
    for moves in moves.chain([None; ALTERNATIONS]) {
        let (low, scale) = match moves {
            Some((up, down)) => (V::splat(up).fma(range, low), range.mul(V::splat((1.0 - up - down) / highest))),
            None => (negative(best.minimum), best.scale),
        };
        best.keep_better(solve_affine(groups, highest, kind, low, inverse(scale)));
    }
    best
}

/// The best scale and minimum for the codes that are nearest under `low + q / per_step`; like [`solve_scale`].
#[inline(always)]
fn solve_affine<V: Lanes, const N: usize>(
    groups: &Groups<V, N>,
    highest: f32,
    kind: Minimum,
    low: V,
    per_step: V,
) -> Affine<V> {
    let start = inverse(per_step);
    let minus_start = negative(start);
    let [mut n, mut q1, mut q2, mut r1, mut rq, mut r2] = [V::splat(0.0); 6];
    for (x, w) in groups.x.iter().zip(&groups.counts) {
        let above = x.sub(low);
        let q = V::from_int(clamp(above.mul(per_step), 0.0, highest).round());
        let r = minus_start.fma(q, above);
        let (wq, wr) = (w.mul(q), w.mul(r));
        n = n.add(*w);
        q1 = q1.add(wq);
        q2 = wq.fma(q, q2);
        r1 = r1.add(wr);
        rq = wr.fma(q, rq);
        r2 = wr.fma(r, r2);
    }
    let determinant = n.mul(q2).sub(q1.mul(q1));
    let mut shift = q2.mul(r1).sub(q1.mul(rq)).mul(inverse(determinant));
    if kind == Minimum::NotNegative {
        shift = shift.min(negative(low));
    }
    let slope = rq.sub(shift.mul(q1)).mul(inverse(q2));
    // sum w (r - shift - slope q)^2, multiplied out.
    let linear = shift.mul(r1).add(slope.mul(rq)).sub(shift.mul(slope).mul(q1));
    let square = shift.mul(shift).mul(n).add(slope.mul(slope).mul(q2));
    let error = r2.add(square).sub(linear.add(linear));
    let scale = start.add(slope).max(V::splat(0.0));
    Affine { scale, minimum: negative(low.add(shift)), error }
}

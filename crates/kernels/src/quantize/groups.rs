//! Eight groups of weights side by side, so that one machine instruction does the same step for all of them.
//!
//! A search for the best scale of a group is a chain of small sums; eight independent chains fill a vector register.

use super::weighting::Weighted;
use crate::lanes::{LANES, Lanes};

/// Eight groups of `N` weights that share a scale each, and how much an error of each weight matters.
#[derive(Clone, Copy)]
pub(super) struct Groups<V, const N: usize> {
    /// Weight `i` of group `j` is in lane `j` of `x[i]`.
    pub(super) x: [V; N],
    /// How much an error of that weight counts: around 1, never 0.
    pub(super) counts: [V; N],
}

impl<V: Lanes, const N: usize> Groups<V, N> {
    /// Reads the `part`-th eight groups of a chunk.
    #[inline(always)]
    pub(super) fn read(chunk: &Weighted, part: usize) -> Groups<V, N> {
        let range = part * LANES * N..(part + 1) * LANES * N;
        Groups { x: side_by_side(&chunk.x[range.clone()]), counts: side_by_side(&chunk.counts[range]) }
    }

    /// The weight of largest magnitude of each group, with its sign.
    #[inline(always)]
    pub(super) fn extreme(&self) -> V {
        let mut out = V::splat(0.0);
        for x in self.x {
            out = choose(out, x, magnitude(x).sub(magnitude(out)));
        }
        out
    }

    /// The smallest and the largest weight of each group.
    #[inline(always)]
    pub(super) fn range(&self) -> (V, V) {
        self.x.iter().fold((self.x[0], self.x[0]), |(low, high), x| (x.min(low), x.max(high)))
    }
}

#[inline(always)]
fn side_by_side<V: Lanes, const N: usize>(from: &[f32]) -> [V; N] {
    let mut columns = [[0.0; LANES]; N];
    for (j, group) in from.chunks_exact(N).enumerate() {
        for (x, column) in group.iter().zip(columns.iter_mut()) {
            column[j] = *x;
        }
    }
    let mut out = [V::splat(0.0); N];
    for (x, column) in out.iter_mut().zip(columns) {
        *x = from_array(column);
    }
    out
}

#[inline(always)]
pub(super) fn from_array<V: Lanes>(array: [f32; LANES]) -> V {
    // SAFETY: eight floats.
    unsafe { V::load(array.as_ptr()) }
}

/// `new` where `gate > 0`, else `old`; neither may be infinite.
#[inline(always)]
pub(super) fn choose<V: Lanes>(old: V, new: V, gate: V) -> V {
    new.where_positive(gate).add(old.sub(old.where_positive(gate)))
}

#[inline(always)]
pub(super) fn magnitude<V: Lanes>(x: V) -> V {
    x.max(negative(x))
}

#[inline(always)]
pub(super) fn negative<V: Lanes>(x: V) -> V {
    V::splat(0.0).sub(x)
}

/// `1 / x`, and 0 where `x` is too small for that.
#[inline(always)]
pub(super) fn inverse<V: Lanes>(x: V) -> V {
    const SMALLEST: f32 = 1e-30;
    V::splat(1.0).div(x).where_positive(magnitude(x).sub(V::splat(SMALLEST)))
}

#[inline(always)]
pub(super) fn clamp<V: Lanes>(x: V, lowest: f32, highest: f32) -> V {
    x.max(V::splat(lowest)).min(V::splat(highest))
}

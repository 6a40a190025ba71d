//! SwiGLU's middle, `silu(gate) ⊙ up`, and the sum of the residual stream.

use crate::exp::exp;
use crate::lanes::{Instructions, Vector, Wide, WideKernel, load_some, store_some};

/// `out = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`; all `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && up.len() == out.len(), "gate, up and output have one length");
    Instructions::best().run_wide(SwiGlu { gate, up, out });
}

/// `x += y`; both `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "both terms of a sum have one length");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `silu(gate) * up` in every lane. Gates under -88 count as that: their SiLU is under 1e-36.
#[inline(always)]
pub(crate) fn swiglu_lanes<V: Vector>(gate: V, up: V) -> V {
    let gate = V::splat(-88.0).max(gate);
    let e = exp(V::splat(0.0).sub(gate));
    gate.div(e.add(V::splat(1.0))).mul(up)
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WideKernel for SwiGlu<'_> {
    #[inline(always)]
    fn run<W: Wide>(self) {
        let rows = self.gate.chunks(W::N).zip(self.up.chunks(W::N));
        for ((gate, up), out) in rows.zip(self.out.chunks_mut(W::N)) {
            store_some(swiglu_lanes::<W>(load_some(gate, 0.0), load_some(up, 0.0)), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// e^-x errs by 1e-7, and three roundings follow.
    #[test]
    fn agrees_with_f64() {
        for n in [1, 8, 13, 1024] {
            let gate: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 20.0 - 25.0).collect();
            let up: Vec<f32> = (0..n).map(|i| (i * 31 % 97) as f32 / 10.0 - 4.8).collect();
            let [mut out, mut portable] = [vec![0.0; n], vec![0.0; n]];
            swiglu(&gate, &up, &mut out);
            Instructions::Portable.run_wide(SwiGlu { gate: &gate, up: &up, out: &mut portable });
            assert_eq!(out, portable);
            for i in 0..n {
                let g = gate[i] as f64;
                let want = g / (1.0 + (-g).exp()) * up[i] as f64;
                assert!((out[i] as f64 - want).abs() <= 4e-7 * want.abs(), "{} {want}", out[i]);
            }
        }
    }

    #[test]
    fn extremes_of_the_gate() {
        let mut out = [1.0; 5];
        swiglu(&[-1e30, 1e30, -100.0, f32::NEG_INFINITY, f32::NAN], &[1.0; 5], &mut out);
        assert_eq!(out[1], 1e30);
        assert!([out[0], out[2], out[3]].iter().all(|y| (-1e-36..=0.0).contains(y)), "{out:?}");
        assert!(out[4].is_nan());
    }

    #[test]
    fn sums_in_place() {
        let mut x = [1.0, 2.0, 3.0];
        add_assign(&mut x, &[0.5, -2.0, 4.0]);
        assert_eq!(x, [1.5, 0.0, 7.0]);
    }
}

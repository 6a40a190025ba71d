//! Backward of `h = silu(gate) ⊙ up`, where `silu(g) = g σ(g)` and `silu'(g) = σ(g) (1 + g (1 - σ(g)))`.

use crate::exp::exp;
use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};

/// Replaces `gate` by `d_gate` and `up` by `d_up`, given `d_h`; all `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_gradient(gate: &mut [f32], up: &mut [f32], d_h: &[f32]) {
    assert!(gate.len() == up.len() && up.len() == d_h.len(), "gate, up and gradient have one length");
    Instructions::best().run(SwiGluGradient { gate, up, d_h });
}

struct SwiGluGradient<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    d_h: &'a [f32],
}

impl Kernel for SwiGluGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let rows = self.gate.chunks_mut(LANES).zip(self.up.chunks_mut(LANES));
        for ((gate, up), d_h) in rows.zip(self.d_h.chunks(LANES)) {
            let (d_gate, d_up) = lanes::<V>(load_some(gate, 0.0), load_some(up, 0.0), load_some(d_h, 0.0));
            store_some(d_gate, gate);
            store_some(d_up, up);
        }
    }
}

#[inline(always)]
fn lanes<V: Lanes>(gate: V, up: V, d_h: V) -> (V, V) {
    let one = V::splat(1.0);
    // Gates under -88 count as that, as in the forward pass: their SiLU is under 1e-36.
    let gate = V::splat(-88.0).max(gate);
    let sigma = one.div(exp(V::splat(0.0).sub(gate)).add(one));
    let slope = sigma.mul(gate.mul(one.sub(sigma)).add(one));
    (d_h.mul(up).mul(slope), d_h.mul(gate).mul(sigma))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// e^-x errs by 1e-7, and some five roundings follow, of terms up to the size of the gate.
    #[test]
    fn agrees_with_f64() {
        for n in [1, 8, 13, 300] {
            let gate: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 20.0 - 25.0).collect();
            let up: Vec<f32> = (0..n).map(|i| (i * 31 % 97) as f32 / 10.0 - 4.8).collect();
            let d_h: Vec<f32> = (0..n).map(|i| (i * 17 % 89) as f32 / 10.0 - 4.4).collect();
            let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
            swiglu_gradient(&mut d_gate, &mut d_up, &d_h);
            for i in 0..n {
                let (g, u, d) = (gate[i] as f64, up[i] as f64, d_h[i] as f64);
                let sigma = 1.0 / (1.0 + (-g).exp());
                assert!((d_up[i] as f64 - d * g * sigma).abs() < 1e-5, "{i}");
                assert!((d_gate[i] as f64 - d * u * sigma * (1.0 + g * (1.0 - sigma))).abs() < 2e-5, "{i}");
            }
        }
    }
}

//! Backward of `y = w ⊙ x r`, where `r = 1 / sqrt(mean(x²) + eps)`:
//! `d_x = r (w ⊙ d_y) - x r³ mean(w ⊙ d_y ⊙ x)` and `d_w = Σ_rows d_y ⊙ x r`.

use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};

/// One row: adds to `d_x` what `d_y` says; `x`, `weight` and both gradients are `[dim]`. Adds to `d_weight [dim]` if it is
/// wanted.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm_gradient(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    d_y: &[f32],
    d_x: &mut [f32],
    d_weight: Option<&mut [f32]>,
) {
    let dim = x.len();
    assert!([weight.len(), d_y.len(), d_x.len()] == [dim; 3], "a norm's rows have one length");
    Instructions::best().run(RmsNormGradient { x, weight, eps, d_y, d_x, d_weight });
}

struct RmsNormGradient<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    d_y: &'a [f32],
    d_x: &'a mut [f32],
    d_weight: Option<&'a mut [f32]>,
}

impl Kernel for RmsNormGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let RmsNormGradient { x, weight, eps, d_y, d_x, d_weight } = self;
        let dim = x.len();
        let [mut squares, mut products] = [V::splat(0.0); 2];
        for ((x, w), d_y) in x.chunks(LANES).zip(weight.chunks(LANES)).zip(d_y.chunks(LANES)) {
            let x: V = load_some(x, 0.0);
            squares = x.fma(x, squares);
            products = x.mul(load_some(w, 0.0)).fma(load_some(d_y, 0.0), products);
        }
        let scale = 1.0 / (squares.sum() / dim as f32 + eps).sqrt();
        let along = products.sum() / dim as f32 * scale * scale * scale;
        let (scales, alongs) = (V::splat(scale), V::splat(-along));
        let rows = x.chunks(LANES).zip(weight.chunks(LANES)).zip(d_y.chunks(LANES));
        for (((x, w), d_y), d_x) in rows.zip(d_x.chunks_mut(LANES)) {
            let rest = load_some::<V>(x, 0.0).fma(alongs, load_some(d_x, 0.0));
            store_some(scales.mul(load_some(w, 0.0)).fma(load_some(d_y, 0.0), rest), d_x);
        }
        if let Some(d_weight) = d_weight {
            for i in 0..dim {
                d_weight[i] += d_y[i] * (x[i] * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against differences of the f64 definition over a step of 1e-5, which err by 1e-9 of the third derivative.
    #[test]
    fn agrees_with_differences() {
        let dim = 19;
        let number = |i: usize, k: usize| ((i * 7919 + k * 31) % 1009) as f64 / 504.5 - 1.0;
        let [x, w, d_y]: [Vec<f64>; 3] = [1, 2, 3].map(|k| (0..dim).map(|i| number(i, k)).collect());
        let loss = |x: &[f64], w: &[f64]| {
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / dim as f64 + 1e-5).sqrt();
            (0..dim).map(|i| d_y[i] * w[i] * x[i] * r).sum::<f64>()
        };
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let (mut d_x, mut d_w) = (vec![0.5; dim], vec![0.25; dim]);
        rms_norm_gradient(&narrow(&x), &narrow(&w), 1e-5, &narrow(&d_y), &mut d_x, Some(&mut d_w));
        let step = 1e-5;
        for i in 0..dim {
            let (mut more, mut less) = (x.clone(), x.clone());
            more[i] += step;
            less[i] -= step;
            let want = (loss(&more, &w) - loss(&less, &w)) / (2.0 * step);
            assert!((d_x[i] as f64 - 0.5 - want).abs() < 2e-6, "{} {want}", d_x[i]);
            let (mut more, mut less) = (w.clone(), w.clone());
            more[i] += step;
            less[i] -= step;
            let want = (loss(&x, &more) - loss(&x, &less)) / (2.0 * step);
            assert!((d_w[i] as f64 - 0.25 - want).abs() < 2e-6, "{} {want}", d_w[i]);
        }
    }
}

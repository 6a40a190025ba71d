//! RMS norm of the residual stream, forward and backward.

use octet_kernels::gradients::{for_each_rows, rms_norm_gradient};

use crate::Gradients;
use crate::linear::{Pass, Weight};

/// Rows that a thread takes at a time. Fixed, so that sums are always taken in the same order.
const ROWS_AT_ONCE: usize = 64;

/// A norm's weight `[dim]`.
pub(crate) struct Norm {
    pub(crate) weight: Weight,
    pub(crate) dim: usize,
    pub(crate) eps: f32,
}

impl Norm {
    /// The normed rows of `x [n, dim]`, in a buffer to be given back.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, x: &[f32]) -> Vec<f32> {
        let mut out = pass.buffers.take(x.len());
        let weight = self.weight.read(pass, 0..1, self.dim);
        for_each_rows(pass.pool, &mut out, self.dim, ROWS_AT_ONCE, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(self.dim).enumerate() {
                octet_kernels::rms_norm(&x[(first + i) * self.dim..][..self.dim], &weight, self.eps, row);
            }
        });
        out
    }

    /// Adds to `d_x [n, dim]` what `d_y [n, dim]` says of the input `x`, and to the weight's gradient.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        x: &[f32],
        d_y: &[f32],
        d_x: &mut [f32],
        gradients: &mut Gradients,
    ) {
        let weight = self.weight.read(pass, 0..1, self.dim);
        let blocks = x.len().div_ceil(self.dim * ROWS_AT_ONCE);
        // Each block's share of the weight's gradient by itself, added up in order afterwards.
        let d_weight = self.weight.gradient(gradients);
        let width = if d_weight.is_some() { self.dim } else { 0 };
        let shares = std::sync::Mutex::new(vec![0.0; blocks * width]);
        for_each_rows(pass.pool, d_x, self.dim, ROWS_AT_ONCE, |first, rows| {
            let mut share = vec![0.0; width];
            for (i, d_x) in rows.chunks_exact_mut(self.dim).enumerate() {
                let at = (first + i) * self.dim..(first + i + 1) * self.dim;
                let wanted = (width > 0).then_some(&mut share[..]);
                rms_norm_gradient(&x[at.clone()], &weight, self.eps, &d_y[at], d_x, wanted);
            }
            let mut shares = shares.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shares[first / ROWS_AT_ONCE * width..][..width].copy_from_slice(&share);
        });
        if let Some(d_weight) = d_weight {
            let shares = shares.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            shares.chunks_exact(self.dim).for_each(|share| octet_kernels::add_assign(d_weight, share));
        }
    }
}

//! Attention over whole samples, forward and backward: `wo · Attention(rope(wq x), rope(wk x), wv x)`.

use octet_kernels::gradients::{SampleAttention, SampleShape, for_each_rows};
use octet_kernels::{RopeAngles, Target, ThreadPool};

use crate::linear::{Linear, Pass};
use crate::{Batch, Gradients};

/// Tokens that a thread turns at a time.
const TOKENS_AT_ONCE: usize = 64;

/// The four matrices of a layer's attention.
pub(crate) struct Attention {
    pub(crate) wq: Linear,
    pub(crate) wk: Linear,
    pub(crate) wv: Linear,
    pub(crate) wo: Linear,
}

/// What all layers of a pass share.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) angles: &'a RopeAngles,
    pub(crate) shape: SampleShape,
}

/// What the way back needs of the way forward.
pub(crate) struct AttentionActivations {
    /// Turned queries `[n, n_heads, head_dim]`.
    q: Vec<f32>,
    /// Turned keys `[n, n_kv_heads, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n, n_heads, head_dim]`.
    attended: Vec<f32>,
    /// `[n, n_heads]`.
    log_sums: Vec<f32>,
}

impl AttentionActivations {
    pub(crate) fn into_buffers(self) -> [Vec<f32>; 5] {
        [self.q, self.k, self.v, self.attended, self.log_sums]
    }
}

impl Attention {
    /// `out [n, dim]` = attention over `x [n, dim]`, the normed residual stream.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        x: &[f32],
        out: &mut [f32],
    ) -> AttentionActivations {
        let n = step.batch.tokens().len();
        let [mut q, mut k, v] = [&self.wq, &self.wk, &self.wv].map(|w| {
            let mut y = pass.buffers.take(n * w.rows);
            w.forward(pass, x, &mut y);
            y
        });
        turn(pass.pool, step.angles, &mut q, self.wq.rows, RopeAngles::apply_to_token);
        turn(pass.pool, step.angles, &mut k, self.wk.rows, RopeAngles::apply_to_token);
        let mut attended = pass.buffers.take(q.len());
        let mut log_sums = pass.buffers.take(n * step.shape.n_heads);
        let attention = SampleAttention { shape: step.shape, samples: step.batch.lengths(), q: &q, k: &k, v: &v };
        attention.forward(pass.pool, &mut attended, &mut log_sums);
        self.wo.forward(pass, &attended, out);
        AttentionActivations { q, k, v, attended, log_sums }
    }

    /// `d_x [n, dim]` from `d_out [n, dim]`; `x` is what the way forward was given.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        (x, kept): (&[f32], AttentionActivations),
        d_out: &[f32],
        d_x: &mut [f32],
        gradients: &mut Gradients,
    ) {
        let AttentionActivations { q, k, v, attended, log_sums } = &kept;
        let mut d_attended = pass.buffers.take(attended.len());
        self.wo.backward(pass, (attended, d_out), Target::Fresh, &mut d_attended, gradients);
        let [mut d_q, mut d_k, mut d_v] = [q, k, v].map(|x| pass.buffers.take(x.len()));
        let attention = SampleAttention { shape: step.shape, samples: step.batch.lengths(), q, k, v };
        let (given, wanted) = ([attended, log_sums, &d_attended[..]], [&mut d_q[..], &mut d_k[..], &mut d_v[..]]);
        attention.backward(pass.pool, given, wanted);
        turn(pass.pool, step.angles, &mut d_q, self.wq.rows, RopeAngles::turn_token_back);
        turn(pass.pool, step.angles, &mut d_k, self.wk.rows, RopeAngles::turn_token_back);
        let mut target = Target::Fresh;
        for (w, d_y) in [(&self.wq, &d_q), (&self.wk, &d_k), (&self.wv, &d_v)] {
            w.backward(pass, (x, d_y), target, d_x, gradients);
            target = Target::Sum;
        }
        [d_attended, d_q, d_k, d_v].into_iter().chain(kept.into_buffers()).for_each(|x| pass.buffers.give(x));
    }

    /// Whether anything of it is trained.
    pub(crate) fn is_trained(&self) -> bool {
        [&self.wq, &self.wk, &self.wv, &self.wo].iter().any(|w| w.is_trained())
    }
}

/// Turns the heads of every token of `x [n, width]` by its position, or back.
fn turn(pool: &ThreadPool, angles: &RopeAngles, x: &mut [f32], width: usize, how: fn(&RopeAngles, usize, &mut [f32])) {
    for_each_rows(pool, x, width, TOKENS_AT_ONCE, |first, rows| {
        rows.chunks_exact_mut(width).enumerate().for_each(|(i, row)| how(angles, first + i, row));
    });
}

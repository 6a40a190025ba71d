//! Token embeddings: rows looked up, and their gradients added up.

use crate::linear::{Pass, Weight};
use crate::{Batch, Gradients};

/// The table `[vocab_size, dim]`.
pub(crate) struct Embedding {
    pub(crate) weight: Weight,
    pub(crate) dim: usize,
}

impl Embedding {
    /// `x [tokens, dim]`, in a buffer to be given back.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, batch: &Batch) -> Vec<f32> {
        let mut x = pass.buffers.take(batch.tokens().len() * self.dim);
        for (&token, row) in batch.tokens().iter().zip(x.chunks_exact_mut(self.dim)) {
            let token = token as usize;
            row.copy_from_slice(&self.weight.read(pass, token..token + 1, self.dim));
        }
        x
    }

    /// Adds the gradient `d_x [tokens, dim]` of every token's row.
    pub(crate) fn backward(&self, batch: &Batch, d_x: &[f32], gradients: &mut Gradients) {
        let Some(d_table) = self.weight.gradient(gradients) else { return };
        for (&token, row) in batch.tokens().iter().zip(d_x.chunks_exact(self.dim)) {
            octet_kernels::add_assign(&mut d_table[token as usize * self.dim..][..self.dim], row);
        }
    }
}

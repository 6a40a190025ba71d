//! The output head and cross-entropy, a block of rows at a time: the logits of a long batch are never there at once.

use octet_kernels::Target;
use octet_kernels::gradients::{cross_entropy, for_each_rows_of};

use crate::linear::{Linear, Pass};
use crate::{Batch, Gradients};

/// Most logits that are there at a time: 64 MiB.
const LOGITS: usize = 16 << 20;

/// The rows whose next token is learned, and that token.
pub(crate) fn wanted(batch: &Batch) -> Vec<(usize, u32)> {
    batch.targets().iter().enumerate().filter_map(|(row, target)| Some((row, (*target)?))).collect()
}

/// `log p` of every wanted row, in order; `x [n, dim]` is the normed residual stream.
///
/// If `learn` holds the rows' weights in the loss `Σ -weight log p`, its second gets `d_x [n, dim]`, of which all but the
/// wanted rows stay as they are, and `gradients` the head's.
pub(crate) fn log_probabilities(
    pass: &mut Pass<'_>,
    head: &Linear,
    x: &[f32],
    wanted: &[(usize, u32)],
    mut learn: Option<(&[f32], &mut [f32], &mut Gradients)>,
) -> Vec<f32> {
    let (dim, vocab_size) = (head.cols, head.rows);
    let at_once = (LOGITS / vocab_size).max(1);
    let mut log_p = vec![0.0; wanted.len()];
    for start in (0..wanted.len()).step_by(at_once) {
        let rows = start..(start + at_once).min(wanted.len());
        let block = &wanted[rows.clone()];
        let mut inputs = pass.buffers.take(block.len() * dim);
        for ((row, _), input) in block.iter().zip(inputs.chunks_exact_mut(dim)) {
            input.copy_from_slice(&x[row * dim..][..dim]);
        }
        let mut logits = pass.buffers.take(block.len() * vocab_size);
        head.forward(pass, &inputs, &mut logits);
        let weights = learn.as_ref().map(|(weights, ..)| &weights[rows.clone()]);
        let both = [&mut logits[..], &mut log_p[rows.clone()]];
        for_each_rows_of(pass.pool, both, [vocab_size, 1], 4, |first, [logits, log_p]| {
            for (i, (logits, log_p)) in logits.chunks_exact_mut(vocab_size).zip(log_p).enumerate() {
                let weight = weights.map_or(0.0, |w| w[first + i]);
                *log_p = cross_entropy(logits, block[first + i].1 as usize, weight);
            }
        });
        if let Some((_, d_x, gradients)) = &mut learn {
            head.weight_gradient(pass, &inputs, &logits, gradients);
            // The inputs are not needed any more: their place takes their gradient.
            head.input_gradient(pass, &logits, Target::Fresh, &mut inputs);
            for ((row, _), d_input) in block.iter().zip(inputs.chunks_exact(dim)) {
                d_x[row * dim..][..dim].copy_from_slice(d_input);
            }
        }
        [inputs, logits].into_iter().for_each(|x| pass.buffers.give(x));
    }
    log_p
}

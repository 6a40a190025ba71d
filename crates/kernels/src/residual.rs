//! Between two blocks of a layer: what one answered is added to the residual stream, whose norm the next one reads.
//!
//! A row is added, normed and quantized while it is in the first cache, and threads share the rows.

use crate::ThreadPool;
use crate::activations::{Activations, Reads};
use crate::lanes::Instructions;
use crate::packed_layout::TILE;
use crate::rms_norm::AddNorm;
use crate::shared_slice::SharedSlice;

/// A residual stream that is about to be normed.
pub struct Residual<'a> {
    /// The stream `[rows, dim]`, which grows by `delta`.
    pub x: &'a mut [f32],
    /// What the block before answered, `[rows, dim]`, or nothing.
    pub delta: &'a [f32],
    /// `[dim]`.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

impl Activations {
    /// `x += delta`, and takes the RMS norm of every row, which goes to `normed` too, for products with weights that read
    /// `reads` of it.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn set_normed(&mut self, pool: &ThreadPool, residual: Residual<'_>, reads: Reads, normed: &mut Vec<f32>) {
        let Residual { x, delta, weight, eps } = residual;
        let (dim, length) = (weight.len(), x.len());
        assert!(length.is_multiple_of(dim) && (delta.is_empty() || delta.len() == length), "whole rows of the stream");
        let rows = length / dim;
        normed.resize(length, 0.0);
        self.resize(rows, dim, reads);
        let (x, normed, out) = (SharedSlice::new(x), SharedSlice::new(normed), self.shared());
        pool.run_rows(rows, dim, |row| {
            let at = row * dim;
            // SAFETY: every row belongs to one item; so below.
            let (x, normed) = unsafe { (x.part(at, dim), normed.part(at, dim)) };
            let delta = if delta.is_empty() { delta } else { &delta[at..at + dim] };
            Instructions::best().run(AddNorm { x, delta, weight, eps, out: normed });
            for (tile, values) in normed.chunks(TILE).enumerate() {
                // SAFETY: as above.
                unsafe { out.store(Instructions::best(), tile, row, values) };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::Scaling;
    use crate::rms_norm;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed) % 2003) as f32 / 500.0 - 2.0).collect()
    }

    /// The same bits as step by step, with few rows and many, on any number of threads.
    #[test]
    fn is_sum_norm_and_quantization_one_after_the_other() {
        for (rows, dim, threads) in [(1, 64, 2), (3, 300, 2), (40, 300, 1), (40, 300, 2)] {
            let (pool, weight, all) = (ThreadPool::new(threads), numbers(dim, 1), numbers(rows * dim, 2));
            for delta in [&all[..], &[]] {
                let (mut x, mut x_alone) = (numbers(rows * dim, 3), numbers(rows * dim, 3));
                let (mut rows_together, mut rows_alone) = (Activations::new(), Activations::new());
                let (mut normed, mut normed_alone) = (Vec::new(), vec![0.0; rows * dim]);
                let residual = Residual { x: &mut x, delta, weight: &weight, eps: 1e-5 };
                rows_together.set_normed(&pool, residual, Reads::ALL, &mut normed);

                x_alone.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
                for (x, out) in x_alone.chunks(dim).zip(normed_alone.chunks_mut(dim)) {
                    rms_norm(x, &weight, 1e-5, out);
                }
                rows_alone.set(&pool, &normed_alone, dim, Reads::ALL);
                assert_eq!((x, normed), (x_alone, normed_alone), "{rows} {dim}");
                for tile in 0..dim.div_ceil(TILE) {
                    let [together, alone] = [&rows_together, &rows_alone].map(Activations::view);
                    assert_eq!(together.floats(tile, 0), alone.floats(tile, 0));
                    for scaling in [Scaling::Tiles, Scaling::Groups] {
                        assert_eq!(together.ints(scaling, tile, 0), alone.ints(scaling, tile, 0));
                    }
                }
            }
        }
    }
}

//! What is written down while a batch runs: nothing in serving, hidden states for `octet logits`, choices for
//! routing reports, inputs of matrices for an importance matrix.

use octet_checkpoint::LayerTensor;

use crate::Routing;

/// Watches a forward pass. Every method does nothing unless overridden.
pub trait Record {
    /// Whether all rows are to go to the end. If not, rows that no logits are asked of leave after the last layer's
    /// attention, which is where others still need them; the last layer's routing and the last norm then tell of the rest
    /// alone, in the order of the batch's `logit_rows`.
    fn wants_all_rows(&self) -> bool {
        true
    }

    /// The residual stream `[tokens, dim]`: `index` 0 after the embedding, `l` after layer `l - 1`, and `n_layers` after
    /// the last norm (as transformers counts them, so the last layer's own output is not reported).
    fn hidden(&mut self, _index: usize, _x: &[f32]) {}

    /// What the router of `layer` said and chose.
    fn routing(&mut self, _layer: usize, _routing: &Routing) {}

    /// `x [rows, cols]` is about to be multiplied by `tensor` of `layer`. The experts' inputs are reported by
    /// [`crate::Layerwise`] only: a [`crate::Transformer`] fuses their products.
    fn input(&mut self, _layer: usize, _tensor: LayerTensor, _x: &[f32], _cols: usize) {}

    /// Asked before every layer of a [`crate::Transformer`]: false gives the pass up, and the cache is as it was before.
    fn is_wanted(&mut self) -> bool {
        true
    }

    /// `x [rows, dim]` is about to be multiplied by the output head.
    fn head_input(&mut self, _x: &[f32]) {}
}

/// Writes nothing down.
pub struct Nothing;

impl Record for Nothing {
    fn wants_all_rows(&self) -> bool {
        false
    }
}

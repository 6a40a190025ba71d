//! What a thread needs to attend for a block of query rows: all its memory, taken once.

use crate::attention::TILE;
use crate::attention::tile::Visible;
use crate::lanes::WIDE;

/// Running softmax of a block: `e^(s - largest)` weighs the values. A row that has seen no token has `sum` 0.
#[derive(Default)]
pub(crate) struct Softmax {
    /// Largest score so far, `[rows]`.
    pub(crate) largest: Vec<f32>,
    /// Sum of weights so far, `[rows]`.
    pub(crate) sum: Vec<f32>,
    /// Weighted sum of values so far, `[rows, value_dim]`.
    pub(crate) values: Vec<f32>,
}

/// Buffers of one thread. A row is one head of one token; all rows of a block share a KV head.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) head_dim: usize,
    /// `head_dim` padded to whole strips.
    pub(crate) value_dim: usize,
    /// Rows of the block at hand.
    pub(crate) rows: usize,
    /// Queries times `1 / sqrt(head_dim)`, `[rows, head_dim]`.
    pub(crate) q: Vec<f32>,
    /// The same as integers, for keys that are bytes.
    pub(crate) q_integers: Vec<i16>,
    /// Their pairs, those of all rows side by side, `[head_dim / 2, rows]`: to step from row to row costs nothing then.
    pub(crate) q_pairs: Vec<[i16; 2]>,
    /// What an integer of a row is worth, `[rows]`.
    pub(crate) q_scales: Vec<f32>,
    /// Scores of a tile, then its weights, `[rows, TILE]`.
    pub(crate) scores: Vec<f32>,
    /// What each row sees of a tile, `[rows]`.
    pub(crate) visible: Vec<Visible>,
    /// What the weights of a tile are relative to, `[rows]`: weights are `e^(score - reference)`.
    pub(crate) reference: Vec<f32>,
    /// What a tile's weights are worth, `[rows]`: `e^(reference - largest)`.
    pub(crate) worth: Vec<f32>,
    /// What is left of a row's earlier weights after a tile, `[rows]`.
    pub(crate) kept: Vec<f32>,
    /// Sums of weights lane by lane, `[rows, 16]`.
    pub(crate) lane_sums: Vec<f32>,
    /// Of the split at hand.
    pub(crate) split: Softmax,
    /// Of all splits before it.
    pub(crate) total: Softmax,
    /// Weights times scales of a block of the values, as integers, `[rows, TILE]`.
    pub(crate) weights: Vec<i16>,
}

impl Work {
    /// Makes room for `rows` rows.
    pub(crate) fn fit(&mut self, rows: usize, head_dim: usize, value_dim: usize) {
        (self.head_dim, self.value_dim) = (head_dim, value_dim);
        // Numbers that rows have one of are computed sixteen at a time.
        let rows = rows.next_multiple_of(WIDE);
        grow(&mut self.visible, rows);
        grow(&mut self.q, rows * head_dim);
        grow(&mut self.q_integers, rows * head_dim);
        grow(&mut self.q_pairs, rows * head_dim / 2);
        grow(&mut self.scores, rows * TILE);
        grow(&mut self.lane_sums, rows * WIDE);
        grow(&mut self.weights, rows * TILE);
        for per_row in [&mut self.q_scales, &mut self.reference, &mut self.worth, &mut self.kept] {
            grow(per_row, rows);
        }
        for softmax in [&mut self.split, &mut self.total] {
            grow(&mut softmax.largest, rows);
            grow(&mut softmax.sum, rows);
            grow(&mut softmax.values, rows * value_dim);
        }
    }
}

/// Makes `buffer` hold at least `length` elements.
fn grow<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
}

impl Softmax {
    /// Forgets everything about the first `rows` rows.
    pub(crate) fn clear(&mut self, rows: usize, value_dim: usize) {
        self.largest[..rows].fill(f32::NEG_INFINITY);
        self.sum[..rows].fill(0.0);
        self.values[..rows * value_dim].fill(0.0);
    }
}

//! The experts of a layer: `y = Σ_k p_k · w2_k (silu(w1_k x) ⊙ (w3_k x))`.
//!
//! Tokens are grouped by expert, so an expert's weights are read once for all its tokens. Then there are two parallel
//! regions: in the first an item is 256 rows of gate and up, whose SwiGLU makes one whole tile of the hidden activations; in
//! the second an item is some rows of the result, to which the experts add in the order of their indices. So the bits of a
//! token's result depend on its own experts alone.

use std::ops::Range;

use crate::activations::{ActivationView, Activations, ActivationsMut, Reads};
use crate::lanes::Instructions;
use crate::matmul::for_each_sum;
use crate::packed_layout::{ROWS, TILE};
use crate::portions::{Portions, UNIT, panels_of};
use crate::shared_slice::SharedSlice;
use crate::sums::Place;
use crate::{LowRank, PackedMatrix, ThreadPool, swiglu};

mod changes;

use changes::{ChangeScratch, Changes, Matrix};
pub use changes::{ExpertChange, ExpertsChange};

/// The three matrices of an expert.
#[derive(Clone, Copy)]
pub struct Expert<'a> {
    /// Gate, `[hidden_dim, dim]`.
    pub w1: &'a PackedMatrix,
    /// Down, `[dim, hidden_dim]`.
    pub w2: &'a PackedMatrix,
    /// Up, `[hidden_dim, dim]`.
    pub w3: &'a PackedMatrix,
}

/// Which experts work on a token, and how much they count.
#[derive(Clone, Copy)]
pub struct Routes<'a> {
    /// Indices of experts, `[tokens, per_token]`.
    pub experts: &'a [u32],
    /// `[tokens, per_token]`.
    pub weights: &'a [f32],
    /// Experts of a token.
    pub per_token: usize,
    /// Low-rank changes of the experts for some of the tokens, in their order; `x` has to hold what their `A` reads.
    pub changes: &'a [ExpertsChange<'a>],
}

/// Buffers that [`experts`] keeps between calls.
#[derive(Default)]
pub struct ExpertScratch {
    /// The tokens of every expert, one expert after the other.
    slots: Vec<Slot>,
    /// Experts that have tokens, by index.
    active: Vec<Active>,
    /// The order in which their first work items are taken: most tokens first.
    by_load: Vec<usize>,
    counts: Vec<usize>,
    /// Tokens that have a slot.
    begun: Vec<bool>,
    inputs: Activations,
    hidden: Activations,
    /// For every thread `[2][tokens][256]`: gate and up of a tile of hidden activations.
    gate_up: Vec<f32>,
    changes: ChangeScratch,
}

/// A token of an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    token: usize,
    weight: f32,
    /// Whether this is the first of the token's experts.
    begins: bool,
}

/// An expert that has tokens: slots `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Active {
    expert: usize,
    first: usize,
    count: usize,
}

impl Active {
    fn slots(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

/// Tokens whose gate and up are held at once.
const GATE_UP_TOKENS: usize = 256;

/// `y [tokens, dim]` = the weighted sum of what each token's experts make of `x [tokens, dim]`.
///
/// With one expert, `per_token` 1 and weights 1 this is the feed-forward block of a dense model.
///
/// # Panics
/// If shapes do not agree, an index of `routes` is no expert, or its changes are out of order or hold for the same tokens.
pub fn experts<'a>(
    pool: &ThreadPool,
    experts: impl ExactSizeIterator<Item = Expert<'a>> + Clone + Sync,
    x: &Activations,
    routes: &Routes<'_>,
    scratch: &mut ExpertScratch,
    y: &mut [f32],
) {
    experts_with(Instructions::best(), pool, experts, x, routes, scratch, y);
}

pub(crate) fn experts_with<'a>(
    instructions: Instructions,
    pool: &ThreadPool,
    experts: impl ExactSizeIterator<Item = Expert<'a>> + Clone + Sync,
    x: &Activations,
    routes: &Routes<'_>,
    scratch: &mut ExpertScratch,
    y: &mut [f32],
) {
    let shape = FeedForward::check(experts.clone(), x, routes, y);
    scratch.group_by_expert(routes, experts.len());
    let all = |index: usize| experts.clone().nth(index).expect("the index was checked");
    // Where every expert has all tokens (one token, or one expert) the rows are used as they are.
    let gathered = scratch.active.iter().any(|active| active.count != x.rows());
    scratch.inputs.resize(if gathered { scratch.slots.len() } else { 0 }, shape.dim, x.reads());
    if gathered {
        scratch.gather(pool, x);
    }
    let changed_down = routes.changes.iter().flat_map(|change| change.experts).filter_map(|expert| expert.w2.as_ref());
    let down = Reads::of(experts.clone().map(|expert| expert.w2).chain(changed_down.map(LowRank::a)));
    scratch.hidden.resize(scratch.slots.len(), shape.hidden_dim, down);
    scratch.gate_up.resize(pool.threads() * 2 * GATE_UP_TOKENS * TILE, 0.0);
    let ExpertScratch { slots, active, by_load, inputs, hidden, gate_up, changes, .. } = scratch;
    let input = |active: &Active| if gathered { inputs.batch(active.slots()) } else { x.view() };
    let mut changes = changes.set(instructions, routes.changes, active, slots);
    [Matrix::W1, Matrix::W3].into_iter().for_each(|matrix| changes.shrink(pool, matrix, input));

    let tiles = shape.hidden_dim.div_ceil(TILE);
    let (out, buffers) = (hidden.shared(), SharedSlice::new(gate_up));
    pool.run(active.len() * tiles, &|item, thread| {
        let index = by_load[item / tiles];
        let active = active[index];
        // SAFETY: a thread runs one item at a time.
        let buffer = unsafe { buffers.part(thread * 2 * GATE_UP_TOKENS * TILE, 2 * GATE_UP_TOKENS * TILE) };
        let (expert, tile) = (all(active.expert), item % tiles);
        let tile = HiddenTile { instructions, expert, tile, index, changes: &changes };
        tile.compute(&input(&active), &out.batch(active.slots()), buffer);
    });

    changes.shrink(pool, Matrix::W2, |active| hidden.batch(active.slots()));
    let panels = shape.dim.div_ceil(ROWS);
    let portions = Portions::new(panels.div_ceil(UNIT), pool.threads());
    let y = SharedSlice::new(y);
    pool.run(portions.count(), &|item, _| {
        let down = Down { instructions, dim: shape.dim, slots, hidden, changes: &changes, y };
        down.compute(panels_of(portions.units(item), panels), active, |expert| all(expert).w2);
    });
}

/// Rows of the result, summed over the experts in the order of their indices.
struct Down<'a> {
    instructions: Instructions,
    dim: usize,
    slots: &'a [Slot],
    hidden: &'a Activations,
    changes: &'a Changes<'a>,
    y: SharedSlice<'a, f32>,
}

impl Down<'_> {
    /// Computes rows `panels` of all tokens; no other thread may do so.
    fn compute<'w>(&self, panels: Range<usize>, active: &[Active], w2: impl Fn(usize) -> &'w PackedMatrix) {
        let (first, last) = (panels.start * ROWS, (panels.end * ROWS).min(self.dim));
        // SAFETY: rows of the result belong to one item of the region; no other thread has these parts, here and below.
        let part = |token: usize, row: usize, n: usize| unsafe { self.y.part(token * self.dim + row, n) };
        for (index, active) in active.iter().enumerate() {
            let slots = &self.slots[active.slots()];
            let (hidden, n) = (self.hidden.batch(active.slots()), slots.len());
            let panels = panels.clone();
            for_each_sum(self.instructions, w2(active.expert), panels, &hidden, 0..n, |sums| {
                sums.put(self.instructions, |slot| {
                    let Slot { token, weight, begins } = slots[slot];
                    Place { y: part(token, sums.first_row, sums.rows), weight, begins }
                });
            });
            self.changes.add(Matrix::W2, index, 0..n, first, |slot, add| {
                let Slot { token, weight, .. } = slots[slot];
                add(weight, part(token, first, last - first));
            });
        }
    }
}

/// The sizes that all experts share.
struct FeedForward {
    dim: usize,
    hidden_dim: usize,
}

impl FeedForward {
    fn check<'a>(
        experts: impl Iterator<Item = Expert<'a>> + Clone,
        x: &Activations,
        routes: &Routes<'_>,
        y: &[f32],
    ) -> Self {
        let first = experts.clone().next().expect("there is an expert");
        let (dim, hidden_dim) = (x.cols(), first.w1.rows());
        for (index, Expert { w1, w2, w3 }) in experts.enumerate() {
            let shapes = [w1, w2, w3].map(|w| [w.rows(), w.cols()]);
            let want = [[hidden_dim, dim], [dim, hidden_dim], [hidden_dim, dim]];
            assert_eq!(shapes, want, "w1, w2 and w3 of expert {index}");
        }
        assert_eq!(routes.experts.len(), x.rows() * routes.per_token, "chosen experts of {} tokens", x.rows());
        assert_eq!(routes.weights.len(), routes.experts.len(), "a weight for each chosen expert");
        assert_eq!(y.len(), x.rows() * dim, "results of {} tokens", x.rows());
        FeedForward { dim, hidden_dim }
    }
}

impl ExpertScratch {
    /// Sorts the tokens by expert, those of an expert in their order.
    fn group_by_expert(&mut self, routes: &Routes<'_>, n_experts: usize) {
        self.counts.clear();
        self.counts.resize(n_experts, 0);
        for &expert in routes.experts {
            assert!((expert as usize) < n_experts, "expert {expert} of {n_experts}");
            self.counts[expert as usize] += 1;
        }
        // Room for all: which experts have tokens changes from step to step, and a warm step allocates nothing.
        self.active.clear();
        self.active.reserve(n_experts);
        self.by_load.clear();
        self.by_load.reserve(n_experts);
        let mut first = 0;
        for (expert, count) in self.counts.iter_mut().enumerate() {
            if *count > 0 {
                self.active.push(Active { expert, first, count: *count });
            }
            // From here on: where the expert's next token goes.
            first += std::mem::replace(count, first);
        }
        self.slots.clear();
        self.slots.resize(routes.experts.len(), Slot { token: 0, weight: 0.0, begins: false });
        for (at, (&expert, &weight)) in routes.experts.iter().zip(routes.weights).enumerate() {
            let place = &mut self.counts[expert as usize];
            self.slots[*place] = Slot { token: at / routes.per_token, weight, begins: false };
            *place += 1;
        }
        self.begun.clear();
        self.begun.resize(routes.experts.len() / routes.per_token.max(1), false);
        for slot in &mut self.slots {
            slot.begins = !std::mem::replace(&mut self.begun[slot.token], true);
        }
        self.by_load.extend(0..self.active.len());
        self.by_load.sort_unstable_by_key(|&i| (std::cmp::Reverse(self.active[i].count), i));
    }

    /// Copies the rows of every expert's tokens side by side.
    fn gather(&mut self, pool: &ThreadPool, x: &Activations) {
        let (slots, active, to, from) = (&self.slots, &self.active, self.inputs.shared(), x.view());
        pool.run(active.len(), &|item, _| {
            let range = active[item].slots();
            let to = to.batch(range.clone());
            for (row, slot) in slots[range].iter().enumerate() {
                // SAFETY: an expert's rows belong to one item.
                unsafe { to.copy(row, &from, slot.token) };
            }
        });
    }
}

/// 256 hidden activations of an expert's tokens.
struct HiddenTile<'a> {
    instructions: Instructions,
    expert: Expert<'a>,
    tile: usize,
    /// Of the expert among those that are active.
    index: usize,
    changes: &'a Changes<'a>,
}

impl HiddenTile<'_> {
    /// `out` = silu(gate) ⊙ up of this tile, for all rows of `x`; `buffer` holds `[2][GATE_UP_TOKENS][256]`.
    fn compute(&self, x: &ActivationView<'_>, out: &ActivationsMut<'_>, buffer: &mut [f32]) {
        let first_row = self.tile * TILE;
        let rows = (self.expert.w1.rows() - first_row).min(TILE);
        let panels = first_row / ROWS..(first_row + rows).div_ceil(ROWS);
        let (gate, up) = buffer.split_at_mut(GATE_UP_TOKENS * TILE);
        for first in (0..x.rows).step_by(GATE_UP_TOKENS) {
            let tokens = first..(first + GATE_UP_TOKENS).min(x.rows);
            let products = [(Matrix::W1, self.expert.w1, &mut *gate), (Matrix::W3, self.expert.w3, &mut *up)];
            for (matrix, w, to) in products {
                for_each_sum(self.instructions, w, panels.clone(), x, tokens.clone(), |sums| {
                    // Tokens come in their order.
                    let mut to = to.chunks_exact_mut(TILE).skip(sums.tokens.start - first);
                    sums.copy(self.instructions, |_| {
                        &mut to.next().expect("there is a row for each token")[sums.first_row - first_row..]
                            [..sums.rows]
                    });
                });
                self.changes.add(matrix, self.index, tokens.clone(), first_row, |token, add| {
                    add(1.0, &mut to[(token - first) * TILE..][..rows]);
                });
            }
            for token in tokens {
                let at = (token - first) * TILE;
                let (gate, up) = (&gate[at..at + rows], &up[at..at + rows]);
                let mut hidden = [0.0; TILE];
                swiglu::swiglu(gate, up, &mut hidden[..rows]);
                // SAFETY: a tile of an expert's hidden rows belongs to one item.
                unsafe { out.store(self.instructions, self.tile, token, &hidden[..rows]) };
            }
        }
    }
}

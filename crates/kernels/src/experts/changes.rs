//! Low-rank changes of experts, for some of the tokens that came to them.
//!
//! A change holds for consecutive tokens of the batch. An expert keeps its tokens in their order, so of an expert's slots too
//! a change has consecutive ones: a piece.

use std::ops::Range;

use super::{Active, Slot};
use crate::activations::ActivationView;
use crate::lanes::Instructions;
use crate::shared_slice::SharedSlice;
use crate::{LowRank, ThreadPool};

/// Low-rank changes of all experts of a layer, for consecutive tokens of a batch.
#[derive(Clone)]
pub struct ExpertsChange<'a> {
    /// Tokens that they hold for: none that another change holds for too.
    pub tokens: Range<usize>,
    /// One for each expert.
    pub experts: &'a [ExpertChange],
}

/// Low-rank changes of an expert's matrices.
#[derive(Default)]
pub struct ExpertChange {
    /// Of the gate.
    pub w1: Option<LowRank>,
    /// Of down.
    pub w2: Option<LowRank>,
    /// Of up.
    pub w3: Option<LowRank>,
}

/// One of an expert's matrices.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Matrix {
    W1,
    W2,
    W3,
}

impl ExpertChange {
    fn of(&self, matrix: Matrix) -> Option<&LowRank> {
        match matrix {
            Matrix::W1 => self.w1.as_ref(),
            Matrix::W2 => self.w2.as_ref(),
            Matrix::W3 => self.w3.as_ref(),
        }
    }
}

/// Slots of an expert to which a change holds.
#[derive(Clone, Debug)]
struct Piece {
    /// Index among the active experts.
    active: usize,
    change: usize,
    /// Counted from the expert's first slot.
    rows: Range<usize>,
}

/// Buffers that are kept between calls.
#[derive(Default)]
pub(super) struct ChangeScratch {
    pieces: Vec<Piece>,
    /// `A x` for w1, w2 and w3: `[3][slots][rank]`.
    inner: Vec<f32>,
}

/// The changes of one call.
pub(super) struct Changes<'a> {
    instructions: Instructions,
    changes: &'a [ExpertsChange<'a>],
    active: &'a [Active],
    pieces: &'a [Piece],
    inner: &'a mut [f32],
    n_slots: usize,
    /// The largest.
    rank: usize,
}

impl ChangeScratch {
    /// Finds which slots are changed.
    ///
    /// # Panics
    /// If changes are not in the order of their tokens, or two hold for the same ones: threads would share their rows.
    pub(super) fn set<'a>(
        &'a mut self,
        instructions: Instructions,
        changes: &'a [ExpertsChange<'a>],
        active: &'a [Active],
        slots: &[Slot],
    ) -> Changes<'a> {
        let mut end = 0;
        for ExpertsChange { tokens, .. } in changes {
            assert!(
                end <= tokens.start && tokens.start <= tokens.end,
                "changes of {tokens:?} after those before {end}"
            );
            end = tokens.end;
        }
        self.pieces.clear();
        for (index, of) in active.iter().enumerate() {
            let slots = &slots[of.slots()];
            for (change, ExpertsChange { tokens, .. }) in changes.iter().enumerate() {
                let before = |end: usize| slots.partition_point(|slot| slot.token < end);
                let rows = before(tokens.start)..before(tokens.end);
                if !rows.is_empty() {
                    self.pieces.push(Piece { active: index, change, rows });
                }
            }
        }
        let of_expert = |e: &ExpertChange| [&e.w1, &e.w2, &e.w3].into_iter().flatten().map(LowRank::rank).max();
        let rank = changes.iter().flat_map(|change| change.experts).filter_map(of_expert).max().unwrap_or(0);
        self.inner.clear();
        self.inner.resize(3 * slots.len() * rank, 0.0);
        let (pieces, inner) = (&*self.pieces, &mut *self.inner);
        Changes { instructions, changes, active, pieces, inner, n_slots: slots.len(), rank }
    }
}

impl Changes<'_> {
    /// Computes `A x` of a matrix; `x` gives the rows of an active expert.
    pub(super) fn shrink<'x>(
        &mut self,
        pool: &ThreadPool,
        matrix: Matrix,
        x: impl Fn(&Active) -> ActivationView<'x> + Sync,
    ) {
        if self.pieces.is_empty() {
            return;
        }
        let Changes { instructions, changes, active, pieces, n_slots, rank, .. } = *self;
        let inner = SharedSlice::new(self.inner);
        pool.run(pieces.len(), &|item, _| {
            let piece = &pieces[item];
            let active = &active[piece.active];
            if let Some(change) = changes[piece.change].experts[active.expert].of(matrix) {
                let at = (matrix as usize * n_slots + active.first) * rank;
                // SAFETY: slots of a piece belong to one item, and a part is given back before the next is taken.
                let place = |row: usize| unsafe { inner.part(at + row * rank, rank) };
                change.shrink(instructions, &x(active), piece.rows.clone(), place);
            }
        });
    }

    /// Adds a change of a matrix of the active expert `index`, from its row `first_row` on: `each` is called with every
    /// changed row among `rows`, and with what adds the change, times a weight, to numbers of it.
    pub(super) fn add(
        &self,
        matrix: Matrix,
        index: usize,
        rows: Range<usize>,
        first_row: usize,
        mut each: impl FnMut(usize, &dyn Fn(f32, &mut [f32])),
    ) {
        for piece in self.pieces.iter().filter(|piece| piece.active == index) {
            let active = &self.active[index];
            let Some(change) = self.changes[piece.change].experts[active.expert].of(matrix) else { continue };
            for row in piece.rows.start.max(rows.start)..piece.rows.end.min(rows.end) {
                let at = (matrix as usize * self.n_slots + active.first + row) * self.rank;
                let u = &self.inner[at..at + self.rank];
                each(row, &|weight, y| change.grow(self.instructions, u, first_row, weight, y));
            }
        }
    }
}

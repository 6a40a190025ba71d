//! A tensor in canonical form, whatever the arrangement in which its file holds it.
//!
//! Canonical: a matrix `[rows, cols]` as in `y = W x`, and rows of q and k ordered so that the two numbers that a
//! rotary angle turns are neighbours. For a head of width 6, canonical row `p` and Hugging Face's row:
//!
//! ```text
//! canonical  0 1 2 3 4 5      pair p/2, first or second of it p%2
//! stored     0 3 1 4 2 5      (p%2) * 6/2 + p/2: first halves, then second halves
//! ```

use std::ops::Range;

use crate::mapping::Mapping;
use crate::{ElementType, TensorName};

/// A place where a file may hold a tensor.
pub(crate) struct Source {
    /// The tensor's name in the file.
    pub(crate) stored: String,
    /// The shape that it must have there, outermost dimension first.
    pub(crate) shape: Vec<u64>,
    /// How canonical rows are found in it.
    pub(crate) arrangement: Arrangement,
}

/// How canonical rows lie in a stored tensor, seen as a matrix of its innermost dimension's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// As they are, from stored row `first` on.
    Rows { first: usize },
    /// Rows of each head of width `head_dim` as first halves of the rotary pairs, then second halves.
    RotaryHalves { head_dim: usize },
    /// The canonical matrix's columns are stored rows, from `first` on; plain floats only.
    Transposed { first: usize },
}

/// A matrix `[rows, cols]` in canonical form, read from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(crate) name: TensorName,
    pub(crate) stored_name: &'a str,
    pub(crate) element_type: ElementType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) arrangement: Arrangement,
    pub(crate) mapping: &'a Mapping,
    /// Where in the file this tensor's own bytes lie (of a merged tensor: its share).
    pub(crate) start: usize,
}

impl<'a> Tensor<'a> {
    /// What the tensor is to the model.
    pub fn name(&self) -> TensorName {
        self.name
    }

    /// What the file calls it, or the merged tensor that it is a part of.
    pub fn stored_name(&self) -> &'a str {
        self.stored_name
    }

    /// The file that holds it.
    pub fn path(&self) -> &'a std::path::Path {
        self.mapping.path()
    }

    /// The type of its elements.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Rows: the width of `y` in `y = W x`; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of `x` in `y = W x`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one canonical row.
    pub fn row_bytes(&self) -> usize {
        self.element_type.row_bytes(self.cols).expect("checked when the checkpoint was opened")
    }

    /// Copies canonical rows into `out`, which holds `rows.len() * row_bytes()` bytes.
    ///
    /// Panics if the rows are not there or `out` has another length: both are mistakes of the caller.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.row_bytes(), "bytes for rows {rows:?}");
        match self.arrangement {
            Arrangement::Rows { .. } => {
                out.copy_from_slice(&self.bytes()[rows.start * self.row_bytes()..rows.end * self.row_bytes()]);
            }
            Arrangement::RotaryHalves { head_dim } => self.read_rotary_halves(head_dim, rows, out),
            Arrangement::Transposed { .. } => match self.element_type.block_bytes() {
                2 => transpose::<2>(self.bytes(), self.rows, rows, out),
                4 => transpose::<4>(self.bytes(), self.rows, rows, out),
                _ => unreachable!("only plain floats are stored transposed"),
            },
        }
    }

    /// The canonical rows where they lie in the file, if they lie there in this form.
    pub fn borrow(&self) -> Option<&'a [u8]> {
        matches!(self.arrangement, Arrangement::Rows { .. }).then(|| self.bytes())
    }

    /// Whether each canonical row lies in the file in one piece.
    pub fn has_whole_rows(&self) -> bool {
        !matches!(self.arrangement, Arrangement::Transposed { .. })
    }

    /// Tells the system that the file's pages under this tensor will not be needed soon, as after packing it.
    pub fn forget_pages(&self) {
        self.mapping.forget(self.range());
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.row_bytes()
    }

    /// The stored bytes in stored order.
    fn bytes(&self) -> &'a [u8] {
        &self.mapping[self.range()]
    }

    fn read_rotary_halves(&self, head_dim: usize, rows: Range<usize>, out: &mut [u8]) {
        let row_bytes = self.row_bytes();
        let stored = self.bytes();
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            let (head, p) = (row / head_dim, row % head_dim);
            let at = head * head_dim + (p % 2) * (head_dim / 2) + p / 2;
            out.copy_from_slice(&stored[at * row_bytes..][..row_bytes]);
        }
    }
}

/// Copies rows of a matrix of which `stored` holds the transpose, `[cols, all_rows]` elements of `N` bytes.
///
/// It goes by tiles of a few stored rows, so that both what is read and what is written are runs of memory.
fn transpose<const N: usize>(stored: &[u8], all_rows: usize, rows: Range<usize>, out: &mut [u8]) {
    const TILE: usize = 16;
    let stored = stored.as_chunks::<N>().0;
    let out = out.as_chunks_mut::<N>().0;
    let cols = stored.len() / all_rows;
    for first in (0..cols).step_by(TILE) {
        let last = cols.min(first + TILE);
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols)) {
            for (col, out) in (first..last).zip(&mut out[first..last]) {
                *out = stored[col * all_rows + row];
            }
        }
    }
}

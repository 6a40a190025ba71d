//! How much an error of each weight counts.

use super::CHUNK;

/// Bounds of a column's importance, in shares of the row's mean. A column that calibration never saw may matter yet.
const BOUNDS: (f32, f32) = (1e-3, 1e6);

/// A row's importance, to be taken in shares of its mean.
#[derive(Clone, Copy)]
pub(super) struct Importance<'a> {
    columns: &'a [f32],
    per_mean: f32,
}

impl<'a> Importance<'a> {
    /// `None` where nothing is important.
    pub(super) fn of(columns: &'a [f32]) -> Option<Importance<'a>> {
        let sum: f64 = columns.iter().filter(|w| **w > 0.0 && w.is_finite()).map(|w| f64::from(*w)).sum();
        let per_mean = (columns.len() as f64 / sum) as f32;
        per_mean.is_normal().then_some(Importance { columns, per_mean })
    }

    #[inline(always)]
    fn column(self, column: usize) -> f32 {
        // Of a NaN and a number, `max` gives the number.
        (self.columns[column] * self.per_mean).max(BOUNDS.0).min(BOUNDS.1)
    }
}

/// A chunk of a row: weights that a float16 could hold, and how much an error of each counts, around 1.
pub(super) struct Weighted {
    pub(super) x: [f32; CHUNK],
    pub(super) counts: [f32; CHUNK],
}

impl Weighted {
    pub(super) fn new() -> Weighted {
        Weighted { x: [0.0; CHUNK], counts: [1.0; CHUNK] }
    }

    /// Takes the chunk `x` of a row, whose first weight is in column `start`; zeros fill it up where the row ends.
    #[inline(always)]
    pub(super) fn set(&mut self, x: &[f32], importance: Option<Importance<'_>>, start: usize) {
        self.x.fill(0.0);
        for (to, x) in self.x.iter_mut().zip(x) {
            *to = within_f16(*x);
        }
        self.counts.fill(1.0);
        match importance {
            Some(importance) => {
                for (i, counts) in self.counts[..x.len()].iter_mut().enumerate() {
                    *counts = importance.column(start + i);
                }
            }
            None => self.count_by_size(x.len()),
        }
    }

    /// Large weights count more: `sqrt(x^2 + mean x^2)`, in shares of its value for the mean.
    #[inline(always)]
    fn count_by_size(&mut self, len: usize) {
        let mean = mean_square(&self.x, len);
        let per_root = 1.0 / mean.sqrt();
        // Where all is zero or nearly so, all is alike.
        if per_root.is_finite() {
            for (counts, x) in self.counts.iter_mut().zip(&self.x) {
                *counts = (x * x + mean).sqrt() * per_root;
            }
        }
    }
}

/// The nearest number that a float16 could be, 0 for NaN.
#[inline(always)]
fn within_f16(x: f32) -> f32 {
    const LARGEST: f32 = 65504.0;
    if x.is_nan() { 0.0 } else { x.clamp(-LARGEST, LARGEST) }
}

/// Mean square of the first `len`; the others are zero. Eight sums side by side, always added in the same order.
#[inline(always)]
fn mean_square(x: &[f32; CHUNK], len: usize) -> f32 {
    let mut sums = [0.0; 8];
    for eight in x.as_chunks::<8>().0 {
        for (sum, x) in sums.iter_mut().zip(eight) {
            *sum += x * x;
        }
    }
    sums.iter().sum::<f32>() / len as f32
}

//! Low-rank changes of a matrix, for some rows of a batch: `y += B (A x)`, where `A` is `[rank, cols]` and `B` is
//! `[rows, rank]`.
//!
//! `A` is packed like weights. `B` is kept column by column, because a product with it is then a sum of `rank` rows of
//! numbers that lie as the result does. All is f32, and every sum has one order, so that a row's bits depend on it alone.

use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, Activations};
use crate::lanes::{Instructions, Kernel, LANES, Lanes};
use crate::matmul::for_each_sum;
use crate::packed_layout::ROWS;
use crate::shared_slice::SharedSlice;
use crate::{PackedMatrix, ThreadPool};

/// The change of a matrix `[rows, cols]`.
pub struct LowRank {
    /// `[rank, cols]`.
    a: PackedMatrix,
    /// `[rank, stride]`: columns of `B`, with the adapter's scale in them.
    b: Vec<f32>,
    rows: usize,
    /// `rows`, rounded up to whole lanes.
    stride: usize,
}

impl LowRank {
    /// Of `a [rank, cols]` and `b [rows, rank]`; the change is `scale · B A`.
    ///
    /// # Panics
    /// If `a` or `b` is not of that shape.
    pub fn new(pool: &ThreadPool, rank: usize, scale: f32, a: &[f32], b: &[f32]) -> LowRank {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "A and B have one rank");
        let (rows, cols) = (b.len() / rank, a.len() / rank);
        let read = |rows: Range<usize>, out: &mut [u8]| {
            let values = &a[rows.start * cols..rows.end * cols];
            out.chunks_exact_mut(4).zip(values).for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()));
        };
        let a = PackedMatrix::pack(pool, ElementType::F32, rank, cols, &read);
        let stride = rows.next_multiple_of(LANES);
        let mut columns = vec![0.0; rank * stride];
        for (row, b) in b.chunks_exact(rank).enumerate() {
            b.iter().enumerate().for_each(|(r, b)| columns[r * stride + row] = scale * b);
        }
        LowRank { a, b: columns, rows, stride }
    }

    /// Rank of the change.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// `A`, which tells what activations have to hold.
    pub fn a(&self) -> &PackedMatrix {
        &self.a
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.len() * 4
    }

    /// `u = A x` of rows `rows` of `x`, to where `place` says: it gets a row and gives at least `rank` numbers.
    pub(crate) fn shrink<'u>(
        &self,
        instructions: Instructions,
        x: &ActivationView<'_>,
        rows: Range<usize>,
        mut place: impl FnMut(usize) -> &'u mut [f32],
    ) {
        let panels = self.rank().div_ceil(ROWS);
        for_each_sum(instructions, &self.a, 0..panels, x, rows, |sums| {
            sums.copy(instructions, |row| &mut place(row)[sums.first_row..][..sums.rows]);
        });
    }

    /// `y += weight · B u` for the rows of `B` from `first` on, as many as `y` has.
    pub(crate) fn grow(&self, instructions: Instructions, u: &[f32], first: usize, weight: f32, y: &mut [f32]) {
        assert!(first.is_multiple_of(LANES) && first + y.len() <= self.rows, "rows of the changed matrix");
        instructions.run(Grow { u: &u[..self.rank()], b: &self.b[first..], stride: self.stride, weight, y });
    }
}

/// `y[i] += weight · Σ_r u[r] · b[r · stride + i]`, the sum in the order of `r`.
struct Grow<'a> {
    u: &'a [f32],
    b: &'a [f32],
    stride: usize,
    weight: f32,
    y: &'a mut [f32],
}

/// Vectors of results that are summed at once.
const AT_ONCE: usize = 4;

impl Kernel for Grow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Grow { u, b, stride, weight, y } = self;
        let weight = V::splat(weight);
        let mut chunks = y.chunks_exact_mut(AT_ONCE * LANES);
        let mut done = 0;
        for y in &mut chunks {
            let mut sums = [V::splat(0.0); AT_ONCE];
            for (r, u) in u.iter().enumerate() {
                let (u, b) = (V::splat(*u), &b[r * stride + done..][..AT_ONCE * LANES]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `b` holds as many vectors.
                    *sum = unsafe { V::load(b.as_ptr().add(i * LANES)) }.fma(u, *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                // SAFETY: so does the chunk of `y`.
                unsafe {
                    let at = y.as_mut_ptr().add(i * LANES);
                    sum.fma(weight, V::load(at)).store(at);
                }
            }
            done += AT_ONCE * LANES;
        }
        for y in chunks.into_remainder().chunks_mut(LANES) {
            let mut sum = V::splat(0.0);
            for (r, u) in u.iter().enumerate() {
                // Columns are padded to whole vectors.
                let b = &b[r * stride + done..][..LANES];
                // SAFETY: `b` is a vector.
                sum = unsafe { V::load(b.as_ptr()) }.fma(V::splat(*u), sum);
            }
            let mut padded = [0.0; LANES];
            padded[..y.len()].copy_from_slice(y);
            // SAFETY: a vector, too.
            let new = sum.fma(weight, unsafe { V::load(padded.as_ptr()) }).to_array();
            y.copy_from_slice(&new[..y.len()]);
            done += LANES;
        }
    }
}

/// A product that is to be changed for some of its rows.
pub struct Changed<'a> {
    /// The change of the product's matrix.
    pub change: &'a LowRank,
    /// Rows of the batch that it holds for.
    pub rows: Range<usize>,
    /// `[tokens, cols]`, with what `change.a()` reads.
    pub x: &'a Activations,
    /// `[tokens, rows of the matrix]`: what the matrix made of `x`.
    pub y: &'a mut [f32],
}

/// Work below this many multiplications is done by the caller's thread: others would come too late.
const PARALLEL_FROM: usize = 1 << 17;
/// Rows of a batch that a work item shrinks.
const SHRINK_ROWS: usize = 32;
/// Numbers of a result's row that a work item adds to.
const GROW_NUMBERS: usize = 1024;

/// Adds a change to a product: `y += B (A x)` for its rows. `buffer` is kept between calls for its memory.
///
/// # Panics
/// If shapes do not agree.
pub fn add_low_rank(pool: &ThreadPool, changed: Changed<'_>, buffer: &mut Vec<f32>) {
    let Changed { change, rows, x, y } = changed;
    let (rank, n) = (change.rank(), rows.len());
    assert!(rows.end <= x.rows() && change.a.cols() == x.cols(), "rows of the batch, as long as those of A");
    assert_eq!(y.len(), x.rows() * change.rows, "results of {} rows", x.rows());
    buffer.clear();
    buffer.resize(n * rank, 0.0);
    let instructions = Instructions::best();
    let parallel = n * rank * (change.rows + x.cols()) >= PARALLEL_FROM;
    let run = |items: usize, work: &(dyn Fn(usize, usize) + Sync)| match parallel {
        true => pool.run(items, work),
        false => (0..items).for_each(|item| work(item, 0)),
    };
    let (inner, view) = (SharedSlice::new(buffer), x.view());
    run(n.div_ceil(SHRINK_ROWS), &|item, _| {
        let own = rows.start + item * SHRINK_ROWS..rows.end.min(rows.start + (item + 1) * SHRINK_ROWS);
        // SAFETY: a row belongs to one item, and its part is given back before the next is taken.
        change.shrink(instructions, &view, own, |row| unsafe { inner.part((row - rows.start) * rank, rank) });
    });
    let (inner, y) = (&*buffer, SharedSlice::new(y));
    let parts = change.rows.div_ceil(GROW_NUMBERS);
    run(n * parts, &|item, _| {
        let (row, first) = (item / parts, item % parts * GROW_NUMBERS);
        let length = (change.rows - first).min(GROW_NUMBERS);
        // SAFETY: this part of the row belongs to the item.
        let y = unsafe { y.part((rows.start + row) * change.rows + first, length) };
        change.grow(instructions, &inner[row * rank..][..rank], first, 1.0, y);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reads;
    use crate::matmul_tests::{Random, same_bits};

    fn changed(threads: usize, change: &LowRank, rows: Range<usize>, x: &[f32], y: &[f32]) -> Vec<f32> {
        let pool = ThreadPool::new(threads);
        let (mut activations, mut y) = (Activations::new(), y.to_vec());
        activations.set(&pool, x, change.a().cols(), Reads::of([change.a()]));
        let changed = Changed { change, rows, x: &activations, y: &mut y };
        add_low_rank(&pool, changed, &mut Vec::new());
        y
    }

    /// Sums of `cols` and `rank` products of numbers below 1, in f32: some 1e-6 each in these sizes.
    #[test]
    fn is_the_product_and_leaves_other_rows() {
        let mut random = Random(5);
        for (rank, rows, cols, n) in [(1, 1, 1, 1), (3, 20, 40, 5), (16, 576, 300, 40), (9, 1100, 64, 3)] {
            let (a, b) = (random.floats(rank * cols), random.floats(rows * rank));
            let (x, y) = (random.floats((n + 2) * cols), random.floats((n + 2) * rows));
            let change = LowRank::new(&ThreadPool::new(1), rank, 0.5, &a, &b);
            let got = changed(2, &change, 1..n + 1, &x, &y);
            assert!(same_bits(&got, &changed(1, &change, 1..n + 1, &x, &y)), "threads");
            for token in 0..n + 2 {
                let dot =
                    |a: &[f32], x: &[f32]| a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x)).sum::<f64>();
                let inner: Vec<f64> = a.chunks(cols).map(|a| dot(a, &x[token * cols..][..cols])).collect();
                for row in 0..rows {
                    let at = token * rows + row;
                    let sum: f64 = b[row * rank..][..rank].iter().zip(&inner).map(|(b, u)| f64::from(*b) * u).sum();
                    let want = f64::from(y[at]) + if (1..=n).contains(&token) { 0.5 * sum } else { 0.0 };
                    assert!((f64::from(got[at]) - want).abs() < 2e-5 * (1.0 + want.abs()), "{} {want}", got[at]);
                }
                let alone = changed(1, &change, 0..1, &x[token * cols..][..cols], &y[token * rows..][..rows]);
                if (1..=n).contains(&token) {
                    assert!(same_bits(&alone, &got[token * rows..][..rows]), "in company");
                }
            }
        }
    }

    #[test]
    fn the_same_bits_on_all_instructions() {
        let mut random = Random(6);
        let (a, b, u) = (random.floats(7 * 10), random.floats(100 * 7), random.floats(7));
        let change = LowRank::new(&ThreadPool::new(1), 7, 1.0, &a, &b);
        let [mut fast, mut plain] = [vec![1.0; 60], vec![1.0; 60]];
        change.grow(Instructions::best(), &u, 40, 0.3, &mut fast);
        change.grow(Instructions::Portable, &u, 40, 0.3, &mut plain);
        assert!(same_bits(&fast, &plain));
    }
}

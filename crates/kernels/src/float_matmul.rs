//! Products of plain matrices, for training: `y = a b` or `y += a b`, with rows and columns wherever they lie. They are f32;
//! `b` may be bf16, as frozen weights often are, and is read as it lies.
//!
//! The arithmetic is AMX's where there is it (`amx_floats.rs`), and else the gemm crate's, which picks the machine's instructions
//! by itself. Both sum over `k` in an order that depends on `k` alone, so that results do not depend on how they are split over
//! threads.

use gemm_common::Parallelism;
use octet_checkpoint::ElementType;

use crate::ThreadPool;
#[cfg(target_arch = "x86_64")]
use crate::amx_floats;
use crate::blocks::dequantize_row;

/// Most rows and columns of the results of a work item: large enough that copying the operands into the order of the
/// inner loop costs little, and few enough that threads end together.
const ITEM_SIZE: [usize; 2] = [512, 512];
/// The same where `b` is bf16, which is summed over more of k at a time, so that fewer rows fit the second cache.
const BF16_ITEM_SIZE: [usize; 2] = [352, 4096];
/// Parts are multiples of this, which the inner loops like.
const STEP: usize = 16;

/// Numbers one after the other.
#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    /// Two bytes each, the lower one first.
    Bf16(&'a [u8]),
}

impl Values<'_> {
    fn from(self, first: usize) -> Self {
        match self {
            Values::F32(values) => Values::F32(&values[first.min(values.len())..]),
            Values::Bf16(bytes) => Values::Bf16(&bytes[(2 * first).min(bytes.len())..]),
        }
    }
}

/// A matrix within a slice: element `(i, j)` is `values[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct FloatMatrix<'a> {
    values: Values<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> FloatMatrix<'a> {
    /// `values [rows, cols]`, row after row.
    ///
    /// # Panics
    /// If the slice is no whole number of rows.
    pub fn new(values: &'a [f32], cols: usize) -> FloatMatrix<'a> {
        FloatMatrix::strided(values, whole_rows(values.len(), cols), cols, cols)
    }

    /// Rows of `cols` elements that begin `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last row ends outside the slice.
    pub fn strided(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> FloatMatrix<'a> {
        check_bounds(values.len(), rows, cols, row_stride);
        FloatMatrix { values: Values::F32(values), rows, cols, row_stride, col_stride: 1 }
    }

    /// bf16 `[rows, cols]`, row after row, two bytes each with the lower one first.
    ///
    /// # Panics
    /// If the slice is no whole number of rows.
    pub fn bf16(bytes: &'a [u8], cols: usize) -> FloatMatrix<'a> {
        assert!(bytes.len().is_multiple_of(2), "two bytes each");
        let rows = whole_rows(bytes.len() / 2, cols);
        FloatMatrix { values: Values::Bf16(bytes), rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same matrix with rows and columns exchanged.
    pub fn transposed(self) -> FloatMatrix<'a> {
        let FloatMatrix { values, rows, cols, row_stride, col_stride } = self;
        FloatMatrix { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    fn rows_from(self, first: usize, rows: usize) -> FloatMatrix<'a> {
        FloatMatrix { values: self.values.from(first * self.row_stride), rows, ..self }
    }

    fn cols_from(self, first: usize, cols: usize) -> FloatMatrix<'a> {
        self.transposed().rows_from(first, cols).transposed()
    }

    /// The matrix in f32: itself, or a copy in `floats`, in which rows or columns stand as close as may be.
    fn in_f32<'b>(&self, floats: &'b mut Vec<f32>) -> (&'b [f32], [usize; 2])
    where
        'a: 'b,
    {
        let bytes = match self.values {
            Values::F32(values) => return (values, [self.row_stride, self.col_stride]),
            Values::Bf16(bytes) => bytes,
        };
        let by_rows = self.col_stride == 1;
        let [lines, length, stride] =
            if by_rows { [self.rows, self.cols, self.row_stride] } else { [self.cols, self.rows, self.col_stride] };
        floats.resize(lines * length, 0.0);
        for (line, floats) in floats.chunks_exact_mut(length.max(1)).enumerate() {
            dequantize_row(ElementType::BF16, &bytes[2 * line * stride..][..2 * length], floats);
        }
        (floats, if by_rows { [length, 1] } else { [1, length] })
    }
}

/// Where results go: rows of `cols` elements that begin `row_stride` elements apart.
pub struct FloatMatrixMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> FloatMatrixMut<'a> {
    /// `values [rows, cols]`, row after row.
    ///
    /// # Panics
    /// If the slice is no whole number of rows.
    pub fn new(values: &'a mut [f32], cols: usize) -> FloatMatrixMut<'a> {
        let rows = whole_rows(values.len(), cols);
        FloatMatrixMut::strided(values, rows, cols, cols)
    }

    /// Rows of `cols` elements that begin `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last row ends outside the slice, or rows overlap.
    pub fn strided(values: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> FloatMatrixMut<'a> {
        check_bounds(values.len(), rows, cols, row_stride);
        FloatMatrixMut { values, rows, cols, row_stride }
    }
}

/// Rows of `cols` elements in `len`.
fn whole_rows(len: usize, cols: usize) -> usize {
    let rows = len.checked_div(cols).unwrap_or(0);
    assert_eq!(len, rows * cols, "whole rows of {cols}");
    rows
}

/// What the unsafe code below rests on: every row lies in the slice, and none in another.
fn check_bounds(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let end = match rows.checked_sub(1) {
        Some(before) if cols > 0 => before.checked_mul(row_stride).and_then(|start| start.checked_add(cols)),
        _ => Some(0),
    };
    let is_inside = end.is_some_and(|end| end <= len) && (rows < 2 || cols <= row_stride);
    assert!(is_inside, "{rows} rows of {cols}, {row_stride} apart, in {len}");
}

/// What becomes of the numbers that the result's place held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// They are lost: `y = a b`.
    Fresh,
    /// They are added to: `y += a b`.
    Sum,
}

/// `y = scale a b`, or `y += scale a b`; `a [m, k]`, `b [k, n]`, `y [m, n]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn float_matmul(
    pool: &ThreadPool,
    a: FloatMatrix<'_>,
    b: FloatMatrix<'_>,
    scale: f32,
    target: Target,
    y: FloatMatrixMut<'_>,
) {
    check_shapes(&a, &b, &y);
    let (m, n, y_stride) = (y.rows, y.cols, y.row_stride);
    let [most_rows, most_cols] = if matches!(b.values, Values::Bf16(_)) { BF16_ITEM_SIZE } else { ITEM_SIZE };
    let (item_rows, row_items) = even_parts(m, m.div_ceil(most_rows));
    // As many items for each thread, so that none waits for the last one.
    let threads = pool.threads();
    let is_even = |parts: &usize| (row_items * parts).is_multiple_of(threads);
    let col_parts = n.div_ceil(most_cols).max(1);
    let (item_cols, col_items) = even_parts(n, (col_parts..col_parts + threads).find(is_even).unwrap_or(col_parts));
    let start = Start(y.values.as_mut_ptr());
    pool.run(row_items * col_items, &|item, _| {
        let part = |index: usize, size: usize, items: usize, whole: usize| {
            let first = index * size;
            (first, if index + 1 == items { whole - first } else { size })
        };
        let (row, rows) = part(item / col_items, item_rows, row_items, m);
        let (col, cols) = part(item % col_items, item_cols, col_items, n);
        let (a, b) = (a.rows_from(row, rows), b.cols_from(col, cols));
        // SAFETY: items' parts of the result are disjoint and, by the constructor's check, inside of the slice, which is
        // borrowed exclusively until the region ends.
        unsafe { product(&a, &b, scale, target, start.at(row * y_stride + col), y_stride) };
    });
}

/// Whether matrices in bf16 are best given as they lie: elsewhere each work item makes floats of its part first.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx_floats::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The length of each of about `parts` equal parts of `len`, and how many they are. The last takes what is left, so that none
/// is so small that another arithmetic would do it.
fn even_parts(len: usize, parts: usize) -> (usize, usize) {
    let length = len.div_ceil(parts.max(1)).next_multiple_of(STEP).max(STEP);
    (length, (len / STEP * STEP).div_ceil(length).max(1))
}

/// The same on the calling thread alone, for the small products inside of attention.
pub(crate) fn float_matmul_here(
    a: FloatMatrix<'_>,
    b: FloatMatrix<'_>,
    scale: f32,
    target: Target,
    y: FloatMatrixMut<'_>,
) {
    check_shapes(&a, &b, &y);
    // SAFETY: the constructor has checked that all rows of the result lie in its slice.
    unsafe { product(&a, &b, scale, target, y.values.as_mut_ptr(), y.row_stride) };
}

fn check_shapes(a: &FloatMatrix<'_>, b: &FloatMatrix<'_>, y: &FloatMatrixMut<'_>) {
    assert!(
        a.cols == b.rows && a.rows == y.rows && b.cols == y.cols,
        "[{}, {}] times [{}, {}] is no [{}, {}]",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        y.rows,
        y.cols
    );
}

/// Where a result begins; threads write disjoint parts of it.
#[derive(Clone, Copy)]
struct Start(*mut f32);

// SAFETY: a plain address; what is done with it is argued where it is done.
unsafe impl Sync for Start {}

impl Start {
    /// # Safety
    /// The offset lies inside of the slice that this is the start of.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// # Safety
/// `y` has `a.rows` writable rows of `b.cols` floats, `y_stride` apart, that nobody else uses.
unsafe fn product(a: &FloatMatrix<'_>, b: &FloatMatrix<'_>, scale: f32, target: Target, y: *mut f32, y_stride: usize) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let mut copies = [vec![], vec![]];
    let [a_copy, b_copy] = &mut copies;
    let (a_values, [a_row, a_col]) = a.in_f32(a_copy);
    #[cfg(target_arch = "x86_64")]
    if amx_floats::is_available()
        && amx_floats::suits(
            [a.rows, b.cols, a.cols],
            [a_row, a_col, b.col_stride, b.row_stride],
            matches!(b.values, Values::Bf16(_)),
        )
    {
        use amx_floats::{Lines, Right};
        let left = Lines { values: a_values.as_ptr(), lines: a.rows, line_stride: a_row, k_stride: a_col };
        let (lines, line_stride, k_stride) = (b.cols, b.col_stride, b.row_stride);
        let right = match b.values {
            Values::F32(values) => Right::F32(Lines { values: values.as_ptr(), lines, line_stride, k_stride }),
            Values::Bf16(bytes) => Right::Bf16(Lines { values: bytes.as_ptr().cast(), lines, line_stride, k_stride }),
        };
        let results = amx_floats::Results { start: y, stride: y_stride, scale, target };
        // SAFETY: the operands' constructors have checked that their elements lie in their slices; of `y` the caller has.
        unsafe { amx_floats::product(left, right, a.cols, results) };
        return;
    }
    let (b_values, [b_row, b_col]) = b.in_f32(b_copy);
    let gemm = gemm_f32::gemm::f32::get_gemm_fn();
    // The inner loops want results whose columns are runs of memory, so the transposed product is asked for.
    // SAFETY: the operands' constructors have checked that their elements lie in their slices; of `y` the caller has.
    unsafe {
        gemm(
            b.cols,
            a.rows,
            a.cols,
            y,
            y_stride as isize,
            1,
            target == Target::Sum,
            b_values.as_ptr(),
            b_row as isize,
            b_col as isize,
            a_values.as_ptr(),
            a_row as isize,
            a_col as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Each of k products and sums rounds by 6e-8 of at most k.
    #[test]
    fn agrees_with_plain_sums_in_every_arrangement() {
        let pool = ThreadPool::new(3);
        for (m, n, k) in [(1, 1, 1), (3, 5, 2), (17, 33, 64), (600, 70, 31), (40, 1100, 19), (2, 3, 0), (0, 4, 2)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let turned: Vec<f32> = (0..k * n).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect();
            let y_stride = n + 3;
            for (target, before) in [(Target::Fresh, 7.0), (Target::Sum, 0.5)] {
                let mut y = vec![before; m * y_stride];
                let b = FloatMatrix::strided(&turned, n, k, k).transposed();
                let a_matrix = FloatMatrix::strided(&a, m, k, k);
                let out = FloatMatrixMut::strided(&mut y, m, n, y_stride);
                float_matmul(&pool, a_matrix, b, 2.0, target, out);
                for i in 0..m {
                    for j in 0..n {
                        let sum: f64 = (0..k).map(|x| a[i * k + x] as f64 * turned[j * k + x] as f64).sum();
                        let want = 2.0 * sum + if target == Target::Sum { 0.5 } else { 0.0 };
                        let got = y[i * y_stride + j] as f64;
                        assert!((got - want).abs() < 1e-6 * (k + 1) as f64, "{m} {n} {k}: {got} {want}");
                    }
                    assert!(y[i * y_stride + n..][..3].iter().all(|&x| x == before), "gaps stay as they are");
                }
            }
        }
    }

    /// Both operands in both orders, with all bits of a float and with those of bf16. The sums' sizes are some √k, and so are
    /// the roundings.
    #[test]
    fn large_products_agree_with_f64() {
        let pool = ThreadPool::new(2);
        let wide = |n: usize, seed: usize| -> Vec<f32> {
            numbers(n, seed).iter().map(|x| x * (1.0 + 1e-3 * x) * [1.0, 1e-4, 30.0][seed % 3]).collect()
        };
        let short = |values: Vec<f32>| values.iter().map(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000)).collect();
        for (m, n, k) in [(16, 16, 16), (100, 70, 300), (33, 600, 65), (700, 49, 1025)] {
            let (a, full) = (wide(m * k, 1), wide(k * n, 2));
            for b in [full.clone(), short(full.clone())] {
                let turn = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
                };
                let (a_turned, b_turned) = (turn(&a, m, k), turn(&b, k, n));
                let lefts = [FloatMatrix::new(&a, k), FloatMatrix::new(&a_turned, m).transposed()];
                let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()[2..].to_vec()).collect::<Vec<u8>>();
                let (b_bytes, turned_bytes) = (bytes(&b), bytes(&b_turned));
                let mut rights = vec![FloatMatrix::new(&b, n), FloatMatrix::new(&b_turned, k).transposed()];
                if b != full {
                    rights.extend([FloatMatrix::bf16(&b_bytes, n), FloatMatrix::bf16(&turned_bytes, k).transposed()]);
                }
                let largest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs())) as f64;
                let unit = largest(&a) * largest(&b) * (k as f64).sqrt();
                for (left, right) in (0..2 * rights.len()).map(|i| (i % 2, i / 2)) {
                    let mut y = vec![1.0; m * n];
                    let out = FloatMatrixMut::new(&mut y, n);
                    float_matmul(&pool, lefts[left], rights[right], 0.5, Target::Sum, out);
                    for (i, got) in y.iter().enumerate().step_by(7) {
                        let (row, col) = (i / n, i % n);
                        let sum: f64 = (0..k).map(|x| a[row * k + x] as f64 * b[x * n + col] as f64).sum();
                        let error = (*got as f64 - 1.0 - 0.5 * sum).abs();
                        assert!(error < 1e-6 * (unit + 1.0), "{m} {n} {k} {left} {right}: {error} of {unit}");
                    }
                }
            }
        }
    }

    /// As it lies, or as floats: the same bits, whichever way it is turned, and also in products too narrow for AMX. (Over more
    /// than 256 of k AMX adds up in another order; of fewer than 16 rows it multiplies bf16 alone, so there are 16 of them here
    /// of which those are compared; the library that multiplies without AMX adds up in another order for other numbers of rows.)
    #[test]
    fn bf16_gives_the_bits_of_its_floats() {
        let pool = ThreadPool::new(2);
        for (m, n, k) in [(16, 16, 16), (5, 70, 33), (40, 600, 65), (70, 49, 256), (9, 7, 100), (0, 3, 4), (3, 2, 0)] {
            let rows = if multiplies_bf16() { m.max(16) } else { m };
            let a = numbers(rows * k, 1);
            for is_turned in [false, true] {
                let cut: Vec<u16> = numbers(k * n, 2).iter().map(|x| (x.to_bits() >> 16) as u16).collect();
                let floats: Vec<f32> = cut.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
                // One byte too far, as nothing is promised of addresses in files.
                let bytes: Vec<u8> = std::iter::once(0).chain(cut.iter().flat_map(|bits| bits.to_le_bytes())).collect();
                let cols = if is_turned { k } else { n };
                let matrices = [(FloatMatrix::new(&floats, cols), rows), (FloatMatrix::bf16(&bytes[1..], cols), m)];
                let results = matrices.map(|(b, m_of_a)| {
                    let mut y = vec![0.0; m_of_a * n];
                    let b = if is_turned { b.transposed() } else { b };
                    let a = FloatMatrix::strided(&a, m_of_a, k, k);
                    if b.rows == k && b.cols == n {
                        float_matmul(&pool, a, b, 1.0, Target::Fresh, FloatMatrixMut::strided(&mut y, m_of_a, n, n));
                    }
                    y.truncate(m * n);
                    y
                });
                assert_eq!(results[0], results[1], "{m} {n} {k} {is_turned}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for (m, n, k) in [(700, 900, 130), (512, 576, 1536), (5, 17, 2000), (33, 400, 1), (300, 40, 3)] {
            let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
            let run = |threads| {
                let mut y = vec![0.0; m * n];
                let (a, b) = (FloatMatrix::new(&a, k), FloatMatrix::new(&b, n));
                float_matmul(&ThreadPool::new(threads), a, b, 1.0, Target::Fresh, FloatMatrixMut::new(&mut y, n));
                y
            };
            let one = run(1);
            assert!([2, 4, 7].into_iter().all(|threads| run(threads) == one), "{m} {n} {k}");
        }
    }

    /// Whether something is refused by a panic.
    fn panics(make: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(make).is_err()
    }

    #[test]
    fn rows_that_overlap_or_lie_outside_are_refused() {
        let strided = |rows, cols, row_stride| {
            let read = panics(move || _ = FloatMatrix::strided(&[0.0; 600], rows, cols, row_stride));
            let write = panics(move || _ = FloatMatrixMut::strided(&mut [0.0; 600], rows, cols, row_stride));
            assert_eq!(read, write, "{rows} rows of {cols}, {row_stride} apart");
            read
        };
        assert!(!strided(600, 1, 1) && !strided(1, 600, 0) && !strided(0, 7, 3) && !strided(7, 0, 0));
        assert!(strided(600, 1, 0), "all rows are one");
        assert!(strided(3, 5, 4) && strided(601, 1, 1) && strided(2, 300, 301));
        // (rows - 1) * row_stride is 2^64, which would be 0.
        assert!(strided(5, 1, 1 << 62) && strided(2, 2, usize::MAX));
    }

    #[test]
    fn no_part_of_a_row_is_passed_over() {
        assert!(panics(|| _ = FloatMatrix::new(&[0.0; 7], 3)) && panics(|| _ = FloatMatrix::new(&[0.0; 7], 0)));
        assert!(panics(|| _ = FloatMatrixMut::new(&mut [0.0; 7], 3)));
        assert!(panics(|| _ = FloatMatrix::bf16(&[0; 7], 3)) && panics(|| _ = FloatMatrix::bf16(&[0; 8], 3)));
        assert!(!panics(|| _ = FloatMatrix::new(&[0.0; 6], 3)) && !panics(|| _ = FloatMatrix::new(&[], 0)));
    }
}

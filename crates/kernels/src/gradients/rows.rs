//! Rows of a result, filled by several threads.

use crate::ThreadPool;
use crate::shared_slice::SharedSlice;

/// Calls `fill(first row, rows)` for blocks of up to `at_once` rows of `out [rows, cols]`, each block once, on any thread.
pub fn for_each_rows(
    pool: &ThreadPool,
    out: &mut [f32],
    cols: usize,
    at_once: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    for_each_rows_of_two(pool, [out, &mut []], [cols, 0], at_once, |first, rows, _| fill(first, rows));
}

/// The same for two results of as many rows, `[rows, cols[0]]` and `[rows, cols[1]]`.
///
/// # Panics
/// If the results are no whole number of rows.
pub fn for_each_rows_of_two(
    pool: &ThreadPool,
    [first, second]: [&mut [f32]; 2],
    cols: [usize; 2],
    at_once: usize,
    fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = first.len().checked_div(cols[0]).unwrap_or(0);
    assert!(first.len() == rows * cols[0] && second.len() == rows * cols[1], "whole rows");
    let (first, second) = (SharedSlice::new(first), SharedSlice::new(second));
    pool.run(rows.div_ceil(at_once.max(1)), &|item, _| {
        let start = item * at_once;
        let n = at_once.min(rows - start);
        // SAFETY: every row belongs to one item.
        let (a, b) = unsafe { (first.part(start * cols[0], n * cols[0]), second.part(start * cols[1], n * cols[1])) };
        fill(start, a, b);
    });
}

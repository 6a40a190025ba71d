//! Rows of a result, filled by several threads, and what is asked of a row.

use crate::ThreadPool;
use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some};
use crate::shared_slice::SharedSlice;

/// Calls `fill(first row, rows)` for blocks of up to `at_once` rows of `out [rows, cols]`, each block once, on any thread.
pub fn for_each_rows(
    pool: &ThreadPool,
    out: &mut [f32],
    cols: usize,
    at_once: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    for_each_rows_of(pool, [out], [cols], at_once, |first, [rows]| fill(first, rows));
}

/// The same for several results of as many rows, each `[rows, its cols]`.
///
/// # Panics
/// If the results are no whole number of rows, or not all of as many.
pub fn for_each_rows_of<const N: usize>(
    pool: &ThreadPool,
    results: [&mut [f32]; N],
    cols: [usize; N],
    at_once: usize,
    fill: impl Fn(usize, [&mut [f32]; N]) + Sync,
) {
    let rows = results.first().map_or(0, |first| first.len().checked_div(cols[0]).unwrap_or(0));
    assert!(results.iter().zip(cols).all(|(result, cols)| result.len() == rows * cols), "whole rows, as many of each");
    let results = results.map(SharedSlice::new);
    pool.run(rows.div_ceil(at_once.max(1)), &|item, _| {
        let start = item * at_once;
        let n = at_once.min(rows - start);
        // SAFETY: every row belongs to one item.
        fill(start, std::array::from_fn(|i| unsafe { results[i].part(start * cols[i], n * cols[i]) }));
    });
}

/// `a·b`, in 32 running sums whose order depends on the length alone.
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "both sides of a product have one length");
    Instructions::best().run(Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let mut sums = [V::splat(0.0); 4];
        for (a, b) in self.a.chunks(4 * LANES).zip(self.b.chunks(4 * LANES)) {
            for ((a, b), sum) in a.chunks(LANES).zip(b.chunks(LANES)).zip(&mut sums) {
                *sum = load_some::<V>(a, 0.0).fma(load_some(b, 0.0), *sum);
            }
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// The largest number of a row; minus infinity of none.
#[inline(always)]
pub(crate) fn largest<V: Lanes>(row: &[f32]) -> f32 {
    let mut four = [V::splat(f32::NEG_INFINITY); 4];
    for part in row.chunks(4 * LANES) {
        for (part, most) in part.chunks(LANES).zip(&mut four) {
            *most = most.max(load_some(part, f32::NEG_INFINITY));
        }
    }
    four[0].max(four[1]).max(four[2].max(four[3])).largest()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of `n` products of numbers up to 5 round by some 1e-6 of their sizes' sum; the largest of a row is exact.
    #[test]
    fn agree_with_plain_loops_on_all_instructions() {
        struct Largest<'a>(&'a [f32]);
        impl Kernel for Largest<'_> {
            type Output = f32;
            #[inline(always)]
            fn run<V: Lanes>(self) -> f32 {
                largest::<V>(self.0)
            }
        }
        for n in [0, 1, 7, 8, 31, 33, 100, 4097] {
            let a: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 100.0 - 5.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i * 31 % 97) as f32 / 20.0 - 2.4).collect();
            let products = || a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            assert!((f64::from(dot(&a, &b)) - want).abs() <= 1e-6 * size, "{n}");
            assert_eq!(dot(&a, &b), Instructions::Portable.run(Dot { a: &a, b: &b }), "{n}");
            let most = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!([Instructions::best(), Instructions::Portable].map(|i| i.run(Largest(&a))), [most; 2], "{n}");
        }
    }
}

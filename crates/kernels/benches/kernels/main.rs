//! Every kernel beside what the machine can do: `cargo bench -p octet-kernels [-- FILTER]`.
//!
//! Criterion times the kernels; `cargo bench -p octet-kernels -- matmul/Q4_K` takes those whose name holds the filter, and
//! `--save-baseline NAME`, `--baseline NAME` compare two versions. `THREADS=1` in the environment asks for so many threads
//! instead of one for each core, `MIB=512` for so much memory that weights, keys and values walk over instead of 256.
//!
//! At the end a table holds each figure against its roofline: the time in which the machine could at best read the bytes or
//! do the multiply-adds, whichever takes longer. Machines drift and are shared, so the limits are measured in the same run,
//! and the figure of the table is the best sample; criterion's own is the mean.

mod attention;
mod products;
mod roofline;
mod small;

use std::time::Duration;

use criterion::Criterion;
use octet_kernels::{ThreadPool, cpu};

use crate::roofline::Roofline;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .nresamples(1000)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .without_plots()
        .configure_from_args();
    let pool = ThreadPool::new(number("THREADS").unwrap_or_else(cpu::available_threads));
    let roofline = Roofline::new(&pool);
    products::matmul(&mut criterion, &pool, &roofline);
    products::experts(&mut criterion, &pool, &roofline);
    attention::attention(&mut criterion, &pool, &roofline);
    small::small(&mut criterion, &pool, &roofline);
    criterion.final_summary();
    roofline.print();
}

/// A number from the environment.
fn number(name: &str) -> Option<usize> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Memory to walk over, so that no cache holds it.
fn walk_bytes() -> usize {
    number("MIB").unwrap_or(256) << 20
}

/// `n` numbers in -1..1.
fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect()
}

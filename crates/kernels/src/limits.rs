//! What this machine can do at best, measured: the yardstick beside every speed that we report.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::ThreadPool;
use crate::lanes::{Instructions, Kernel, LANES, Lanes};

mod integers;

pub use integers::integer_multiply_add_peak;

/// Bytes that each measurement reads: far beyond any cache.
const READ_BYTES: usize = 1 << 29;
/// Streams of a thread: one core reads faster on several (17 GB/s on one, 20 to 27 on four, on Zen 3).
const STREAMS: usize = 4;

/// Read bandwidth of all threads together in bytes per second: the best of `repetitions` passes over 512 MiB.
pub fn read_bandwidth(pool: &ThreadPool, repetitions: usize) -> f64 {
    let words = vec![1u64; READ_BYTES / 8];
    let parts = pool.threads() * 16;
    let sum = AtomicU64::new(0);
    let mut best = 0.0f64;
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        pool.run(parts, &|part, _thread| {
            let length = words.len() / parts;
            sum.fetch_add(sum_streams(&words[part * length..][..length]), Ordering::Relaxed);
        });
        best = best.max(READ_BYTES as f64 / start.elapsed().as_secs_f64());
    }
    std::hint::black_box(sum.into_inner());
    best
}

/// Sums four quarters side by side, a cache line of each at a time.
fn sum_streams(words: &[u64]) -> u64 {
    let quarter = words.len() / STREAMS / 8 * 8;
    let mut sums = [[0u64; 8]; STREAMS];
    for line in (0..quarter).step_by(8) {
        for (stream, sums) in sums.iter_mut().enumerate() {
            let at = stream * quarter + line;
            for (sum, word) in sums.iter_mut().zip(&words[at..at + 8]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |a, b| a.wrapping_add(*b))
}

/// Chains of multiply-adds side by side: latency times throughput is 8 on Zen 3, 10 where it is highest.
const CHAINS: usize = 12;
/// Links of the chains in one item: some 0.1 ms.
const LINKS: usize = 1 << 16;

/// Multiply-adds of f32 per second that all threads together do in registers: the best of `repetitions` passes.
pub fn multiply_add_peak(pool: &ThreadPool, repetitions: usize) -> f64 {
    let items = pool.threads() * 8;
    let mut best = 0.0f64;
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        pool.run(items, &|_, _| {
            std::hint::black_box(Instructions::best().run(MultiplyAdds));
        });
        best = best.max((items * LINKS * CHAINS * LANES) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    type Output = f32;
    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let mut sums = [V::splat(1.0); CHAINS];
        let (factor, term) = std::hint::black_box((0.5, 1.0));
        let (factor, term) = (V::splat(factor), V::splat(term));
        for _ in 0..LINKS {
            for sum in &mut sums {
                *sum = sum.fma(factor, term);
            }
        }
        sums.iter().map(|sum| sum.sum()).sum()
    }
}

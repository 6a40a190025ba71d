//! What this machine can do at best, measured: the yardstick beside every speed that we report.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::ThreadPool;
use crate::aligned::WeightBytes;
use crate::lanes::{Instructions, Kernel, LANES, Lanes};

mod integers;

pub use integers::integer_multiply_add_peak;

/// Bytes that each pass reads: twice the largest cache that we have seen.
const READ_BYTES: usize = 1 << 30;
/// Streams of a thread: one core reads faster on several (17 GB/s on one, 20 to 27 on four, on Zen 3).
const STREAMS: usize = 4;
/// Bytes of a stream that are asked for ahead of what is read.
const AHEAD: usize = 1024;

/// Memory to read from. Whoever measures speeds beside it keeps it until the end: what is let go of, a virtual machine may hand
/// back to its host a second or two later, which takes a tenth of the next two seconds.
pub struct ReadTest(WeightBytes);

impl ReadTest {
    /// Takes 1 GiB, which lies as weights do.
    pub fn new() -> ReadTest {
        let mut bytes = WeightBytes::zeroed(READ_BYTES);
        bytes.as_mut_slice().fill(1);
        ReadTest(bytes)
    }

    /// Bytes that it holds.
    pub fn resident_bytes(&self) -> u64 {
        READ_BYTES as u64
    }

    /// Read bandwidth of all threads together in bytes per second: the best of `repetitions` passes.
    pub fn bandwidth(&self, pool: &ThreadPool, repetitions: usize) -> f64 {
        let parts = pool.threads() * 16;
        let sum = AtomicU64::new(0);
        let mut best = 0.0f64;
        for _ in 0..repetitions.max(1) {
            let start = Instant::now();
            pool.run(parts, &|part, _thread| {
                let length = READ_BYTES / parts;
                let read = Instructions::best().run(Read(&self.0.as_slice()[part * length..][..length]));
                sum.fetch_add(read.to_bits().into(), Ordering::Relaxed);
            });
            best = best.max(READ_BYTES as f64 / start.elapsed().as_secs_f64());
        }
        std::hint::black_box(sum.into_inner());
        best
    }
}

impl Default for ReadTest {
    fn default() -> ReadTest {
        ReadTest::new()
    }
}

/// Reads four quarters side by side, a cache line of each at a time.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        const VECTOR: usize = LANES * size_of::<f32>();
        let quarter = self.0.len() / STREAMS / 64 * 64;
        let mut sums = [[V::splat(0.0); 64 / VECTOR]; STREAMS];
        for line in (0..quarter).step_by(64) {
            for (stream, sums) in sums.iter_mut().enumerate() {
                let at = self.0[stream * quarter + line..][..64].as_ptr();
                V::prefetch(at.wrapping_add(AHEAD));
                for (vector, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a whole line is there.
                    *sum = sum.add(unsafe { V::load(at.add(vector * VECTOR).cast()) });
                }
            }
        }
        sums.iter().flatten().map(|sum| sum.sum()).sum()
    }
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

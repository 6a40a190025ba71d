//! What this machine can do at best with all threads of a pool, measured around every repetition: a machine that is shared
//! reads 17 GB/s in one second and 24 in another.

use octet_kernels::ThreadPool;
use octet_kernels::limits::{ReadTest, integer_multiply_add_peak};

use super::row::mean_and_deviation;

/// Passes at each moment; the best of them counts.
const PASSES: usize = 3;

/// The limits over a test: means of what was measured at several moments.
#[derive(Default)]
pub struct Limits {
    reads: Vec<f64>,
    multiply_adds: Vec<f64>,
}

impl Limits {
    /// Measures once more, in about a quarter of a second.
    pub fn measure(&mut self, reads: &ReadTest, pool: &ThreadPool) {
        self.reads.push(reads.bandwidth(pool, PASSES));
        self.multiply_adds.extend(integer_multiply_add_peak(pool, PASSES));
    }

    /// Bytes per second read from memory.
    pub fn read_bandwidth(&self) -> f64 {
        mean_and_deviation(&self.reads).0
    }

    /// Multiply-adds of 8-bit integers per second; `None` where there are no instructions for them.
    pub fn multiply_adds(&self) -> Option<f64> {
        (!self.multiply_adds.is_empty()).then(|| mean_and_deviation(&self.multiply_adds).0)
    }
}

//! Measurements, and what the machine could do at best in their stead.

use std::cell::{OnceCell, RefCell};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use octet_kernels::{ThreadPool, cpu, limits};

/// What one call of a kernel has to do.
#[derive(Clone, Copy)]
pub struct Work {
    /// Read and written.
    pub bytes: usize,
    pub multiply_adds: usize,
    pub numbers: Numbers,
}

impl Work {
    /// Bytes alone: what arithmetic there is belongs to no unit that we have a peak of.
    pub fn of_bytes(bytes: usize) -> Work {
        Work { bytes, multiply_adds: 0, numbers: Numbers::Floats }
    }
}

/// What is multiplied.
#[derive(Clone, Copy)]
pub enum Numbers {
    /// Of 8 bits.
    Integers,
    /// f32.
    Floats,
}

/// The limits of all threads together, by the second.
struct Limits {
    read: f64,
    integers: f64,
    floats: f64,
}

/// A kernel's line in the table.
struct Line {
    name: String,
    work: Work,
    /// Of the best sample.
    seconds: f64,
}

/// The machine's limits, measured once there is something to hold against them, and all that was measured.
pub struct Roofline<'a> {
    pool: &'a ThreadPool,
    limits: OnceCell<Limits>,
    lines: RefCell<Vec<Line>>,
}

impl Roofline<'_> {
    pub fn new(pool: &ThreadPool) -> Roofline<'_> {
        Roofline { pool, limits: OnceCell::new(), lines: RefCell::default() }
    }

    fn limits(&self) -> &Limits {
        self.limits.get_or_init(|| {
            let floats = limits::multiply_add_peak(self.pool, 20);
            let integers = limits::integer_multiply_add_peak(self.pool, 20).unwrap_or(f64::INFINITY);
            Limits { read: limits::ReadTest::new().bandwidth(self.pool, 5), integers, floats }
        })
    }

    /// Seconds for the bytes and for the multiply-adds of `work`, at best.
    fn seconds(&self, work: &Work) -> (f64, f64) {
        let limits = self.limits();
        let peak = match work.numbers {
            Numbers::Integers => limits.integers,
            Numbers::Floats => limits.floats,
        };
        (work.bytes as f64 / limits.read, work.multiply_adds as f64 / peak)
    }

    /// Times `call`, which is told how many calls there were before, as benchmark `name` of the group.
    pub fn measure(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        group_name: &str,
        name: &str,
        work: Work,
        mut call: impl FnMut(usize),
    ) {
        // Criterion's figure is of what bounds a core that does one thing at a time: few bytes for many products.
        group.throughput(match work.multiply_adds > 8 * work.bytes {
            true => Throughput::Elements(work.multiply_adds as u64),
            false => Throughput::Bytes(work.bytes as u64),
        });
        let (mut best, mut calls) = (Duration::MAX, 0);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| {
                let start = Instant::now();
                for _ in 0..n {
                    call(calls);
                    calls += 1;
                }
                let time = start.elapsed();
                best = best.min(time / n.max(1) as u32);
                time
            });
        });
        if calls > 0 {
            let line = Line { name: format!("{group_name}/{name}"), work, seconds: best.as_secs_f64() };
            self.lines.borrow_mut().push(line);
        }
    }

    /// Prints all lines.
    pub fn print(&self) {
        if self.lines.borrow().is_empty() {
            return;
        }
        let Limits { read, integers, floats } = self.limits();
        println!(
            "\n{} threads, {}; at best {:.1} GB/s, {:.0} GMAC/s of 8-bit integers, {:.0} of f32",
            self.pool.threads(),
            cpu::features(),
            read / 1e9,
            integers / 1e9,
            floats / 1e9
        );
        println!("{:<32} {:>10} {:>8} {:>8}  share of its roofline", "kernel", "us", "GB/s", "GMAC/s");
        for line in self.lines.borrow().iter() {
            let (memory, arithmetic) = self.seconds(&line.work);
            println!(
                "{:<32} {:>10.1} {:>8.1} {:>8.1}  {:>4.0}% of {}",
                line.name,
                line.seconds * 1e6,
                line.work.bytes as f64 / line.seconds / 1e9,
                line.work.multiply_adds as f64 / line.seconds / 1e9,
                100.0 * memory.max(arithmetic) / line.seconds,
                match (memory >= arithmetic, line.work.numbers) {
                    (true, _) => "memory",
                    (false, Numbers::Integers) => "integer arithmetic",
                    (false, Numbers::Floats) => "float arithmetic",
                }
            );
        }
    }
}

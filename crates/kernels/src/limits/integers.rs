//! The most that a processor multiplies with 8-bit integers: the yardstick of prompts on quantized weights.

use std::time::Instant;

use crate::ThreadPool;

/// Multiply-adds of 8-bit integers per second that all threads together do in registers, the best of `repetitions` passes;
/// `None` where the kernels have no instructions for them.
///
/// Four products are summed in 16 bits before they are widened: as few instructions as a format with scales can do with.
pub fn integer_multiply_add_peak(pool: &ThreadPool, repetitions: usize) -> Option<f64> {
    let multiply_adds = kernel()?;
    let items = pool.threads() * 8;
    let mut best = 0.0f64;
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        pool.run(items, &|_, _| multiply_adds(ROUNDS));
        best = best.max((items * ROUNDS * PER_ROUND) as f64 / start.elapsed().as_secs_f64());
    }
    Some(best)
}

/// Rounds of an item: some 0.5 ms.
const ROUNDS: usize = 1 << 17;
/// Multiply-adds of a round: 6 sums of 4 products of 32 columns.
const PER_ROUND: usize = 6 * 4 * 32;

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Option<fn(usize)> {
    None
}

#[cfg(target_arch = "x86_64")]
fn kernel() -> Option<fn(usize)> {
    crate::lanes_avx2::Avx2::is_available().then_some(avx2)
}

/// `rounds` rounds in assembly, since a compiler would see that every round computes the same.
#[cfg(target_arch = "x86_64")]
fn avx2(rounds: usize) {
    if rounds == 0 {
        return;
    }
    // SAFETY: only registers are touched, all of them declared; the caller has seen that AVX2 is there.
    unsafe {
        std::arch::asm!(
            "vpxor ymm15, ymm15, ymm15",
            "2:",
            // ymm0-5: sums of a round; ymm6-9: products; ymm15: codes, activations and scales, whose values cost nothing
            ".irp sum, ymm0, ymm1, ymm2, ymm3, ymm4, ymm5",
            "vpmaddubsw ymm6, ymm15, ymm15",
            "vpmaddubsw ymm7, ymm15, ymm15",
            "vpmaddubsw ymm8, ymm15, ymm15",
            "vpmaddubsw ymm9, ymm15, ymm15",
            "vpaddw ymm6, ymm6, ymm7",
            "vpaddw ymm8, ymm8, ymm9",
            "vpaddw ymm6, ymm6, ymm8",
            "vpmaddwd ymm6, ymm6, ymm15",
            "vpaddd \\sum, \\sum, ymm6",
            ".endr",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm15") _,
            options(nomem, nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_found_where_there_are_instructions() {
        let peak = integer_multiply_add_peak(&ThreadPool::new(1), 1);
        assert_eq!(peak.is_some(), kernel().is_some());
        assert!(peak.is_none_or(|peak| peak > 1e6), "{peak:?}");
    }
}

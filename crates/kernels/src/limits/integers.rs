//! The most that a processor multiplies with 8-bit integers: the yardstick of prompts on quantized weights.

use std::time::Instant;

use crate::ThreadPool;

/// Multiply-adds of 8-bit integers per second that all threads together do in registers, the best of `repetitions` passes;
/// `None` where the kernels have no instructions for them.
///
/// By AVX2 four products are summed in 16 bits before they are widened: as few instructions as a format with scales can do
/// with. By VNNI an instruction of 512 bits does 64. It is the vector units' peak: AMX's matrix unit does several times as
/// many, of which scales for every 32 columns leave less.
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
/// Multiply-adds of a round: 6 sums of 4 products of 32 columns by AVX2, 12 sums of 64 columns by VNNI.
const PER_ROUND: usize = 6 * 4 * 32;
const _: () = assert!(PER_ROUND == 12 * 64);

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Option<fn(usize)> {
    None
}

#[cfg(target_arch = "x86_64")]
fn kernel() -> Option<fn(usize)> {
    match crate::lanes_avx2::Avx2::is_available() {
        true if crate::avx2::has_vnni() => Some(vnni),
        true => Some(avx2),
        false => None,
    }
}

/// As `avx2` below.
#[cfg(target_arch = "x86_64")]
fn vnni(rounds: usize) {
    if rounds == 0 {
        return;
    }
    // SAFETY: only registers are touched, all of them declared; the caller has seen that VNNI of AVX-512 is there.
    unsafe {
        std::arch::asm!(
            "vpxord zmm15, zmm15, zmm15",
            "2:",
            ".irp sum, zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11",
            "vpdpbusd \\sum, zmm15, zmm15",
            ".endr",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm15") _,
            options(nomem, nostack),
        );
    }
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

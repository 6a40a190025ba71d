//! Weights by chance: the same on every machine for the same seed and place, in whatever order they are asked for.

/// A number near the normal distribution of spread 1, the same on every machine for the same seed and place.
///
/// The sum of twelve even numbers from 0 to 1, less 6 (Irwin and Hall): exact arithmetic, no libm whose last bit differs.
pub fn normal(seed: u64, place: [usize; 3]) -> f32 {
    let mut state = place.iter().fold(seed, |state, &n| mix(state.wrapping_add(n as u64)));
    let mut sum = 0i64;
    for _ in 0..3 {
        state = mix(state);
        sum += (0..4).map(|i| (state >> (16 * i) & 0xffff) as i64).sum::<i64>();
    }
    (sum - 6 * 0xffff) as f32 / 65536.0
}

/// One step of SplitMix64.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_are_normal_and_differ_by_seed_and_place() {
        let numbers: Vec<f32> = (0..10_000).map(|i| normal(7, [i % 3, i % 8, i])).collect();
        let mean = numbers.iter().sum::<f32>() / 1e4;
        let variance = numbers.iter().map(|x| x * x).sum::<f32>() / 1e4;
        // The error of a mean of 10^4 is 0.01, of a variance 0.014: four times that is one in 10^4.
        assert!(mean.abs() < 0.04 && (variance - 1.0).abs() < 0.06, "mean {mean}, variance {variance}");
        assert_ne!(normal(1, [0, 0, 0]), normal(2, [0, 0, 0]));
        assert_ne!(normal(1, [0, 1, 0]), normal(1, [1, 0, 0]));
        assert_eq!(normal(1, [2, 3, 4]), normal(1, [2, 3, 4]));
    }
}

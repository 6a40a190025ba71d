//! Adapters at their start, and what training does to their inputs. What an adapter is stands in `octet-model`.

use octet_checkpoint::{Params, TensorName};
use octet_model::{Adapter, LoraOptions, LowRankValues};

use crate::Error;

/// An adapter that changes nothing yet: `A` is uniform up to `1 / √cols`, drawn from the options' seed, and `B` is zero.
///
/// # Errors
/// [`Error::Options`] if the options fit no matrix of the model, or make no sense.
pub fn new_adapter(options: LoraOptions, params: &Params) -> Result<Adapter, Error> {
    options.check()?;
    for target in &options.targets {
        let one = LoraOptions { targets: vec![*target], ..options.clone() };
        if one.tensors(params).is_empty() {
            return Err(Error::Options(format!("{target:?}: this model has no such matrix to adapt")));
        }
    }
    let names = options.tensors(params);
    if names.is_empty() {
        return Err(Error::Options("no matrix was chosen to adapt".into()));
    }
    let change = |(stream, name): (usize, TensorName)| {
        let [rows, cols] = params.shape(name);
        let a = first_a(options.seed, stream, options.rank, cols);
        let b = vec![0.0; rows * options.rank];
        (name, LowRankValues { rank: options.rank, scale: options.scale(), a, b })
    };
    let matrices = names.into_iter().enumerate().map(change).collect();
    Ok(Adapter { options, matrices })
}

/// Numbers that look random and depend on nothing but their place: the same in a pass forward and its repetition.
pub(crate) fn noise(seed: u64, stream: u64, index: u64) -> u64 {
    let mut x = seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}

/// The first values of `A [rank, cols]`.
fn first_a(seed: u64, stream: usize, rank: usize, cols: usize) -> Vec<f32> {
    let limit = 1.0 / (cols as f32).sqrt();
    let unit = |i: usize| (noise(seed, stream as u64, i as u64) >> 40) as f32 / (1u64 << 24) as f32;
    (0..rank * cols).map(|i| (2.0 * unit(i) - 1.0) * limit).collect()
}

/// Which inputs of a matrix `A` count in this step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// Share that does not.
    pub(crate) share: f32,
    pub(crate) seed: u64,
    /// Tells one matrix from another.
    pub(crate) stream: u64,
}

impl Dropout {
    /// Sets what does not count to zero, and makes up for it in the rest.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        if self.share <= 0.0 {
            return;
        }
        let limit = (f64::from(self.share) * 2f64.powi(64)) as u64;
        let kept = 1.0 / (1.0 - self.share);
        for (i, x) in x.iter_mut().enumerate() {
            *x *= if noise(self.seed, self.stream, i as u64) < limit { 0.0 } else { kept };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of 100,000 draws errs by 0.0016 in one of three cases, and by 0.008 in none that we will see.
    #[test]
    fn dropout_keeps_its_share_and_the_sum() {
        let dropout = Dropout { share: 0.25, seed: 3, stream: 9 };
        let mut x = vec![1.0; 100_000];
        dropout.apply(&mut x);
        let zeros = x.iter().filter(|x| **x == 0.0).count() as f32 / x.len() as f32;
        assert!((zeros - 0.25).abs() < 0.008, "{zeros}");
        assert!((x.iter().sum::<f32>() / x.len() as f32 - 1.0).abs() < 0.01);
        let mut again = vec![1.0; 100_000];
        dropout.apply(&mut again);
        assert_eq!(x, again);
    }
}

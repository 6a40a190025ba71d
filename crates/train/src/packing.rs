//! Which samples make a step, and how a step is cut into passes that fit the memory.
//!
//! Sequences are packed end to end without padding; attention ends at a sequence's border. A pass costs what its tokens
//! cost, so packing needs no cleverness: samples are taken in the epoch's order until the next one would not fit.

use octet_engine::Random;
use std::ops::Range;

/// The order in which samples are visited: every epoch another one, all of them told by the seed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Samples in the dataset; at least 1.
    pub n_samples: usize,
    /// Samples of a step; at least 1. The last step of an epoch may have fewer.
    pub per_step: usize,
    /// Seed.
    pub seed: u64,
}

impl Order {
    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.n_samples.div_ceil(self.per_step) as u64
    }

    /// The samples of a step, counted from 0 over all epochs.
    pub fn step(&self, step: u64) -> Vec<usize> {
        let (epoch, in_epoch) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        self.within(&self.epoch(epoch), in_epoch)
    }

    /// The samples of each of these steps.
    pub fn steps(&self, steps: Range<u64>) -> impl Iterator<Item = Vec<usize>> {
        let mut epoch = (u64::MAX, Vec::new());
        steps.map(move |step| {
            let (number, in_epoch) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
            if epoch.0 != number {
                epoch = (number, self.epoch(number));
            }
            self.within(&epoch.1, in_epoch)
        })
    }

    /// The samples that the first steps come to, each once, in ascending order.
    pub fn visited(&self, steps: u64) -> Vec<usize> {
        if steps >= self.steps_per_epoch() {
            return (0..self.n_samples).collect();
        }
        let mut visited: Vec<usize> = self.steps(0..steps).flatten().collect();
        visited.sort_unstable();
        visited
    }

    fn within(&self, epoch: &[usize], step: usize) -> Vec<usize> {
        let first = step * self.per_step;
        epoch[first..self.n_samples.min(first + self.per_step)].to_vec()
    }

    /// A permutation of all samples (Fisher and Yates).
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut random = Random::new(self.seed ^ epoch.wrapping_mul(0xD1B5_4A32_D192_ED03));
        let mut order: Vec<usize> = (0..self.n_samples).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (random.uniform() * (i + 1) as f64) as usize);
        }
        order
    }
}

/// Cuts sequences of these `lengths`, in this order, into passes of at most `max_tokens` tokens. A sequence that is longer
/// has a pass of its own.
pub fn passes(lengths: &[usize], max_tokens: usize) -> Vec<Range<usize>> {
    let mut passes = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (i, &length) in lengths.iter().enumerate() {
        if i > start && tokens + length > max_tokens {
            passes.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length;
    }
    if start < lengths.len() {
        passes.push(start..lengths.len());
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_sample_once_in_an_order_of_its_own() {
        let order = Order { n_samples: 10, per_step: 4, seed: 3 };
        assert_eq!(order.steps_per_epoch(), 3);
        let epoch = |epoch: u64| -> Vec<usize> { (0..3).flat_map(|i| order.step(epoch * 3 + i)).collect() };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(order.step(2).len(), 2);
        assert!(order.steps(0..7).eq((0..7).map(|step| order.step(step))));
        let mut two = [order.step(0), order.step(1)].concat();
        two.sort();
        assert_eq!(order.visited(2), two);
        assert_eq!(order.visited(3), order.visited(100));
        assert_ne!(order.step(0), Order { seed: 4, ..order }.step(0));
    }

    #[test]
    fn passes_hold_what_fits_and_lose_nothing() {
        assert_eq!(passes(&[3, 3, 3, 9, 1, 1], 6), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(passes(&[], 6), []);
        assert_eq!(passes(&[6], 6), std::slice::from_ref(&(0..1)));
    }
}

//! AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), and clipping.
//!
//! ```text
//! p ← p · (1 - rate · decay)
//! m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
//! p ← p - rate / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
//! ```
//!
//! Moments are f32. Decay is for matrices; norms are left alone.

use octet_kernels::ThreadPool;
use std::sync::{Mutex, PoisonError};

/// The constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How long the mean of the gradients remembers.
    pub beta1: f32,
    /// How long the mean of their squares remembers.
    pub beta2: f32,
    /// Keeps the division finite.
    pub epsilon: f32,
    /// Decay of matrices.
    pub weight_decay: f32,
    /// What the weights are kept in between steps.
    pub masters: Masters,
}

/// The precision in which trained weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masters {
    /// f32.
    F32,
    /// Values of bf16, rounded up or down at random so that small steps count in the mean. The seed makes it repeatable.
    Bf16 {
        /// Seed of the rounding.
        seed: u64,
    },
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, masters: Masters::F32 }
    }
}

/// A parameter with its gradient and moments, all of the same length.
pub struct Slot<'a> {
    /// The weights.
    pub weights: &'a mut [f32],
    /// The gradient.
    pub gradient: &'a [f32],
    /// Mean of gradients.
    pub first: &'a mut [f32],
    /// Mean of their squares.
    pub second: &'a mut [f32],
    /// Whether it is a matrix, which decays.
    pub decays: bool,
}

/// The step that is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSize {
    /// Counted from 1.
    pub step: u64,
    /// The learning rate.
    pub rate: f32,
    /// What gradients are multiplied with first: see [`clip_factor`].
    pub gradient_factor: f32,
}

/// Weights that one thread takes at a time.
const CHUNK: usize = 1 << 16;

impl AdamW {
    /// Takes a step with every parameter.
    pub fn step(&self, pool: &ThreadPool, size: StepSize, slots: Vec<Slot<'_>>) {
        let mut chunks = Vec::new();
        for slot in slots {
            let parts = slot.weights.chunks_mut(CHUNK).zip(slot.gradient.chunks(CHUNK));
            let moments = slot.first.chunks_mut(CHUNK).zip(slot.second.chunks_mut(CHUNK));
            for ((weights, gradient), (first, second)) in parts.zip(moments) {
                chunks.push(Mutex::new(Slot { weights, gradient, first, second, decays: slot.decays }));
            }
        }
        pool.run(chunks.len(), &|i, _| {
            let mut chunk = chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
            self.update(size, &mut chunk);
            self.round(size.step, i as u64, chunk.weights);
        });
    }

    fn update(&self, size: StepSize, slot: &mut Slot<'_>) {
        let kept = if slot.decays { 1.0 - size.rate * self.weight_decay } else { 1.0 };
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(size.step as f64);
        let rate = (f64::from(size.rate) / correction(self.beta1)) as f32;
        let root = correction(self.beta2).sqrt() as f32;
        let moments = slot.first.iter_mut().zip(slot.second.iter_mut());
        for ((p, &g), (m, v)) in slot.weights.iter_mut().zip(slot.gradient).zip(moments) {
            let g = g * size.gradient_factor;
            *m += (1.0 - self.beta1) * (g - *m);
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *p = *p * kept - rate * *m / (v.sqrt() / root + self.epsilon);
        }
    }

    fn round(&self, step: u64, chunk: u64, weights: &mut [f32]) {
        let Masters::Bf16 { seed } = self.masters else { return };
        let mut random = octet_engine::Random::new(seed ^ (step << 32) ^ chunk);
        for four in weights.chunks_mut(4) {
            let bits = random.bits();
            for (i, weight) in four.iter_mut().enumerate() {
                *weight = round_to_bf16(*weight, (bits >> (16 * i)) as u16);
            }
        }
    }
}

/// The bf16 below or above `x`, above if `dice` is below what is cut off. Values that are no numbers stay.
fn round_to_bf16(x: f32, dice: u16) -> f32 {
    if !x.is_finite() {
        return x;
    }
    f32::from_bits(x.to_bits().wrapping_add(u32::from(dice)) & 0xFFFF_0000)
}

/// The norm of all gradients as one vector. Summed in f64 and in one order, so that it repeats.
pub fn norm<'a>(gradients: impl Iterator<Item = &'a [f32]>) -> f64 {
    let squares = |g: &[f32]| g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    gradients.map(squares).sum::<f64>().sqrt()
}

/// What shortens a gradient of this norm to `max_norm`; 1 for those that are short enough.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f32 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(adamw: AdamW, decays: bool, gradients: &[f32]) -> f32 {
        let pool = ThreadPool::new(2);
        let (mut p, mut m, mut v) = ([1.0f32], [0.0], [0.0]);
        for (step, &g) in (1..).zip(gradients) {
            let size = StepSize { step, rate: 0.1, gradient_factor: 1.0 };
            let slot = Slot { weights: &mut p, gradient: &[g], first: &mut m, second: &mut v, decays };
            adamw.step(&pool, size, vec![slot]);
        }
        p[0]
    }

    /// torch.optim.AdamW(lr=0.1, weight_decay=0.5) on one weight of 1 with gradients 0.5, -0.2, 0.3, computed by the
    /// equations above in f64.
    #[test]
    fn steps_are_those_of_the_paper() {
        let (mut p, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for (t, g) in [(1, 0.5f64), (2, -0.2), (3, 0.3)] {
            p *= 1.0 - 0.1 * 0.5;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (mh, vh) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            p -= 0.1 * mh / (vh.sqrt() + 1e-8);
        }
        let adamw = AdamW { weight_decay: 0.5, ..AdamW::default() };
        // Three f32 steps of size 0.1 on a value near 1: some 1e-7 each.
        assert!((f64::from(run(adamw, true, &[0.5, -0.2, 0.3])) - p).abs() < 1e-6);
        assert_ne!(run(adamw, true, &[0.5]), run(adamw, false, &[0.5]));
    }

    #[test]
    fn bf16_masters_move_in_the_mean_where_plain_rounding_would_stand_still() {
        // bf16 has steps of 1/256 below 1; an update of 1/4096 rounds to nothing.
        let mut random = octet_engine::Random::new(1);
        let n = 20_000;
        let x = 0.75f32 - 1.0 / 4096.0;
        let sum: f64 = (0..n).map(|_| f64::from(round_to_bf16(x, random.bits() as u16))).sum();
        // Standard error of the mean: at most half a step / √n = 1.4e-5.
        assert!((sum / f64::from(n) - f64::from(x)).abs() < 7e-5);
        assert_eq!(round_to_bf16(-1.5, u16::MAX), -1.5);
        assert!(round_to_bf16(f32::NAN, 1).is_nan());
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let gradients = [vec![3.0f32], vec![4.0]];
        let norm = norm(gradients.iter().map(Vec::as_slice));
        assert_eq!(norm, 5.0);
        assert!((clip_factor(norm, Some(1.0)) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_factor(5.0, None), 1.0);
    }
}

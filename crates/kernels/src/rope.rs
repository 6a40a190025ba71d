//! Rotary position embedding: neighbouring pairs of a head, turned by angles that grow with the position.
//!
//! Pair `i` of a head at position `m` turns by `m · theta^(-2i / head_dim)`:
//! `(a, b) ← (a cos - b sin, b cos + a sin)`. Angles are f32 products of f32 frequencies, as in the reference code, and
//! are the same for every head and layer: a forward pass computes them once, for all its tokens.

use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};

/// The frequencies of a model's heads.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
}

/// Cosines and sines for the tokens of a batch. Memory is kept from batch to batch.
#[derive(Clone, Debug, Default)]
pub struct RopeAngles {
    head_dim: usize,
    /// `[tokens, head_dim]`: each cosine twice, for both of its pair.
    cos: Vec<f32>,
    /// `[tokens, head_dim]`: each sine twice, first negated.
    sin: Vec<f32>,
}

impl Rope {
    /// For heads of `head_dim` (even), with `theta` as base of the angles.
    pub fn new(head_dim: usize, theta: f32) -> Rope {
        assert!(head_dim.is_multiple_of(2), "rotary pairs need an even head_dim, not {head_dim}");
        let frequency = |i: usize| (theta as f64).powf(-((2 * i) as f64) / head_dim as f64) as f32;
        Rope { inverse_frequencies: (0..head_dim / 2).map(frequency).collect() }
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// Computes the angles of tokens at `positions`.
    pub fn angles(&self, positions: &[usize], angles: &mut RopeAngles) {
        angles.head_dim = self.head_dim();
        angles.cos.clear();
        angles.sin.clear();
        for &position in positions {
            for frequency in &self.inverse_frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                angles.cos.extend([cos as f32; 2]);
                angles.sin.extend([-sin as f32, sin as f32]);
            }
        }
    }
}

impl RopeAngles {
    /// Number of tokens that it holds angles for.
    pub fn tokens(&self) -> usize {
        self.cos.len().checked_div(self.head_dim).unwrap_or(0)
    }

    /// Cosines and sines of a token, `[head_dim]` both.
    #[inline(always)]
    pub(crate) fn of_token(&self, token: usize) -> (&[f32], &[f32]) {
        let at = token * self.head_dim..(token + 1) * self.head_dim;
        (&self.cos[at.clone()], &self.sin[at])
    }

    /// Turns the heads `x: [heads, head_dim]` of one token of the batch.
    pub fn apply_to_token(&self, token: usize, x: &mut [f32]) {
        let (cos, sin) = self.of_token(token);
        Instructions::best().run(Turn { cos, sin, x });
    }

    /// Turns the heads `x: [heads, head_dim]` of one token of the batch by the opposite angles: what was turned is as it
    /// was, and the gradient of what was turned becomes that of what it was.
    pub fn turn_token_back(&self, token: usize, x: &mut [f32]) {
        let (cos, sin) = self.of_token(token);
        let opposite: Vec<f32> = sin.iter().map(|sin| -sin).collect();
        Instructions::best().run(Turn { cos, sin: &opposite, x });
    }
}

struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        self.x.chunks_exact_mut(self.cos.len()).for_each(|head| turn::<V>(head, self.cos, self.sin));
    }
}

/// Turns pairs of `x`; all three as long.
#[inline(always)]
pub(crate) fn turn<V: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(x.len() == cos.len() && x.len() == sin.len(), "an angle for each pair");
    for ((x, cos), sin) in x.chunks_mut(LANES).zip(cos.chunks(LANES)).zip(sin.chunks(LANES)) {
        let [old, cos, sin] = [&*x, cos, sin].map(|part| load_some::<V>(part, 0.0));
        store_some(old.mul(cos).add(old.swap_pairs().mul(sin)), x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(head_dim: usize, theta: f32, positions: &[usize], x: &[f32]) -> Vec<f32> {
        let mut angles = RopeAngles::default();
        Rope::new(head_dim, theta).angles(positions, &mut angles);
        let mut x = x.to_vec();
        let width = x.len() / positions.len();
        x.chunks_exact_mut(width).enumerate().for_each(|(token, row)| angles.apply_to_token(token, row));
        x
    }

    /// At position 1 the first pair turns by one radian, whatever theta is; pair i by theta^(-2i/d).
    #[test]
    fn turns_pairs_by_their_frequency() {
        let y = turned(4, 10_000.0, &[1], &[1.0, 0.0, 0.0, 1.0]);
        let want = [1f32.cos(), 1f32.sin(), -(0.01f32.sin()), 0.01f32.cos()];
        y.iter().zip(want).for_each(|(y, want)| assert!((y - want).abs() < 1e-7, "{y} {want}"));
    }

    #[test]
    fn position_zero_changes_nothing_and_lengths_stay() {
        let x: Vec<f32> = (0..3 * 2 * 12).map(|i| i as f32 - 30.0).collect();
        assert_eq!(turned(12, 1e6, &[0, 0, 0], &x), x);
        let y = turned(12, 1e6, &[5, 77_777, 131_071], &x);
        for (x, y) in x.chunks(2).zip(y.chunks(2)) {
            let (before, after) = (x[0].hypot(x[1]), y[0].hypot(y[1]));
            assert!((before - after).abs() <= 1e-6 * before);
        }
    }

    /// The angle between a turned query and a turned key depends on their distance alone.
    #[test]
    fn scores_depend_on_the_distance() {
        let q: Vec<f32> = (0..64).map(|i| (i % 7) as f32 - 3.0).collect();
        let k: Vec<f32> = (0..64).map(|i| (i % 5) as f32 - 2.0).collect();
        let score =
            |m, n| -> f32 { turned(64, 1e4, &[m], &q).iter().zip(turned(64, 1e4, &[n], &k)).map(|(a, b)| a * b).sum() };
        assert!((score(105, 100) - score(9, 4)).abs() < 1e-3);
        assert!((score(105, 100) - score(9, 5)).abs() > 1.0);
    }

    #[test]
    fn a_batch_turns_each_token_by_its_own_angles() {
        let x: Vec<f32> = (0..2 * 3 * 16).map(|i| (i as f32).sin()).collect();
        let both = turned(16, 1e6, &[3, 4000], &x);
        assert_eq!(both[..48], turned(16, 1e6, &[3], &x[..48]));
        assert_eq!(both[48..], turned(16, 1e6, &[4000], &x[48..]));
    }
}

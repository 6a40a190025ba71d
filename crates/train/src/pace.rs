//! How long a run takes, from what a layer and the output head were measured to take ([`crate::Sketch`]).
//!
//! A pass of `n` tokens costs a layer `per_pass + n · per_token` seconds: weights are made floats once, and each token has
//! its products. With `L` layers, of which the activations of `R` do not fit what may be kept, so that these are run once
//! more on the way back (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016):
//!
//! ```text
//! a pass   L · (forward + backward)(n) + R · forward(n) + learned · (head, forward and back)
//! a step   its passes + trained · update
//! a look   L · forward(n) + learned · (head, forward)          DPO's reference, once; evaluations
//! ```
//! In multiplications: a token times every weight that it meets forward, once more for the gradient of the inputs, once
//! more for that of the weights where these are trained, and once more in layers that are run again.

use crate::packing;

/// Seconds by the tokens of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Line {
    /// However few tokens it has.
    pub per_pass: f64,
    /// For each token.
    pub per_token: f64,
}

/// What was measured, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// A layer on the way forward.
    pub forward: Line,
    /// A layer on the way back.
    pub backward: Line,
    /// The output head for each learned token: forward, and forward and back.
    pub head: [f64; 2],
    /// A step for each trained number: clearing its gradient, the norm, AdamW.
    pub update: f64,
}

/// Passes of a run, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passes {
    /// How many.
    pub count: u64,
    /// Tokens of the longest.
    pub longest: usize,
    /// Tokens that go through the model.
    pub tokens: u64,
    /// Tokens whose probability is wanted.
    pub learned: u64,
    /// Layers that are run once more, summed over passes; and over the tokens of passes.
    pub again: [u64; 2],
}

/// What goes through the model at once or not at all: a sample, or a pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its tokens.
    pub tokens: usize,
    /// Those that are learned.
    pub learned: usize,
}

/// What a run does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Layers of the model.
    pub n_layers: usize,
    /// Steps.
    pub steps: u64,
    /// Numbers that are trained.
    pub trained: u64,
    /// Passes that learn.
    pub learn: Passes,
    /// Passes that only look.
    pub look: Passes,
    /// Whether the head runs forward once more: DPO with a head that is trained.
    pub head_again: bool,
}

impl Line {
    /// The line through two measurements; through the origin where it would begin below, or fall.
    pub(crate) fn through(tokens: [usize; 2], seconds: [f64; 2]) -> Line {
        let [few, many] = tokens.map(|n| n.max(1) as f64);
        let per_token = (seconds[1] - seconds[0]) / (many - few);
        let per_pass = seconds[1] - per_token * many;
        if per_token > 0.0 && per_pass > 0.0 {
            return Line { per_pass, per_token };
        }
        Line { per_pass: 0.0, per_token: seconds[1] / many }
    }

    fn of(&self, passes: u64, tokens: u64) -> f64 {
        self.per_pass * passes as f64 + self.per_token * tokens as f64
    }
}

impl Passes {
    /// Adds the passes of at most `pass_tokens` into which a step of these units is cut. `again` says how many layers a pass
    /// of so many tokens runs once more.
    pub fn add(&mut self, units: &[Unit], pass_tokens: usize, again: impl Fn(usize) -> usize) {
        let lengths: Vec<usize> = units.iter().map(|unit| unit.tokens).collect();
        for pass in packing::passes(&lengths, pass_tokens) {
            let tokens: usize = lengths[pass].iter().sum();
            let again = again(tokens) as u64;
            self.count += 1;
            self.longest = self.longest.max(tokens);
            self.tokens += tokens as u64;
            self.again[0] += again;
            self.again[1] += again * tokens as u64;
        }
        self.learned += units.iter().map(|unit| unit.learned as u64).sum::<u64>();
    }

    /// These passes so many times.
    #[must_use]
    pub fn times(self, times: u64) -> Passes {
        let Passes { count, longest, tokens, learned, again } = self;
        let [count, tokens, learned] = [count, tokens, learned].map(|n| n * times);
        Passes { count, longest, tokens, learned, again: again.map(|n| n * times) }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Passes) -> Passes {
        Passes {
            count: self.count + other.count,
            longest: self.longest.max(other.longest),
            tokens: self.tokens + other.tokens,
            learned: self.learned + other.learned,
            again: [self.again[0] + other.again[0], self.again[1] + other.again[1]],
        }
    }
}

impl Pace {
    /// Seconds of a run, without snapshots.
    pub fn seconds(&self, work: &Work) -> f64 {
        let layers = work.n_layers as f64;
        let Work { learn, look, .. } = work;
        let forward = self.forward.of(learn.count + look.count, learn.tokens + look.tokens);
        let backward = self.backward.of(learn.count, learn.tokens);
        let again = self.forward.of(learn.again[0], learn.again[1]);
        let looks = look.learned + if work.head_again { learn.learned } else { 0 };
        let head = self.head[0] * looks as f64 + self.head[1] * learn.learned as f64;
        let update = self.update * work.trained as f64 * work.steps as f64;
        layers * (forward + backward) + again + head + update
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_the_sum_of_its_parts() {
        let mut learn = Passes::default();
        // Two passes, of 30 and of 20 tokens; the larger one runs three layers again.
        let units = [10, 20, 20].map(|tokens| Unit { tokens, learned: 5 });
        learn.add(&units, 30, |tokens| if tokens > 25 { 3 } else { 0 });
        assert_eq!(learn, Passes { count: 2, longest: 30, tokens: 50, learned: 15, again: [3, 90] });
        let look = Passes { count: 1, longest: 10, tokens: 10, learned: 4, again: [0, 0] };
        let pace = Pace {
            forward: Line { per_pass: 1.0, per_token: 0.1 },
            backward: Line { per_pass: 2.0, per_token: 0.2 },
            head: [0.01, 0.03],
            update: 0.001,
        };
        let work = Work { n_layers: 4, steps: 2, trained: 100, learn: learn.times(2), look, head_again: false };
        let forward = 4.0 * (5.0 + 0.1 * 110.0);
        let backward = 4.0 * (2.0 * 4.0 + 0.2 * 100.0);
        let again = 6.0 + 0.1 * 180.0;
        let expected = forward + backward + again + 0.01 * 4.0 + 0.03 * 30.0 + 0.2;
        assert!((pace.seconds(&work) - expected).abs() < 1e-9);
        let twice = pace.seconds(&Work { head_again: true, ..work });
        assert!((twice - expected - 0.01 * 30.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_goes_through_both_measurements() {
        assert_eq!(Line::through([10, 30], [3.0, 5.0]), Line { per_pass: 2.0, per_token: 0.1 });
        // Fewer tokens took longer, or would have taken less than nothing: noise.
        assert_eq!(Line::through([10, 30], [9.0, 6.0]), Line { per_pass: 0.0, per_token: 0.2 });
        assert_eq!(Line::through([10, 30], [1.0, 6.0]), Line { per_pass: 0.0, per_token: 0.2 });
        assert_eq!(Line::through([10, 10], [1.0, 5.0]), Line { per_pass: 0.0, per_token: 0.5 });
    }
}

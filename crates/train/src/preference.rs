//! Direct Preference Optimization: of two answers to a prompt the chosen one is to gain probability over the rejected one,
//! measured against a reference model.
//!
//! With log-probabilities of the answers under the policy and the reference, and
//! `z = (chosen - rejected) - (reference chosen - reference rejected)`:
//!
//! ```text
//! sigmoid   -(1 - ε) log σ(β z) - ε log σ(-β z)       ε: label smoothing (cDPO)
//! IPO       (z - 1 / 2β)²
//! ```
//! Rewards are `β (policy - reference)` of each answer.

/// Which function of `z` is the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreferenceLoss {
    /// DPO's own.
    #[default]
    Sigmoid,
    /// Identity preference optimization; its log-probabilities are means over tokens, as in TRL.
    Ipo,
}

/// How answers are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreferenceOptions {
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// The loss.
    pub loss: PreferenceLoss,
    /// How likely it is that the two answers were exchanged by mistake, 0 to 0.5; for the sigmoid loss.
    pub label_smoothing: f64,
    /// Log-probabilities are divided by the number of tokens.
    pub length_normalized: bool,
}

impl Default for PreferenceOptions {
    fn default() -> PreferenceOptions {
        PreferenceOptions { beta: 0.1, loss: PreferenceLoss::Sigmoid, label_smoothing: 0.0, length_normalized: false }
    }
}

/// What a batch of pairs came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preference {
    /// Of each pair.
    pub losses: Vec<f64>,
    /// Of each pair's chosen answer.
    pub chosen_rewards: Vec<f64>,
    /// Of each pair's rejected answer.
    pub rejected_rewards: Vec<f64>,
    /// Derivative of the mean loss with respect to each answer's log-probability: chosen, rejected, chosen, ...
    pub gradients: Vec<f64>,
}

impl PreferenceOptions {
    /// Compares pairs. `policy` and `reference` hold the summed log-probability of each answer, chosen, rejected, chosen,
    /// ...; `tokens` how many tokens each is of. A reference of `None` stands for one that finds all answers equal
    /// (reference-free).
    ///
    /// # Panics
    /// If the lengths differ or are odd.
    pub fn compare(&self, policy: &[f64], reference: Option<&[f64]>, tokens: &[usize]) -> Preference {
        assert!(policy.len() == tokens.len() && policy.len().is_multiple_of(2), "two answers a pair");
        assert!(reference.is_none_or(|r| r.len() == policy.len()), "a reference for each answer");
        let divided = self.length_normalized || self.loss == PreferenceLoss::Ipo;
        let divisor = |i: usize| if divided { tokens[i].max(1) as f64 } else { 1.0 };
        let gain = |i: usize| (policy[i] - reference.map_or(0.0, |r| r[i])) / divisor(i);
        let pairs = policy.len() / 2;
        let mut out = Preference::default();
        for chosen in (0..policy.len()).step_by(2) {
            let rejected = chosen + 1;
            let (loss, slope) = self.loss_and_slope(gain(chosen) - gain(rejected));
            out.losses.push(loss);
            out.chosen_rewards.push(self.beta * gain(chosen));
            out.rejected_rewards.push(self.beta * gain(rejected));
            let slope = slope / pairs as f64;
            out.gradients.extend([slope / divisor(chosen), -slope / divisor(rejected)]);
        }
        out
    }

    fn loss_and_slope(&self, z: f64) -> (f64, f64) {
        match self.loss {
            PreferenceLoss::Sigmoid => {
                let (x, e) = (self.beta * z, self.label_smoothing);
                let loss = (1.0 - e) * softplus(-x) + e * softplus(x);
                (loss, self.beta * (e * sigmoid(x) - (1.0 - e) * sigmoid(-x)))
            }
            PreferenceLoss::Ipo => {
                let off = z - 1.0 / (2.0 * self.beta);
                (off * off, 2.0 * off)
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + e^x) = -log σ(-x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Preference {
    /// The mean loss.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }

    /// Share of pairs whose chosen answer has the larger reward.
    pub fn accuracy(&self) -> f64 {
        let right = self.chosen_rewards.iter().zip(&self.rejected_rewards).filter(|(c, r)| c > r).count();
        right as f64 / self.losses.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_differences() {
        let (policy, reference) = ([-31.0, -28.5, -12.0, -40.0], [-30.0, -29.0, -14.0, -33.0]);
        let tokens = [10, 9, 4, 12];
        for loss in [PreferenceLoss::Sigmoid, PreferenceLoss::Ipo] {
            for (label_smoothing, length_normalized) in [(0.0, false), (0.2, true)] {
                let options = PreferenceOptions { beta: 0.3, loss, label_smoothing, length_normalized };
                let value = |p: &[f64]| options.compare(p, Some(&reference), &tokens).loss();
                let got = options.compare(&policy, Some(&reference), &tokens).gradients;
                for i in 0..4 {
                    let (mut more, mut less) = (policy, policy);
                    more[i] += 1e-5;
                    less[i] -= 1e-5;
                    let want = (value(&more) - value(&less)) / 2e-5;
                    assert!((got[i] - want).abs() < 1e-6 * (1.0 + want.abs()), "{} {want}", got[i]);
                }
            }
        }
    }

    #[test]
    fn equal_answers_cost_ln_2_and_a_great_difference_nothing() {
        let options = PreferenceOptions { beta: 1.0, ..Default::default() };
        let out = options.compare(&[-5.0, -5.0, 1000.0, -1000.0], None, &[1; 4]);
        assert!((out.losses[0] - std::f64::consts::LN_2).abs() < 1e-12 && out.losses[1] == 0.0);
        assert_eq!(out.accuracy(), 0.5);
    }
}

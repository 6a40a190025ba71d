//! What is learned: next tokens (continued pretraining, SFT), or preferences (DPO).

use crate::learner::{Found, Goal, Learner, Lesson, RouterStatistics, Sequences};
use crate::sample::{PairSample, Sample};
use crate::{PreferenceOptions, packing};

/// Samples and the loss on them.
pub enum Task {
    /// `-log p` of every learned token, each token of a step counting alike.
    NextToken(Vec<Sample>),
    /// The loss of DPO, each pair of a step counting alike.
    Preference {
        /// Pairs.
        pairs: Vec<PairSample>,
        /// The loss.
        loss: PreferenceOptions,
        /// `[pairs]`: what the reference says of each better and worse answer, of those pairs that steps come to; `None` to
        /// compare with nothing.
        reference: Option<Vec<Option<[f64; 2]>>>,
    },
}

/// What some samples gave, summed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The loss.
    pub loss: f64,
    /// The load-balancing loss, before its coefficient.
    pub balance_loss: f64,
    /// Tokens that were read.
    pub tokens: u64,
    /// What counts alike: learned tokens, or pairs.
    pub units: u64,
    /// Pairs whose better answer has the higher reward, and the sum of the differences.
    pub preferred: Option<(u64, f64)>,
    /// What experts did.
    pub routers: RouterStatistics,
}

impl Task {
    /// How many samples there are; a pair is one.
    pub fn len(&self) -> usize {
        match self {
            Task::NextToken(samples) => samples.len(),
            Task::Preference { pairs, .. } => pairs.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequences that belong to a sample.
    pub fn sequences(&self, index: usize) -> Vec<&Sample> {
        match self {
            Task::NextToken(samples) => vec![&samples[index]],
            Task::Preference { pairs, .. } => vec![&pairs[index].chosen, &pairs[index].rejected],
        }
    }

    /// Tokens of a sample.
    pub fn length(&self, index: usize) -> usize {
        self.sequences(index).iter().map(|sample| sample.tokens.len()).sum()
    }

    /// What counts alike in these samples: learned tokens, or pairs.
    fn units(&self, indices: &[usize]) -> u64 {
        match self {
            Task::NextToken(samples) => indices.iter().map(|&i| samples[i].n_learned() as u64).sum(),
            Task::Preference { .. } => indices.len() as u64,
        }
    }

    /// Learns from `indices`: adds the gradients of their mean loss, and `balance` times the load-balancing loss, to those
    /// of `learner`. The samples are cut into passes of at most `pass_tokens`, which changes memory and nothing else: every
    /// pass is weighed by its share of the whole.
    ///
    /// # Errors
    /// What the model says, or a loss that is no number with the samples of its pass.
    pub fn learn(
        &self,
        learner: &mut dyn Learner,
        indices: &[usize],
        settings: LearnSettings,
    ) -> Result<Outcome, Failure> {
        let all_tokens: usize = indices.iter().map(|&i| self.length(i)).sum();
        let units = self.units(indices) as f64;
        let mut sum = Outcome::default();
        for (number, pass) in self.passes(indices, settings.pass_tokens).enumerate() {
            let sequences = self.packed(pass);
            let balance = settings.balance * (sequences.tokens.len() as f64 / all_tokens as f64) as f32;
            let seed = settings.seed.wrapping_add(number as u64);
            let mut slopes = |log_p: &[f64]| self.slopes(pass, &sequences, log_p, units);
            let goal = match self {
                Task::NextToken(_) => Goal::CrossEntropy { divisor: units },
                Task::Preference { .. } => Goal::OfSequences(&mut slopes),
            };
            let lesson = Lesson { goal, balance, seed };
            let found = learner.learn(&sequences, lesson).map_err(Failure::Model)?;
            self.add(pass, &sequences, &found, &mut sum);
            if !sum.loss.is_finite() {
                return Err(Failure::NotFinite { value: sum.loss, samples: pass.to_vec() });
            }
        }
        Ok(sum)
    }

    /// The loss on `indices`, without learning from them.
    ///
    /// # Errors
    /// What the model says.
    pub fn observe(&self, learner: &mut dyn Learner, indices: &[usize], pass_tokens: usize) -> Result<Outcome, String> {
        let mut sum = Outcome::default();
        for pass in self.passes(indices, pass_tokens) {
            let sequences = self.packed(pass);
            let found = learner.observe(&sequences)?;
            self.add(pass, &sequences, &found, &mut sum);
        }
        Ok(sum)
    }

    fn passes<'i>(&self, indices: &'i [usize], pass_tokens: usize) -> impl Iterator<Item = &'i [usize]> {
        let lengths: Vec<usize> = indices.iter().map(|&i| self.length(i)).collect();
        packing::passes(&lengths, pass_tokens).into_iter().map(|pass| &indices[pass])
    }

    fn packed(&self, pass: &[usize]) -> Sequences {
        Sequences::of(pass.iter().flat_map(|&i| self.sequences(i)))
    }

    /// The derivative of the mean loss of `units` pairs by the log-probability of each sequence of a pass.
    fn slopes(&self, pass: &[usize], sequences: &Sequences, log_p: &[f64], units: f64) -> Vec<f64> {
        let Task::Preference { loss, reference, .. } = self else { return vec![-1.0 / units; log_p.len()] };
        let compared = loss.compare(log_p, of_pass(reference, pass).as_deref(), &sequences.n_learned());
        // Compared are means over the pass; here the pass is a part of the step.
        compared.gradients.iter().map(|slope| slope * pass.len() as f64 / units).collect()
    }

    fn add(&self, pass: &[usize], sequences: &Sequences, found: &Found, sum: &mut Outcome) {
        let tokens = sequences.tokens.len();
        sum.tokens += tokens as u64;
        sum.balance_loss += found.balance_loss * tokens as f64;
        sum.routers.add(&found.routers);
        sum.units += self.units(pass);
        let log_p = &found.log_probabilities;
        match self {
            Task::NextToken(_) => sum.loss -= log_p.iter().sum::<f64>(),
            Task::Preference { loss, reference, .. } => {
                let compared = loss.compare(log_p, of_pass(reference, pass).as_deref(), &sequences.n_learned());
                let margins = compared.chosen_rewards.iter().zip(&compared.rejected_rewards).map(|(c, r)| c - r);
                let (mut right, mut total) = sum.preferred.unwrap_or_default();
                for margin in margins {
                    right += u64::from(margin > 0.0);
                    total += margin;
                }
                sum.loss += compared.losses.iter().sum::<f64>();
                sum.preferred = Some((right, total));
            }
        }
    }
}

/// What the reference says of the answers of a pass: better, worse, better, …
fn of_pass(reference: &Option<Vec<Option<[f64; 2]>>>, pass: &[usize]) -> Option<Vec<f64>> {
    let asked = |i: usize| reference.as_ref()?[i];
    reference.is_some().then(|| pass.iter().flat_map(|&i| asked(i).expect("every pair of a step was asked")).collect())
}

impl Outcome {
    /// The mean loss of a unit.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.units as f64
    }

    /// The mean load-balancing loss of a token's pass.
    pub fn mean_balance_loss(&self) -> f64 {
        self.balance_loss / self.tokens.max(1) as f64
    }

    /// The share of pairs whose better answer has the higher reward, and the mean difference.
    pub fn preferences(&self) -> Option<(f64, f64)> {
        let units = self.units as f64;
        self.preferred.map(|(right, margins)| (right as f64 / units, margins / units))
    }
}

/// How [`Task::learn`] goes about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearnSettings {
    /// Tokens of a pass; a longer sample has a pass of its own.
    pub pass_tokens: usize,
    /// The coefficient of the load-balancing loss.
    pub balance: f32,
    /// Seed of what is random.
    pub seed: u64,
}

/// Why nothing was learned.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// The model refuses.
    Model(String),
    /// The loss is no number.
    NotFinite {
        /// What it is.
        value: f64,
        /// The samples of the pass.
        samples: Vec<usize>,
    },
}

/// What the reference says of the pairs of these indices, and `None` of the others: computed once, before training changes
/// anything. `progress` is told how many of the indices are done.
///
/// # Errors
/// What the model says.
pub fn reference(
    learner: &mut dyn Learner,
    pairs: &[PairSample],
    indices: &[usize],
    pass_tokens: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Option<[f64; 2]>>, String> {
    let length = |&i: &usize| pairs[i].chosen.tokens.len() + pairs[i].rejected.tokens.len();
    let lengths: Vec<usize> = indices.iter().map(length).collect();
    let mut found = vec![None; pairs.len()];
    for pass in packing::passes(&lengths, pass_tokens) {
        let (done, indices) = (pass.end, &indices[pass]);
        let sequences = Sequences::of(indices.iter().flat_map(|&i| [&pairs[i].chosen, &pairs[i].rejected]));
        let seen = learner.observe(&sequences)?;
        for (&i, two) in indices.iter().zip(seen.log_probabilities.chunks_exact(2)) {
            found[i] = Some([two[0], two[1]]);
        }
        progress(done);
    }
    learner.free_memory();
    Ok(found)
}

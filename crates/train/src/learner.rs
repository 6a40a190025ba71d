//! What the loops train, seen from the loops: log-probabilities, their gradients, and parameters as flat arrays.

use crate::sample::Sample;

/// Sequences end to end, without padding; none sees another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequences {
    /// All tokens, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Tokens of each sequence; they add up to `tokens.len()`.
    pub lengths: Vec<usize>,
    /// `[tokens]`: whether the token's log-probability is wanted.
    pub learned: Vec<bool>,
}

impl Sequences {
    /// Puts samples end to end.
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Sequences {
        let mut all = Sequences::default();
        for sample in samples {
            all.tokens.extend_from_slice(&sample.tokens);
            all.learned.extend_from_slice(&sample.learned);
            all.lengths.push(sample.tokens.len());
        }
        all
    }

    /// How many tokens of each sequence are learned.
    pub fn n_learned(&self) -> Vec<usize> {
        let mut at = 0;
        let count = |&length: &usize| {
            at += length;
            self.learned[at - length..at].iter().filter(|&&learned| learned).count()
        };
        self.lengths.iter().map(count).collect()
    }
}

/// What experts did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouterStatistics {
    /// `[layers][num_experts]`: how many times a token chose the expert. Empty in dense models.
    pub chosen: Vec<Vec<u64>>,
    /// Sum over tokens and layers of the entropy of the router's softmax, in nats.
    pub entropy: f64,
    /// Tokens times layers.
    pub decisions: u64,
}

impl RouterStatistics {
    /// Adds another pass's.
    pub fn add(&mut self, other: &RouterStatistics) {
        self.chosen.resize(self.chosen.len().max(other.chosen.len()), Vec::new());
        for (sums, counts) in self.chosen.iter_mut().zip(&other.chosen) {
            sums.resize(counts.len(), 0);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        self.entropy += other.entropy;
        self.decisions += other.decisions;
    }

    /// The share of all choices that the experts of each number got, over all layers.
    pub fn load(&self) -> Vec<f64> {
        let n_experts = self.chosen.first().map_or(0, Vec::len);
        shares(&(0..n_experts).map(|expert| self.chosen.iter().map(|layer| layer[expert]).sum()).collect::<Vec<_>>())
    }

    /// The share of a layer's choices that each of its experts got.
    pub fn load_of_layers(&self) -> Vec<Vec<f64>> {
        self.chosen.iter().map(|counts| shares(counts)).collect()
    }

    /// The mean entropy of a decision, in nats; `None` without routers.
    pub fn mean_entropy(&self) -> Option<f64> {
        (self.decisions > 0).then(|| self.entropy / self.decisions as f64)
    }
}

fn shares(counts: &[u64]) -> Vec<f64> {
    let all: u64 = counts.iter().sum();
    counts.iter().map(|&count| count as f64 / all.max(1) as f64).collect()
}

/// What a pass found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// `[sequences]`: summed log-probability of the learned tokens of each.
    pub log_probabilities: Vec<f64>,
    /// The load-balancing loss, before its coefficient; 0 in dense models.
    pub balance_loss: f64,
    /// What experts did.
    pub routers: RouterStatistics,
}

/// What is to become small.
pub enum Goal<'a> {
    /// The sum of `-log p` of every learned token, over this.
    CrossEntropy {
        /// Learned tokens of the whole step, so that passes add up to the mean.
        divisor: f64,
    },
    /// Whatever has these derivatives by the log-probability of each sequence, which it is given.
    OfSequences(&'a mut dyn FnMut(&[f64]) -> Vec<f64>),
}

/// What a pass is to learn.
pub struct Lesson<'a> {
    /// The loss.
    pub goal: Goal<'a>,
    /// How many times the load-balancing loss is added.
    pub balance: f32,
    /// Seed of what is random in the pass (dropout); no two passes of a run share it.
    pub seed: u64,
}

/// A trained parameter.
pub struct Slice<'a> {
    /// Its name, the same in every run.
    pub name: String,
    /// Whether it is a matrix, which weight decay shrinks.
    pub is_matrix: bool,
    /// Its values.
    pub weights: &'a mut [f32],
    /// What [`Learner::learn`] has added up since [`Learner::clear_gradients`].
    pub gradient: &'a [f32],
}

/// A model that learns.
pub trait Learner {
    /// Log-probabilities, without gradients.
    ///
    /// # Errors
    /// One line that says what the model refuses.
    fn observe(&mut self, sequences: &Sequences) -> Result<Found, String>;

    /// Log-probabilities, and adds the gradient of the lesson's loss to what is there.
    ///
    /// # Errors
    /// As [`Self::observe`].
    fn learn(&mut self, sequences: &Sequences, lesson: Lesson<'_>) -> Result<Found, String>;

    /// Forgets gradients.
    fn clear_gradients(&mut self);

    /// Lets go of memory that is kept for the next pass, where passes of another kind follow.
    fn free_memory(&mut self) {}

    /// All trained parameters, always in the same order, and the threads that compute.
    fn parts(&mut self) -> (Vec<Slice<'_>>, &octet_kernels::ThreadPool);

    /// All trained parameters.
    fn parameters(&mut self) -> Vec<Slice<'_>> {
        self.parts().0
    }
}

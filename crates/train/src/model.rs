//! The decoder in training: embedding, layers, last norm, output head; forward, loss, and all the way back.

use std::sync::{Arc, Mutex, PoisonError};

use octet_checkpoint::Checkpoint;
use octet_kernels::gradients::SampleShape;
use octet_kernels::{Rope, RopeAngles, ThreadPool, cpu};
use octet_model::{Adapter, Config};

use crate::attention::Step;
use crate::balance::Balance;
use crate::buffers::Buffers;
use crate::embedding::Embedding;
use crate::layer::{Layer, LayerActivations};
use crate::linear::{Linear, Pass};
use crate::norm::Norm;
use crate::{Batch, Error, Gradients, Parameters, Preference, PreferenceOptions, loss};

mod build;
mod sketch;

pub use sketch::Sketch;

/// What is trained.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// Every weight of the model.
    All,
    /// An adapter, over weights that stay as they are.
    Adapter(Adapter),
    /// Nothing: the model is only asked.
    Nothing,
}

/// Whether a pass uses the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterUse {
    /// The model as it is trained.
    #[default]
    On,
    /// The model that training began with: DPO's reference, without a second copy of the weights.
    Off,
}

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// What the load-balancing loss is multiplied by; 0 leaves it out.
    pub aux_coefficient: f32,
    /// What the sum over learned tokens is divided by; `None` for their number. Where gradients of several batches add up
    /// to one step, it is the number in all of them.
    pub divisor: Option<f64>,
    /// Seed of this step's dropout; `None` for none.
    pub dropout_seed: Option<u64>,
    /// Routers learn of every expert, also of those that a token did not visit, which run once more for it.
    pub dense_router: bool,
    /// Bytes of activations that may be kept for the way back. Layers beyond that keep their input alone and are run once
    /// more, so 0 is activation checkpointing of every layer.
    pub kept_bytes: usize,
}

impl Default for StepOptions {
    fn default() -> StepOptions {
        StepOptions {
            aux_coefficient: 0.0,
            divisor: None,
            dropout_seed: None,
            dense_router: false,
            kept_bytes: 1 << 30,
        }
    }
}

/// What a batch came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossReport {
    /// Cross-entropy in nats: the sum over learned tokens, over the divisor.
    pub loss: f64,
    /// The load-balancing loss before its coefficient; `None` in dense models.
    pub aux_loss: Option<f64>,
    /// Tokens that were learned.
    pub n_targets: usize,
    /// Sum of the learned tokens' log-probabilities of each sample.
    pub log_probabilities: Vec<f64>,
    /// `[layers][num_experts]`: how often each expert was chosen. Empty in dense models.
    pub expert_counts: Vec<Vec<u64>>,
    /// Mean entropy of the routers' probabilities, in nats; 0 in dense models.
    pub router_entropy: f64,
}

/// A model that learns.
pub struct Model {
    /// `None` in sketches alone, which nobody gets hold of.
    checkpoint: Option<Arc<Checkpoint>>,
    config: Config,
    pool: ThreadPool,
    rope: Rope,
    parameters: Parameters,
    adapter: Option<Adapter>,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    buffers: Mutex<Buffers>,
}

/// What is to become small.
enum Objective<'a> {
    /// `-log p` of every learned token, times this.
    CrossEntropy(f64),
    /// Whatever has these derivatives by the log-probabilities of the samples, which it is given.
    OfSamples(&'a mut dyn FnMut(&[f64]) -> Vec<f64>),
}

impl Model {
    /// Threads that serve training best on this machine.
    pub fn default_threads() -> usize {
        cpu::available_threads()
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The files that it began with.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint.as_ref().expect("only sketches have no files")
    }

    /// What is trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What is trained, to be changed.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// A layer, to be tested.
    #[cfg(test)]
    pub(crate) fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    /// The threads that the model runs on, for an optimizer that shares them.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Parameters to change, and threads to do it with.
    pub fn parameters_and_pool(&mut self) -> (&mut Parameters, &ThreadPool) {
        (&mut self.parameters, &self.pool)
    }

    /// Gradients of zero.
    pub fn zero_gradients(&self) -> Gradients {
        self.parameters.zero_gradients()
    }

    /// The loss of a batch, without learning from it.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn loss(&self, batch: &Batch, options: &StepOptions, adapter: AdapterUse) -> Result<LossReport, Error> {
        self.run(batch, options, adapter, None)
    }

    /// The log-probability of each sample's learned tokens, summed.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn log_probabilities(&self, batch: &Batch, adapter: AdapterUse) -> Result<Vec<f64>, Error> {
        Ok(self.loss(batch, &StepOptions::default(), adapter)?.log_probabilities)
    }

    /// The loss, and its gradient added to `gradients`: of cross-entropy over the learned tokens, plus
    /// `aux_coefficient` times the load-balancing loss.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        options: &StepOptions,
        gradients: &mut Gradients,
    ) -> Result<LossReport, Error> {
        let divisor = divisor(batch, options);
        self.run(batch, options, AdapterUse::On, Some((Objective::CrossEntropy(1.0 / divisor), gradients)))
    }

    /// A loss that depends on the samples' log-probabilities: adds its gradient. `slopes` gives, from the log-probability of
    /// each sample, the loss's derivative by it.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn objective_and_gradients(
        &self,
        batch: &Batch,
        options: &StepOptions,
        slopes: &mut dyn FnMut(&[f64]) -> Vec<f64>,
        gradients: &mut Gradients,
    ) -> Result<LossReport, Error> {
        self.run(batch, options, AdapterUse::On, Some((Objective::OfSamples(slopes), gradients)))
    }

    /// Compares pairs and adds the gradient of their mean loss. The samples of the batch are chosen, rejected, chosen, ...
    /// and so are the reference's log-probabilities.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn preference_and_gradients(
        &self,
        batch: &Batch,
        reference: Option<&[f64]>,
        (preference, options): (&PreferenceOptions, &StepOptions),
        gradients: &mut Gradients,
    ) -> Result<(LossReport, Preference), Error> {
        let tokens = targets_of_samples(batch);
        let mut compared = Preference::default();
        let mut objective = |log_p: &[f64]| {
            compared = preference.compare(log_p, reference, &tokens);
            compared.gradients.clone()
        };
        let objective = Objective::OfSamples(&mut objective);
        let report = self.run(batch, options, AdapterUse::On, Some((objective, gradients)))?;
        Ok((report, compared))
    }

    fn run(
        &self,
        batch: &Batch,
        options: &StepOptions,
        adapter: AdapterUse,
        learn: Option<(Objective<'_>, &mut Gradients)>,
    ) -> Result<LossReport, Error> {
        self.check(batch)?;
        let mut pass = Pass {
            pool: &self.pool,
            checkpoint: self.checkpoint.as_deref(),
            parameters: &self.parameters,
            buffers: std::mem::take(&mut *self.lock_buffers()),
            adapter: adapter == AdapterUse::On,
            dropout_seed: options.dropout_seed.filter(|_| learn.is_some()),
            dense_router: options.dense_router,
        };
        pass.buffers.begin(batch.tokens().len());
        let mut angles = RopeAngles::default();
        let positions: Vec<usize> = batch.positions().map(|(_, position)| position).collect();
        self.rope.angles(&positions, &mut angles);
        let c = &self.config;
        let (n_heads, n_kv_heads, head_dim) = (c.n_heads, c.n_kv_heads, c.head_dim);
        let shape = SampleShape { n_heads, n_kv_heads, head_dim, window: c.sliding_window };
        let step = Step { batch, angles: &angles, shape };
        let report = self.steps(&mut pass, &step, options, learn);
        *self.lock_buffers() = pass.buffers;
        Ok(report)
    }

    fn lock_buffers(&self) -> std::sync::MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the memory that passes keep for the next one.
    pub fn free_buffers(&self) {
        self.lock_buffers().clear();
    }

    fn steps(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        options: &StepOptions,
        learn: Option<(Objective<'_>, &mut Gradients)>,
    ) -> LossReport {
        let batch = step.batch;
        let layers_kept = options.kept_bytes / layer_bytes(&self.config, pass.buffers.longest()).max(1);
        let kept = learn.is_some().then_some(layers_kept);
        let mut balance = Balance::new(self.config.num_experts, options.aux_coefficient);
        let mut x = self.embedding.forward(pass, batch);
        let mut trail = self.layers_forward(pass, step, &mut x, kept, &mut balance);
        let normed = self.norm.forward(pass, &x);
        let wanted = loss::wanted(batch);
        let log_p = match learn {
            None => loss::log_probabilities(pass, &self.head, &normed, &wanted, None),
            Some((objective, gradients)) => {
                let (log_p, mut d_x) = self.head_backward(pass, batch, (&x, &normed), &wanted, objective, gradients);
                self.layers_backward(pass, step, &mut trail, &balance, &mut d_x, gradients);
                self.embedding.backward(batch, &d_x, gradients);
                pass.buffers.give(d_x);
                log_p
            }
        };
        [x, normed].into_iter().for_each(|x| pass.buffers.give(x));
        let log_probabilities = sums_of_samples(batch, &wanted, &log_p);
        LossReport {
            loss: -log_probabilities.iter().sum::<f64>() / divisor(batch, options),
            aux_loss: balance.loss(),
            n_targets: wanted.len(),
            log_probabilities,
            router_entropy: balance.entropy(),
            expert_counts: balance.into_chosen(),
        }
    }

    /// Through all layers. `kept` says how many of the last ones keep their activations; `None` if nobody goes back.
    fn layers_forward(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        x: &mut [f32],
        kept: Option<usize>,
        balance: &mut Balance,
    ) -> Vec<Trail> {
        let mut trail = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let input = kept.map(|_| {
                let mut input = pass.buffers.take(x.len());
                input.copy_from_slice(x);
                input
            });
            let activations = layer.forward(pass, step, x);
            balance.count(&activations.routing);
            let Some(input) = input else {
                activations.give_back(pass);
                continue;
            };
            let stays = kept.is_some_and(|kept| index + kept >= self.layers.len());
            let activations = if stays {
                Some(activations)
            } else {
                activations.give_back(pass);
                None
            };
            trail.push(Trail { input, activations });
        }
        trail
    }

    /// The loss's gradient with respect to the residual stream after the last layer, `x`.
    fn head_backward(
        &self,
        pass: &mut Pass<'_>,
        batch: &Batch,
        (x, normed): (&[f32], &[f32]),
        wanted: &[(usize, u32)],
        objective: Objective<'_>,
        gradients: &mut Gradients,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut d_normed = pass.buffers.take(x.len());
        d_normed.fill(0.0);
        let log_p = match objective {
            Objective::CrossEntropy(weight) => {
                let learn = Some((&vec![weight as f32; wanted.len()][..], &mut d_normed[..], &mut *gradients));
                loss::log_probabilities(pass, &self.head, normed, wanted, learn)
            }
            Objective::OfSamples(derivatives) => {
                let places = (batch, normed, wanted);
                self.head_backward_of_samples(pass, places, derivatives, &mut d_normed, gradients)
            }
        };
        let mut d_x = pass.buffers.take(x.len());
        d_x.fill(0.0);
        self.norm.backward(pass, x, &d_normed, &mut d_x, gradients);
        pass.buffers.give(d_normed);
        (log_p, d_x)
    }

    /// The head's way back where what a row counts is known only from all log-probabilities of its sample. The rows of a
    /// sample count alike, so their gradients are made for a count of 1 and multiplied afterwards; only a head that is
    /// trained itself is passed twice.
    fn head_backward_of_samples(
        &self,
        pass: &mut Pass<'_>,
        (batch, normed, wanted): (&Batch, &[f32], &[(usize, u32)]),
        derivatives: &mut dyn FnMut(&[f64]) -> Vec<f64>,
        d_normed: &mut [f32],
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let samples: Vec<usize> = batch.positions().map(|(sample, _)| sample).collect();
        let mut counts = |log_p: &[f32]| {
            let of_samples = derivatives(&sums_of_samples(batch, wanted, log_p));
            wanted.iter().map(|&(row, _)| -of_samples[samples[row]] as f32).collect::<Vec<_>>()
        };
        if self.head.is_trained() {
            let log_p = loss::log_probabilities(pass, &self.head, normed, wanted, None);
            let learn = Some((&counts(&log_p)[..], d_normed, gradients));
            return loss::log_probabilities(pass, &self.head, normed, wanted, learn);
        }
        let learn = Some((&vec![1.0; wanted.len()][..], &mut *d_normed, gradients));
        let log_p = loss::log_probabilities(pass, &self.head, normed, wanted, learn);
        for (&(row, _), count) in wanted.iter().zip(counts(&log_p)) {
            d_normed[row * self.config.dim..][..self.config.dim].iter_mut().for_each(|d| *d *= count);
        }
        log_p
    }

    fn layers_backward(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        trail: &mut Vec<Trail>,
        balance: &Balance,
        d_x: &mut [f32],
        gradients: &mut Gradients,
    ) {
        // Below the lowest layer that learns, nobody needs a gradient.
        let lowest = match self.embedding.weight.is_trained() {
            true => 0,
            false => self.layers.iter().position(Layer::is_trained).unwrap_or(self.layers.len()),
        };
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let Some(Trail { input, activations }) = trail.pop() else { return };
            if index >= lowest {
                let activations = activations.unwrap_or_else(|| {
                    let mut x = pass.buffers.take(input.len());
                    x.copy_from_slice(&input);
                    let activations = layer.forward(pass, step, &mut x);
                    pass.buffers.give(x);
                    activations
                });
                let balance = layer.router.as_ref().map(|_| balance);
                layer.backward(pass, step, (&input, activations), balance, d_x, gradients);
            } else if let Some(activations) = activations {
                activations.give_back(pass);
            }
            pass.buffers.give(input);
        }
    }

    fn check(&self, batch: &Batch) -> Result<(), Error> {
        let vocab_size = self.config.vocab_size;
        match batch.tokens().iter().chain(batch.targets().iter().flatten()).find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(octet_model::Error::TokenOutsideVocabulary { id, vocab_size }.into()),
            None => Ok(()),
        }
    }
}

/// Bytes of activations that one layer keeps for `n_tokens` tokens, where it is not run again.
pub fn layer_bytes(config: &Config, n_tokens: usize) -> usize {
    let attention = 2 * config.q_dim() + 2 * config.kv_dim() + config.n_heads;
    let experts = config.num_experts_per_tok * 2 * config.hidden_dim + config.num_experts;
    n_tokens * (attention + experts + config.dim) * size_of::<f32>()
}

/// A layer on the way back.
struct Trail {
    input: Vec<f32>,
    /// `None`: it is run once more.
    activations: Option<LayerActivations>,
}

fn divisor(batch: &Batch, options: &StepOptions) -> f64 {
    options.divisor.unwrap_or(batch.n_targets() as f64).max(f64::MIN_POSITIVE)
}

fn sums_of_samples(batch: &Batch, wanted: &[(usize, u32)], log_p: &[f32]) -> Vec<f64> {
    let samples: Vec<usize> = batch.positions().map(|(sample, _)| sample).collect();
    let mut sums = vec![0.0; batch.lengths().len()];
    wanted.iter().zip(log_p).for_each(|(&(row, _), &log_p)| sums[samples[row]] += f64::from(log_p));
    sums
}

fn targets_of_samples(batch: &Batch) -> Vec<usize> {
    let mut counts = vec![0; batch.lengths().len()];
    let learned = batch.positions().zip(batch.targets()).filter(|(_, target)| target.is_some());
    learned.for_each(|((sample, _), _)| counts[sample] += 1);
    counts
}

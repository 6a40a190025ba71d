//! A [`Model`] with its gradients, as the loops see it.

use crate::learner::{Found, Goal, Learner, Lesson, RouterStatistics, Sequences, Slice};
use crate::{AdapterUse, Batch, Error, Gradients, LossReport, Model, StepOptions};
use octet_kernels::ThreadPool;

/// A model that is trained by the loops of this crate.
pub struct Tuned {
    model: Model,
    gradients: Gradients,
    /// What parameters are called in snapshots.
    names: Vec<String>,
    /// See [`StepOptions::kept_bytes`].
    kept_bytes: usize,
    dense_router: bool,
    /// What [`Learner::observe`] asks: the model as it is trained, or as it was before.
    observed: AdapterUse,
}

impl Tuned {
    /// Takes a model; `kept_bytes` of activations may be kept for the way back.
    pub fn new(model: Model, kept_bytes: usize) -> Tuned {
        let names = model.parameters().iter().map(|parameter| parameter.name.to_string()).collect();
        let gradients = model.zero_gradients();
        Tuned { gradients, names, model, kept_bytes, dense_router: false, observed: AdapterUse::On }
    }

    /// The same, whose routers learn of every expert.
    pub fn with_dense_router(self, dense_router: bool) -> Tuned {
        Tuned { dense_router, ..self }
    }

    /// From now on [`Learner::observe`] asks the model with its adapter, or without.
    pub fn observe_with(&mut self, adapter: AdapterUse) {
        self.observed = adapter;
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn found(&self, sequences: &Sequences, report: LossReport) -> Found {
        let decisions = (sequences.tokens.len() * self.model.config().n_layers) as u64;
        let routers = match report.aux_loss {
            Some(_) => RouterStatistics {
                chosen: report.expert_counts,
                entropy: report.router_entropy * decisions as f64,
                decisions,
            },
            None => RouterStatistics::default(),
        };
        let balance_loss = report.aux_loss.unwrap_or(0.0);
        Found { log_probabilities: report.log_probabilities, balance_loss, routers }
    }
}

/// The batch that these sequences are.
fn batch(sequences: &Sequences) -> Batch {
    let mut batch = Batch::default();
    let mut at = 0;
    for &length in &sequences.lengths {
        let tokens = &sequences.tokens[at..at + length];
        let learned = &sequences.learned[at..at + length];
        let labels: Vec<_> = tokens.iter().zip(learned).map(|(&id, &learned)| learned.then_some(id)).collect();
        batch.push(tokens, &labels);
        at += length;
    }
    batch
}

impl Learner for Tuned {
    fn observe(&mut self, sequences: &Sequences) -> Result<Found, String> {
        let report = self.model.loss(&batch(sequences), &StepOptions::default(), self.observed);
        report.map(|report| self.found(sequences, report)).map_err(|error: Error| error.to_string())
    }

    fn learn(&mut self, sequences: &Sequences, lesson: Lesson<'_>) -> Result<Found, String> {
        let batch = batch(sequences);
        let divisor = match lesson.goal {
            Goal::CrossEntropy { divisor } => Some(divisor),
            Goal::OfSequences(_) => None,
        };
        let (aux_coefficient, dropout_seed) = (lesson.balance, Some(lesson.seed));
        let Tuned { kept_bytes, dense_router, .. } = *self;
        let options = StepOptions { aux_coefficient, dropout_seed, divisor, dense_router, kept_bytes };
        let gradients = &mut self.gradients;
        let report = match lesson.goal {
            Goal::CrossEntropy { .. } => self.model.loss_and_gradients(&batch, &options, gradients),
            Goal::OfSequences(slopes) => self.model.objective_and_gradients(&batch, &options, slopes, gradients),
        };
        report.map(|report| self.found(sequences, report)).map_err(|error| error.to_string())
    }

    fn clear_gradients(&mut self) {
        self.gradients.clear();
    }

    fn free_memory(&mut self) {
        self.model.free_buffers();
    }

    fn parts(&mut self) -> (Vec<Slice<'_>>, &ThreadPool) {
        let (parameters, pool) = self.model.parameters_and_pool();
        let slices = parameters.iter_mut().zip(self.gradients.iter()).zip(&self.names);
        let slice = slices.map(|((parameter, gradient), name)| Slice {
            name: name.clone(),
            is_matrix: parameter.decays(),
            weights: &mut parameter.values,
            gradient,
        });
        (slice.collect(), pool)
    }
}

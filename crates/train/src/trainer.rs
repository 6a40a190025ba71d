//! The loop: steps, evaluations, snapshots.

use crate::RunError;
use crate::adamw::{self, AdamW, Slot, StepSize};
use crate::dataset::Origin;
use crate::learner::Learner;
use crate::packing::Order;
use crate::schedule::Schedule;
use crate::snapshot::{self, Best, Named, State};
use crate::task::{Failure, LearnSettings, Outcome, Task};
use std::path::PathBuf;
use std::time::Instant;

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which samples make a step.
    pub order: Order,
    /// Learning rates; its total is the number of steps.
    pub schedule: Schedule,
    /// The optimizer.
    pub adamw: AdamW,
    /// Gradients are shortened to this norm.
    pub max_norm: Option<f64>,
    /// Tokens of a pass, by which memory is bounded.
    pub pass_tokens: usize,
    /// Coefficient of the load-balancing loss.
    pub balance: f32,
    /// Steps between evaluations.
    pub evaluate_every: Option<u64>,
    /// Evaluations without a gain after which the run ends.
    pub patience: Option<u32>,
    /// Steps between snapshots.
    pub save_every: u64,
    /// Folder of snapshots.
    pub snapshots: PathBuf,
    /// What the run is of: see [`State::fingerprint`].
    pub fingerprint: String,
}

/// What happens, for whoever watches.
pub enum Event<'a> {
    /// A step was taken.
    Step(&'a StepReport),
    /// The held-out samples were tried after a step.
    Evaluated {
        /// The step.
        step: u64,
        /// What they gave.
        outcome: &'a Outcome,
        /// Whether it is the best so far.
        is_best: bool,
    },
}

/// What a step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// What its samples gave.
    pub outcome: Outcome,
    /// Norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub rate: f32,
    /// Seconds that it took.
    pub seconds: f64,
}

/// What the watcher wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To go on.
    Continue,
    /// To write a snapshot and stop.
    Stop,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// The held-out loss fell no more.
    NoGain,
    /// The watcher wished so.
    Stopped,
}

/// A run.
pub struct Trainer<'a> {
    settings: Settings,
    learner: &'a mut dyn Learner,
    train: &'a Task,
    held_out: Option<&'a Task>,
    /// Means of gradients and of their squares, in the order of the parameters.
    moments: Vec<[Vec<f32>; 2]>,
    state: State,
}

impl<'a> Trainer<'a> {
    /// A run from its beginning.
    pub fn new(
        settings: Settings,
        learner: &'a mut dyn Learner,
        train: &'a Task,
        held_out: Option<&'a Task>,
    ) -> Trainer<'a> {
        let moments =
            learner.parameters().into_iter().map(|p| [vec![0.0; p.weights.len()], vec![0.0; p.weights.len()]]);
        let moments = moments.collect();
        let state = State {
            step: 0,
            tokens: 0,
            seconds: 0.0,
            fingerprint: settings.fingerprint.clone(),
            best: None,
            evaluations_without_gain: 0,
        };
        Trainer { settings, learner, train, held_out, moments, state }
    }

    /// Goes on from the latest snapshot. Says whether there is one.
    ///
    /// # Errors
    /// [`RunError::Resume`] if it cannot be read or is of another run.
    pub fn resume(&mut self) -> Result<bool, RunError> {
        let folder = &self.settings.snapshots;
        let found =
            snapshot::latest(folder).map_err(|error| RunError::Resume(format!("{}: {error}", folder.display())))?;
        let Some(path) = found else { return Ok(false) };
        let state = snapshot::state(&path).map_err(RunError::Resume)?;
        if state.fingerprint != self.settings.fingerprint {
            return Err(RunError::Resume(format!(
                "{}: is of a run with another model, data or settings, so it cannot be gone on with; give the same, or choose another --out",
                path.display()
            )));
        }
        let names = moment_names(self.learner);
        let mut tensors: Vec<(&str, &mut [f32])> = Vec::new();
        for ((parameter, names), moments) in self.learner.parameters().into_iter().zip(&names).zip(&mut self.moments) {
            let [first, second] = moments;
            let [name, first_name, second_name] = names.each_ref().map(String::as_str);
            tensors.extend([(name, parameter.weights), (first_name, &mut first[..]), (second_name, &mut second[..])]);
        }
        snapshot::load(&path, tensors.into_iter()).map_err(RunError::Resume)?;
        self.state = state;
        Ok(true)
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The model, as trained so far.
    pub fn learner(&mut self) -> &mut dyn Learner {
        self.learner
    }

    /// Takes steps until the schedule ends, the held-out loss falls no more, or `watch` wishes to stop; ends with a
    /// snapshot. `keep_best` is called after an evaluation that is better than all before.
    ///
    /// # Errors
    /// A loss that is no number, a snapshot that cannot be written, what the model says. The last snapshot is whole.
    pub fn run(
        &mut self,
        watch: &mut dyn FnMut(Event<'_>) -> Wish,
        keep_best: &mut dyn FnMut(&mut dyn Learner) -> Result<(), RunError>,
    ) -> Result<Ending, RunError> {
        let mut ending = if self.has_no_gain() { Ending::NoGain } else { Ending::Finished };
        while self.state.step < self.settings.schedule.total_steps && ending == Ending::Finished {
            let report = self.step()?;
            if watch(Event::Step(&report)) == Wish::Stop {
                ending = Ending::Stopped;
            }
            if self.is_due(self.settings.evaluate_every) && self.held_out.is_some() {
                self.evaluate(watch, keep_best)?;
                if self.has_no_gain() {
                    ending = Ending::NoGain;
                }
            }
            if self.is_due(Some(self.settings.save_every)) || ending != Ending::Finished {
                self.save()?;
            }
        }
        Ok(ending)
    }

    /// Whether something that comes every so many steps comes now; the last step is always one.
    fn is_due(&self, every: Option<u64>) -> bool {
        let step = self.state.step;
        every.is_some_and(|every| step.is_multiple_of(every) || step == self.settings.schedule.total_steps)
    }

    fn has_no_gain(&self) -> bool {
        self.settings.patience.is_some_and(|patience| self.state.evaluations_without_gain >= patience)
    }

    fn step(&mut self) -> Result<StepReport, RunError> {
        let begun = Instant::now();
        let (index, number) = (self.state.step, self.state.step + 1);
        let samples = self.settings.order.step(index);
        self.learner.clear_gradients();
        let Settings { pass_tokens, balance, .. } = self.settings;
        // Passes of a step are counted on from its seed; a step has never as many as would reach the next.
        let seed = self.settings.order.seed.wrapping_add(index << 24);
        let outcome = self.train.learn(self.learner, &samples, LearnSettings { pass_tokens, balance, seed }).map_err(
            |failure| match failure {
                Failure::Model(problem) => RunError::Model(problem),
                Failure::NotFinite { value, samples } => self.not_finite("the loss", number, value, &samples),
            },
        )?;
        let gradient_norm = adamw::norm(self.learner.parameters().iter().map(|p| p.gradient));
        if !gradient_norm.is_finite() {
            return Err(self.not_finite("the gradient's norm", number, gradient_norm, &samples));
        }
        let rate = self.settings.schedule.rate(index);
        let gradient_factor = adamw::clip_factor(gradient_norm, self.settings.max_norm);
        self.update(StepSize { step: number, rate, gradient_factor });
        let seconds = begun.elapsed().as_secs_f64();
        self.state.step = number;
        self.state.tokens += outcome.tokens;
        self.state.seconds += seconds;
        Ok(StepReport { step: number, outcome, gradient_norm, rate, seconds })
    }

    fn update(&mut self, size: StepSize) {
        let (parameters, pool) = self.learner.parts();
        let slots = parameters.into_iter().zip(&mut self.moments).map(|(parameter, [first, second])| Slot {
            weights: parameter.weights,
            gradient: parameter.gradient,
            first,
            second,
            decays: parameter.is_matrix,
        });
        self.settings.adamw.step(pool, size, slots.collect());
    }

    fn not_finite(&self, what: &'static str, step: u64, value: f64, samples: &[usize]) -> RunError {
        let origins: Vec<&Origin> = samples.iter().map(|&i| &self.train.sequences(i)[0].origin).collect();
        const SHOWN: usize = 8;
        let mut shown: Vec<String> = origins.iter().take(SHOWN).map(ToString::to_string).collect();
        if origins.len() > SHOWN {
            shown.push(format!("and {} more", origins.len() - SHOWN));
        }
        RunError::NotFinite { what, step, value, samples: shown.join("; ") }
    }

    fn evaluate(
        &mut self,
        watch: &mut dyn FnMut(Event<'_>) -> Wish,
        keep_best: &mut dyn FnMut(&mut dyn Learner) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let Some(task) = self.held_out else { return Ok(()) };
        let all: Vec<usize> = (0..task.len()).collect();
        let outcome = task.observe(self.learner, &all, self.settings.pass_tokens).map_err(RunError::Model)?;
        let (step, loss) = (self.state.step, outcome.mean_loss());
        let is_best = self.state.best.is_none_or(|best| loss < best.loss);
        if is_best {
            self.state.best = Some(Best { step, loss });
            self.state.evaluations_without_gain = 0;
            keep_best(self.learner)?;
        } else {
            self.state.evaluations_without_gain += 1;
        }
        watch(Event::Evaluated { step, outcome: &outcome, is_best });
        Ok(())
    }

    /// Writes a snapshot.
    ///
    /// # Errors
    /// [`RunError::Snapshot`]; the one before is whole.
    pub fn save(&mut self) -> Result<(), RunError> {
        let names = moment_names(self.learner);
        let parameters = self.learner.parameters();
        let mut tensors = Vec::new();
        for ((parameter, names), [first, second]) in parameters.iter().zip(&names).zip(&self.moments) {
            let [name, first_name, second_name] = names.each_ref().map(String::as_str);
            tensors.push(Named { name, values: &*parameter.weights });
            tensors.push(Named { name: first_name, values: first });
            tensors.push(Named { name: second_name, values: second });
        }
        let (path, step) = (self.settings.snapshots.clone(), self.state.step);
        snapshot::save(&path, &self.state, tensors.into_iter()).map(|_| ()).map_err(|source| RunError::Snapshot {
            path,
            step,
            source,
        })
    }
}

/// The names in a snapshot of each parameter and of its two moments.
fn moment_names(learner: &mut dyn Learner) -> Vec<[String; 3]> {
    let names = learner.parameters().into_iter().map(|parameter| parameter.name);
    names.map(|name| [name.clone(), format!("{name}/first"), format!("{name}/second")]).collect()
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;

//! What a run will take, told before it starts: memory from the shapes, time from a short measurement of this machine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use octet_checkpoint::{ElementType, Params, TensorName};
use octet_model::{Config, LoraOptions};
use octet_train::Sketch;
use octet_train::pace::{Passes, Work};
use serde::Serialize;

use super::room;
use crate::format;
use crate::machine::{self, Memory};
use crate::progress::clock;

/// What is trained, and how.
pub struct Run<'a> {
    /// The model's shape.
    pub params: &'a Params,
    /// What its tensors are stored as.
    pub element_type: &'a dyn Fn(TensorName) -> ElementType,
    /// What is trained; `None` for every weight.
    pub lora: Option<LoraOptions>,
    /// Bytes of activations that may be kept for the way back.
    pub keep_bytes: usize,
    /// Tokens of a pass.
    pub pass_tokens: usize,
    /// Threads; `None` for as many as there are.
    pub threads: Option<usize>,
}

/// What a run goes through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Steps.
    pub steps: u64,
    /// Passes that learn, and those that only look: DPO's reference, evaluations.
    pub learn: Passes,
    /// See above.
    pub look: Passes,
    /// Tokens of the sequences that a token is in, in the mean: attention costs what they say.
    pub sequence_tokens: usize,
    /// Whether it is pairs that are learned.
    pub pairs: bool,
}

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Bytes of memory at its peak.
    pub memory_bytes: u64,
    /// Whether they are free; `None` where the system does not tell.
    pub fits: Option<bool>,
    /// Numbers that are trained.
    pub trained: u64,
    /// Steps.
    pub steps: u64,
    /// Passes of all steps.
    pub passes: u64,
    /// Tokens that are learned from, a pair's both answers among them.
    pub tokens: u64,
    /// Tokens that are only read: by DPO's reference, and in evaluations.
    pub look_tokens: u64,
    /// Seconds of the whole run, snapshots left out; `None` where there is no memory to measure.
    pub seconds: Option<f64>,
}

impl Run<'_> {
    /// How many numbers are trained.
    pub fn trained(&self) -> u64 {
        let Some(lora) = &self.lora else { return self.params.n_parameters() };
        let size = |name| (self.params.shape(name).iter().sum::<usize>() * lora.rank) as u64;
        lora.tensors(self.params).into_iter().map(size).sum()
    }

    /// How many layers a pass of so many tokens runs once more, because their activations are not kept.
    pub fn layers_again(&self, tokens: usize) -> usize {
        let Ok(config) = Config::new(self.params) else { return 0 };
        let kept = self.keep_bytes / octet_train::layer_bytes(&config, tokens).max(1);
        config.n_layers.saturating_sub(kept)
    }

    /// Measures this machine and tells.
    ///
    /// # Errors
    /// A model that we do not run, or an adapter that fits no matrix of it.
    pub fn forecast(&self, reading: &Reading, memory: Option<Memory>) -> anyhow::Result<Forecast> {
        let memory_bytes = room::needed_bytes(self, reading.learn.longest);
        let fits = memory.map(|memory| memory_bytes <= memory.available);
        Ok(Forecast {
            memory_bytes,
            fits,
            trained: self.trained(),
            steps: reading.steps,
            passes: reading.learn.count,
            tokens: reading.learn.tokens,
            look_tokens: reading.look.tokens,
            seconds: self.seconds(reading, memory)?,
        })
    }

    fn seconds(&self, reading: &Reading, memory: Option<Memory>) -> anyhow::Result<Option<f64>> {
        let n_layers = Sketch::layers(self.params, self.element_type, self.lora.as_ref());
        let few = Run { params: &Params { n_layers, ..self.params.clone() }, lora: self.lora.clone(), ..*self };
        let pass = (reading.learn.tokens / reading.learn.count.max(1)) as usize;
        if memory.is_some_and(|memory| room::needed_bytes(&few, pass) > memory.available) {
            return Ok(None);
        }
        // A server may be asked by several at once: each would take memory, and measure the others.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = self.threads.unwrap_or_else(octet_train::Model::default_threads);
        let sketch = Sketch::new(self.params, self.element_type, self.lora.as_ref(), threads)?;
        let trains_head = self.lora.as_ref().is_none_or(|l| l.targets.contains(&octet_model::LoraTarget::Head));
        let work = Work {
            n_layers: self.params.n_layers,
            steps: reading.steps,
            trained: self.trained(),
            learn: reading.learn,
            look: reading.look,
            head_again: reading.pairs && trains_head,
        };
        Ok(Some(sketch.pace(pass, reading.sequence_tokens).seconds(&work)))
    }
}

impl Forecast {
    /// What is read, in one line.
    pub fn describe_work(&self) -> String {
        let [tokens, look, passes, steps] = [self.tokens, self.look_tokens, self.passes, self.steps].map(format::count);
        let look = if self.look_tokens > 0 { format!(", and {look} read without learning") } else { String::new() };
        format!("{tokens} tokens in {steps} steps, {passes} passes{look}")
    }

    /// Memory, in one line.
    pub fn describe_memory(&self) -> String {
        let needed = format::bytes(self.memory_bytes);
        match (self.fits, machine::memory()) {
            (Some(fits), Some(memory)) => {
                let free = format::bytes(memory.available);
                format!("{needed}, and {free} are free: {}", if fits { "fits" } else { "does not fit" })
            }
            _ => format!("{needed}; this system does not tell how much is free"),
        }
    }

    /// Time, in one line.
    pub fn describe_time(&self) -> String {
        let Some(seconds) = self.seconds else {
            return "not measured: there is no memory to try a layer in".into();
        };
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let time = if time < Duration::from_secs(60) { format::duration(time) } else { clock(time) };
        let rate = format::rate((self.tokens + self.look_tokens) as f64 / seconds);
        format!("about {time}, {rate}, as some layers and the head were measured just now")
    }
}

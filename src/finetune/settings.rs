//! How a run goes, as options.

use anyhow::bail;
use octet_train::adamw::{AdamW, Masters};
use octet_train::packing::Order;
use octet_train::schedule::{Schedule, Shape};
use octet_train::{PreferenceLoss, PreferenceOptions};

/// Steps, learning rate and optimizer.
#[derive(clap::Args)]
pub struct LoopOptions {
    /// Times that every sample is visited
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub epochs: f64,
    /// Steps to take, in place of --epochs
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    /// Tokens that go through the model at once: memory grows with them, the result does not change. A step takes as many
    /// passes as it needs
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub pass_tokens: usize,
    /// The highest learning rate [default: 1e-4 for adapters, 1e-5 for all weights; a tenth of that for dpo]
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f32>,
    /// What the learning rate does after the warm-up: cosine, linear or constant
    #[arg(long, default_value = "cosine", value_parser = shape)]
    pub schedule: Shape,
    /// Share of the steps in which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    pub warmup: f64,
    /// Where the learning rate ends, as a share of the highest
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub floor: f32,
    /// Weight decay of matrices
    #[arg(long, value_name = "DECAY", default_value_t = 0.01)]
    pub weight_decay: f32,
    /// Gradients are shortened to this norm; 0 leaves them
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f64,
    /// Coefficient of the load-balancing loss [default: what the model's configuration says, else 0.001]
    #[arg(long, value_name = "C")]
    pub balance: Option<f32>,
    /// Keep trained weights in f32, or in values of bf16 with random rounding
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    pub masters: String,
    /// Seed of the order of samples and of all else that is random; the same seed repeats a run bit for bit
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn shape(name: &str) -> Result<Shape, String> {
    match name {
        "cosine" => Ok(Shape::Cosine),
        "linear" => Ok(Shape::Linear),
        "constant" => Ok(Shape::Constant),
        _ => Err("choose cosine, linear or constant".into()),
    }
}

impl LoopOptions {
    /// Refuses numbers that make no run.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.batch == 0 || self.pass_tokens == 0 || self.steps == Some(0) {
            bail!("--batch, --pass-tokens and --steps have to be 1 or more");
        }
        let numbers = [
            ("--epochs", self.epochs),
            ("--warmup", self.warmup),
            ("--floor", f64::from(self.floor)),
            ("--weight-decay", f64::from(self.weight_decay)),
            ("--clip", self.clip),
            ("--rate", self.rate.map_or(0.0, f64::from)),
            ("--balance", self.balance.map_or(0.0, f64::from)),
        ];
        for (flag, value) in numbers {
            if !value.is_finite() || value < 0.0 {
                bail!("{flag} {value} has to be 0 or more");
            }
        }
        if self.warmup > 1.0 || self.floor > 1.0 {
            bail!("--warmup and --floor are shares: at most 1");
        }
        Ok(())
    }

    /// The order of `n_samples`, and how many steps are taken.
    pub fn order(&self, n_samples: usize) -> (Order, u64) {
        let order = Order { n_samples, per_step: self.batch.min(n_samples), seed: self.seed };
        let all = (self.epochs * order.steps_per_epoch() as f64).ceil() as u64;
        (order, self.steps.unwrap_or(all).max(1))
    }

    /// The learning rate over `total_steps`.
    pub fn schedule(&self, total_steps: u64, default_rate: f32) -> Schedule {
        let warmup_steps = (self.warmup * total_steps as f64).round() as u64;
        let peak = self.rate.unwrap_or(default_rate);
        Schedule { shape: self.schedule, peak, floor: self.floor, warmup_steps, total_steps }
    }

    /// The optimizer.
    pub fn adamw(&self) -> AdamW {
        let masters = if self.masters == "bf16" { Masters::Bf16 { seed: self.seed } } else { Masters::F32 };
        AdamW { weight_decay: self.weight_decay, masters, ..AdamW::default() }
    }
}

/// The loss of DPO.
#[derive(clap::Args)]
pub struct DpoOptions {
    /// DPO: how strongly the model is held to what it was
    #[arg(long, value_name = "BETA", default_value_t = 0.1)]
    pub beta: f64,
    /// DPO: the loss, sigmoid or ipo
    #[arg(long, value_name = "LOSS", default_value = "sigmoid", value_parser = kind)]
    pub loss: PreferenceLoss,
    /// DPO: the share of pairs taken to be the wrong way round
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// DPO: compare with nothing in place of the model as it was
    #[arg(long)]
    pub reference_free: bool,
    /// DPO: compare with the model without its adapter, where --adapter goes on with one, in place of the model as it was
    #[arg(long, conflicts_with_all = ["reference_free", "all"])]
    pub base_reference: bool,
    /// DPO: take the mean over an answer's tokens in place of the sum
    #[arg(long)]
    pub length_normalized: bool,
}

fn kind(name: &str) -> Result<PreferenceLoss, String> {
    match name {
        "sigmoid" => Ok(PreferenceLoss::Sigmoid),
        "ipo" => Ok(PreferenceLoss::Ipo),
        _ => Err("choose sigmoid or ipo".into()),
    }
}

impl DpoOptions {
    /// The loss that these options mean.
    pub fn preference(&self) -> anyhow::Result<PreferenceOptions> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            bail!("--beta {} has to be more than 0", self.beta);
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            bail!("--label-smoothing {} has to be from 0 to less than 0.5", self.label_smoothing);
        }
        Ok(PreferenceOptions {
            beta: self.beta,
            loss: self.loss,
            label_smoothing: self.label_smoothing,
            length_normalized: self.length_normalized,
        })
    }
}

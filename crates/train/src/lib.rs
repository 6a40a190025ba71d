//! Fine-tuning: the model forward and backward, and what is learned from its gradients.
//!
//! A [`Model`] holds weights that are trained (f32, in [`Parameters`]) beside weights that stay as they are, read where
//! they lie in the checkpoint whatever their type. [`Model::loss_and_gradients`] runs a ragged [`Batch`] of samples
//! through it and adds to [`Gradients`]. The files bear the names of `octet-model`'s, whose backward twins they hold.
#![forbid(unsafe_code)]

mod batch;
mod error;
mod parameters;

mod lora;

mod attention;
mod balance;
mod buffers;
mod dense_router;
mod embedding;
mod experts;
mod layer;
mod linear;
mod loss;
mod model;
mod norm;
mod preference;
mod router;

mod run_error;
mod tuned;

pub mod adamw;
pub mod curve;
pub mod dataset;
pub mod learner;
pub mod pace;
pub mod packing;
pub mod sample;
pub mod schedule;
pub mod snapshot;
pub mod task;
pub mod tensorboard;
pub mod trainer;

pub use batch::Batch;
pub use error::Error;
pub use lora::new_adapter;
pub use model::{AdapterUse, LossReport, Model, Sketch, StepOptions, Trained, layer_bytes};
pub use parameters::{Gradients, Parameter, ParameterName, Parameters};
pub use preference::{Preference, PreferenceLoss, PreferenceOptions};
pub use run_error::RunError;
pub use tuned::Tuned;

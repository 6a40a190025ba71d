//! Backward twins of the small functions, and attention over whole samples, for training.
//!
//! `d_x` is the derivative of the loss with respect to `x`.

mod attention;
mod cross_entropy;
mod rms_norm;
mod rows;
mod swiglu;

pub use attention::{SampleAttention, SampleShape};
pub use cross_entropy::cross_entropy;
pub use rms_norm::rms_norm_gradient;
pub use rows::{dot, for_each_rows, for_each_rows_of};
pub use swiglu::swiglu_gradient;

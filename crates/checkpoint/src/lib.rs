//! Mixtral's weights in every published form: files to named, typed, borrowed bytes.

mod element_type;
mod names;

pub use element_type::ElementType;
pub use names::{ExpertMatrix, LayerTensor, TensorName};

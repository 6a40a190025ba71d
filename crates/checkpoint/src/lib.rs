//! Mixtral's weights in every published form: files to named, typed, borrowed bytes.
//!
//! [`Checkpoint::open`] takes a file or folder in any of the three layouts (Mistral's release, Hugging Face, GGUF),
//! and gives each tensor of the model by its [`TensorName`] in one canonical form. Nothing is copied until rows are
//! read, and nothing in a file is believed before it is checked.
#![deny(unsafe_code)]

mod error;

mod element_type;
mod names;
mod params;

pub mod mix;

mod checkpoint;
mod find;
mod tensor;

mod config_file;
pub mod gguf;
mod hugging_face;
mod mistral;
pub mod safetensors;
pub mod torch;

mod mapping;
mod stored;

pub mod write;

pub use checkpoint::{Checkpoint, Layout};
pub use element_type::ElementType;
pub use error::Error;
pub use names::{ExpertMatrix, LayerTensor, TensorName};
pub use params::{Architecture, Moe, Params};
pub use stored::{StoredTensor, StoredType};
pub use tensor::Tensor;

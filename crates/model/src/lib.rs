//! Mixtral, written as the paper says it: one file a concept.
//!
//! A [`Transformer`] maps a ragged [`Batch`] of tokens of many sequences, together with what their [`KvCache`]
//! remembers, to logits. Dense Llama and Mistral models are the case of one expert and no router.
//!
//! ```text
//! x = embedding[token]
//! for each layer:   x += attention(rms_norm(x));   x += Σ_k p_k · expert_k(rms_norm(x))
//! logits = output · rms_norm(x)
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod attention;
mod batch;
mod config;
mod embedding;
mod error;
mod experts;
mod kv_cache;
mod layer;
mod layerwise;
mod lora;
mod packer;
mod record;
mod router;
mod transformer;
mod weights;

pub use adapter::{Adapter, LoraOptions, LoraTarget, LowRankValues};
pub use batch::{Batch, Logits, Run};
pub use config::Config;
pub use error::Error;
pub use kv_cache::{KvCache, SequenceId};
pub use layerwise::{Head, Layerwise};
pub use lora::AdapterId;
pub use record::{Nothing, Record};
pub use router::Routing;
pub use transformer::{LoadOptions, Packing, Transformer, Workspace};
pub use weights::floats;

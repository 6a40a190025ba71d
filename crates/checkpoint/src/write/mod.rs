//! Files that we write: planned whole before the first byte, then streamed.
//!
//! A [`Plan`] knows every header, tensor and offset of the output, because the formats' headers stand before the data
//! and name its size. A [`Job`] carries it out: rows are asked of each tensor's [`Rows`] in pieces of about a
//! mebibyte, by several threads, each piece written to its place. So memory does not grow with the model, and the size
//! on disk is known, and compared with what is free, at the start.
//!
//! ```text
//! OUT.part          grows here, a file or a folder
//! OUT.part.journal  what it is made from, and how many tensors are safely on disk
//! OUT               appears by one rename when all is written and synced
//! ```
//! A killed run leaves the first two, and the same command goes on from there. A run that fails of itself (a full
//! disk, a damaged input) removes both; only what is whole and could not be given its name stays.

mod outline;
mod plan;

pub mod gguf;
pub mod hugging_face;
pub mod mistral;
pub mod safetensors;

mod job;
mod journal;

mod disk;

pub use disk::free_bytes;
pub use job::{Event, Existing, Job};
pub use outline::{Outline, RowOrder, outlines};
pub use plan::{NewTensor, Plan, Rows};

/// JSON as people read it, for the small files beside the weights.
fn json_bytes(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The shortest decimal that is this float: 1e-5, not 9.999999747378752e-6.
fn exact(x: f32) -> f64 {
    x.to_string().parse().expect("a finite float's decimals are a number")
}

/// Tokens that the model was made for; Mixtral 8x7B's where its files do not say, since readers insist on a number.
fn context_length(params: &crate::Params) -> usize {
    const DEFAULT: usize = 32768;
    params.context_length.unwrap_or(DEFAULT)
}

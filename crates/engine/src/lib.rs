//! Requests to tokens: what to ask of a model, how to choose the next token, when to stop, and how one model answers many
//! at once.
//!
//! An [`Engine`] is a model on a thread of its own. Any number of requests share its passes over the weights; none changes
//! another's answer, not by a bit.
//!
//! ```no_run
//! use octet_engine::{Engine, Event, Request, Stop, TextStart};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open("mixtral.gguf".as_ref(), &Default::default())?;
//! let prompt = engine.tokenizer().encode("The capital of France is");
//! let mut request = Request::new(prompt, TextStart::Continued);
//! request.stop = Stop::after(20);
//! for event in engine.generate(request)? {
//!     match event {
//!         Event::Token { text, .. } => print!("{text}"),
//!         Event::Finished { text, reason, .. } => println!("{text} ({reason:?})"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! A [`Generator`] is the same on the caller's thread, for one conversation.
#![forbid(unsafe_code)]

mod adapters;
mod core;
mod disk_cache;
mod engine;
mod error;
mod event;
mod fault;
mod generation;
mod grammar;
mod handle;
mod job;
mod logprobs;
mod lookup;
mod masks;
mod observer;
mod options;
mod pace;
mod pass;
mod perplexity;
mod prefix_cache;
mod random;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod stop;

pub use engine::Engine;
pub use error::Error;
pub use event::{Event, Flow, Logprobs, Routed, Sink, StopReason, Usage};
pub use generation::{Answer, Generator, Piece, Prompt};
pub use handle::{Events, Handle, ModelInfo, Ticket};
pub use options::{AdapterSource, DiskCacheOptions, EngineOptions, OpenOptions};
pub use perplexity::{Perplexity, Windows, perplexity};
pub use random::Random;
pub use request::{Constraint, Pooling, Request, TextStart};
pub use sampler::{Sampler, Sampling};
pub use stats::{STEP_BUCKETS_MS, Stats};
pub use stop::{Stop, StopMatcher};

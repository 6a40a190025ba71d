//! Requests to tokens: what to ask of a model, how to choose the next token, when to stop.
//!
//! ```no_run
//! use octet_engine::{Generator, Sampling, Stop};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut generator = Generator::open("mixtral.gguf".as_ref(), &Default::default())?;
//! let prompt = generator.tokenizer().encode("The capital of France is");
//! let answer = generator.generate(&prompt, &Sampling::default(), &Stop::after(20), &mut |event| {
//!     print!("{}", event.text);
//!     octet_engine::Flow::Continue
//! })?;
//! println!("\n{:.1} tokens/s", answer.generation_rate());
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod error;
mod generation;
mod random;
mod sampler;
mod stop;

pub use error::Error;
pub use generation::{Answer, Event, Flow, Generator, OpenOptions, StopReason};
pub use random::Random;
pub use sampler::{Sampler, Sampling};
pub use stop::{Stop, StopMatcher};

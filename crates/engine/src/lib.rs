//! Requests to tokens: what to ask of a model, how to choose the next token, when to stop.
//!
//! ```no_run
//! use octet_engine::{Flow, Generator, Request, Sampling, Stop, TextStart};
//! use octet_model::Nothing;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut generator = Generator::open("mixtral.gguf".as_ref(), &Default::default())?;
//! let prompt = generator.tokenizer().encode("The capital of France is");
//! let request = Request {
//!     prompt: &prompt,
//!     start: TextStart::Continued,
//!     sampling: &Sampling::default(),
//!     stop: &Stop::after(20),
//! };
//! let answer = generator.generate(&request, &mut Nothing, &mut |event| {
//!     print!("{}", event.text);
//!     Flow::Continue
//! })?;
//! println!("\n{:.1} tokens/s", answer.generation_rate());
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod error;
mod generation;
mod perplexity;
mod random;
mod sampler;
mod stop;

pub use error::Error;
pub use generation::{Answer, Event, Flow, Generator, OpenOptions, Request, StopReason, TextStart};
pub use perplexity::{Perplexity, Windows, perplexity};
pub use random::Random;
pub use sampler::{Sampler, Sampling};
pub use stop::{Stop, StopMatcher};

//! Four APIs over HTTP: OpenAI's, Mistral's, Ollama's and Anthropic's, each a thin translation to one request of the engine.
//!
//! The program opens models and gives them to [`serve`]; everything else about HTTP is in here, and nothing below knows of
//! it.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod ask;
mod bridge;
mod caller;
mod engine_metrics;
mod enter;
mod fields;
mod ids;
mod keys;
mod limits;
mod listener;
mod messages;
mod metrics;
mod models;
mod noise;
mod on_demand;
mod origin;
mod patience;
mod piece;
mod prompt;
mod refusal;
mod routes;
mod server;
mod settings;
mod stream;
mod tls;
mod tool_calls;
mod tool_grammar;
mod track;
mod upstream;

mod anthropic;
mod mistral;
mod octet;
mod ollama;
mod openai;

pub use app::{Limits, Planner};
pub use bridge::EngineHandle;
pub use models::{AdapterOption, Facts, LoadFailure, Loaded, Loader};
pub use octet::peers::PeerOption;
pub use server::{Error, Options, serve};
pub use tls::client as tls_client;

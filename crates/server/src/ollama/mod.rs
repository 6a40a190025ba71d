//! Ollama's API.

pub mod chat;
pub mod embed;
pub mod error;
pub mod generate;
pub mod lines;
pub mod models;
pub mod options;

//! OpenAI's API.

pub mod chat;
pub mod chat_stream;
pub mod completions;
pub mod completions_stream;
pub mod embeddings;
pub mod error;
pub mod models;
pub mod response_format;
pub mod responses;
pub mod responses_input;
pub mod responses_stream;
pub mod wire;

//! Anthropic's API.

pub mod conversation;
pub mod error;
pub mod messages;
pub mod messages_stream;
pub mod models;

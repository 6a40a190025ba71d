//! Text to tokens and back, and conversations to prompts.
//!
//! [`Tokenizer::open`] reads `tokenizer.model`, `tokenizer.json` and the vocabulary of a GGUF. [`ChatFormat`] writes a [`Conversation`] the way the model was
//! trained to see it. Control tokens come only from formats, never from what users typed.

#![forbid(unsafe_code)]

mod error;
mod tokenizer;
mod vocabulary;

mod byte_level;
mod decode;
mod matcher;
mod merge;
mod ranking;
mod sentencepiece;
mod split;

mod gguf;
mod hugging_face;
mod open;
mod protobuf;
mod sentencepiece_model;
mod tokenizer_json;
mod write_gguf;
mod write_json;

mod chat;

pub use chat::{ChatFormat, Conversation, FunctionCall, Message, Prompt, Role, Tool, ToolCall, ToolFunction};
pub use decode::DecodeStream;
pub use error::Error;
pub use tokenizer::Tokenizer;
pub use vocabulary::TokenKind;

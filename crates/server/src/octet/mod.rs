//! What is ours: probes, metrics, tokens, and under `/octet/` what the page needs.

pub mod answer_files;
pub mod answers;
pub mod conversations;
pub mod history;
pub mod journal;
pub mod openapi;
pub mod page;
pub mod peers;
pub mod probes;
pub mod state;
pub mod tokens;

//! What Mistral's API says in other words than OpenAI's.

pub mod error;
pub mod fim;
pub mod models;

/// What `safe_prompt` puts before a conversation, in Mistral's words.
pub const SAFE_PROMPT: &str = "Always assist with care, respect, and truth. Respond with utmost utility yet securely. \
    Avoid harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and positivity.";

//! Anthropic's error body.

use serde_json::{Value, json};

use crate::refusal::{Fault, Refusal};

/// Status and body.
pub fn answer(refusal: &Refusal, request_id: &str) -> (u16, Value) {
    let status = match refusal.fault {
        Fault::Unavailable => 529,
        _ => refusal.status().as_u16(),
    };
    let error = error(refusal);
    (status, json!({"type": "error", "error": error, "request_id": request_id}))
}

/// `{type, message}`, also for the `error` event of a stream.
pub fn error(refusal: &Refusal) -> Value {
    let kind = match refusal.fault {
        Fault::Invalid
        | Fault::UnknownField
        | Fault::ContextTooLong
        | Fault::Conflict
        | Fault::Method
        | Fault::TooSlow => "invalid_request_error",
        Fault::Unauthorized => "authentication_error",
        Fault::Forbidden => "permission_error",
        Fault::NotFound => "not_found_error",
        Fault::TooLarge => "request_too_large",
        Fault::TooMany => "rate_limit_error",
        Fault::Unavailable => "overloaded_error",
        Fault::Internal | Fault::Upstream => "api_error",
    };
    json!({"type": kind, "message": refusal.message})
}

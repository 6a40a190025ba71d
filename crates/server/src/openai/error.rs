//! OpenAI's error body: all four keys, always.

use serde_json::{Value, json};

use crate::refusal::{Fault, Refusal};

/// `{"error": {message, type, param, code}}`.
pub fn body(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal.fault {
        // Only a request's own field names a model; all else that is not there is a path or a thing of ours.
        Fault::NotFound if refusal.param.is_none() => ("invalid_request_error", Some("unknown_url")),
        fault => names(fault),
    };
    json!({"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}})
}

fn names(fault: Fault) -> (&'static str, Option<&'static str>) {
    match fault {
        Fault::Invalid | Fault::Conflict | Fault::Method => ("invalid_request_error", None),
        Fault::UnknownField => ("invalid_request_error", Some("unknown_parameter")),
        Fault::ContextTooLong => ("invalid_request_error", Some("context_length_exceeded")),
        Fault::Unauthorized => ("invalid_request_error", Some("invalid_api_key")),
        Fault::Forbidden => ("invalid_request_error", Some("forbidden")),
        Fault::NotFound => ("invalid_request_error", Some("model_not_found")),
        Fault::TooLarge => ("invalid_request_error", Some("request_too_large")),
        Fault::TooSlow => ("invalid_request_error", Some("request_timeout")),
        Fault::TooMany => ("rate_limit_error", Some("rate_limit_exceeded")),
        Fault::Unavailable => ("server_error", Some("unavailable")),
        Fault::Upstream => ("server_error", Some("bad_gateway")),
        Fault::Internal => ("server_error", None),
    }
}

//! Mistral's two error bodies: 422 with a list of faults for fields, and the flat one for the rest.

use serde_json::{Value, json};

use crate::openai;
use crate::refusal::{Fault, Refusal};

/// Status and body.
pub fn answer(refusal: &Refusal) -> (u16, Value) {
    match (&refusal.param, refusal.fault) {
        (Some(param), Fault::Invalid | Fault::UnknownField) => (422, detail(refusal, param)),
        _ => (status(refusal), flat(refusal)),
    }
}

/// A body that OpenAI's and Mistral's readers both understand.
pub fn for_both(refusal: &Refusal) -> Value {
    let mut both = flat(refusal);
    both["error"] = openai::error::body(refusal)["error"].take();
    both
}

/// Mistral says 400 for a model that it does not have.
fn status(refusal: &Refusal) -> u16 {
    if refusal.fault == Fault::NotFound && refusal.param.is_some() { 400 } else { refusal.status().as_u16() }
}

fn detail(refusal: &Refusal, param: &str) -> Value {
    let kind = if refusal.fault == Fault::UnknownField { "extra_forbidden" } else { "value_error" };
    let mut place = vec![json!("body")];
    for part in param.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
        place.push(part.parse::<u64>().map_or_else(|_| json!(part), |index| json!(index)));
    }
    json!({"detail": [{"type": kind, "loc": place, "msg": refusal.message, "input": null}]})
}

fn flat(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal.fault {
        Fault::NotFound if refusal.param.is_none() => ("not_found", "2000"),
        Fault::NotFound => ("invalid_model", "1500"),
        Fault::Unauthorized => ("invalid_api_key", "1000"),
        Fault::ContextTooLong => ("invalid_request_prompt_too_long", "3051"),
        Fault::TooMany => ("rate_limited", "1300"),
        Fault::Unavailable => ("service_unavailable", "3200"),
        Fault::Internal | Fault::Upstream => ("internal_server_error", "3000"),
        _ => ("invalid_request_error", "3001"),
    };
    json!({"object": "error", "message": refusal.message, "type": kind, "param": refusal.param, "code": code})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_named_by_its_path() {
        let (status, body) = answer(&Refusal::field("messages[2].content", "no"));
        assert_eq!(status, 422);
        assert_eq!(body["detail"][0]["loc"], json!(["body", "messages", 2, "content"]));
        let (status, body) = answer(&Refusal { param: Some("model".into()), ..Refusal::not_found("Invalid model: x") });
        assert_eq!((status, &body["code"]), (400, &json!("1500")));
        let both = for_both(&Refusal::field("n", "no"));
        assert!(both["error"]["message"] == "no" && both["message"] == "no" && both["object"] == "error");
    }
}

//! Answers that must match something: of a random model, so that only the constraint can make them so.

mod support;

use octet_engine::{Constraint, Request, StopReason};
use support::{ask, ask_all, engine, options, prompt, request};

fn constrained(constraint: Constraint, seed: u64, temperature: f32) -> Request {
    let mut request = request(prompt(seed, 20), 400);
    request.stop.ignore_eos = false;
    request.constraint = Some(constraint);
    request.sampling.temperature = temperature;
    request.sampling.seed = seed;
    request
}

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": false,
    "x-guidance": null
}"#;

#[test]
fn json_follows_its_schema() {
    let engine = engine(&options(256));
    let schema = SCHEMA.replace(",\n    \"x-guidance\": null", "");
    // A random model loves long whitespace; each answer that ended on its own must be right, and most must end.
    let requests: Vec<_> = (0..24).map(|seed| constrained(Constraint::JsonSchema(schema.clone()), seed, 1.0)).collect();
    let mut ended = 0;
    for outcome in ask_all(&engine, &requests) {
        assert_eq!(outcome.failed, None);
        let answer = &outcome.choices[0];
        if answer.reason == Some(StopReason::MaxTokens) {
            continue;
        }
        ended += 1;
        let value: serde_json::Value =
            serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {:?}", answer.text));
        let object = value.as_object().unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["name", "age", "kind", "tags"]);
        assert!(object["name"].as_str().unwrap().chars().count() <= 8);
        assert!((0..=150).contains(&object["age"].as_i64().unwrap()));
        assert!(["cat", "dog"].contains(&object["kind"].as_str().unwrap()));
        assert!(object["tags"].as_array().unwrap().iter().all(|tag| tag.is_boolean()));
    }
    assert!(ended > 6, "{ended} of 24 ended");
    // Company changes nothing here either.
    for request in requests.iter().take(2) {
        let (a, b) = (ask(&engine, request.clone()), ask(&support::engine(&options(64)), request.clone()));
        assert_eq!(a.choices, b.choices);
    }
}

#[test]
fn a_regular_expression_and_a_grammar_are_matched_as_a_whole() {
    let engine = engine(&options(64));
    for seed in 0..6 {
        let phone =
            ask(&engine, constrained(Constraint::Regex(r"[0-9]{3}-[0-9]{4}".into()), seed, 1.0)).choices.remove(0);
        let (head, tail) = phone.text.split_once('-').unwrap();
        assert!(head.len() == 3 && tail.len() == 4 && (head.to_owned() + tail).bytes().all(|b| b.is_ascii_digit()));
        assert!(matches!(phone.reason, Some(StopReason::ConstraintComplete | StopReason::EndOfText)), "{phone:?}");
        let lark = "start: (\"yes\" | \"no\") \"!\"".to_string();
        let word = ask(&engine, constrained(Constraint::Lark(lark), seed, 0.0)).choices.remove(0);
        assert!(["yes!", "no!"].contains(&word.text.as_str()), "{word:?}");
    }
    let mut several = constrained(Constraint::Regex("(a|b){5}".into()), 1, 1.0);
    several.n = 3;
    several.stop.min_tokens = 50;
    for answer in ask(&engine, several).choices {
        assert!(answer.text.len() == 5 && answer.text.bytes().all(|b| b == b'a' || b == b'b'), "{answer:?}");
    }
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let engine = engine(&options(64));
    let error = |constraint| engine.generate(constrained(constraint, 0, 0.0)).map(|_| ()).unwrap_err().to_string();
    let schema = |text: &str| error(Constraint::JsonSchema(text.into()));
    assert!(schema(r#"{"type": "array", "uniqueItems": true}"#).contains("uniqueItems"));
    assert!(schema(r#"{"not": {"type": "string"}}"#).contains("not"));
    assert!(schema(r#"{"type": "string", "format": "no-such-format"}"#).contains("no-such-format"));
    assert!(schema(r#"{"if": {}, "then": {}, "else": {}}"#).contains("if"));
    assert!(schema(SCHEMA).contains("x-guidance"));
    assert!(schema("{").contains("no JSON"));
    assert!(
        schema(r#"{"type": "object", "properties": {"a": {"dependentRequired": {"b": ["c"]}}}}"#)
            .contains("dependentRequired")
    );
    assert!(error(Constraint::Regex("(".into())).contains("cannot be enforced"));
    assert!(error(Constraint::Lark("start: nothing".into())).contains("nothing"));
}

//! `response_format`, and a response's `text.format`: what an answer has to look like.

use serde_json::Value;

use crate::ask::Constraint;
use crate::refusal::Refusal;

/// The field of all endpoints but `/v1/responses`.
pub const FIELD: &str = "response_format";

const TYPES: [&str; 5] = ["text", "json_object", "json_schema", "regex", "grammar"];

/// Keys beside `type`, and the types that they belong to. In a response all of a schema's keys stand here; llama.cpp and
/// Together give a schema with `json_object`.
const KEYS: [(&str, &[&str]); 7] = [
    ("json_schema", &["json_schema"]),
    ("schema", &["json_object", "json_schema"]),
    ("name", &["json_schema"]),
    ("description", &["json_schema"]),
    ("strict", &["json_schema"]),
    ("regex", &["regex"]),
    ("grammar", &["grammar"]),
];

/// Keys of `json_schema`; `schema_definition` is an older name of Mistral's clients.
const SCHEMA_KEYS: [&str; 5] = ["name", "description", "schema", "schema_definition", "strict"];

/// Reads a format, which stands in the field `at`.
///
/// # Errors
/// An unknown type, one without what it needs, or a key that has no place in it.
pub fn constraint(format: &Value, at: &str) -> Result<Option<Constraint>, Refusal> {
    let kind = format.get("type").and_then(Value::as_str).unwrap_or_default();
    if !TYPES.contains(&kind) {
        let known = TYPES.join(", ");
        return Err(Refusal::field(format!("{at}.type"), format!("{at} of type {kind:?} is none of {known}")));
    }
    check_keys(format, kind, at)?;
    let text = |name: &str| {
        let missing = || Refusal::field(format!("{at}.{name}"), format!("{at} has no text {name}"));
        format.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(missing)
    };
    Ok(match kind {
        "json_object" => match schema(format, at)? {
            // Any value at all would be less than the type says.
            Some(schema) if schema.as_object().is_none_or(|keywords| !keywords.is_empty()) => {
                Some(Constraint::JsonSchema(schema.clone()))
            }
            _ => Some(Constraint::JsonObject),
        },
        "json_schema" => {
            let missing = || Refusal::field(format!("{at}.json_schema.schema"), format!("{at} has no schema"));
            Some(Constraint::JsonSchema(schema(format, at)?.ok_or_else(missing)?.clone()))
        }
        "regex" => Some(Constraint::Regex(text("regex")?)),
        "grammar" => Some(Constraint::Grammar(text("grammar")?)),
        _ => None,
    })
}

fn check_keys(format: &Value, kind: &str, at: &str) -> Result<(), Refusal> {
    let given = |value: &Value| -> Vec<String> {
        let fields = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        fields.map(|(key, _)| key.clone()).collect()
    };
    for key in given(format).iter().filter(|key| *key != "type") {
        let place = format!("{at}.{key}");
        match KEYS.iter().find(|(known, _)| known == key) {
            None => return Err(Refusal::unknown(place)),
            Some((_, kinds)) if !kinds.contains(&kind) => {
                let message = format!("{place} is for type {} only, and the type is {kind}", kinds.join(" or "));
                return Err(Refusal::field(place, message));
            }
            Some(_) => {}
        }
    }
    let inner = format.get("json_schema").map(given).unwrap_or_default();
    match inner.iter().find(|key| !SCHEMA_KEYS.contains(&key.as_str())) {
        Some(key) => Err(Refusal::unknown(format!("{at}.json_schema.{key}"))),
        None => Ok(()),
    }
}

/// The schema, which has several places.
fn schema<'a>(format: &'a Value, at: &str) -> Result<Option<&'a Value>, Refusal> {
    let places = ["/json_schema/schema", "/json_schema/schema_definition", "/schema"];
    let given = places.iter().filter_map(|place| Some((place, format.pointer(place)?)));
    let mut given = given.filter(|(_, schema)| !schema.is_null());
    let Some((_, first)) = given.next() else { return Ok(None) };
    match given.find(|(_, other)| *other != first) {
        Some((place, _)) => {
            let place = format!("{at}{}", place.replace('/', "."));
            Err(Refusal::field(place.clone(), format!("{place} is a second schema; give one")))
        }
        None => Ok(Some(first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(format: Value) -> Result<Option<Constraint>, String> {
        constraint(&format, FIELD).map_err(|refusal| refusal.param.unwrap_or_default())
    }

    #[test]
    fn a_schema_is_taken_wherever_it_stands() {
        let schema = json!({"type": "object"});
        let all = [
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}),
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema_definition": schema, "schema": null}}),
            json!({"type": "json_schema", "name": "x", "schema": schema, "strict": true, "description": "d"}),
            json!({"type": "json_object", "schema": schema}),
        ];
        for format in all {
            assert_eq!(read(format).unwrap(), Some(Constraint::JsonSchema(schema.clone())));
        }
        for any in [json!({"type": "json_object"}), json!({"type": "json_object", "schema": {}, "json_schema": null})] {
            assert_eq!(read(any).unwrap(), Some(Constraint::JsonObject));
        }
        assert_eq!(read(json!({"type": "text"})).unwrap(), None);
        assert_eq!(read(json!({"type": "regex", "regex": "a+"})).unwrap(), Some(Constraint::Regex("a+".into())));
    }

    #[test]
    fn what_would_be_dropped_is_refused_by_name() {
        let refused = |format: Value, param: &str| assert_eq!(read(format).unwrap_err(), param);
        refused(json!({"type": "yaml"}), "response_format.type");
        refused(json!("json_object"), "response_format.type");
        refused(json!({"type": "json_object", "shcema": {}}), "response_format.shcema");
        refused(json!({"type": "text", "schema": {"type": "object"}}), "response_format.schema");
        refused(json!({"type": "json_object", "regex": "a"}), "response_format.regex");
        refused(json!({"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}), "response_format.json_schema.x");
        refused(json!({"type": "json_schema", "json_schema": {"name": "x"}}), "response_format.json_schema.schema");
        let two =
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}, "schema": {"type": "array"}});
        refused(two, "response_format.schema");
        refused(json!({"type": "grammar"}), "response_format.grammar");
    }
}

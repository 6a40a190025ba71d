//! What a call of a tool has to look like: schemas for answers that are nothing but calls, a grammar for those that may hold
//! some.

use octet_tokenizer::Tool;
use serde_json::{Value, json};

use crate::tool_calls::CallStyle;

/// Calls of one answer, where nobody says how many.
const MOST_CALLS: usize = 16;

/// The schema of an answer that is a call of one of `tools`: a list of calls behind a marker, one call between tags.
pub fn forced(tools: &[&Tool], style: CallStyle, is_one: bool) -> Value {
    match style {
        CallStyle::Marked(_) => list(|at| one_of(tools, at, |_| true), is_one),
        CallStyle::Tagged => one_of(tools, "#", |_| true),
    }
}

/// The grammar of an answer in which any text may stand, and in which calls of `strict` functions follow their schemas;
/// those of others are objects.
pub fn grammar(tools: &[Tool], strict: &[String], style: CallStyle, is_one: bool) -> String {
    let tools: Vec<&Tool> = tools.iter().collect();
    let call = |at: &str| one_of(&tools, at, |tool| strict.contains(&tool.function.name));
    match style {
        CallStyle::Marked(id) => {
            format!("start: TEXT (<[{id}]> calls)?\nTEXT: /(?s:.*)/\ncalls: %json {}", list(call, is_one))
        }
        // A text ends where a tag does (lazily, so that nothing behind the tag belongs to it), or has none.
        CallStyle::Tagged => format!(
            "start: rest\nrest: PLAIN | before call{}\nbefore[suffix=\"<tool_call>\"]: /(?s:.*)/\n\
             PLAIN: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/\nSPACE: /[ \\n]{{0,4}}/\n\
             call: SPACE json SPACE \"</tool_call>\"\njson: %json {}",
            if is_one { "" } else { " rest" },
            call("#")
        ),
    }
}

fn list(call: impl FnOnce(&str) -> Value, is_one: bool) -> Value {
    let most = if is_one { 1 } else { MOST_CALLS };
    json!({"type": "array", "items": call("#/items"), "minItems": 1, "maxItems": most})
}

/// The schema of a call of one of `tools`, which will stand at `at` of the whole.
fn one_of(tools: &[&Tool], at: &str, is_strict: impl Fn(&Tool) -> bool) -> Value {
    let one = |tool: &Tool, at: &str| {
        let parameters = &tool.function.parameters;
        let is_empty = parameters.as_object().is_none_or(serde_json::Map::is_empty);
        let mut arguments = if is_empty || !is_strict(tool) { json!({"type": "object"}) } else { parameters.clone() };
        rebase(&mut arguments, &format!("{at}/properties/arguments"));
        json!({
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    match tools {
        [tool] => one(tool, at),
        _ => {
            let of = |(index, tool): (usize, &&Tool)| one(tool, &format!("{at}/anyOf/{index}"));
            json!({"anyOf": tools.iter().enumerate().map(of).collect::<Vec<_>>()})
        }
    }
}

/// A schema's references to its own parts hold where it stands now.
fn rebase(schema: &mut Value, at: &str) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                match value {
                    Value::String(target) if keyword == "$ref" && target.starts_with('#') => {
                        target.replace_range(..1, at);
                    }
                    value => rebase(value, at),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, at)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: Value) -> Tool {
        serde_json::from_value(json!({"type": "function", "function": {"name": name, "parameters": parameters}}))
            .unwrap()
    }

    #[test]
    fn references_move_with_their_schema() {
        let parameters =
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}});
        let (f, g) = (tool("f", parameters), tool("g", json!({})));
        let schema = forced(&[&g, &f], CallStyle::Marked(5), true);
        let target = schema.pointer("/items/anyOf/1/properties/arguments/properties/a/$ref").unwrap().as_str().unwrap();
        assert_eq!(target, "#/items/anyOf/1/properties/arguments/$defs/x");
        assert_eq!(schema.pointer(&target[1..]).unwrap(), &json!({"type": "string"}));
        assert_eq!(schema.pointer("/items/anyOf/0/properties/arguments").unwrap(), &json!({"type": "object"}));
        let one = forced(&[&f], CallStyle::Tagged, false);
        assert_eq!(one.pointer("/properties/arguments/properties/a/$ref").unwrap(), "#/properties/arguments/$defs/x");
    }
}

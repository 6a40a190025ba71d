//! JSON as Python writes it, because that is what the models saw: `json.dumps(value, ensure_ascii=False)`.
//!
//! `{"a": [1, 2.0, 1e+16]}`: a space after `,` and `:`, and floats in Python's notation.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt::Write;

/// Deeper JSON counts as text, as Python refuses it too (at some thousand levels).
const DEEPEST: usize = 128;

/// `json.dumps(json.loads(text), ensure_ascii=False)`; `None` if `text` is not JSON.
///
/// Not by way of [`Value`], because whole numbers have any size in Python and `-0` is one.
pub(crate) fn normalize(text: &str) -> Option<String> {
    let value: &RawValue = serde_json::from_str(text).ok()?;
    let mut normalized = String::new();
    rewrite(value.get(), 0, &mut normalized)?;
    Some(normalized)
}

fn rewrite(value: &str, depth: usize, text: &mut String) -> Option<()> {
    if depth > DEEPEST {
        return None;
    }
    let layout = Layout::OneLine;
    match value.as_bytes().first()? {
        b'{' => {
            let entries: Entries = serde_json::from_str(value).ok()?;
            write_items(['{', '}'], entries.0, layout, text, |(key, item), text| {
                write_string(&key, text);
                text.push_str(": ");
                rewrite(item.get(), depth + 1, text)
            })
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
            write_items(['[', ']'], items, layout, text, |item, text| rewrite(item.get(), depth + 1, text))
        }
        b'"' => {
            write_string(&serde_json::from_str::<String>(value).ok()?, text);
            Some(())
        }
        b'-' | b'0'..=b'9' => rewrite_number(value, text),
        _ => {
            text.push_str(value);
            Some(())
        }
    }
}

fn rewrite_number(digits: &str, text: &mut String) -> Option<()> {
    if !digits.contains(['.', 'e', 'E']) {
        text.push_str(if digits == "-0" { "0" } else { digits });
        return Some(());
    }
    match digits.parse::<f64>().ok()? {
        value if value.is_finite() => write_float(value, text),
        value => text.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" }),
    }
    Some(())
}

/// An object's entries in order; of equal keys the last value counts, in the place of the first.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries: Vec<(String, &RawValue)> = Vec::new();
                let mut places = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    match places.get(&key) {
                        Some(&place) => {
                            let (_, old): &mut (String, &RawValue) = &mut entries[place];
                            *old = value;
                        }
                        None => {
                            places.insert(key.clone(), entries.len());
                            entries.push((key, value));
                        }
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// `text` as a JSON string.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::new();
    write_string(text, &mut quoted);
    quoted
}

/// `value` in Python's notation, on one line.
pub(crate) fn dumps(value: &Value) -> String {
    let mut text = String::new();
    write_value(value, Layout::OneLine, &mut text);
    text
}

/// `json.dumps(value, ensure_ascii=False, indent=spaces)`.
pub(crate) fn dumps_indented(value: &Value, spaces: usize) -> String {
    let mut text = String::new();
    write_value(value, Layout::Indented { spaces, depth: 0 }, &mut text);
    text
}

#[derive(Clone, Copy)]
enum Layout {
    OneLine,
    Indented { spaces: usize, depth: usize },
}

impl Layout {
    fn deeper(self) -> Self {
        match self {
            Layout::OneLine => Layout::OneLine,
            Layout::Indented { spaces, depth } => Layout::Indented { spaces, depth: depth + 1 },
        }
    }

    /// What stands between an opening bracket and its first item, and before the closing bracket.
    fn line_break(self, text: &mut String) {
        if let Layout::Indented { spaces, depth } = self {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', spaces * depth));
        }
    }

    fn separator(self, text: &mut String) {
        match self {
            Layout::OneLine => text.push_str(", "),
            Layout::Indented { .. } => {
                text.push(',');
                self.line_break(text);
            }
        }
    }
}

fn write_value(value: &Value, layout: Layout, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => write_float(float, text),
            _ => write!(text, "{number}").expect("a String takes all text"),
        },
        Value::String(string) => write_string(string, text),
        Value::Array(items) => {
            write_items(['[', ']'], items, layout, text, |item, text| {
                write_value(item, layout.deeper(), text);
                Some(())
            });
        }
        Value::Object(entries) => {
            write_items(['{', '}'], entries, layout, text, |(key, item), text| {
                write_string(key, text);
                text.push_str(": ");
                write_value(item, layout.deeper(), text);
                Some(())
            });
        }
    }
}

/// Writes items between brackets; stops at the first for which `write` gives `None`.
fn write_items<I: IntoIterator>(
    [open, close]: [char; 2],
    items: I,
    layout: Layout,
    text: &mut String,
    mut write: impl FnMut(I::Item, &mut String) -> Option<()>,
) -> Option<()> {
    text.push(open);
    let mut is_empty = true;
    for item in items {
        if is_empty {
            layout.deeper().line_break(text);
        } else {
            layout.deeper().separator(text);
        }
        is_empty = false;
        write(item, text)?;
    }
    if !is_empty {
        layout.line_break(text);
    }
    text.push(close);
    Some(())
}

fn write_string(string: &str, text: &mut String) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\0'..' ' => write!(text, "\\u{:04x}", character as u32).expect("a String takes all text"),
            _ => text.push(character),
        }
    }
    text.push('"');
}

/// Python's `repr`: the shortest digits that read back, in plain notation from 1e-4 up to below 1e16.
fn write_float(value: f64, text: &mut String) {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes an integer exponent");
    let written = if value == 0.0 || (-4..16).contains(&exponent) {
        write!(text, "{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(text, "{digits}e{sign}{:02}", exponent.abs())
    };
    written.expect("a String takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_writes_it() {
        // The right side is what Python 3.11 prints for json.dumps(json.loads(left), ensure_ascii=False).
        let cases = [
            (r#"{"a":[1,2.0,true,null],"b":{}}"#, r#"{"a": [1, 2.0, true, null], "b": {}}"#),
            (
                "[1e15,1e16,1.5e300,1e-4,1e-5,123456789.125,-0.0]",
                "[1000000000000000.0, 1e+16, 1.5e+300, 0.0001, 1e-05, 123456789.125, -0.0]",
            ),
            (r#""é\u0001\u007f\n\"\\/😀""#, "\"é\\u0001\u{7f}\\n\\\"\\\\/😀\""),
            (r#"{"b":1,"a":2,"b":3}"#, r#"{"b": 3, "a": 2}"#),
        ];
        for (input, expected) in cases {
            assert_eq!(dumps(&serde_json::from_str(input).unwrap()), expected);
            assert_eq!(normalize(input).as_deref(), Some(expected));
        }
        let numbers = "[-0, 123456789012345678901234567890, 1e400, -1E+2]";
        assert_eq!(normalize(numbers).as_deref(), Some("[0, 123456789012345678901234567890, Infinity, -100.0]"));
        assert_eq!(normalize("{"), None);
        assert_eq!(normalize(&("[".repeat(9999) + &"]".repeat(9999))), None);
        let nested = serde_json::json!({"a": [1, {"b": []}], "c": {}});
        let expected = "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": {}\n}";
        assert_eq!(dumps_indented(&nested, 2), expected);
    }
}

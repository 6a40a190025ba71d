//! JSON as Python writes it, because that is what the models saw: `json.dumps(value, ensure_ascii=False)`.
//!
//! `{"a": [1, 2.0, 1e+16]}`: a space after `,` and `:`, and floats in Python's notation.

use serde_json::Value;
use std::fmt::Write;

/// `value` in Python's notation.
pub(crate) fn dumps(value: &Value) -> String {
    let mut text = String::new();
    write_value(value, &mut text);
    text
}

fn write_value(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => write_float(float, text),
            _ => write!(text, "{number}").expect("a String takes all text"),
        },
        Value::String(string) => write_string(string, text),
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                write_value(item, text);
            }
            text.push(']');
        }
        Value::Object(entries) => {
            text.push('{');
            for (i, (key, item)) in entries.iter().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                write_string(key, text);
                text.push_str(": ");
                write_value(item, text);
            }
            text.push('}');
        }
    }
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
        }
    }
}

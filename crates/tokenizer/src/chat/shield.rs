//! Keeps what users typed from becoming control tokens after a template has mixed it with its own text.
//!
//! A template's output is one string; cut at every `</s>` in it, a `</s>` that a user typed would end the
//! conversation. So before rendering, one character that occurs nowhere else (the sentinel) is put into every user
//! text wherever a control token could come about, and after the output was cut it is taken out again:
//!
//! ```text
//! inside a text     "a </s> b"         ->  "a <◆/s> b"
//! at its edges      "[IN", then "ST]"  ->  "[IN◆", "◆ST]"     half a token: two texts could be joined
//! ```
//!
//! At the edges the sentinel stands next to the first and last character that is no space, so that templates that
//! trim their texts still do, and other texts stay as they are, so that comparisons in templates still work.

use crate::matcher::Matcher;
use crate::vocabulary::Vocabulary;
use serde_json::Value;
use std::borrow::Cow;

/// The control tokens to guard against, and the sentinel to do it with.
#[derive(Debug)]
pub(crate) struct Shield<'a> {
    controls: &'a Matcher,
    names: Vec<&'a str>,
    sentinel: char,
}

/// Characters that no text is supposed to contain: Unicode's noncharacters, then planes for private use.
fn candidates() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}')
}

/// A sentinel that does not occur in any of `texts`, other than those `taken`.
pub(crate) fn free_character(texts: &[&str], taken: &[char]) -> Option<char> {
    candidates().find(|character| !taken.contains(character) && !texts.iter().any(|text| text.contains(*character)))
}

impl<'a> Shield<'a> {
    /// A shield against `controls`, the control tokens of `vocabulary`.
    pub(crate) fn new(controls: &'a Matcher, vocabulary: &'a Vocabulary, sentinel: char) -> Self {
        let names = vocabulary.steering().map(|(name, _)| name).collect();
        Self { controls, names, sentinel }
    }

    /// `text` with sentinels wherever a control token could come about.
    pub(crate) fn guard(&self, text: &str) -> String {
        let trimmed_start = text.len() - text.trim_start().len();
        let trimmed_end = text.trim_end().len();
        let mut guarded = String::with_capacity(text.len());
        for (at, character) in text.char_indices() {
            if at == trimmed_start && self.begins_with_an_end(&text[at..trimmed_end]) {
                guarded.push(self.sentinel);
            }
            guarded.push(character);
            if self.controls.longest_prefix(&text.as_bytes()[at..]).is_some() {
                guarded.push(self.sentinel);
            }
            let end = at + character.len_utf8();
            if end == trimmed_end && self.ends_with_a_start(&text[trimmed_start..end]) {
                guarded.push(self.sentinel);
            }
        }
        guarded
    }

    /// Guards every string inside `value`, keys too.
    pub(crate) fn guard_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.guard(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.guard_json(item)).collect()),
            Value::Object(entries) => {
                Value::Object(entries.iter().map(|(key, item)| (self.guard(key), self.guard_json(item))).collect())
            }
            other => other.clone(),
        }
    }

    /// `text` without sentinels.
    pub(crate) fn remove<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if text.contains(self.sentinel) { text.replace(self.sentinel, "").into() } else { text.into() }
    }

    /// Whether `text` begins with the end of a control token, as `ST]` does.
    fn begins_with_an_end(&self, text: &str) -> bool {
        self.names.iter().any(|name| {
            let mut ends = name.char_indices().skip(1).map(|(at, _)| &name[at..]);
            ends.any(|end| text.starts_with(end))
        })
    }

    /// Whether `text` ends with the start of a control token, as `[IN` does.
    fn ends_with_a_start(&self, text: &str) -> bool {
        self.names.iter().any(|name| {
            let mut starts = name.char_indices().skip(1).map(|(at, _)| &name[..at]);
            starts.any(|start| text.ends_with(start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{Token, TokenKind};

    #[test]
    fn guards_insides_and_edges() {
        let control = |piece: &str| Token { piece: piece.into(), kind: TokenKind::Control };
        let vocabulary = Vocabulary::new(vec![control("</s>"), control("[INST]")], |_, _| {});
        let controls = Matcher::new(vocabulary.steering());
        let shield = Shield::new(&controls, &vocabulary, '◆');
        let cases = [
            ("plain <text>!", "plain <text>!"),
            ("a </s> b", "a <◆/s> b"),
            (" [IN \n", " [IN◆ \n"),
            ("  ST] x", "  ◆ST] x"),
            ("[INST]", "◆[◆INST]◆"),
            ("x <", "x <◆"),
            ("", ""),
            ("  ", "  "),
        ];
        for (text, guarded) in cases {
            let result = shield.guard(text);
            assert_eq!(shield.remove(&result), text);
            if text != "[INST]" {
                assert_eq!(result, guarded);
            }
            assert_eq!(controls.find(&result), None, "{result}");
        }
    }
}

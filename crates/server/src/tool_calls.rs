//! Calls of tools, found in what a model writes while it writes.
//!
//! | style | written as |
//! | --- | --- |
//! | Mistral v3 | the control token `[TOOL_CALLS]`, then `[{"name": …, "arguments": {…}}, …]` to the end |
//! | tagged | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number, between text |
//!
//! A call is given out whole, as soon as its last brace is there: Mistral's clients cannot join fragments. What does not
//! parse is given out as the text that it is, and reported.

use serde::Deserialize;
use serde_json::value::RawValue;

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// After the control token with this id.
    Marked(u32),
    /// Between tags.
    Tagged,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Nine letters and digits, as Mistral's v3 wants them.
    pub id: String,
    /// The function.
    pub name: String,
    /// JSON text of an object, as the model wrote it.
    pub arguments: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Text of the answer.
    Text(String),
    /// A call.
    Call(Call),
    /// What should have been a call and is none.
    Unparsed(String),
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Reads an answer piece by piece.
#[derive(Debug)]
pub struct CallParser {
    style: CallStyle,
    place: Place,
    /// Whether nothing but space has come since the last call.
    is_behind_call: bool,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Text,
    /// After the marker, or between an opening tag and its end.
    Calls,
    /// What follows is text whatever it looks like.
    GivenUp,
}

impl CallParser {
    /// A parser at the start of an answer.
    pub fn new(style: CallStyle) -> CallParser {
        CallParser { style, place: Place::Text, is_behind_call: false, held: String::new() }
    }

    /// A parser of an answer that is nothing but calls: the prompt has the marker or the tag already.
    pub fn forced(style: CallStyle) -> CallParser {
        CallParser { place: Place::Calls, ..CallParser::new(style) }
    }

    /// Takes the text of the next token (control tokens have none).
    pub fn push(&mut self, token: Option<u32>, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        if self.place == Place::Text && token.is_some_and(|id| self.style == CallStyle::Marked(id)) {
            self.place = Place::Calls;
        }
        self.held.push_str(text);
        while self.step(&mut found) {}
        found
    }

    /// The end of the answer: what is left.
    pub fn finish(mut self) -> Vec<Found> {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            _ if rest.trim().is_empty() && self.place == Place::Calls => Vec::new(),
            Place::Calls => vec![Found::Unparsed(rest)],
            _ if rest.is_empty() => Vec::new(),
            _ => vec![Found::Text(rest)],
        }
    }

    /// Whether there may be more to find in what is held.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match self.place {
            Place::GivenUp => self.give_text(self.held.len(), found),
            Place::Text if self.style != CallStyle::Tagged => self.give_text(self.held.len(), found),
            Place::Text => match self.held.find(OPEN) {
                Some(at) => {
                    self.give_text(at, found);
                    self.held.drain(..OPEN.len());
                    self.place = Place::Calls;
                    true
                }
                None => {
                    let begun = (1..OPEN.len()).rev().find(|&n| self.held.ends_with(&OPEN[..n])).unwrap_or(0);
                    self.give_text(self.held.len() - begun, found)
                }
            },
            Place::Calls => self.step_in_calls(found),
        }
    }

    /// Gives out the first `n` bytes; never leads to more.
    fn give_text(&mut self, n: usize, found: &mut Vec<Found>) -> bool {
        let text: String = self.held.drain(..n).collect();
        // Space behind a call is no text, in whatever pieces it comes.
        let text = if self.is_behind_call { text.trim_start() } else { &text };
        if !text.is_empty() {
            self.is_behind_call = false;
            found.push(Found::Text(text.to_owned()));
        }
        false
    }

    fn step_in_calls(&mut self, found: &mut Vec<Found>) -> bool {
        let is_between = |c: char| c.is_whitespace() || (self.style != CallStyle::Tagged && "[],".contains(c));
        let start = self.held.len() - self.held.trim_start_matches(is_between).len();
        self.held.drain(..start);
        if self.style == CallStyle::Tagged && self.held.starts_with(CLOSE) {
            self.held.drain(..CLOSE.len());
            self.place = Place::Text;
            return true;
        }
        if self.held.is_empty() || (self.style == CallStyle::Tagged && CLOSE.starts_with(&self.held)) {
            return false;
        }
        if !self.held.starts_with('{') {
            return self.give_up(found);
        }
        let Some(end) = object_end(&self.held) else { return false };
        match read(&self.held[..end]) {
            Some(call) => {
                self.held.drain(..end);
                self.is_behind_call = true;
                found.push(Found::Call(call));
                true
            }
            None => self.give_up(found),
        }
    }

    fn give_up(&mut self, found: &mut Vec<Found>) -> bool {
        self.place = Place::GivenUp;
        found.push(Found::Unparsed(std::mem::take(&mut self.held)));
        false
    }
}

/// Where the object ends with which `text` begins; `None` while it is incomplete.
fn object_end(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn read(json: &str) -> Option<Call> {
    #[derive(Deserialize)]
    struct Written<'a> {
        name: String,
        #[serde(borrow, alias = "parameters")]
        arguments: Option<&'a RawValue>,
        id: Option<String>,
    }
    let written: Written<'_> = serde_json::from_str(json).ok()?;
    let arguments = match written.arguments.map_or("{}", RawValue::get) {
        text if text.starts_with('"') => serde_json::from_str(text).ok()?,
        text => text.to_owned(),
    };
    let is_id = |id: &String| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric());
    let id = written.id.filter(is_id).unwrap_or_else(|| crate::ids::short(9));
    arguments.starts_with('{').then_some(Call { id, name: written.name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, calls as `name(arguments)` and what failed as `?text`, with the input cut at every place.
    fn all(style: CallStyle, marked: bool, text: &str) -> Vec<String> {
        let run = |cuts: &[&str]| {
            let mut parser = CallParser::new(style);
            let mut found = if marked { parser.push(Some(5), "") } else { Vec::new() };
            cuts.iter().for_each(|cut| found.extend(parser.push(Some(1), cut)));
            found.extend(parser.finish());
            let mut shown: Vec<String> = Vec::new();
            for one in found {
                match (one, shown.last_mut()) {
                    (Found::Text(text), Some(last)) if last.starts_with('=') => last.push_str(&text),
                    (Found::Text(text), _) => shown.push(format!("={text}")),
                    (Found::Call(call), _) => shown.push(format!("{}({})", call.name, call.arguments)),
                    (Found::Unparsed(text), _) => shown.push(format!("?{text}")),
                }
            }
            shown
        };
        let whole = run(&[text]);
        let letters: Vec<&str> = text.split_inclusive(|_: char| true).collect();
        let joined = |shown: Vec<String>| shown.concat().replace("?", "").replace('=', "");
        assert_eq!(joined(run(&letters)), joined(whole.clone()));
        whole
    }

    #[test]
    fn marked_calls_keep_every_kind_of_argument() {
        let text = r#" [{"name": "f", "arguments": {"a": "}\"{", "n": 12345678901234567890123, "x": [1, {}]}}, {"name": "g", "arguments": {}}]"#;
        let calls = all(CallStyle::Marked(5), true, text);
        assert_eq!(calls, [r#"f({"a": "}\"{", "n": 12345678901234567890123, "x": [1, {}]})"#, "g({})"]);
        assert_eq!(all(CallStyle::Marked(5), false, "[{} plain"), ["=[{} plain"]);
    }

    #[test]
    fn tagged_calls_stand_between_text() {
        let text = "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"q\": \"é\"}}\n</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>";
        assert_eq!(all(CallStyle::Tagged, false, text), ["=Let me look.\n", "f({\"q\": \"é\"})", "g({})"]);
        assert_eq!(all(CallStyle::Tagged, false, "a < b <tool"), ["=a < b <tool"]);
    }

    #[test]
    fn what_does_not_parse_is_reported_and_kept() {
        assert_eq!(all(CallStyle::Marked(5), true, "nonsense"), ["?nonsense"]);
        assert_eq!(
            all(CallStyle::Tagged, false, "<tool_call>{\"name\": 3}</tool_call>"),
            ["?{\"name\": 3}</tool_call>"]
        );
        assert_eq!(all(CallStyle::Marked(5), true, "[{\"name\": \"f\", \"arg"), ["?{\"name\": \"f\", \"arg"]);
    }

    #[test]
    fn ids_are_nine_letters_and_digits() {
        let mut parser = CallParser::forced(CallStyle::Marked(5));
        let found =
            parser.push(None, r#"[{"name":"f","arguments":"{\"a\":1}","id":"abcDEF123"},{"name":"g","id":"x"}]"#);
        let [Found::Call(first), Found::Call(second)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((first.id.as_str(), first.arguments.as_str()), ("abcDEF123", "{\"a\":1}"));
        assert_eq!(second.id.len(), 9);
    }
}

//! When an answer ends: stop strings, found across token borders, and the limit on tokens.

/// When to stop, besides the model's own end of text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stop {
    /// Texts that end the answer; they are not part of it.
    pub strings: Vec<String>,
    /// Most tokens of an answer; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not part of it.
    pub token_ids: Vec<u32>,
    /// Least tokens of an answer: until then neither the model's end of text nor one of `token_ids` is drawn.
    pub min_tokens: usize,
    /// Go on after the model's own end of text.
    pub ignore_eos: bool,
}

impl Stop {
    /// Stops after `max_tokens` tokens.
    pub fn after(max_tokens: usize) -> Stop {
        Stop { max_tokens: Some(max_tokens), ..Stop::default() }
    }
}

/// Holds back text that may be the beginning of a stop string.
///
/// With the stop string `"\n\nUser"`, the pieces `"fine.\n"`, `"\nUs"`, `"ing"` come out as `"fine."`, `""`, `"\n\nUsing"`.
pub struct StopMatcher {
    strings: Vec<String>,
    held: String,
    /// Which of the strings was met.
    found: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are ignored.
    pub fn new(strings: &[String]) -> StopMatcher {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopMatcher { strings, held: String::new(), found: None }
    }

    /// Takes the next text. Gives what is certainly part of the answer, and whether a stop string has been met.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let places = self.strings.iter().enumerate().filter_map(|(i, s)| Some((self.held.find(s.as_str())?, i)));
        if let Some((at, string)) = places.min() {
            self.found = Some(string);
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.strings.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The stop string that has been met.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| self.strings[i].as_str())
    }

    /// What was held back, once the answer is over for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (stop.char_indices().map(|(i, _)| i).skip(1).filter(|&n| text.ends_with(&stop[..n]))).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out.push_str(&text);
            if stopped {
                return (out, true);
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        assert_eq!(run(&["\n\nUser"], &["fine.\n", "\nUs", "er: x"]), ("fine.".into(), true));
        assert_eq!(run(&["\n\nUser"], &["fine.\n", "\nUs", "ing"]), ("fine.\n\nUsing".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".into(), true));
        assert_eq!(run(&["", "z"], &["abc"]), ("abc".into(), false));
    }
}

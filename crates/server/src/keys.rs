//! Who may come in: keys with names and allowances, out of flags and a file.
//!
//! A line of the file is a name, a key, and any of `requests-per-minute=N`, `tokens-per-minute=N`, `concurrent=N`:
//!
//! ```text
//! # name   key
//! alice    sk-9f…    requests-per-minute=60 tokens-per-minute=20000
//! builder  sk-41…    concurrent=4
//! ```

use std::path::Path;
use std::sync::Arc;

use crate::limits::{Allowance, Meter};

/// A key, whose it is, and what is left of its allowance.
#[derive(Debug)]
pub struct Key {
    /// For logs, metrics and folders: letters, digits, `-`, `_` and `.`.
    pub name: String,
    secret: String,
    /// What it has used.
    pub meter: Meter,
}

/// All keys; empty means that none is needed.
#[derive(Debug, Default)]
pub struct Keys(Vec<Arc<Key>>);

impl Keys {
    /// Keys from `--api-key KEY` or `NAME=KEY`, and from the lines of a file.
    ///
    /// # Errors
    /// A sentence that names the flag or the line.
    pub fn read(flags: &[String], file: Option<&Path>) -> Result<Keys, String> {
        let mut keys = Keys::default();
        for (number, flag) in flags.iter().enumerate() {
            let named = flag.split_once('=').map(|(name, key)| (name.to_owned(), key));
            let (name, key) = named.unwrap_or_else(|| (format!("key{}", number + 1), flag));
            keys.add(&name, key, Allowance::default()).map_err(|e| format!("--api-key: {e}"))?;
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            for (number, line) in text.lines().enumerate() {
                keys.add_line(line).map_err(|e| format!("{} line {}: {e}", path.display(), number + 1))?;
            }
            if keys.0.is_empty() {
                return Err(format!("{} holds no key; a line is a name and a key", path.display()));
            }
        }
        Ok(keys)
    }

    fn add_line(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(name) = words.next() else { return Ok(()) };
        let key = words.next().ok_or_else(|| format!("{name} is a name without a key"))?;
        let mut allowance = Allowance::default();
        for word in words {
            let (what, number) = word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=NUMBER"))?;
            let number = number.parse::<u32>().ok().filter(|&n| n > 0);
            let number = number.ok_or_else(|| format!("{word:?} needs a whole number of 1 or more"))?;
            let place = match what {
                "requests-per-minute" => &mut allowance.requests_per_minute,
                "tokens-per-minute" => &mut allowance.tokens_per_minute,
                "concurrent" => &mut allowance.concurrent,
                _ => return Err(format!("{what:?} is none of requests-per-minute, tokens-per-minute, concurrent")),
            };
            *place = Some(number);
        }
        self.add(name, key, allowance)
    }

    fn add(&mut self, name: &str, secret: &str, allowance: Allowance) -> Result<(), String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) || name.starts_with('.') {
            return Err(format!("the name {name:?} has to be of letters, digits, '-', '_' and '.'"));
        }
        if secret.is_empty() || secret.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("the key of {name} is empty or holds spaces"));
        }
        if self.0.iter().any(|key| key.name == name || key.secret == secret) {
            return Err(format!("{name} or its key is there twice"));
        }
        self.0.push(Arc::new(Key { name: name.into(), secret: secret.into(), meter: Meter::new(allowance) }));
        Ok(())
    }

    /// The same keys as read anew, keeping what those that stay have used.
    pub fn renewed(&self, newer: Keys) -> Keys {
        let keep = |new: Arc<Key>| {
            let old = self.0.iter().find(|old| old.name == new.name && old.secret == new.secret);
            let same = old.filter(|old| old.meter.allowance() == new.meter.allowance());
            same.cloned().unwrap_or(new)
        };
        Keys(newer.0.into_iter().map(keep).collect())
    }

    /// Whether everybody may come in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.0.iter()
    }

    /// The key with this secret. Takes the same time for every wrong one of a length.
    pub fn find(&self, secret: &str) -> Option<Arc<Key>> {
        let same = |key: &&Arc<Key>| {
            let (a, b) = (key.secret.as_bytes(), secret.as_bytes());
            a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
        };
        self.0.iter().rfind(same).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> Result<Keys, String> {
        let mut keys = Keys::default();
        lines.lines().try_for_each(|line| keys.add_line(line)).map(|()| keys)
    }

    #[test]
    fn lines_are_read_or_refused_by_name() {
        let keys = of("# all\nalice sk-1 requests-per-minute=60 # hers\n\nbob sk-2\n").unwrap();
        assert_eq!(keys.find("sk-1").unwrap().meter.allowance().requests_per_minute, Some(60));
        assert_eq!(keys.find("sk-2").unwrap().name, "bob");
        assert!(keys.find("sk-3").is_none() && keys.find("").is_none());
        for (line, word) in
            [("a", "without a key"), ("a k x=1", "x"), ("a k concurrent=0", "1 or more"), ("../a k", "../a")]
        {
            assert!(of(line).unwrap_err().contains(word), "{line}");
        }
        assert!(of("a k\nb k").unwrap_err().contains("twice"));
    }

    #[test]
    fn a_reload_keeps_what_was_used() {
        let old = of("a k requests-per-minute=1").unwrap();
        old.find("k").unwrap().meter.take_request().unwrap();
        let renewed = old.renewed(of("a k requests-per-minute=1\nb l").unwrap());
        assert!(renewed.find("k").unwrap().meter.take_request().is_err());
        let raised = renewed.renewed(of("a k requests-per-minute=2").unwrap());
        assert!(raised.find("k").unwrap().meter.take_request().is_ok() && raised.find("l").is_none());
    }
}

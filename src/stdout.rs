//! Results go to standard output, where a full disk or a closed pipe is an error like any other and no panic.

use std::io::Write;

use anyhow::Context;

/// Prints a whole text.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Prints a value as JSON, for people to read too.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

//! Results go to standard output, where a full disk or a closed pipe is an error like any other and no panic.

use std::io::{self, StdoutLock, Write};

use anyhow::Context;
use octet_engine::Flow;

/// Prints a whole text.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Prints a value as JSON, for people to read too.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// An answer that is printed as it comes. Once a write has failed nothing more is printed and the answer is stopped.
pub struct Stream {
    out: StdoutLock<'static>,
    failed: Option<io::Error>,
}

impl Stream {
    /// Takes standard output for itself.
    pub fn new() -> Stream {
        Stream { out: io::stdout().lock(), failed: None }
    }

    /// Prints a piece of the answer; [`Flow::Stop`] if nobody can read it.
    pub fn push(&mut self, text: &str) -> Flow {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => Flow::Continue,
            Err(error) => {
                self.failed = Some(error);
                Flow::Stop
            }
        }
    }

    /// Ends the answer's last line.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.push("\n");
        self.failed.map_or(Ok(()), |error| Err(error).context("cannot write the answer"))
    }
}

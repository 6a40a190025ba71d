//! Mistakes on the command line, in one line as every other error: clap's own message without its paragraphs.

use std::process::ExitCode;

use clap::error::ErrorKind;

/// Prints help where it was asked for, else the mistake, and gives the exit code: 0 for help, 2 for mistakes.
pub fn report(error: &clap::Error) -> ExitCode {
    // Whoever does not read what is printed here has no other place to hear of it.
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
    } else {
        eprintln!("octet: {}", one_line(&error.to_string()));
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// The message and its tip; the usage is a `--help` away.
fn one_line(message: &str) -> String {
    let said = message.split("\n\n").take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    let words: Vec<&str> = said.flat_map(str::split_whitespace).collect();
    words.join(" ").trim_start_matches("error: ").to_owned() + " (see --help)"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_one_line() {
        let message = "error: unexpected argument '--tensor' found\n\n  tip: a similar argument exists: '--tensors'\n\n\
                       Usage: octet inspect --tensors <MODEL>\n\nFor more information, try '--help'.\n";
        let line = "unexpected argument '--tensor' found tip: a similar argument exists: '--tensors' (see --help)";
        assert_eq!(one_line(message), line);
    }
}

//! What a user types: lines, and texts of several lines.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, bail};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::user_folder;

/// Where messages come from: an edited line, or a pipe.
pub struct Lines {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    /// Whether somebody types them.
    pub interactive: bool,
}

impl Lines {
    /// Lines that are remembered in a file: this one, none, or the user's own.
    pub fn new(history: Option<PathBuf>) -> anyhow::Result<Lines> {
        let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
        let history = match history {
            Some(none) if none.as_os_str() == "none" => None,
            Some(file) => Some(file),
            None => user_folder::state().map(|folder| folder.join("octet").join("history")),
        };
        let interactive = std::io::stdin().is_terminal();
        if let Some(file) = history.as_ref().filter(|_| interactive) {
            // No history yet is no error.
            let _ = editor.load_history(file);
        }
        Ok(Lines { editor, history: history.filter(|_| interactive), interactive })
    }

    /// The next message; `None` at the end of input.
    pub fn read(&mut self) -> anyhow::Result<Option<String>> {
        let mut text = String::new();
        let mut block = Block::Line;
        loop {
            let prompt = match (self.interactive, &block, text.is_empty()) {
                (false, _, _) => "",
                (true, Block::Line, true) => "› ",
                _ => "… ",
            };
            let line = match self.editor.readline(prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    (text, block) = (String::new(), Block::Line);
                    continue;
                }
                Err(ReadlineError::Eof) if text.is_empty() => return Ok(None),
                Err(ReadlineError::Eof) => return Ok(Some(text)),
                Err(error) => bail!("cannot read from the terminal: {error}"),
            };
            match block.take(&line, &mut text) {
                Block::Done => return Ok(Some(text)),
                next => block = next,
            }
        }
    }

    /// Keeps a line for the next time.
    pub fn remember(&mut self, text: &str) {
        let Some(file) = &self.history else { return };
        // A history that cannot be written must not end a conversation.
        let _ = self.editor.add_history_entry(text);
        let _ = file.parent().map(std::fs::create_dir_all);
        let _ = self.editor.save_history(file);
    }
}

/// How the lines of a message join.
enum Block {
    /// One line, or several that end with a backslash.
    Line,
    /// Between two `"""`.
    Quoted,
    /// The message is complete.
    Done,
}

impl Block {
    /// Adds a line to `text`.
    fn take(&self, line: &str, text: &mut String) -> Block {
        const QUOTES: &str = "\"\"\"";
        match self {
            Block::Line if text.is_empty() && line.trim_start().starts_with(QUOTES) => {
                let rest = &line.trim_start()[QUOTES.len()..];
                Block::Quoted.take(rest, text)
            }
            Block::Quoted => match line.split_once(QUOTES) {
                Some((last, _)) => {
                    text.push_str(last);
                    Block::Done
                }
                None => {
                    text.push_str(line);
                    if !(text.is_empty() && line.is_empty()) {
                        text.push('\n');
                    }
                    Block::Quoted
                }
            },
            _ => match line.strip_suffix('\\') {
                Some(part) => {
                    text.push_str(part);
                    text.push('\n');
                    Block::Line
                }
                None => {
                    text.push_str(line);
                    Block::Done
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(lines: &[&str]) -> Option<String> {
        let (mut text, mut block) = (String::new(), Block::Line);
        for line in lines {
            block = block.take(line, &mut text);
        }
        matches!(block, Block::Done).then_some(text)
    }

    #[test]
    fn lines_join_by_backslash_and_by_quotes() {
        assert_eq!(join(&["one"]).as_deref(), Some("one"));
        assert_eq!(join(&["one \\", "two"]).as_deref(), Some("one \ntwo"));
        assert_eq!(join(&["\"\"\"", "a", "", "b\"\"\""]).as_deref(), Some("a\n\nb"));
        assert_eq!(join(&["\"\"\"one line\"\"\""]).as_deref(), Some("one line"));
        assert_eq!(join(&["open \\"]), None);
    }
}

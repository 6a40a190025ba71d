//! `octet chat`: a conversation in the terminal.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use octet_engine::{Flow, Generator, Piece, Prompt, TextStart};
use octet_model::Nothing;
use octet_tokenizer::{ChatFormat, Conversation, Message, Role};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::generate::{experts_cost, statistics};
use crate::model_options::ModelOptions;
use crate::sampling_options::{self, SamplingOptions};
use crate::stdout;

/// Talk with a model in the terminal
///
/// A line that ends with a backslash goes on in the next; """ begins and ends a longer text. Ctrl-C stops an answer,
/// Ctrl-D leaves. /help lists the commands.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelOptions,
    /// A system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// File that remembers what was typed; `none` for no file [default: octet/history in the user's state folder]
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingOptions,
}

const HELP: &str = "  /system TEXT         set the system message; without TEXT show it
  /reset               begin a new conversation
  /save FILE           write the conversation as JSON
  /params              list the sampling settings
  /params NAME VALUE   change one; `off` removes a limit
  /help                this list
  /exit                leave (as Ctrl-D does)
  \\ at a line's end    goes on in the next line
  \"\"\"                  begins and ends a text of several lines
  Ctrl-C               stops the answer";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.sampling.checked()?;
    let generator = args.model.open()?;
    let format = ChatFormat::for_tokenizer(generator.tokenizer())?;
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot watch for Ctrl-C")?;
    let mut chat = Chat { generator, format, conversation: Conversation::default(), sampling: args.sampling, stopped };
    if let Some(system) = args.system {
        chat.set_system(&system);
    }
    let mut lines = Lines::new(args.history)?;
    if lines.interactive {
        eprintln!("Type a message; /help lists the commands.");
    }
    while let Some(text) = lines.read()? {
        lines.remember(&text);
        match text.strip_prefix('/') {
            Some(command) => {
                if chat.command(command) == After::Leave {
                    break;
                }
            }
            None if text.trim().is_empty() => {}
            None => chat.answer(&text)?,
        }
    }
    Ok(())
}

#[derive(PartialEq)]
enum After {
    GoOn,
    Leave,
}

struct Chat {
    generator: Generator,
    format: ChatFormat,
    conversation: Conversation,
    sampling: SamplingOptions,
    /// Set by Ctrl-C.
    stopped: Arc<AtomicBool>,
}

impl Chat {
    /// The system message, if there is one.
    fn system(&self) -> Option<&str> {
        let first = self.conversation.messages.first().filter(|message| message.role == Role::System);
        first.map(|message| message.content.as_str())
    }

    fn set_system(&mut self, text: &str) {
        let messages = &mut self.conversation.messages;
        messages.retain(|message| message.role != Role::System);
        messages.insert(0, Message::system(text));
    }

    fn command(&mut self, command: &str) -> After {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        if matches!(name, "exit" | "quit" | "bye") {
            return After::Leave;
        }
        match self.reply(name, rest.trim()) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("{error:#}"),
        }
        After::GoOn
    }

    /// Does what a command asks and gives what there is to say about it.
    fn reply(&mut self, name: &str, rest: &str) -> anyhow::Result<String> {
        match name {
            "help" | "?" => return Ok(HELP.into()),
            "reset" => {
                self.conversation.messages.retain(|message| message.role == Role::System);
                return Ok("A new conversation.".into());
            }
            "system" if rest.is_empty() => return Ok(self.system().unwrap_or("(no system message)").into()),
            "system" => self.set_system(rest),
            "save" if rest.is_empty() => bail!("/save needs a file name"),
            "save" => {
                self.save(rest)?;
                return Ok(format!("Saved to {rest}."));
            }
            "params" if rest.is_empty() => {
                let experts = ("experts_per_token", self.generator.experts_per_token().to_string());
                return Ok(sampling_options::list(self.sampling.settings().into_iter().chain([experts])));
            }
            "params" => match rest.split_once(char::is_whitespace) {
                Some(("experts_per_token", value)) => return self.set_experts(value.trim()),
                Some((name, value)) => self.sampling.set(name, value.trim())?,
                None => bail!("/params takes a name and a value, such as /params temperature 0.3"),
            },
            _ => bail!("there is no command /{name}; /help lists them"),
        }
        Ok(String::new())
    }

    /// Sets the experts of each token and tells what they cost.
    fn set_experts(&mut self, value: &str) -> anyhow::Result<String> {
        let experts = match value {
            "off" => None,
            number => Some(number.parse().with_context(|| format!("experts_per_token takes a number, not {value:?}"))?),
        };
        self.generator.set_experts_per_token(experts)?;
        let config = self.generator.model().config();
        Ok(experts_cost(self.generator.model(), experts.unwrap_or(config.num_experts_per_tok)))
    }

    fn save(&self, file: &str) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(&self.conversation)?;
        crate::whole_file::write(file.as_ref(), &json)
    }

    /// Answers a message. What cannot be answered leaves the conversation as it was.
    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        self.conversation.messages.push(Message::user(text));
        if let Err(error) = self.try_answer() {
            self.conversation.messages.pop();
            if error.chain().any(|cause| cause.is::<std::io::Error>()) {
                return Err(error);
            }
            eprintln!("{error:#}");
        }
        Ok(())
    }

    fn try_answer(&mut self) -> anyhow::Result<()> {
        let prompt = self.format.render(&self.conversation)?;
        let sampling = self.sampling.sampling();
        self.stopped.store(false, Ordering::Relaxed);
        let mut stream = stdout::Stream::new();
        let mut watch = |event: Piece<'_>| match stream.push(event.text) {
            Flow::Continue if self.stopped.load(Ordering::Relaxed) => Flow::Stop,
            flow => flow,
        };
        let stop = self.sampling.stop();
        let request = Prompt { prompt: &prompt.ids, start: TextStart::Fresh, sampling: &sampling, stop: &stop };
        let answer = self.generator.generate(&request, &mut Nothing, &mut watch)?;
        stream.finish()?;
        eprintln!("{}\n", statistics(&self.generator, &answer, sampling.seed));
        self.conversation.messages.push(Message::assistant(&answer.text));
        Ok(())
    }
}

/// Where messages come from: an edited line, or a pipe.
struct Lines {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    interactive: bool,
}

impl Lines {
    fn new(history: Option<PathBuf>) -> anyhow::Result<Lines> {
        let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
        let history = match history {
            Some(none) if none.as_os_str() == "none" => None,
            Some(file) => Some(file),
            None => state_folder().map(|folder| folder.join("octet").join("history")),
        };
        let interactive = std::io::stdin().is_terminal();
        if let Some(file) = history.as_ref().filter(|_| interactive) {
            // No history yet is no error.
            let _ = editor.load_history(file);
        }
        Ok(Lines { editor, history: history.filter(|_| interactive), interactive })
    }

    /// The next message; `None` at the end of input.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
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

    fn remember(&mut self, text: &str) {
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

fn state_folder() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_STATE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local").join("state")))
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

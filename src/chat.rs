//! `octet chat`: a conversation in the terminal.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use octet_tokenizer::{Conversation, Message, Role};

use crate::model_options::RunOptions;
use crate::remote::Remote;
use crate::sampling_options::{self, SamplingOptions};
use crate::server_options::ServerOptions;

mod lines;
mod voice;

use lines::Lines;
use voice::Voice;

/// Talk with a model in the terminal
///
/// A line that ends with a backslash goes on in the next; """ begins and ends a longer text. Ctrl-C stops an answer,
/// Ctrl-D leaves. /help lists the commands.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, in Mistral's, Hugging Face's or GGUF's layout
    #[arg(required_unless_present = "server", conflicts_with = "server")]
    model: Option<PathBuf>,
    #[command(flatten)]
    server: ServerOptions,
    /// --server: name of the model there [default: the first that it lists]
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,
    #[command(flatten)]
    run: RunOptions,
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
    let voice = args.voice()?;
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot watch for Ctrl-C")?;
    let mut chat = Chat { voice, conversation: Conversation::default(), sampling: args.sampling, stopped };
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

impl Args {
    fn voice(&self) -> anyhow::Result<Voice> {
        match (self.server.server()?, &self.model) {
            (Some(server), _) => {
                let remote = Remote::new(server, self.server_model.clone(), self.run.experts_per_token)?;
                eprintln!("{} answers.", remote.model);
                Ok(Voice::Server(remote))
            }
            (None, Some(model)) => Voice::own(self.run.open(model)?),
            (None, None) => bail!("name a model, or a server by --server URL"),
        }
    }
}

#[derive(PartialEq)]
enum After {
    GoOn,
    Leave,
}

struct Chat {
    voice: Voice,
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
                let experts = ("experts_per_token", self.voice.experts());
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
        self.voice.set_experts(experts)
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
        self.stopped.store(false, Ordering::Relaxed);
        let answer = self.voice.say(&self.conversation, &self.sampling, &self.stopped)?;
        self.conversation.messages.push(Message::assistant(answer));
        Ok(())
    }
}

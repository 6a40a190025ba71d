//! `octet render`: the prompt that a conversation becomes, with its ids.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use octet_tokenizer::{ChatFormat, Conversation, Message, Tokenizer};

use crate::stdout;
use crate::tokenize::{read_input, table};

/// Show the prompt that a conversation becomes
///
/// The conversation is one user message given as TEXT, or JSON on standard input: {"messages": [...], "tools": [...]}.
/// With --json the answer is {"ids", "text"}.
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint (folder or file), or a bare tokenizer.model or tokenizer.json
    model: PathBuf,
    /// One user message [default: a conversation as JSON from standard input]
    text: Option<String>,
    /// System message in front of TEXT
    #[arg(long, value_name = "TEXT", requires = "text")]
    system: Option<String>,
    /// Format to use in place of the model's own: v1, v2, v3 or chatml
    #[arg(long, value_name = "NAME", conflicts_with = "template")]
    format: Option<String>,
    /// Jinja template to use in place of the model's own
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::open(&args.model)?;
    let format = chosen_format(&tokenizer, args.format.as_deref(), args.template.as_deref())?;
    let prompt = format.render(&conversation(&args)?)?;
    if args.json {
        return stdout::print(&(serde_json::to_string(&prompt)? + "\n"));
    }
    stdout::print(&format!("{}\n\n{}", prompt.text, table(&tokenizer, &prompt.ids)))
}

/// The format that `--format` or `--template` chooses, else the model's own.
pub fn chosen_format(tokenizer: &Tokenizer, name: Option<&str>, template: Option<&Path>) -> anyhow::Result<ChatFormat> {
    match (name, template) {
        (Some(name), _) => match ChatFormat::named(tokenizer, name) {
            Some(format) => Ok(format),
            None => bail!("--format {name} is none of {}", ChatFormat::NAMES.join(", ")),
        },
        (None, Some(file)) => {
            let source = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(ChatFormat::template(tokenizer, &source, file)?)
        }
        (None, None) => Ok(ChatFormat::for_tokenizer(tokenizer)?),
    }
}

fn conversation(args: &Args) -> anyhow::Result<Conversation> {
    if let Some(text) = &args.text {
        let system = args.system.iter().map(Message::system);
        let messages = system.chain([Message::user(text)]).collect();
        return Ok(Conversation { messages, tools: Vec::new() });
    }
    let what = "standard input is not a conversation, {\"messages\": [{\"role\", \"content\"}, ...], \"tools\": [...]}";
    serde_json::from_str(&read_input()?).context(what)
}

//! `octet generate`: continue one prompt.

use std::io::Read;

use anyhow::{Context, bail};
use octet_engine::{Answer, Generator, Prompt, StopReason, TextStart};
use octet_model::{Nothing, Record, Transformer};
use octet_tokenizer::{ChatFormat, Conversation, Message, Tokenizer};

use crate::experts_view::Choices;
use crate::model_options::ModelOptions;
use crate::sampling_options::SamplingOptions;
use crate::{format, stdout};

/// Continue a prompt
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelOptions,
    /// The text to continue; `-` or none reads standard input
    prompt: Option<String>,
    /// Treat the prompt as a user's message, in the model's own chat format
    #[arg(long)]
    chat: bool,
    /// A system message; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Afterwards, show which experts worked
    #[arg(long)]
    experts: bool,
    /// Print the text alone, without statistics
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sampling: SamplingOptions,
}

impl Args {
    fn is_chat(&self) -> bool {
        self.chat || self.system.is_some()
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = args.sampling.checked()?;
    let prompt = read_prompt(args.prompt.as_deref())?;
    let mut generator = args.model.open()?;
    let form = if args.is_chat() { Form::Message { system: args.system.as_deref() } } else { Form::Text };
    let ids = prompt_ids(generator.tokenizer(), form, &prompt)?;
    let mut choices = Choices::default();
    let mut stream = stdout::Stream::new();
    let stop = args.sampling.stop();
    let start = if args.is_chat() { TextStart::Fresh } else { TextStart::Continued };
    let request = Prompt { prompt: &ids, start, sampling: &sampling, stop: &stop, logprobs: None };
    let record: &mut dyn Record = if args.experts { &mut choices } else { &mut Nothing };
    let answer = generator.generate(&request, record, &mut |event| stream.push(event.text))?;
    stream.finish()?;
    if args.experts {
        eprintln!("\n{}", choices.draw());
    }
    if !args.quiet {
        eprintln!("\n{}", statistics(&generator, &answer, sampling.seed));
    }
    Ok(())
}

/// The prompt that an argument gives, or standard input.
pub fn read_prompt(argument: Option<&str>) -> anyhow::Result<String> {
    match argument {
        Some(text) if text != "-" => Ok(text.to_string()),
        _ => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            Ok(text)
        }
    }
}

/// What a prompt is.
pub enum Form<'a> {
    /// A text that is continued.
    Text,
    /// A user's message, in the model's own chat format.
    Message {
        /// What stands before it.
        system: Option<&'a str>,
    },
}

/// The ids of a prompt. Errors: there is none, or nothing tells the model's chat format.
pub fn prompt_ids(tokenizer: &Tokenizer, form: Form<'_>, prompt: &str) -> anyhow::Result<Vec<u32>> {
    if let Form::Message { system } = form {
        let messages = system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect();
        let conversation = Conversation { messages, ..Default::default() };
        return Ok(ChatFormat::for_tokenizer(tokenizer)?.render(&conversation)?.ids);
    }
    let mut ids: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
    ids.extend(tokenizer.encode(prompt));
    if ids.is_empty() {
        bail!("the prompt is empty: give some text to continue");
    }
    Ok(ids)
}

/// What it costs to let another number of experts work on each token than the model was made for.
pub fn experts_cost(model: &Transformer, experts: usize) -> String {
    let own = model.config().num_experts_per_tok;
    let bytes = |experts| format::bytes(model.active_bytes(experts) as u64);
    let (now, usual) = (bytes(experts), bytes(own));
    format!(
        "{experts} of {} experts on each token, which reads {now} (with {own}: {usual})",
        model.config().num_experts
    )
}

/// Speed, time and memory of an answer, in one line.
pub fn statistics(generator: &Generator, answer: &Answer, seed: u64) -> String {
    let mut parts = vec![
        format!("{} tokens, {}", answer.tokens.len(), format::rate(answer.generation_rate())),
        format!("prompt {} tokens, {}", answer.prompt_tokens, format::rate(answer.prompt_rate())),
        format!("first token {}", format::duration(answer.prompt_time)),
    ];
    if answer.cached_tokens > 0 {
        parts.push(format!("{} remembered", answer.cached_tokens));
    }
    let (model, experts) = (generator.model(), generator.experts_per_token());
    if experts != model.config().num_experts_per_tok {
        parts.push(experts_cost(model, experts));
    }
    if let Some(resident) = crate::machine::resident_bytes() {
        let weights = generator.model().weights_bytes() as u64;
        parts.push(format!("memory {} (weights {})", format::bytes(resident), format::bytes(weights)));
    }
    parts.push(format!("seed {seed}"));
    match answer.reason {
        StopReason::MaxTokens => parts.push("ended by --max-tokens".into()),
        StopReason::ContextFull => parts.push("ended: the context is full".into()),
        StopReason::StopString => parts.push("ended by --stop".into()),
        StopReason::Cancelled => parts.push("stopped".into()),
        StopReason::Deadline => parts.push("ended: out of time".into()),
        StopReason::EndOfText | StopReason::StopToken(_) | StopReason::ConstraintComplete => {}
    }
    parts.join(" · ")
}

//! `octet compare`: two models answer the same prompt; where they first part, and how sure each was.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use octet_engine::{Answer, Flow, Generator, Logprobs, Prompt, StopReason, TextStart};
use octet_model::Nothing;
use octet_tokenizer::{Message, Tokenizer};
use serde_json::{Value, json};

use crate::generate::{Form, prompt_ids, read_prompt};
use crate::model_options::RunOptions;
use crate::remote::Remote;
use crate::reply::{Reply, Said};
use crate::sampling_options::SamplingOptions;
use crate::server_options::ServerOptions;
use crate::stdout;

mod columns;
mod parting;

use columns::Side;
use parting::Parting;

/// Likeliest tokens whose probabilities are asked for at each place: the most that OpenAI's API gives.
const TOP: usize = 20;

/// Let two models answer the same prompt, side by side
///
/// Under each answer stand its time, speed and tokens; below both, the first token at which their texts part, with the
/// probability that each model gave to either. Models of this machine are opened one after the other, so that only one is in
/// memory. On a terminal the answers stand in columns; where it is narrow, and in a pipe, one below the other.
#[derive(clap::Args)]
#[command(mut_arg("temperature", |a| a.default_value("0")))]
#[command(mut_arg("max_tokens", |a| a.default_value("512").help("Most tokens of an answer")))]
pub struct Args {
    /// A model: folder or file; URL#NAME for that of a server, such as https://HOST/v1#NAME; with --server its name there
    a: String,
    /// The other one
    b: String,
    /// The prompt; `-` or none reads standard input
    prompt: Option<String>,
    /// A system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as it is, in place of a message in each model's own chat format
    #[arg(long, conflicts_with = "server")]
    raw: bool,
    /// Columns to draw in [default: those of the terminal]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(20..))]
    width: Option<u16>,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(mut args: Args) -> anyhow::Result<()> {
    // Both draw with the same seed: what differs then is the models' doing.
    args.sampling.seed = Some(args.sampling.checked()?.seed);
    let prompt = read_prompt(args.prompt.as_deref())?;
    let (a, b) = (args.answer(&args.a, &prompt)?, args.answer(&args.b, &prompt)?);
    let (a_tokens, b_tokens) = (a.pieces(), b.pieces());
    let parting = Parting::of(&a_tokens, &b_tokens);
    if args.json {
        let shown = |model: &str, reply: &Reply| shown(model, reply);
        let answers = [shown(&args.a, &a), shown(&args.b, &b)];
        return stdout::print_json(&json!({"prompt": prompt, "answers": answers, "parting": parting}));
    }
    let side = |model: &str, reply, tokens: &[Said], i: usize| Side::new(model, reply, parting.as_ref(), tokens, i);
    let sides = [side(&args.a, &a, &a_tokens, 0), side(&args.b, &b, &b_tokens, 1)];
    let width = args.width.map(usize::from).or_else(crate::terminal::width);
    stdout::print(&columns::draw(&sides, parting.as_ref(), width))
}

impl Args {
    /// One model's answer.
    fn answer(&self, model: &str, prompt: &str) -> anyhow::Result<Reply> {
        match self.remote(model)? {
            None => self.own_answer(Path::new(model), prompt),
            Some(remote) => {
                let system = self.system.iter().map(Message::system);
                let messages: Vec<Message> = system.chain([Message::user(prompt)]).collect();
                let (never, mut show) = (Arc::new(AtomicBool::new(false)), |_: &str| Flow::Continue);
                let asked = remote.ask(&messages, &self.sampling, Some(TOP), never, &mut show);
                asked.map_err(|error| error.context(model.to_owned()))
            }
        }
    }

    /// The model behind a server that is meant, if one is: by `URL#NAME`, or by its name at --server.
    fn remote(&self, model: &str) -> anyhow::Result<Option<Remote>> {
        let experts = self.run.experts_per_token;
        if !model.starts_with("http://") && !model.starts_with("https://") {
            let named = |server| Remote::new(server, Some(model.into()), experts);
            return self.server.server()?.map(named).transpose();
        }
        let (url, name) = model.split_once('#').map_or((model, None), |(url, name)| (url, Some(name.to_owned())));
        Remote::new(self.server.at(url)?, name, experts).map(Some)
    }

    /// The answer of a model that is opened for it.
    fn own_answer(&self, path: &Path, prompt: &str) -> anyhow::Result<Reply> {
        let mut generator = self.run.open(path)?;
        let form = if self.raw { Form::Text } else { Form::Message { system: self.system.as_deref() } };
        let ids = prompt_ids(generator.tokenizer(), form, prompt)?;
        let start = if self.raw { TextStart::Continued } else { TextStart::Fresh };
        let (sampling, stop) = (self.sampling.sampling(), self.sampling.stop());
        let request = Prompt { prompt: &ids, start, sampling: &sampling, stop: &stop, logprobs: Some(TOP) };
        let answer = generator.generate(&request, &mut Nothing, &mut |_| Flow::Continue)?;
        Ok(reply(&generator, answer))
    }
}

/// An answer of ours in the form that servers' answers have.
fn reply(generator: &Generator, answer: Answer) -> Reply {
    let said = |logprobs: &Logprobs| said(generator.tokenizer(), logprobs);
    Reply {
        tokens: answer.logprobs.iter().map(said).collect(),
        text: answer.text,
        prompt_tokens: answer.prompt_tokens,
        completion_tokens: answer.tokens.len(),
        first_token: answer.prompt_time,
        generation: answer.generation_time,
        finish_reason: match answer.reason {
            StopReason::MaxTokens | StopReason::ContextFull => "length".into(),
            _ => "stop".into(),
        },
    }
}

fn said(tokenizer: &Tokenizer, logprobs: &Logprobs) -> Said {
    let bytes = |id: u32| tokenizer.bytes(id).to_vec();
    Said {
        id: Some(logprobs.id),
        bytes: bytes(logprobs.id),
        probability: Some(f64::from(logprobs.logprob).exp()),
        top: logprobs.top.iter().map(|&(id, logprob)| (bytes(id), f64::from(logprob).exp())).collect(),
    }
}

/// An answer for programs.
fn shown(model: &str, reply: &Reply) -> Value {
    let token = |said: &Said| {
        let text = String::from_utf8_lossy(&said.bytes);
        json!({"id": said.id, "text": text, "probability": said.probability})
    };
    json!({
        "model": model,
        "text": reply.text,
        "tokens": reply.tokens.iter().map(token).collect::<Vec<_>>(),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "first_token_s": reply.first_token.as_secs_f64(),
        "seconds": (reply.first_token + reply.generation).as_secs_f64(),
        "tokens_per_second": reply.rate(),
        "finish_reason": reply.finish_reason,
    })
}

//! `octet perplexity`: how well a model predicts a text, counted as llama-perplexity does.

use std::path::PathBuf;

use anyhow::Context;
use octet_engine::{Perplexity, Windows, perplexity};
use serde::Serialize;

use crate::model_options::ModelOptions;
use crate::progress::Progress;
use crate::{format, stdout};

/// Measure how well a model predicts a text
///
/// The text is cut into windows without overlap, and the second half of each is scored: what llama-perplexity does, so that
/// figures compare. Lower is better; figures of different vocabularies do not compare.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelOptions,
    /// The text: a UTF-8 file of at least one window
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,
    /// Score this many windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tokens of a window where nobody says how many, as in llama-perplexity.
const WINDOW_TOKENS: usize = 512;

/// The result for programs.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    file: PathBuf,
    perplexity: f64,
    /// Standard error of the perplexity.
    error: f64,
    context: usize,
    chunks: usize,
    /// Tokens that were scored.
    n_tokens: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.model.run.open_options()?;
    let cannot = || format!("cannot read {}", args.file.display());
    let text = std::fs::read_to_string(&args.file).with_context(cannot)?;
    let generator = args.model.open()?;
    let (model, tokenizer) = (generator.model(), generator.tokenizer());
    let context = options.context.unwrap_or(WINDOW_TOKENS);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    // llama-perplexity drops one line break at the end of a file too.
    tokenizer.encode_into(text.strip_suffix('\n').unwrap_or(&text), &mut tokens);
    let chunks = args.chunks.map_or(usize::MAX, |n| n as usize).min(tokens.len() / context);
    tokens.truncate(chunks.max(1) * context);
    let windows = Windows {
        context,
        bos,
        kv: options.kv,
        experts_per_token: options.experts_per_token,
        adapter: generator.adapter(),
    };
    let progress = Progress::of_tokens("scoring");
    let mut watch = |done: usize, _: &Perplexity| progress.at((done * context) as u64, (chunks * context) as u64);
    let result = perplexity(model, &tokens, &windows, &mut watch).with_context(|| args.file.display().to_string())?;
    progress.finish();
    let report = Report {
        model: args.model.model,
        file: args.file,
        perplexity: result.value(),
        error: result.error(),
        context,
        chunks,
        n_tokens: result.n_tokens,
    };
    if args.json { stdout::print_json(&report) } else { stdout::print(&describe(&report)) }
}

fn describe(report: &Report) -> String {
    let Report { perplexity, error, context, chunks, n_tokens, .. } = report;
    let scored = format::count(*n_tokens as u64);
    format!("perplexity {perplexity:.4} ± {error:.4}, {scored} tokens scored in {chunks} windows of {context}\n")
}

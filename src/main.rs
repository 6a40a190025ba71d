//! All of Mixtral in one program: parse, call, print the error chain, exit.
#![forbid(unsafe_code)]
// Doc comments of arguments are their --help, shown as they stand: [B,T] is a shape there, <s> a token.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod calibrate;
mod chat;
mod checksums;
mod compare;
mod compare_weights;
mod comparison;
mod convert;
mod experts;
mod experts_view;
mod finetune;
mod float_types;
mod footprint;
mod format;
mod generate;
mod gradients;
mod http;
mod importance;
mod importance_file;
mod inspect;
mod load;
mod logits;
mod machine;
mod merge;
mod model_options;
mod output;
mod perplexity;
mod plan;
mod progress;
mod quantize;
mod random_weights;
mod recode;
mod remote;
mod render;
mod reply;
mod sampling_options;
mod serve;
mod server_options;
mod socket;
mod stdout;
mod synth;
mod tensor_file;
mod terminal;
mod text_tokens;
mod tokenize;
mod tokenizer_files;
mod type_choice;
mod upcycle;
mod usage_error;
mod user_folder;
mod verify;
mod whole_file;

/// All of Mixtral in one program: run, convert, quantize, inspect and measure mixture-of-experts models on your own machine.
#[derive(Parser)]
#[command(name = "octet", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt
    Generate(generate::Args),
    /// Talk with a model in the terminal
    Chat(chat::Args),
    /// Let two models answer the same prompt, side by side
    Compare(compare::Args),
    /// Show which experts work on a text
    Experts(experts::Args),
    /// Serve models over HTTP, in the words of OpenAI, Mistral, Ollama and Anthropic
    Serve(serve::Args),
    /// Tell what a model is, how large, and whether it fits this machine
    Inspect(inspect::Args),
    /// Check that every tensor is there, of the right shape, and finite; and checksums
    Verify(verify::Args),
    /// Predict memory and speed before loading
    Plan(plan::Args),
    /// Translate a checkpoint between Mistral's, Hugging Face's and GGUF's layouts
    Convert(convert::Args),
    /// Write a smaller GGUF with quantized weights
    Quantize(quantize::Args),
    /// Make a mixture of experts of one dense model, or of several of the same shape
    Upcycle(upcycle::Args),
    /// Fold an adapter into a model's weights
    Merge(merge::Args),
    /// Learn from texts, conversations or preferences
    Finetune(finetune::Args),
    /// Show the tokens of a text
    Tokenize(tokenize::Args),
    /// Show the prompt that a conversation becomes
    Render(render::Args),
    /// Write logits, hidden states and routing for given token ids
    Logits(logits::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
    /// Write the loss and its gradients for given token ids
    Gradients(gradients::Args),
    /// Measure prompt processing and generation
    Bench(bench::Args),
    /// Write a GGUF of a real model's shapes with random weights
    #[command(hide = true)]
    Synth(synth::Args),
}

fn main() -> ExitCode {
    let command = match Arguments::try_parse_from(bench::spelled_as_ours(std::env::args_os())) {
        Ok(arguments) => arguments.command,
        Err(error) => return usage_error::report(&error),
    };
    let result = match command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Experts(args) => experts::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Upcycle(args) => upcycle::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Finetune(args) => finetune::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Render(args) => render::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Gradients(args) => gradients::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Synth(args) => synth::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has read enough: `octet tokenize MODEL TEXT | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("octet: {}", one_line(&message(&error)));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}

/// The chain of causes, without those that the error before has already quoted.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// File names and metadata may hold line breaks; an error is one line all the same.
fn one_line(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

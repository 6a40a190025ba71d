//! `octet tokenize`: the tokens of a text, for people as a table and for programs as a JSON filter.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;
use octet_tokenizer::{TokenKind, Tokenizer};
use serde::Serialize;

use crate::stdout;

/// Show the tokens of a text
///
/// Control tokens typed in the text stay text, as in every prompt. With --json it is a filter: a JSON list of strings
/// on standard input, a list of {"ids", "pieces", "decoded"} on standard output.
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint (folder or file), or a bare tokenizer.model or tokenizer.json
    model: PathBuf,
    /// The text [default: standard input]
    text: Option<String>,
    /// Take control tokens spelled out in the text, like <s> or [INST], as such
    #[arg(long)]
    control: bool,
    /// JSON in, JSON out
    #[arg(long)]
    json: bool,
}

/// What the tokenizer makes of one text.
#[derive(Serialize)]
struct Tokenized<'a> {
    ids: Vec<u32>,
    pieces: Vec<&'a str>,
    decoded: String,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::open(&args.model)?;
    let encode = |text: &str| if args.control { tokenizer.encode_with_control(text) } else { tokenizer.encode(text) };
    if !args.json {
        let text = args.text.map_or_else(read_input, Ok)?;
        return stdout::print(&table(&tokenizer, &encode(&text)));
    }
    let texts: Vec<String> = match args.text {
        Some(text) => vec![text],
        None => serde_json::from_str(&read_input()?).context("standard input is not a JSON list of strings")?,
    };
    let tokenized = texts.iter().map(|text| {
        let ids = encode(text);
        Tokenized { pieces: ids.iter().map(|&id| tokenizer.piece(id)).collect(), decoded: tokenizer.decode(&ids), ids }
    });
    stdout::print(&(serde_json::to_string(&tokenized.collect::<Vec<_>>())? + "\n"))
}

/// All of standard input.
pub fn read_input() -> anyhow::Result<String> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).context("cannot read standard input")?;
    Ok(input)
}

/// A line for each token, with its id and piece, and their number.
pub fn table(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let is_coloured =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut table = String::new();
    for &id in ids {
        // Escaped, because a piece may hold line breaks and codes that terminals obey.
        let piece: String = tokenizer.piece(id).chars().map(visible).collect();
        let line = match tokenizer.kind(id) {
            TokenKind::Control if is_coloured => writeln!(table, "{id:>7}  \x1b[36m{piece}\x1b[0m"),
            TokenKind::Byte(_) if is_coloured => writeln!(table, "{id:>7}  \x1b[33m{piece}\x1b[0m"),
            _ => writeln!(table, "{id:>7}  {piece}"),
        };
        line.expect("a String takes all text");
    }
    let plural = if ids.len() == 1 { "" } else { "s" };
    writeln!(table, "{:>7}  token{plural}", ids.len()).expect("a String takes all text");
    table
}

/// A character as text that neither breaks a line nor steers a terminal.
fn visible(character: char) -> String {
    if character.is_control() { character.escape_default().to_string() } else { character.to_string() }
}

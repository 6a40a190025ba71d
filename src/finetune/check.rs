//! `octet finetune --check`: what would be learned, before any hour is spent.

use std::fmt::Write;
use std::io::IsTerminal;

use octet_tokenizer::{ChatFormat, Tokenizer};
use octet_train::sample::Sample;

use super::data::{Method, Samples};
use super::forecast::Forecast;
use crate::format;

/// Wrong rows that are listed.
const SHOWN_BAD: usize = 20;
/// Samples that are shown token by token.
const SHOWN_SAMPLES: usize = 3;
/// Tokens of a shown sample; the middle of longer ones is left out.
const SHOWN_TOKENS: usize = 400;

/// How learned tokens are told from the others.
#[derive(Clone, Copy)]
struct Marks {
    learned: [&'static str; 2],
    other: [&'static str; 2],
}

const COLORS: Marks = Marks { learned: ["\x1b[1;32m", "\x1b[0m"], other: ["\x1b[2m", "\x1b[0m"] };
const BRACKETS: Marks = Marks { learned: ["⟦", "⟧"], other: ["", ""] };

/// The report.
pub fn report(
    samples: &Samples,
    method: Method,
    tokenizer: &Tokenizer,
    chat: Option<&ChatFormat>,
    limits: (usize, usize),
) -> String {
    let (max_length, per_step) = limits;
    let [texts, chats, pairs] = samples.shapes;
    let sequences = samples.sequences();
    let tokens: usize = sequences.iter().map(|sample| sample.tokens.len()).sum();
    let learned: usize = sequences.iter().map(|sample| sample.n_learned()).sum();
    let units = if method == Method::Dpo { samples.pairs.len() } else { samples.single.len() };
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    row(
        "rows",
        format!("{texts} plain texts, {chats} conversations, {pairs} preference pairs; {} wrong", samples.bad.len()),
    );
    row("format", chat.map_or("none is known for this model".into(), |chat| chat.name().to_owned()));
    row("samples", format!("{} in {} steps an epoch", format::count(units as u64), units.div_ceil(per_step)));
    let share = 100.0 * learned as f64 / tokens.max(1) as f64;
    row(
        "tokens",
        format!(
            "{}, of which {} are learned ({share:.1}%)",
            format::count(tokens as u64),
            format::count(learned as u64)
        ),
    );
    row("lengths", lengths(&sequences));
    row(
        "too long",
        format!(
            "{} samples were longer than {max_length} tokens; {} were left out",
            samples.n_too_long, samples.n_dropped
        ),
    );
    for bad in samples.bad.iter().take(SHOWN_BAD) {
        row("wrong", bad.to_string());
    }
    if samples.bad.len() > SHOWN_BAD {
        row("wrong", format!("and {} more", samples.bad.len() - SHOWN_BAD));
    }
    let marks = if std::io::stdout().is_terminal() { COLORS } else { BRACKETS };
    let legend =
        format!("{}learned{} {}not learned{}", marks.learned[0], marks.learned[1], marks.other[0], marks.other[1]);
    for sample in sequences.iter().take(SHOWN_SAMPLES) {
        let _ = write!(
            out,
            "\n{} ({} tokens; {legend})\n{}\n",
            sample.origin,
            sample.tokens.len(),
            shown(sample, tokenizer, marks)
        );
    }
    out
}

/// What the run would take.
pub fn forecast(forecast: &Forecast) -> String {
    let rows = [
        ("reads", forecast.describe_work()),
        ("trains", format!("{} numbers", format::count(forecast.trained))),
        ("memory", forecast.describe_memory()),
        ("time", forecast.describe_time()),
    ];
    rows.map(|(name, value)| format!("\n{name:<12} {value}")).concat() + "\n"
}

/// Least, median, nine tenths, most.
fn lengths(sequences: &[&Sample]) -> String {
    let mut lengths: Vec<usize> = sequences.iter().map(|sample| sample.tokens.len()).collect();
    lengths.sort_unstable();
    let Some(last) = lengths.len().checked_sub(1) else { return "none".into() };
    let at = |percent: usize| lengths[last * percent / 100];
    format!("{} to {} tokens; half have at most {}, nine tenths at most {}", at(0), at(100), at(50), at(90))
}

/// The sample's tokens as text, with those that are learned marked.
fn shown(sample: &Sample, tokenizer: &Tokenizer, marks: Marks) -> String {
    let mut out = String::new();
    let mut at = 0;
    for run in sample.learned.chunk_by(|a, b| a == b) {
        let [open, close] = if run[0] { marks.learned } else { marks.other };
        let ids = &sample.tokens[at..at + run.len()];
        at += run.len();
        let text = if ids.len() > SHOWN_TOKENS {
            let (head, tail) = (&ids[..SHOWN_TOKENS / 2], &ids[ids.len() - SHOWN_TOKENS / 2..]);
            format!("{} … {}", text(head, tokenizer), text(tail, tokenizer))
        } else {
            text(ids, tokenizer)
        };
        let _ = write!(out, "{open}{text}{close}");
    }
    out
}

/// Text of ids with control tokens by their names.
fn text(ids: &[u32], tokenizer: &Tokenizer) -> String {
    let mut out = String::new();
    for run in ids.chunk_by(|&a, &b| tokenizer.is_control(a) == tokenizer.is_control(b)) {
        if tokenizer.is_control(run[0]) {
            run.iter().for_each(|&id| out.push_str(tokenizer.piece(id)));
        } else {
            let bytes: Vec<u8> = run.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect();
            out.push_str(&printable(&String::from_utf8_lossy(&bytes)));
        }
    }
    out
}

/// Text out of a file must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '␀' } else { c }).collect()
}

//! The metrics of a run: a line of JSON for each step and evaluation, TensorBoard's files, and a picture at the end.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use octet_train::curve::{Line, smoothed, svg};
use octet_train::task::Outcome;
use octet_train::tensorboard::EventFile;
use octet_train::trainer::StepReport;
use serde_json::{Map, Value, json};

/// Steps over which the picture's loss is smoothed.
const SMOOTH_STEPS: usize = 10;

/// Where metrics go.
pub struct Record {
    path: PathBuf,
    file: fs::File,
    events: EventFile,
    /// `(step, loss)` of steps and of evaluations.
    losses: [Vec<(u64, f64)>; 2],
}

impl Record {
    /// Opens `metrics.jsonl` in `folder`. Lines of steps after `done`, which a killed run wrote and no snapshot knows, go.
    pub fn open(folder: &Path, done: u64) -> anyhow::Result<Record> {
        let path = folder.join("metrics.jsonl");
        let cannot = || format!("cannot write {}", path.display());
        let before = fs::read_to_string(&path).unwrap_or_default();
        let mut kept = String::new();
        let mut losses = [Vec::new(), Vec::new()];
        for line in before.lines() {
            let Ok(entry) = serde_json::from_str::<Map<String, Value>>(line) else { continue };
            let Some(step) = entry.get("step").and_then(Value::as_u64).filter(|&step| step <= done) else { continue };
            for (key, losses) in ["loss", "eval_loss"].into_iter().zip(&mut losses) {
                losses.extend(entry.get(key).and_then(Value::as_f64).map(|loss| (step, loss)));
            }
            kept.push_str(line);
            kept.push('\n');
        }
        crate::whole_file::write(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).with_context(cannot)?;
        let events =
            EventFile::create(folder).with_context(|| format!("cannot write events in {}", folder.display()))?;
        Ok(Record { path, file, events, losses })
    }

    /// Adds a step.
    pub fn step(&mut self, report: &StepReport, tokens: u64) -> anyhow::Result<()> {
        let outcome = &report.outcome;
        let mut entry = vec![
            ("loss", outcome.mean_loss()),
            ("rate", f64::from(report.rate)),
            ("gradient_norm", report.gradient_norm),
            ("tokens_per_second", outcome.tokens as f64 / report.seconds),
        ];
        extend(&mut entry, outcome, ["balance_loss", "router_entropy", "accuracy", "margin"]);
        self.losses[0].push((report.step, outcome.mean_loss()));
        let mut line = line(report.step, &entry);
        line.insert("tokens".into(), tokens.into());
        if !outcome.routers.chosen.is_empty() {
            line.insert("expert_load".into(), json!(outcome.routers.load()));
        }
        let tags: Vec<(String, f64)> = entry.iter().map(|(key, value)| (format!("train/{key}"), *value)).collect();
        self.write(report.step, line, &tags)
    }

    /// Adds an evaluation.
    pub fn evaluation(&mut self, step: u64, outcome: &Outcome) -> anyhow::Result<()> {
        let mut entry = vec![("eval_loss", outcome.mean_loss())];
        extend(&mut entry, outcome, ["eval_balance_loss", "eval_router_entropy", "eval_accuracy", "eval_margin"]);
        self.losses[1].push((step, outcome.mean_loss()));
        let tags: Vec<(String, f64)> =
            entry.iter().map(|(key, value)| (key.replacen("eval_", "eval/", 1), *value)).collect();
        self.write(step, line(step, &entry), &tags)
    }

    fn write(&mut self, step: u64, line: Map<String, Value>, tags: &[(String, f64)]) -> anyhow::Result<()> {
        let text = serde_json::to_string(&line)? + "\n";
        let scalars: Vec<(&str, f64)> = tags.iter().map(|(tag, value)| (tag.as_str(), *value)).collect();
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        let events = self.events.path().to_owned();
        self.events.scalars(step, &scalars).with_context(|| format!("cannot write {}", events.display()))
    }

    /// Draws `curve.svg`.
    pub fn draw(&self, folder: &Path, title: &str) -> anyhow::Result<PathBuf> {
        let [train, held_out] = &self.losses;
        let mut lines = vec![
            Line { name: "step", color: "#bcd", points: train.clone() },
            Line { name: "mean of 10", color: "#14508c", points: smoothed(train, SMOOTH_STEPS) },
        ];
        if !held_out.is_empty() {
            lines.push(Line { name: "held out", color: "#c0392b", points: held_out.clone() });
        }
        let path = folder.join("curve.svg");
        crate::whole_file::write(&path, svg(title, &lines).as_bytes())?;
        Ok(path)
    }
}

/// What only some models and methods have.
fn extend(entry: &mut Vec<(&'static str, f64)>, outcome: &Outcome, names: [&'static str; 4]) {
    let [balance, entropy, accuracy, margin] = names;
    if let Some(value) = outcome.routers.mean_entropy() {
        entry.extend([(balance, outcome.mean_balance_loss()), (entropy, value)]);
    }
    if let Some((right, difference)) = outcome.preferences() {
        entry.extend([(accuracy, right), (margin, difference)]);
    }
}

fn line(step: u64, entry: &[(&str, f64)]) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("step".into(), step.into());
    line.extend(entry.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    line
}

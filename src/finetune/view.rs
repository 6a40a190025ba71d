//! The run as it goes, on standard error: a bar on a terminal, elsewhere a line for every step.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use octet_train::task::Outcome;
use octet_train::trainer::StepReport;

use crate::format;
use crate::progress::clock;

/// Steps over which speed and time left are smoothed.
const SMOOTH: f64 = 0.1;

/// What a user sees of a run.
pub struct View {
    bar: ProgressBar,
    total: u64,
    /// Seconds a step, smoothed.
    pace: Option<f64>,
}

impl View {
    /// A run of `total` steps of which `done` are done.
    pub fn new(done: u64, total: u64) -> View {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{bar:24}] {msg}").expect("a constant that a test tries");
        bar.set_style(style.progress_chars("=> "));
        bar.set_position(done);
        View { bar, total, pace: None }
    }

    /// Shows a step.
    pub fn step(&mut self, report: &StepReport) {
        let pace = self.pace.map_or(report.seconds, |pace| pace + SMOOTH * (report.seconds - pace));
        self.pace = Some(pace);
        let left = Duration::try_from_secs_f64(pace * (self.total - report.step) as f64).unwrap_or(Duration::MAX);
        let line = format!("{}, {} left", line(report, self.total), clock(left));
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.set_position(report.step);
            self.bar.set_message(line);
        }
    }

    /// Shows an evaluation, which stays on the screen.
    pub fn evaluation(&self, step: u64, outcome: &Outcome, is_best: bool) {
        let best = if is_best { ", the best so far" } else { "" };
        let line = format!("held out after step {step}: {}{best}", losses(outcome));
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// What a step did, in one line.
fn line(report: &StepReport, total: u64) -> String {
    let outcome = &report.outcome;
    let speed = format::rate(outcome.tokens as f64 / report.seconds);
    let mut line = format!("step {} of {total}: {}, {speed}", report.step, losses(outcome));
    if let Some(entropy) = outcome.routers.mean_entropy() {
        let load: Vec<String> = outcome.routers.load().iter().map(|share| format!("{:.0}", 100.0 * share)).collect();
        line += &format!(", experts {}%, router entropy {entropy:.2}", load.join(" "));
    }
    line
}

fn losses(outcome: &Outcome) -> String {
    let loss = outcome.mean_loss();
    match outcome.preferences() {
        Some((accuracy, margin)) => {
            format!("loss {loss:.4}, {:.0}% preferred, margin {margin:.3}", 100.0 * accuracy)
        }
        None => format!("loss {loss:.4} (perplexity {})", format::three_digits(loss.exp())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_loss_speed_and_experts() {
        let mut outcome = Outcome { loss: 20.0, tokens: 100, units: 10, ..Outcome::default() };
        outcome.routers.chosen = vec![vec![30, 70]];
        outcome.routers.entropy = 1.0;
        outcome.routers.decisions = 2;
        let mut report = StepReport { step: 3, outcome, gradient_norm: 1.0, rate: 0.1, seconds: 2.0 };
        assert_eq!(
            line(&report, 9),
            "step 3 of 9: loss 2.0000 (perplexity 7.39), 50.0 tok/s, experts 30 70%, router entropy 0.50"
        );
        report.outcome.preferred = Some((5, 10.0));
        assert!(line(&report, 9).contains("50% preferred, margin 1.000"));
        let mut view = View::new(0, 9);
        view.step(&report);
        view.finish();
    }
}

//! How far long work has come, on standard error: a bar on a terminal, elsewhere a line every ten seconds.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::format;

/// Time between two lines where there is no terminal to draw on; shorter work is silent.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one piece of work. Threads may share it.
pub struct Progress {
    action: &'static str,
    unit: Unit,
    bar: ProgressBar,
    state: Mutex<Option<Begun>>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Tokens,
}

impl Unit {
    /// An amount for people.
    fn show(self, n: u64) -> String {
        match self {
            Unit::Bytes => format::bytes(n),
            Unit::Tokens => format!("{} tokens", format::count(n)),
        }
    }

    /// The bar, in indicatif's language.
    fn template(self) -> &'static str {
        match self {
            Unit::Bytes => {
                "{msg} [{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
            }
            Unit::Tokens => "{msg} [{bar:24}] {human_pos} of {human_len} tokens, {per_sec}, {eta} left",
        }
    }
}

/// When and where the count began: not at 0 if an earlier run left something.
struct Begun {
    at: Instant,
    done: u64,
    last_line: Instant,
}

impl Progress {
    /// Counts bytes. Nothing is shown before the first call of [`Progress::at`]. `action` is what is done, such as
    /// "loading".
    pub fn new(action: &'static str) -> Progress {
        Progress::counting(action, Unit::Bytes)
    }

    /// Counts tokens.
    pub fn of_tokens(action: &'static str) -> Progress {
        Progress::counting(action, Unit::Tokens)
    }

    fn counting(action: &'static str, unit: Unit) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Progress { action, unit, bar, state: Mutex::new(None) }
    }

    /// Says that `done` of `total` are done.
    pub fn at(&self, done: u64, total: u64) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let begun = state.get_or_insert_with(|| self.begin(done, total));
        if !self.bar.is_hidden() {
            self.bar.set_length(total);
            self.bar.set_position(done);
        } else if begun.last_line.elapsed() >= LINE_EVERY {
            begun.last_line = Instant::now();
            eprintln!("{}", self.line(done, total, rate(begun, done)));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, done: u64, total: u64, per_second: f64) -> String {
        let show = |n| self.unit.show(n);
        let done_of = format!("{}: {} of {}", self.action, show(done), show(total));
        if per_second <= 0.0 {
            return done_of;
        }
        let seconds = total.saturating_sub(done) as f64 / per_second;
        let left = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        format!("{done_of}, {}/s, {} left", show(per_second as u64), clock(left))
    }

    fn begin(&self, done: u64, total: u64) -> Begun {
        let style =
            ProgressStyle::with_template(self.unit.template()).expect("the templates are constants that the tests try");
        self.bar.set_style(style.progress_chars("=> "));
        self.bar.set_length(total);
        self.bar.set_message(self.action);
        // What an earlier run did is no part of this one's rate.
        self.bar.set_position(done);
        self.bar.reset_eta();
        Begun { at: Instant::now(), done, last_line: Instant::now() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // On the way out of an error the bar must not stand in the message's line.
        self.finish();
    }
}

/// Bytes or tokens a second since the beginning; 0 before there is anything to measure.
fn rate(begun: &Begun, done: u64) -> f64 {
    let seconds = begun.at.elapsed().as_secs_f64();
    if seconds > 0.0 { done.saturating_sub(begun.done) as f64 / seconds } else { 0.0 }
}

/// Hours, minutes and seconds, as coarse as fits: `2 h 5 min`, `5 min`, `40 s`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_rate_and_time_left() {
        let gib = 1u64 << 30;
        let progress = Progress::new("writing");
        let line = progress.line(gib, 3 * gib, gib as f64 / 64.0);
        assert_eq!(line, "writing: 1.00 GiB of 3.00 GiB, 16.0 MiB/s, 2 min left");
        assert_eq!(progress.line(0, gib, 0.0), "writing: 0 B of 1.00 GiB");
        let line = Progress::of_tokens("calibrating").line(1536, 2048, 75.0);
        assert_eq!(line, "calibrating: 1,536 tokens of 2,048 tokens, 75 tokens/s, 6 s left");
        assert_eq!(clock(Duration::from_secs(7500)), "2 h 5 min");
        assert_eq!(clock(Duration::from_secs(59)), "59 s");
    }

    #[test]
    fn the_template_of_the_bar_is_sound() {
        for progress in [Progress::new("testing"), Progress::of_tokens("testing")] {
            progress.at(1, 2);
            progress.at(2, 2);
            progress.finish();
        }
    }
}

//! How many tokens of prompts a step may read, so that the streams beside them do not stall: measured, not guessed.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Fewer tokens than this take hardly less time: with 64, each of eight experts has the 16 rows that fill a tile.
const LEAST_TOKENS: usize = 64;

/// Larger steps without prompts are not told apart.
const MOST_MEASURED: usize = 96;

/// Weight that what was learned before keeps with each measurement of a prompt step.
const KEPT: f64 = 0.85;
/// A step that delays nobody's next word may take this many budgets. It is given up when all have gone whom it is for, but
/// whoever arrives meanwhile waits for its end.
const ALONE: f64 = 2.5;

/// What steps have cost so far.
pub(crate) struct Pace {
    budget_s: f64,
    most_tokens: usize,
    /// Of a step that reads no prompt; `None` until there was one.
    decode_s: Option<f64>,
    /// Of steps that read prompts: where answers are written beside, and where none are.
    beside: Line,
    alone: Line,
    /// Of steps that read no prompt, by their number of tokens.
    by_tokens_s: [Option<f64>; MOST_MEASURED + 1],
}

/// The straight line through the latest steps: seconds by tokens of prompts. A pass reads the weights whatever its tokens
/// are, so twice the tokens take less than twice the time: taken for proportional, small steps would look as dear as they
/// are and stay small for ever.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// Sums of weights, tokens, their squares, seconds, and tokens times seconds.
    w: f64,
    n: f64,
    nn: f64,
    s: f64,
    ns: f64,
}

impl Line {
    fn learn(&mut self, tokens: f64, seconds: f64) {
        let Line { w, n, nn, s, ns } = *self;
        *self = Line {
            w: KEPT * w + 1.0,
            n: KEPT * n + tokens,
            nn: KEPT * nn + tokens * tokens,
            s: KEPT * s + seconds,
            ns: KEPT * ns + tokens * seconds,
        };
    }

    /// Most tokens that take no longer than that; `None` where nothing was measured.
    fn tokens_in(&self, seconds: f64) -> Option<f64> {
        if self.w == 0.0 {
            return None;
        }
        let (n, s) = (self.n / self.w, self.s / self.w);
        let variance = self.nn / self.w - n * n;
        let proportional = s / n;
        // Steps of nearly one size tell no slope. None is below a fifth, or the first odd step would stretch the next.
        let slope = if variance > 0.01 * n * n { (self.ns / self.w - n * s) / variance } else { proportional };
        Some(n + (seconds - s) / slope.clamp(0.2 * proportional, proportional))
    }
}

impl Pace {
    pub(crate) fn new(budget: Duration, most_tokens: usize) -> Pace {
        Pace {
            budget_s: if budget == Duration::MAX { f64::INFINITY } else { budget.as_secs_f64() },
            most_tokens: most_tokens.max(1),
            decode_s: None,
            beside: Line::default(),
            alone: Line::default(),
            by_tokens_s: [None; MOST_MEASURED + 1],
        }
    }

    /// Tokens of prompts for the next step, where `streams` answers are being written beside.
    pub(crate) fn prompt_tokens(&self, streams: usize) -> usize {
        if self.budget_s == f64::INFINITY {
            return self.most_tokens;
        }
        let fits = match streams {
            0 => self.alone.tokens_in(ALONE * self.budget_s).or_else(|| self.beside.tokens_in(ALONE * self.budget_s)),
            _ => {
                let left_s = self.budget_s - self.decode_of(streams);
                self.beside.tokens_in(left_s).or_else(|| self.alone.tokens_in(left_s))
            }
        };
        (fits.unwrap_or(0.0) as usize).clamp(LEAST_TOKENS.min(self.most_tokens), self.most_tokens)
    }

    /// Seconds of a step of so many answers without a prompt: sixteen take several times as long as one.
    fn decode_of(&self, streams: usize) -> f64 {
        self.by_tokens_s.get(streams).copied().flatten().or(self.decode_s).unwrap_or(0.0)
    }

    /// Whether it saves time to add `guesses` to a step of `tokens`, of which `hit_rate` come true: time for each token
    /// that is gained. What was never measured is worth a try.
    pub(crate) fn pays(&self, tokens: usize, guesses: usize, hit_rate: f64) -> bool {
        let cost = |tokens: usize| self.by_tokens_s.get(tokens).copied().flatten();
        let Some(plain) = cost(tokens) else { return false };
        let Some(larger) = (tokens + guesses..=MOST_MEASURED).find_map(cost) else { return true };
        // A guess only counts if all before it came true.
        let gained: f64 = (1..=guesses as i32).map(|n| hit_rate.powi(n)).sum();
        (tokens as f64 + gained) / larger > tokens as f64 / plain
    }

    /// Learns from a step with `prompt_tokens` beside `streams` answers, which had `guesses` with them.
    pub(crate) fn learn(&mut self, prompt_tokens: usize, streams: usize, guesses: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 {
            blend(&mut self.decode_s, took);
            if let Some(measured) = self.by_tokens_s.get_mut(streams + guesses) {
                blend(measured, took);
            }
        } else if prompt_tokens >= LEAST_TOKENS.min(self.most_tokens) {
            match streams {
                0 => self.alone.learn(prompt_tokens as f64, took),
                _ => self.beside.learn(prompt_tokens as f64, (took - self.decode_of(streams)).max(0.2 * took)),
            }
        }
    }
}

fn blend(average: &mut Option<f64>, new: f64) {
    *average = Some(average.map_or(new, |old| old + NEWEST * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_fit_the_budget_once_a_step_was_measured() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        assert_eq!(pace.prompt_tokens(0), 64);
        assert_eq!(Pace::new(Duration::MAX, 512).prompt_tokens(1), 512);
        pace.learn(64, 0, 0, Duration::from_millis(256));
        assert_eq!(pace.prompt_tokens(0), 250);
        assert_eq!(pace.prompt_tokens(4), 100, "what is known alone is a beginning");
        pace.learn(100, 4, 0, Duration::from_secs(100));
        assert_eq!(pace.prompt_tokens(4), 64);
    }

    #[test]
    fn many_answers_leave_less_of_a_step_than_few() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        pace.learn(0, 2, 0, Duration::from_millis(50));
        pace.learn(0, 16, 0, Duration::from_millis(200));
        pace.learn(100, 2, 0, Duration::from_millis(150));
        assert_eq!(pace.prompt_tokens(2), 350);
        assert_eq!(pace.prompt_tokens(16), 200);
    }

    /// As measured with four layers of Mixtral: 0.2 s for the weights, 2.7 ms for each token.
    #[test]
    fn chunks_grow_to_the_budget_although_small_ones_are_dear() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        let took = |tokens: usize| 0.2 + 0.0027 * tokens as f64;
        for _ in 0..20 {
            let tokens = pace.prompt_tokens(4);
            assert!(took(tokens) < 0.44, "{tokens}");
            pace.learn(tokens, 4, 0, Duration::from_secs_f64(took(tokens)));
        }
        assert!(pace.prompt_tokens(4) > 70, "{}", pace.prompt_tokens(4));
        // A busy neighbour makes one step slow; the size comes back.
        pace.learn(74, 4, 0, Duration::from_secs(1));
        assert!(pace.prompt_tokens(4) < 68);
        for _ in 0..30 {
            let tokens = pace.prompt_tokens(4);
            pace.learn(tokens, 4, 0, Duration::from_secs_f64(took(tokens)));
        }
        assert!(pace.prompt_tokens(4) > 68, "{}", pace.prompt_tokens(4));
    }

    #[test]
    fn guesses_pay_where_a_larger_step_costs_little_more() {
        let mut pace = Pace::new(Duration::from_millis(250), 512);
        assert!(!pace.pays(1, 4, 1.0));
        pace.learn(0, 1, 0, Duration::from_millis(10));
        assert!(pace.pays(1, 4, 0.5), "not known yet");
        pace.learn(0, 1, 4, Duration::from_millis(20));
        assert!(pace.pays(1, 4, 0.9));
        assert!(!pace.pays(1, 4, 0.4));
    }
}

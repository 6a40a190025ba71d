//! How many tokens of prompts a step may read, so that the streams beside them do not stall: measured, not guessed.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Fewer tokens than this make a pass over the weights not worth its while.
const LEAST_TOKENS: usize = 32;

/// Larger steps without prompts are not told apart.
const MOST_MEASURED: usize = 96;

/// What steps have cost so far.
pub(crate) struct Pace {
    budget_s: f64,
    most_tokens: usize,
    /// Of a step that reads no prompt; `None` until there was one.
    decode_s: Option<f64>,
    /// For each token of a prompt, beyond `decode_s`.
    per_token_s: Option<f64>,
    /// Of steps that read no prompt, by their number of tokens.
    by_tokens_s: [Option<f64>; MOST_MEASURED + 1],
}

impl Pace {
    pub(crate) fn new(budget: Duration, most_tokens: usize) -> Pace {
        Pace {
            budget_s: if budget == Duration::MAX { f64::INFINITY } else { budget.as_secs_f64() },
            most_tokens: most_tokens.max(1),
            decode_s: None,
            per_token_s: None,
            by_tokens_s: [None; MOST_MEASURED + 1],
        }
    }

    /// Tokens of prompts for the next step, where `streams` answers are being written beside.
    pub(crate) fn prompt_tokens(&self, streams: usize) -> usize {
        // Nobody waits for a token, only for the next look at what was cancelled or has arrived.
        let (budget, decode) =
            if streams == 0 { (2.0 * self.budget_s, 0.0) } else { (self.budget_s, self.decode_s.unwrap_or(0.0)) };
        let Some(per_token) = self.per_token_s else {
            return if self.budget_s == f64::INFINITY { self.most_tokens } else { self.most_tokens.min(LEAST_TOKENS) };
        };
        let fits = ((budget - decode).max(0.0) / per_token) as usize;
        fits.clamp(LEAST_TOKENS.min(self.most_tokens), self.most_tokens)
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
            let decode = if streams > 0 { self.decode_s.unwrap_or(0.0) } else { 0.0 };
            blend(&mut self.per_token_s, (took - decode).max(took * 0.2) / prompt_tokens as f64);
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
        let mut pace = Pace::new(Duration::from_millis(250), 512);
        assert_eq!(pace.prompt_tokens(0), 32);
        assert_eq!(Pace::new(Duration::MAX, 512).prompt_tokens(1), 512);
        pace.learn(64, 0, 0, Duration::from_millis(64));
        assert_eq!(pace.prompt_tokens(0), 500);
        pace.learn(0, 4, 0, Duration::from_millis(50));
        assert_eq!(pace.prompt_tokens(4), 200);
        pace.learn(200, 4, 0, Duration::from_secs(100));
        assert_eq!(pace.prompt_tokens(4), 32);
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

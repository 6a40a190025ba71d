//! How many tokens of prompts a step may read, so that the streams beside them do not stall: measured, not guessed.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Even where they take longer than they should: a prompt that comes in crumbs would wait for ever.
const LEAST_TOKENS: usize = 32;
/// The same of a short prompt, which has few pieces, and streams beside that share the weights each of them reads.
const LEAST_OF_SHORT: usize = 20;
/// Before anything was measured: with 64, each of eight experts has the 16 rows that fill a tile.
const FIRST_TOKENS: usize = 64;

/// Larger steps without prompts are not told apart.
const MOST_MEASURED: usize = 96;

/// Weight that what was learned before keeps with each measurement of a prompt step.
const KEPT: f64 = 0.75;
/// Every step reads the weights, whatever it reads besides, so a long prompt pays for many short steps: beside one of more
/// tokens than this, a step may take [`LONGER`] budgets, and also where more prompts wait than answers are written, which
/// are few to share those weights.
const LONG_PROMPT: usize = 512;
/// With the default budget, 375 ms, which leaves room below half a second for steps that take longer than the ones before.
const LONGER: f64 = 5.0 / 3.0;
/// Prompts hold streams up for this many of their own steps, or for a good piece, whichever is more: with a small model that
/// is far less than the budget, and costs hardly anything.
const OWN_STEPS: f64 = 3.0;
/// A good piece of a short prompt, and of a long one.
const SHORT_PIECE: usize = 48;
const LONG_PIECE: usize = 192;
/// And where more prompts wait than answers are written: larger pieces take less time in all, and fewer wait for them.
const CROWD_PIECE: usize = 128;
/// The next step may have this many times the tokens of the latest ones, so that one odd measurement misleads it no further.
const FASTEST_GROWTH: f64 = 2.0;
/// A step that delays nobody's next word may take this many budgets. It is given up when all have gone whom it is for, but
/// whoever arrives meanwhile waits for its end.
const ALONE: f64 = 2.0 * LONGER;

/// What steps have cost so far.
pub(crate) struct Pace {
    budget_s: f64,
    most_tokens: usize,
    /// Of steps that read prompts.
    reading: Line,
    /// Of steps that read no prompt, by their number of tokens.
    by_tokens_s: [Option<f64>; MOST_MEASURED + 1],
}

/// The straight line through the latest steps: seconds by tokens, of prompts and of answers alike, since all share the
/// weights that are read once. A pass reads the weights whatever its tokens are, so twice the tokens take less than twice the
/// time: taken for proportional, small steps would look as dear as they are and stay small for ever.
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
        // Steps of nearly one size tell no slope: then it is taken for that with which the next step is the shorter one. None
        // is below a fifth, or the first odd step would stretch the next.
        let slope = match variance > 0.01 * n * n {
            true => (self.ns / self.w - n * s) / variance,
            false if seconds < s => 0.5 * proportional,
            false => proportional,
        };
        let tokens = n + (seconds - s) / slope.clamp(0.2 * proportional, proportional);
        Some(tokens.min(FASTEST_GROWTH * n))
    }
}

impl Pace {
    pub(crate) fn new(budget: Duration, most_tokens: usize) -> Pace {
        Pace {
            budget_s: if budget == Duration::MAX { f64::INFINITY } else { budget.as_secs_f64() },
            most_tokens: most_tokens.max(1),
            reading: Line::default(),
            by_tokens_s: [None; MOST_MEASURED + 1],
        }
    }

    /// Tokens of prompts for the next step, where `streams` answers are being written beside, and the longest of `prompts`
    /// prompts has `longest` tokens.
    pub(crate) fn prompt_tokens(&self, streams: usize, prompts: usize, longest: usize) -> usize {
        if self.budget_s == f64::INFINITY {
            return self.most_tokens;
        }
        let (budgets, least, good_piece) = match streams {
            0 => (ALONE, LEAST_TOKENS, self.most_tokens),
            _ if longest > LONG_PROMPT => (LONGER, LEAST_TOKENS, LONG_PIECE),
            _ if prompts > streams => (LONGER, LEAST_TOKENS, CROWD_PIECE),
            _ => (1.0, LEAST_OF_SHORT, SHORT_PIECE),
        };
        let own_s = self.decode_of(streams).map_or(f64::INFINITY, |step_s| OWN_STEPS * step_s);
        let fits = self.tokens_in(budgets * self.budget_s);
        fits.min(self.tokens_in(own_s).max(good_piece))
            .saturating_sub(streams)
            .clamp(least.min(self.most_tokens), self.most_tokens)
    }

    /// Tokens of a step that takes no longer than that.
    fn tokens_in(&self, seconds: f64) -> usize {
        self.reading.tokens_in(seconds).map_or(FIRST_TOKENS, |tokens| tokens as usize)
    }

    /// Seconds of a step of so many answers without a prompt, or of fewer.
    fn decode_of(&self, streams: usize) -> Option<f64> {
        self.by_tokens_s[..=streams.min(MOST_MEASURED)].iter().rev().find_map(|&measured| measured)
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
        let (took, tokens) = (took.as_secs_f64(), prompt_tokens + streams + guesses);
        if prompt_tokens == 0 {
            if let Some(measured) = self.by_tokens_s.get_mut(tokens) {
                *measured = Some(measured.map_or(took, |old| old + NEWEST * (took - old)));
            }
        } else if tokens >= LEAST_OF_SHORT.min(self.most_tokens) {
            self.reading.learn(tokens as f64, took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_fit_the_budget_once_a_step_was_measured() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        assert_eq!(pace.prompt_tokens(0, 1, 128), 64);
        assert_eq!(Pace::new(Duration::MAX, 512).prompt_tokens(1, 1, 128), 512);
        pace.learn(64, 0, 0, Duration::from_millis(256));
        assert_eq!(pace.prompt_tokens(4, 1, 128), 96);
        assert_eq!(pace.prompt_tokens(0, 1, 128), 128, "no more than twice as many, although there is time");
        pace.learn(96, 4, 0, Duration::from_secs(100));
        assert_eq!(pace.prompt_tokens(4, 1, 128), 20);
        assert_eq!(pace.prompt_tokens(4, 1, 2000), 32, "a long prompt would need too many so small pieces");
    }

    #[test]
    fn many_answers_leave_less_of_a_step_than_few() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        pace.learn(100, 2, 0, Duration::from_millis(204));
        assert_eq!(pace.prompt_tokens(2, 1, 128), 198);
        assert_eq!(pace.prompt_tokens(16, 1, 128), 184);
    }

    /// Seconds of a step as measured with four layers of Mixtral: reading the weights, then every token.
    fn mixtral_s(tokens: usize) -> f64 {
        0.128 + 0.0015 * tokens as f64
    }

    #[test]
    fn chunks_grow_to_the_budget_although_small_ones_are_dear() {
        let mut pace = Pace::new(Duration::from_millis(400), 512);
        for _ in 0..20 {
            let tokens = pace.prompt_tokens(4, 1, 128);
            assert!(mixtral_s(tokens + 4) < 0.44, "{tokens}");
            pace.learn(tokens, 4, 0, Duration::from_secs_f64(mixtral_s(tokens + 4)));
        }
        assert!((165..185).contains(&pace.prompt_tokens(4, 1, 128)), "{}", pace.prompt_tokens(4, 1, 128));
        // A busy neighbour makes one step slow; the size comes back.
        pace.learn(177, 4, 0, Duration::from_secs(1));
        assert!(pace.prompt_tokens(4, 1, 128) < 160);
        for _ in 0..30 {
            let tokens = pace.prompt_tokens(4, 1, 128);
            pace.learn(tokens, 4, 0, Duration::from_secs_f64(mixtral_s(tokens + 4)));
        }
        assert!(pace.prompt_tokens(4, 1, 128) > 165, "{}", pace.prompt_tokens(4, 1, 128));
    }

    #[test]
    fn long_prompts_get_longer_steps_that_stay_below_half_a_second() {
        let mut pace = Pace::new(Duration::from_millis(225), 512);
        let mut chunks = Vec::new();
        while chunks.iter().sum::<usize>() < 2000 {
            let tokens = pace.prompt_tokens(4, 1, 2000);
            let took = mixtral_s(tokens + 4);
            assert!(took < 0.5, "{chunks:?}, {tokens}");
            pace.learn(tokens, 4, 0, Duration::from_secs_f64(took));
            chunks.push(tokens);
        }
        assert_eq!(chunks.len(), 14, "{chunks:?}");
        let tokens = pace.prompt_tokens(4, 1, 500);
        assert!((25..35).contains(&tokens), "{tokens}: steps of one size do not tell what shorter ones take");
        pace.learn(tokens, 4, 0, Duration::from_secs_f64(mixtral_s(tokens + 4)));
        let tokens = pace.prompt_tokens(4, 1, 500);
        assert!((55..65).contains(&tokens), "{tokens}");
        let crowd = pace.prompt_tokens(4, 5, 500);
        assert!((150..165).contains(&crowd), "{crowd}: more wait than answers are written");
    }

    /// SmolLM2 with 135 million weights: streams notice a short prompt by little more than their own steps.
    #[test]
    fn a_small_model_reads_short_prompts_in_small_pieces() {
        let mut pace = Pace::new(Duration::from_millis(300), 512);
        let took = |tokens: usize| Duration::from_secs_f64(0.004 + 0.00045 * tokens as f64);
        pace.learn(0, 1, 0, Duration::from_millis(4));
        pace.learn(0, 16, 0, Duration::from_millis(20));
        for tokens in [64, 128, 256] {
            pace.learn(tokens, 0, 0, took(tokens));
        }
        assert_eq!(pace.prompt_tokens(1, 1, 128), 47, "fewer than 48 would be no good piece");
        assert_eq!(pace.prompt_tokens(2, 3, 128), 126, "more wait than answers are written");
        assert_eq!(pace.prompt_tokens(16, 1, 128), 124 - 16);
        assert_eq!(pace.prompt_tokens(16, 1, 2000), 192 - 16, "a long prompt has larger pieces");
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

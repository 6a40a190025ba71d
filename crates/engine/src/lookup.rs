//! Guessing the next tokens from the text so far (prompt lookup): where the last words stood before, what followed them
//! then may follow again.
//!
//! A guess is run through the model beside the token drawn last, and each next token is drawn from its own logits as
//! always; guesses that agree have saved a pass, the others are forgotten. So the answer is the same with and without,
//! to the bit, and the only question is time: [`Lookup`] keeps count of how often an answer's guesses come true, and
//! [`Pace`](crate::pace::Pace) of what larger passes cost.

/// Tokens that must agree.
const PATTERN: usize = 3;
/// Most tokens of a guess.
pub(crate) const MOST: usize = 8;
/// Weight of the newest guess in the share that came true.
const NEWEST: f64 = 0.25;
/// Where guesses do not pay, one is made every so many tokens to see whether they would now.
const PROBE_EVERY: usize = 48;

/// How guessing goes in one answer.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    /// Share of guessed tokens that came true lately.
    hit_rate: f64,
    since_guess: usize,
}

impl Default for Lookup {
    fn default() -> Lookup {
        Lookup { hit_rate: 0.5, since_guess: PROBE_EVERY }
    }
}

impl Lookup {
    /// Guesses at most `most` tokens after `tokens` into `draft`, if `pays(n, hit_rate)` says that `n` of them are worth
    /// their cost.
    pub(crate) fn guess(
        &mut self,
        tokens: &[u32],
        most: usize,
        pays: impl Fn(usize, f64) -> bool,
        draft: &mut Vec<u32>,
    ) {
        draft.clear();
        self.since_guess += 1;
        let found = continuation(tokens, most.min(MOST));
        if found.is_empty() || !(pays(found.len(), self.hit_rate) || self.since_guess > PROBE_EVERY) {
            return;
        }
        self.since_guess = 0;
        draft.extend_from_slice(found);
    }

    /// Learns how many of `guessed` tokens came true.
    pub(crate) fn learn(&mut self, guessed: usize, true_ones: usize) {
        self.hit_rate += NEWEST * (true_ones as f64 / guessed as f64 - self.hit_rate);
    }
}

/// What followed the last [`PATTERN`] tokens when they stood there before, the latest time.
fn continuation(tokens: &[u32], most: usize) -> &[u32] {
    let Some(start) = tokens.len().checked_sub(PATTERN + 1) else { return &[] };
    let pattern = &tokens[start + 1..];
    let before = (0..=start).rev().find(|&at| &tokens[at..at + PATTERN] == pattern);
    before.map_or(&[], |at| &tokens[at + PATTERN..(at + PATTERN + most).min(tokens.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_earlier_place_continues() {
        assert_eq!(continuation(&[1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2, 3], 2), [5, 6]);
        assert_eq!(continuation(&[7, 7, 7, 7], 4), [7]);
        assert!(continuation(&[1, 2, 3, 4, 5, 6], 4).is_empty());
        assert!(continuation(&[1, 2, 3], 4).is_empty());
        assert!(continuation(&[], 4).is_empty());
    }

    #[test]
    fn guesses_that_fail_are_rare_until_they_come_true() {
        let (mut lookup, mut draft) = (Lookup::default(), Vec::new());
        let tokens = [1, 2, 3, 4, 5, 1, 2, 3];
        let pays = |_: usize, hit_rate: f64| hit_rate > 0.3;
        let mut guesses = 0;
        for _ in 0..200 {
            lookup.guess(&tokens, 4, pays, &mut draft);
            if !draft.is_empty() {
                guesses += 1;
                lookup.learn(draft.len(), 0);
            }
        }
        assert!((4..10).contains(&guesses), "{guesses}");
        (0..8).for_each(|_| lookup.learn(4, 4));
        lookup.guess(&tokens, 2, pays, &mut draft);
        assert_eq!(draft, [4, 5]);
    }
}

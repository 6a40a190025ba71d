//! What came of a load: rates, times to the first token, gaps; the median, the 99th percentile, the worst.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::call::Record;
use crate::format::three_digits;

/// The figures of a run.
#[derive(Serialize)]
pub struct Summary {
    /// Requests.
    requests: usize,
    /// Of them, those without a whole answer.
    pub failures: usize,
    /// Seconds.
    wall_s: f64,
    /// Of all whole answers.
    output_tokens: usize,
    /// Per second of the run.
    output_tokens_per_s: f64,
    /// Whole answers per second of the run.
    requests_per_s: f64,
    /// As the server counts.
    prompt_tokens: usize,
    /// Of these, what it had already.
    cached_tokens: usize,
    /// Milliseconds from the moment at which a request was due.
    first_token_ms: Option<Spread>,
    /// Milliseconds between two pieces of text.
    gap_ms: Option<Spread>,
    /// Milliseconds to the end.
    whole_ms: Option<Spread>,
    /// The long prompt, if one arrived.
    intruder: Option<Intruder>,
}

/// A long prompt among streams.
#[derive(Serialize)]
struct Intruder {
    /// Seconds to its first token.
    first_token_s: f64,
    /// The longest that a stream stood still meanwhile, seconds.
    worst_gap_s: f64,
    error: Option<String>,
}

/// Of many values.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    p90: f64,
    p99: f64,
    worst: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = Duration>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.map(|value| value.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((share * sorted.len() as f64) as usize).min(sorted.len().wrapping_sub(1)));
        Some(Spread { median: *at(0.5)?, p90: *at(0.9)?, p99: *at(0.99)?, worst: *at(1.0)? })
    }
}

impl Summary {
    /// The figures of these records.
    pub fn new(records: &[Record], intruder: Option<&Record>, wall: Duration) -> Summary {
        let good: Vec<&Record> = records.iter().filter(|record| record.error.is_none()).collect();
        let total = |of: fn(&Record) -> usize| good.iter().map(|record| of(record)).sum::<usize>();
        let output_tokens = total(|record| record.tokens);
        let wall_s = wall.as_secs_f64();
        Summary {
            requests: records.len(),
            failures: records.len() - good.len(),
            wall_s,
            output_tokens,
            output_tokens_per_s: output_tokens as f64 / wall_s,
            requests_per_s: good.len() as f64 / wall_s,
            prompt_tokens: total(|record| record.prompt_tokens),
            cached_tokens: total(|record| record.cached_tokens),
            first_token_ms: Spread::of(good.iter().filter_map(|r| Some(*r.times.first()? - r.due))),
            gap_ms: Spread::of(good.iter().flat_map(|r| r.times.windows(2).map(|pair| pair[1] - pair[0]))),
            whole_ms: Spread::of(good.iter().map(|r| r.end - r.due)),
            intruder: intruder.map(|late| Intruder::new(late, &good)),
        }
    }
}

impl Intruder {
    fn new(late: &Record, others: &[&Record]) -> Intruder {
        let first = late.times.first().copied().unwrap_or(late.end);
        let meanwhile = |pair: &[Instant]| pair[1] > late.due && pair[0] < first;
        let gaps = others.iter().flat_map(|r| r.times.windows(2)).filter(|pair| meanwhile(pair));
        let worst = gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        Intruder {
            first_token_s: (first - late.due).as_secs_f64(),
            worst_gap_s: worst.as_secs_f64(),
            error: late.error.clone(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests, {} failed, {} s · {} tokens/s out · prompts {} tokens, {} of them cached",
            self.requests,
            self.failures,
            three_digits(self.wall_s),
            three_digits(self.output_tokens_per_s),
            self.prompt_tokens,
            self.cached_tokens
        )?;
        writeln!(f, "{:>14} {:>10} {:>10} {:>10} {:>10}", "ms", "median", "90%", "99%", "worst")?;
        let rows = [("first token", self.first_token_ms), ("gap", self.gap_ms), ("whole answer", self.whole_ms)];
        for (name, spread) in rows.into_iter().filter_map(|(name, spread)| Some((name, spread?))) {
            let [median, p90, p99, worst] = [spread.median, spread.p90, spread.p99, spread.worst].map(three_digits);
            writeln!(f, "{name:>14} {median:>10} {p90:>10} {p99:>10} {worst:>10}")?;
        }
        if let Some(Intruder { first_token_s, worst_gap_s, .. }) = &self.intruder {
            let [first, worst] = [*first_token_s, *worst_gap_s].map(three_digits);
            writeln!(
                f,
                "the long prompt: first token after {first} s; meanwhile no stream stood still for more than {worst} s"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that was due at `due_ms`, whose pieces came then.
    fn record(began: Instant, due_ms: u64, times_ms: &[u64]) -> Record {
        let at = |ms: u64| began + Duration::from_millis(ms);
        let times: Vec<Instant> = times_ms.iter().map(|&ms| at(ms)).collect();
        let end = *times.last().unwrap();
        Record { due: at(due_ms), tokens: times.len(), times, end, prompt_tokens: 5, cached_tokens: 2, error: None }
    }

    /// The quantile `q` of `n` sorted values is the one at `⌊q n⌋`, as in other load generators.
    #[test]
    fn figures_are_those_of_whole_answers() {
        let began = Instant::now();
        let broken = Record { error: Some("it broke".into()), ..record(began, 0, &[1, 5000]) };
        let records = [record(began, 0, &[100, 110, 130]), record(began, 50, &[250, 260, 300, 310]), broken];
        let late = record(began, 120, &[255, 256]);
        let summary = Summary::new(&records, Some(&late), Duration::from_millis(500));
        assert_eq!((summary.requests, summary.failures), (3, 1));
        assert_eq!((summary.output_tokens, summary.output_tokens_per_s), (7, 14.0));
        assert_eq!((summary.prompt_tokens, summary.cached_tokens), (10, 4));
        let spread = |spread: Option<Spread>| spread.map(|s| [s.median, s.p99, s.worst].map(f64::round)).unwrap();
        assert_eq!(spread(summary.first_token_ms), [200.0, 200.0, 200.0]);
        assert_eq!(spread(summary.gap_ms), [10.0, 40.0, 40.0]);
        assert_eq!(spread(summary.whole_ms), [260.0, 260.0, 260.0]);
        let late = summary.intruder.unwrap();
        assert_eq!((late.first_token_s * 1e3).round(), 135.0);
        assert_eq!((late.worst_gap_s * 1e3).round(), 20.0, "of the gaps that overlap with its wait");
    }
}

//! Choosing the next token: logits to probabilities to one id.
//!
//! Order of the steps, each skipped when its setting is neutral:
//! 1. `logit_bias` is added.
//! 2. Penalties, over the last `penalty_window` tokens of prompt and answer: repetition divides positive logits and
//!    multiplies negative ones (Keskar et al., CTRL, 2019); presence subtracts once, frequency once for each occurrence.
//! 3. Temperature divides the logits; 0 means the largest logit wins, the lower id on a tie.
//! 4. `top_k` keeps the k largest; `top_p` the smallest set whose probabilities reach p (Holtzman et al., 2019); `min_p`
//!    those of at least p times the largest probability. Each looks at the softmax of what the one before it left.
//! 5. One uniform random number picks from what remains, by descending probability.

use crate::{Error, Random};

/// The settings of a sampler. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 for greedy.
    pub temperature: f32,
    /// Keep this many candidates; `None` for all.
    pub top_k: Option<usize>,
    /// Keep candidates until their probabilities add up to this; 1 for all.
    pub top_p: f32,
    /// Keep candidates of at least this share of the best one's probability; 0 for all.
    pub min_p: f32,
    /// 1 for none.
    pub repetition_penalty: f32,
    /// 0 for none.
    pub presence_penalty: f32,
    /// 0 for none.
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties look at.
    pub penalty_window: usize,
    /// Added to the logits of these ids; minus infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same words.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 256,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of it.
    pub fn check(&self, vocab_size: usize) -> Result<(), Error> {
        let at_least_zero = 0.0..f32::INFINITY;
        let finite = f32::MIN..f32::INFINITY;
        let ranges = [
            ("temperature", self.temperature, at_least_zero.clone(), "0 or more"),
            ("top_p", self.top_p, f32::MIN_POSITIVE..1.0f32.next_up(), "above 0, up to 1"),
            ("min_p", self.min_p, 0.0..1.0f32.next_up(), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE..f32::INFINITY, "above 0"),
            ("presence_penalty", self.presence_penalty, finite.clone(), "a finite number"),
            ("frequency_penalty", self.frequency_penalty, finite, "a finite number"),
        ];
        for (name, value, range, words) in ranges {
            if !range.contains(&value) {
                return Err(Error::Setting(format!("{name} is {value}; it has to be {words}")));
            }
        }
        if self.top_k == Some(0) {
            return Err(Error::Setting("top_k is 0; it has to be 1 or more, or absent for no limit".into()));
        }
        match self.logit_bias.iter().find(|(id, bias)| *id as usize >= vocab_size || bias.is_nan()) {
            Some((id, bias)) => Err(Error::Setting(format!(
                "logit_bias of {bias} for id {id}: ids go up to {} and a bias is a number",
                vocab_size.saturating_sub(1)
            ))),
            None => Ok(()),
        }
    }
}

/// Logits so far below the largest are unlikely: a token there has at most 6 millionths of its probability.
const HEAD: f32 = 12.0;

/// A candidate: logit (later probability) and id.
type Candidate = (f32, u32);

/// Chooses tokens by one request's [`Sampling`].
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    candidates: Vec<Candidate>,
    adjusted: Vec<f32>,
    /// Tokens that the penalties look at, sorted.
    recent: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(sampling: Sampling) -> Sampler {
        let random = Random::new(sampling.seed);
        Sampler { sampling, random, candidates: Vec::new(), adjusted: Vec::new(), recent: Vec::new() }
    }

    /// The next token after `history` (prompt and answer so far), from `logits [vocab_size]`.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = if self.changes_logits() {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted, history);
            &adjusted
        } else {
            logits
        };
        let chosen = if self.sampling.temperature == 0.0 { largest(logits) } else { self.draw(logits) };
        self.adjusted = adjusted;
        chosen
    }

    fn changes_logits(&self) -> bool {
        let s = &self.sampling;
        !s.logit_bias.is_empty()
            || s.repetition_penalty != 1.0
            || s.presence_penalty != 0.0
            || s.frequency_penalty != 0.0
    }

    fn adjust(&mut self, logits: &mut [f32], history: &[u32]) {
        let s = &self.sampling;
        for &(id, bias) in &s.logit_bias {
            logits[id as usize] += bias;
        }
        self.recent.clear();
        self.recent.extend_from_slice(&history[history.len().saturating_sub(s.penalty_window)..]);
        self.recent.sort_unstable();
        for group in self.recent.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(group[0] as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            *logit -= s.presence_penalty + s.frequency_penalty * group.len() as f32;
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let s = &self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        let scaled = logits.iter().map(|&l| if l.is_nan() { f32::NEG_INFINITY } else { l / s.temperature });
        candidates.extend(scaled.zip(0u32..));
        if let Some(k) = s.top_k.filter(|&k| k < candidates.len()) {
            candidates.select_nth_unstable_by(k - 1, descending);
            candidates.truncate(k);
        }
        let mut sorted = sort_head(candidates);
        to_probabilities(candidates);
        if s.top_p < 1.0 {
            if reaches(&candidates[..sorted], s.top_p).is_none() {
                sorted = sort_tail(candidates, sorted);
            }
            let kept = reaches(candidates, s.top_p).map_or(candidates.len(), |last| last + 1);
            candidates.truncate(kept);
        }
        let least = s.min_p * candidates[0].0;
        candidates.retain(|c| c.0 >= least);
        let total: f64 = candidates.iter().map(|c| c.0 as f64).sum();
        let sorted = sorted.min(candidates.len());
        pick(candidates, sorted, self.random.uniform() * total)
    }
}

/// The id at which the probabilities, added up from the largest down, exceed `left`; the first `sorted` candidates are in
/// order and hold more than all others.
fn pick(candidates: &mut [Candidate], mut sorted: usize, mut left: f64) -> u32 {
    let mut done = 0;
    loop {
        for &(p, id) in &candidates[done..sorted] {
            left -= p as f64;
            if left < 0.0 {
                return id;
            }
        }
        if sorted == candidates.len() {
            return candidates[sorted - 1].1;
        }
        done = sorted;
        sorted = sort_tail(candidates, sorted);
    }
}

/// Brings the likely candidates to the front, in order, and tells how many they are: nearly always one of them is chosen,
/// and to sort a whole vocabulary takes longer than all else here.
fn sort_head(candidates: &mut [Candidate]) -> usize {
    let largest = candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max);
    let mut n = 0;
    for i in 0..candidates.len() {
        if candidates[i].0 >= largest - HEAD {
            candidates.swap(n, i);
            n += 1;
        }
    }
    // All are minus infinity, or the largest is plus infinity, from which nothing is a distance.
    let n = if largest.is_finite() { n } else { candidates.len() };
    candidates[..n].sort_unstable_by(descending);
    n
}

/// Sorts what [`sort_head`] left; gives the number of sorted candidates, which is all.
fn sort_tail(candidates: &mut [Candidate], sorted: usize) -> usize {
    candidates[sorted..].sort_unstable_by(descending);
    candidates.len()
}

/// The index at which probabilities have added up to `p`.
fn reaches(candidates: &[Candidate], p: f32) -> Option<usize> {
    let mut sum = 0.0;
    candidates.iter().position(|c| {
        sum += c.0;
        sum >= p
    })
}

/// The id of the largest logit, the lower one on a tie; 0 if all are NaN. Block by block: a loop that remembers where it is
/// at every step takes as long, for 49,000 logits, as a fiftieth of a small model's token.
fn largest(logits: &[f32]) -> u32 {
    const BLOCK: usize = 512;
    let (mut largest, mut first) = (f32::NEG_INFINITY, 0);
    for (block, first_id) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let of_block = largest_value(block);
        if of_block > largest {
            (largest, first) = (of_block, first_id);
        }
    }
    (first + logits[first..].iter().position(|&logit| logit == largest).unwrap_or(0)) as u32
}

/// In lanes, which the compiler puts into vectors.
fn largest_value(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane = larger(*lane, value));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// Larger first, then lower id: a total order, so that results do not depend on how a sort works.
fn descending(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Softmax in place over logits of which the first is the largest.
fn to_probabilities(candidates: &mut [Candidate]) {
    let largest = candidates[0].0;
    let largest = if largest.is_finite() { largest } else { 0.0 };
    let mut sum = 0.0f64;
    for c in candidates.iter_mut() {
        c.0 = (c.0 - largest).min(0.0).exp();
        sum += c.0 as f64;
    }
    let scale = if sum > 0.0 { (1.0 / sum) as f32 } else { 1.0 };
    candidates.iter_mut().for_each(|c| c.0 *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        (0..draws).for_each(|_| counts[sampler.sample(logits, &[]) as usize] += 1);
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids_and_ignores_nan() {
        let greedy = |logits: &[f32]| Sampler::new(Sampling::default()).sample(logits, &[]);
        assert_eq!(greedy(&[1.0, f32::NAN, 3.0, 3.0]), 2);
        assert_eq!(greedy(&[f32::NAN; 70]), 0);
        // Equal ones in other lanes, and in the rest behind the last whole chunk.
        let mut many = vec![f32::NEG_INFINITY; 1100];
        for id in [1099, 1030, 600, 70, 37] {
            many[id] = 0.0;
            assert_eq!(greedy(&many), id as u32);
        }
    }

    #[test]
    fn frequencies_follow_the_softmax_at_a_temperature() {
        let logits = [0.0, 1.0, 2.0];
        let sampling = Sampling { temperature: 0.5, seed: 7, ..Default::default() };
        let n = 100_000;
        let counts = counts(sampling, &logits, n);
        let e: Vec<f64> = logits.iter().map(|&l| (l as f64 / 0.5).exp()).collect();
        let sum: f64 = e.iter().sum();
        for (count, e) in counts.iter().zip(e) {
            let (p, n) = (e / sum, n as f64);
            // four standard deviations of a binomial
            assert!((*count as f64 - n * p).abs() < 4.0 * (n * p * (1.0 - p)).sqrt());
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let hot = Sampling { temperature: 1.0, ..Default::default() };
        let alive = |s: Sampling| counts(s, &logits, 2000).iter().filter(|&&c| c > 0).count();
        assert_eq!(alive(hot.clone()), 4);
        assert_eq!(alive(Sampling { top_k: Some(3), ..hot.clone() }), 3);
        assert_eq!(alive(Sampling { top_p: 0.69, ..hot.clone() }), 2);
        assert_eq!(alive(Sampling { min_p: 0.45, ..hot.clone() }), 3);
        assert_eq!(alive(Sampling { top_k: Some(1), ..hot }), 1);
    }

    #[test]
    fn sorting_the_head_alone_changes_nothing() {
        let mut random = Random::new(5);
        for _ in 0..200 {
            let mut candidates: Vec<Candidate> =
                (0..500).map(|id| ((random.uniform() * 40.0) as f32 - 20.0, id)).collect();
            let mut whole = candidates.clone();
            whole.sort_unstable_by(descending);
            let sorted = sort_head(&mut candidates);
            assert_eq!(candidates[..sorted], whole[..sorted]);
            to_probabilities(&mut candidates);
            to_probabilities(&mut whole);
            let left = random.uniform() * 1.000_01;
            assert_eq!(pick(&mut candidates, sorted, left), pick(&mut whole, 500, left));
        }
        let mut none = vec![(f32::NEG_INFINITY, 1), (f32::NEG_INFINITY, 0)];
        assert_eq!((sort_head(&mut none), none[0].1), (2, 0));
    }

    #[test]
    fn penalties_look_at_the_window_only() {
        let logits = [2.0, 1.9, -1.0];
        let sampling = Sampling { repetition_penalty: 1.5, penalty_window: 2, ..Default::default() };
        assert_eq!(Sampler::new(sampling.clone()).sample(&logits, &[0, 2]), 1);
        assert_eq!(Sampler::new(sampling).sample(&logits, &[0, 2, 2]), 0);
        let frequent = Sampling { frequency_penalty: 0.06, ..Default::default() };
        assert_eq!(Sampler::new(frequent.clone()).sample(&logits, &[0]), 0);
        assert_eq!(Sampler::new(frequent).sample(&logits, &[0, 0]), 1);
    }

    #[test]
    fn a_bias_forbids_and_a_seed_repeats() {
        let bias = Sampling { logit_bias: vec![(2, f32::NEG_INFINITY)], temperature: 1.0, ..Default::default() };
        assert_eq!(counts(bias, &[0.0, 0.0, 9.0], 500)[2], 0);
        let seeded = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Default::default() });
            (0..50).map(|_| sampler.sample(&[0.0; 100], &[])).collect::<Vec<_>>()
        };
        assert_eq!(seeded(3), seeded(3));
        assert_ne!(seeded(3), seeded(4));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let check = |s: Sampling| s.check(10).map_err(|e| e.to_string());
        assert!(check(Sampling::default()).is_ok());
        assert!(check(Sampling { temperature: -1.0, ..Default::default() }).unwrap_err().contains("temperature"));
        assert!(check(Sampling { temperature: f32::NAN, ..Default::default() }).unwrap_err().contains("temperature"));
        assert!(check(Sampling { top_p: 0.0, ..Default::default() }).unwrap_err().contains("top_p"));
        assert!(check(Sampling { top_p: 1.0, min_p: 1.0, ..Default::default() }).is_ok());
        assert!(check(Sampling { top_k: Some(0), ..Default::default() }).unwrap_err().contains("top_k"));
        assert!(
            check(Sampling { logit_bias: vec![(10, 0.0)], ..Default::default() }).unwrap_err().contains("logit_bias")
        );
    }
}

//! The loop on the smallest model that learns: a table of logits, one row for each token before.

use super::*;
use crate::PreferenceOptions;
use crate::dataset::Origin;
use crate::learner::{Found, Goal, Lesson, RouterStatistics, Sequences, Slice};
use crate::sample::{PairSample, Sample};
use crate::schedule::Shape;
use octet_kernels::ThreadPool;
use std::path::Path;

const VOCABULARY: usize = 7;

struct Bigram {
    pool: ThreadPool,
    table: Vec<f32>,
    gradient: Vec<f32>,
}

impl Bigram {
    fn new() -> Bigram {
        let zeros = vec![0.0; VOCABULARY * VOCABULARY];
        Bigram { pool: ThreadPool::new(2), table: zeros.clone(), gradient: zeros }
    }

    /// `slope`: of each sequence.
    fn pass(&mut self, sequences: &Sequences, table: &[f32], slopes: &[f64]) -> Found {
        let mut found = Found { log_probabilities: vec![0.0; slopes.len()], ..Found::default() };
        let mut at = 0;
        for (i, length) in sequences.lengths.iter().enumerate() {
            for t in (at + 1..at + length).filter(|&t| sequences.learned[t]) {
                let (before, token) = (sequences.tokens[t - 1] as usize, sequences.tokens[t] as usize);
                let row = &table[before * VOCABULARY..][..VOCABULARY];
                let sum: f32 = row.iter().map(|x| x.exp()).sum();
                found.log_probabilities[i] += f64::from(row[token] - sum.ln());
                for (j, x) in row.iter().enumerate() {
                    let slope = if j == token { 1.0 } else { 0.0 } - x.exp() / sum;
                    self.gradient[before * VOCABULARY + j] += slopes[i] as f32 * slope;
                }
            }
            at += length;
        }
        found
    }
}

impl Learner for Bigram {
    fn observe(&mut self, sequences: &Sequences) -> Result<Found, String> {
        let table = self.table.clone();
        Ok(self.pass(sequences, &table, &vec![0.0; sequences.lengths.len()]))
    }

    fn learn(&mut self, sequences: &Sequences, lesson: Lesson<'_>) -> Result<Found, String> {
        let seen = self.observe(sequences)?;
        let slopes = match lesson.goal {
            Goal::CrossEntropy { divisor } => vec![-1.0 / divisor; sequences.lengths.len()],
            Goal::OfSequences(slopes) => slopes(&seen.log_probabilities),
        };
        let table = self.table.clone();
        let mut found = self.pass(sequences, &table, &slopes);
        found.routers = RouterStatistics { chosen: vec![vec![1, 3]], entropy: 0.5, decisions: 1 };
        Ok(found)
    }

    fn clear_gradients(&mut self) {
        self.gradient.fill(0.0);
    }

    fn parts(&mut self) -> (Vec<Slice<'_>>, &ThreadPool) {
        let (weights, gradient) = (&mut self.table[..], &self.gradient[..]);
        (vec![Slice { name: "table".into(), is_matrix: true, weights, gradient }], &self.pool)
    }
}

fn sample(tokens: &[u32], first_learned: usize) -> Sample {
    let learned = (0..tokens.len()).map(|i| i >= first_learned.max(1)).collect();
    Sample { tokens: tokens.to_vec(), learned, origin: Origin { file: Path::new("t.jsonl").into(), number: 1 } }
}

/// Texts that count upwards; lengths differ.
fn counting() -> Task {
    let text = |i: usize| (0..3 + i % 5).map(|t| ((i + t) % VOCABULARY) as u32).collect::<Vec<_>>();
    Task::NextToken((0..20).map(|i| sample(&text(i), 1)).collect())
}

fn settings(folder: &Path, steps: u64) -> Settings {
    Settings {
        order: Order { n_samples: 20, per_step: 8, seed: 5 },
        schedule: Schedule { shape: Shape::Cosine, peak: 0.1, floor: 0.1, warmup_steps: 3, total_steps: steps },
        adamw: AdamW::default(),
        max_norm: Some(1.0),
        pass_tokens: 16,
        balance: 0.0,
        evaluate_every: None,
        patience: None,
        save_every: 4,
        snapshots: folder.to_owned(),
        fingerprint: "counting".into(),
    }
}

/// Runs to the end, or until `stop_after`; gives the losses.
fn run(settings: Settings, task: &Task, stop_after: Option<u64>) -> Vec<u64> {
    let mut model = Bigram::new();
    let mut trainer = Trainer::new(settings, &mut model, task, None);
    trainer.resume().unwrap();
    let mut losses = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Step(report) = event {
            losses.push(report.outcome.mean_loss().to_bits());
            if Some(report.step) == stop_after {
                return Wish::Stop;
            }
        }
        Wish::Continue
    };
    trainer.run(watch, &mut |_| Ok(())).unwrap();
    losses
}

#[test]
fn the_loss_falls_to_what_the_texts_leave_open() {
    let folder = tempfile::tempdir().unwrap();
    let losses = run(settings(folder.path(), 200), &counting(), None);
    let first = f64::from_bits(losses[0]);
    let last = f64::from_bits(losses[199]);
    // Nothing is known at first; each token is told by the one before.
    assert!((first - (VOCABULARY as f64).ln()).abs() < 1e-6, "{first}");
    assert!(last < 0.05, "{last}");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_losses() {
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let task = counting();
    let expected = run(settings(whole.path(), 12), &task, None);
    let mut losses = run(settings(parts.path(), 12), &task, Some(6));
    losses.extend(run(settings(parts.path(), 12), &task, None));
    assert_eq!(losses, expected);
}

#[test]
fn another_run_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let task = counting();
    run(settings(folder.path(), 4), &task, None);
    let mut model = Bigram::new();
    let other = Settings { fingerprint: "other".into(), ..settings(folder.path(), 4) };
    let error = Trainer::new(other, &mut model, &task, None).resume().unwrap_err();
    assert!(error.to_string().contains("another model, data or settings"), "{error}");
}

#[test]
fn passes_change_memory_and_not_the_loss() {
    let task = counting();
    let all: Vec<usize> = (0..20).collect();
    let gradient = |pass_tokens: usize| {
        let mut model = Bigram::new();
        model.table.iter_mut().zip(0..).for_each(|(x, i)| *x = (i % 5) as f32 * 0.1);
        let learn = LearnSettings { pass_tokens, balance: 0.0, seed: 0 };
        let outcome = task.learn(&mut model, &all, learn).unwrap();
        (outcome.mean_loss(), model.gradient)
    };
    let (one_loss, one) = gradient(usize::MAX);
    for pass_tokens in [1, 7, 30] {
        let (loss, parts) = gradient(pass_tokens);
        // Sums of 80 terms below 1 in f32, in another order: some 1e-7 each.
        assert!((loss - one_loss).abs() < 1e-6);
        assert!(one.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

fn pairs() -> Task {
    let of = |i: u32| PairSample { chosen: sample(&[i, 6, 1], 1), rejected: sample(&[i, 0, 2, 3], 1) };
    let loss = PreferenceOptions { beta: 0.5, ..PreferenceOptions::default() };
    Task::Preference { pairs: (1..6).map(of).collect(), loss, reference: None }
}

#[test]
fn preferences_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let Task::Preference { pairs, loss, .. } = pairs() else { unreachable!() };
    let mut model = Bigram::new();
    let reference = crate::task::reference(&mut model, &pairs, &[0, 1, 2, 3, 4], 8, |_| ()).unwrap();
    let task = Task::Preference { pairs, loss, reference: Some(reference) };
    let order = Order { n_samples: 5, per_step: 5, seed: 1 };
    let mut trainer = Trainer::new(Settings { order, ..settings(folder.path(), 60) }, &mut model, &task, None);
    let mut seen = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Step(report) = event {
            seen.push((report.outcome.mean_loss(), report.outcome.preferences().unwrap()));
        }
        Wish::Continue
    };
    trainer.run(watch, &mut |_| Ok(())).unwrap();
    assert!((seen[0].0 - std::f64::consts::LN_2).abs() < 1e-6, "{:?}", seen[0]);
    let (loss, (accuracy, margin)) = seen[59];
    assert!(loss < 0.2 && accuracy == 1.0 && margin > 1.0, "{loss} {accuracy} {margin}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_the_samples() {
    let folder = tempfile::tempdir().unwrap();
    let task = counting();
    run(settings(folder.path(), 4), &task, None);
    let mut model = Bigram::new();
    let mut trainer = Trainer::new(settings(folder.path(), 12), &mut model, &task, None);
    trainer.resume().unwrap();
    trainer.learner.parameters()[0].weights[3] = f32::NAN;
    let error = trainer.run(&mut |_| Wish::Continue, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("the loss of step 5 is NaN") && error.contains("t.jsonl, line 1"), "{error}");
    assert!(snapshot::latest(folder.path()).unwrap().unwrap().ends_with("step-000000004"));
}

#[test]
fn a_run_without_gain_ends_early_and_keeps_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let task = counting();
    // What is held out counts downwards, so that learning to count upwards makes it worse.
    let down = Task::NextToken((0..5).map(|i| sample(&[6, 5, 4, (i + 1) % 7], 1)).collect());
    let settings = Settings { evaluate_every: Some(2), patience: Some(3), ..settings(folder.path(), 100) };
    let mut model = Bigram::new();
    let mut trainer = Trainer::new(settings, &mut model, &task, Some(&down));
    let mut kept = 0;
    let ending = trainer.run(&mut |_| Wish::Continue, &mut |_| {
        kept += 1;
        Ok(())
    });
    assert_eq!(ending.unwrap(), Ending::NoGain);
    assert!(kept >= 1 && trainer.state().step < 100);
    assert_eq!(trainer.state().evaluations_without_gain, 3);
}

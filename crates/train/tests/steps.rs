//! A step on a real mixture of experts: packing and passes change neither loss nor gradient, and the loss falls.

use octet_checkpoint::Checkpoint;
use octet_model::{LoraOptions, LoraTarget};
use octet_train::adamw::{AdamW, Slot, StepSize};
use octet_train::dataset::Origin;
use octet_train::learner::Learner;
use octet_train::sample::{PairSample, Sample};
use octet_train::task::{LearnSettings, Task, reference};
use octet_train::{Model, PreferenceOptions, Trained, Tuned, new_adapter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn model(trained: impl FnOnce(&Checkpoint) -> Trained) -> Tuned {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    let fixtures = std::env::var_os("OCTET_FIXTURES").map_or_else(|| default.into(), PathBuf::from);
    let checkpoint = Arc::new(Checkpoint::open(&fixtures.join("mixtral-8x2")).unwrap());
    let trained = trained(&checkpoint);
    Tuned::new(Model::new(checkpoint, 2, trained).unwrap(), 1 << 20)
}

fn adapter(checkpoint: &Checkpoint) -> Trained {
    let targets = vec![LoraTarget::Attention, LoraTarget::Experts, LoraTarget::Router];
    let options = LoraOptions { targets, rank: 4, ..LoraOptions::default() };
    Trained::Adapter(new_adapter(options, checkpoint.params()).unwrap())
}

/// Ids that look random; the first `start` are not learned.
fn sample(seed: u32, length: u32, start: u32) -> Sample {
    let tokens = (0..length).map(|i| (seed * 7919 + i * i * 31 + i * 17) % 512).collect();
    let learned = (0..length).map(|i| i >= start.max(1)).collect();
    Sample { tokens, learned, origin: Origin { file: Path::new("t.jsonl").into(), number: 1 } }
}

fn samples() -> Task {
    Task::NextToken((0..6).map(|i| sample(i, 5 + 9 * i, i)).collect())
}

fn pairs() -> Task {
    let pair = |i| PairSample { chosen: sample(i, 20 + i, 9), rejected: sample(i + 50, 25, 9) };
    let pairs: Vec<_> = (0..5).map(pair).collect();
    let all: Vec<usize> = (0..pairs.len()).collect();
    let reference = Some(reference(&mut model(|_| Trained::Nothing), &pairs, &all, 64, |_| ()).unwrap());
    Task::Preference { pairs, loss: PreferenceOptions::default(), reference }
}

fn gradient(task: &Task, pass_tokens: usize) -> (f64, Vec<f32>) {
    let mut model = model(|_| Trained::All);
    let all: Vec<usize> = (0..task.len()).collect();
    let outcome = task.learn(&mut model, &all, LearnSettings { pass_tokens, balance: 0.0, seed: 0 }).unwrap();
    let gradient = model.parameters().iter().flat_map(|p| p.gradient.to_vec()).collect();
    (outcome.mean_loss(), gradient)
}

/// All samples in one pass, some in each, or each alone: sums in f32 in another order, over some 200 tokens.
#[test]
fn packing_and_accumulation_keep_loss_and_gradient_of_the_whole_batch() {
    for task in [samples(), pairs()] {
        let (one_loss, one) = gradient(&task, usize::MAX);
        let norm = one.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-3, "{norm}");
        for pass_tokens in [1, 60] {
            let (loss, parts) = gradient(&task, pass_tokens);
            assert!((loss - one_loss).abs() < 1e-6 * one_loss.abs(), "{loss} {one_loss}");
            let off = one.iter().zip(&parts).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            assert!(off < 2e-6 * norm, "{off} of {norm}");
        }
    }
}

#[test]
fn steps_lower_the_loss_of_adapters_and_of_all_weights() {
    let open: [fn(&Checkpoint) -> Trained; 2] = [adapter, |_| Trained::All];
    for (trained, rate) in open.into_iter().zip([1e-2, 3e-3]) {
        for task in [samples(), pairs()] {
            let mut model = model(trained);
            let all: Vec<usize> = (0..task.len()).collect();
            let mut moments: Vec<[Vec<f32>; 2]> =
                model.parameters().iter().map(|p| [vec![0.0; p.weights.len()], vec![0.0; p.weights.len()]]).collect();
            let mut losses = Vec::new();
            for step in 1..=15 {
                model.clear_gradients();
                let learn = LearnSettings { pass_tokens: 100, balance: 0.01, seed: step };
                losses.push(task.learn(&mut model, &all, learn).unwrap().mean_loss());
                let (parameters, pool) = model.parts();
                let slots = parameters.into_iter().zip(&mut moments).map(|(p, [first, second])| Slot {
                    weights: p.weights,
                    gradient: p.gradient,
                    first,
                    second,
                    decays: p.is_matrix,
                });
                AdamW::default().step(pool, StepSize { step, rate, gradient_factor: 1.0 }, slots.collect());
            }
            assert!(losses[14] < 0.75 * losses[0], "{losses:?}");
        }
    }
}

//! Whole runs against TRL's trainers: the same weights, adapter, samples and order give the same loss in every step, so the
//! rate, clipping, the optimizer, the reference and what a loss is divided by are all theirs. What was computed stands in the
//! head of `tools/reference_training.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octet_checkpoint::Checkpoint;
use octet_model::Adapter;
use octet_train::adamw::AdamW;
use octet_train::dataset::Origin;
use octet_train::packing::Order;
use octet_train::sample::{PairSample, Sample};
use octet_train::schedule::{Schedule, Shape};
use octet_train::task::{Task, reference};
use octet_train::trainer::{Event, Settings, StepReport, Trainer, Wish};
use octet_train::{Model, PreferenceOptions, Trained, Tuned};
use safetensors::SafeTensors;

/// What two f32 programs may differ by after a dozen steps, relative. AdamW divides a gradient by its size, so a weight whose
/// gradient is rounding alone moves by the full rate either way; a single wrong factor would show as 1e-2 and more.
const TOLERANCE: f64 = 2e-4;

fn fixtures() -> PathBuf {
    std::env::var_os("OCTET_FIXTURES")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").into(), PathBuf::from)
}

/// What TRL did: the samples of each step, and what each step gave.
struct Curve {
    steps: Vec<Vec<Sample>>,
    losses: Vec<f32>,
    rates: Vec<f32>,
    norms: Vec<f32>,
}

impl Curve {
    fn read(folder: &Path, method: &str) -> Curve {
        let bytes = std::fs::read(folder.join("training.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| file.tensor(&format!("{method}.{name}")).unwrap();
        let floats = |name: &str| {
            let data = tensor(name).data().to_vec();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let integers = |name: &str| {
            let data = tensor(name).data().to_vec();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let shape = tensor("input_ids").shape().to_vec();
        let (ids, learned) = (integers("input_ids"), integers("learned"));
        let sample = |(ids, learned): (&[i64], &[i64])| {
            let length = ids.iter().take_while(|&&id| id >= 0).count();
            Sample {
                tokens: ids[..length].iter().map(|&id| id as u32).collect(),
                learned: learned[..length].iter().map(|&l| l == 1).collect(),
                origin: Origin { file: Path::new("trl").into(), number: 1 },
            }
        };
        let samples: Vec<Sample> = ids.chunks_exact(shape[2]).zip(learned.chunks_exact(shape[2])).map(sample).collect();
        let steps = samples.chunks_exact(shape[1]).map(<[Sample]>::to_vec).collect();
        Curve { steps, losses: floats("losses"), rates: floats("rates"), norms: floats("norms") }
    }

    /// `units[i]` of step `s` where our order looks for it: `order.step(s)[i]`.
    fn in_order<T>(order: &Order, steps: Vec<Vec<T>>) -> Vec<T> {
        let mut placed: Vec<Option<T>> = (0..order.n_samples).map(|_| None).collect();
        for (step, units) in steps.into_iter().enumerate() {
            order.step(step as u64).into_iter().zip(units).for_each(|(at, unit)| placed[at] = Some(unit));
        }
        placed.into_iter().map(Option::unwrap).collect()
    }
}

fn open(folder: &Path) -> Tuned {
    let checkpoint = Arc::new(Checkpoint::open(folder).unwrap());
    let adapter = Adapter::read(&folder.join("lora"), checkpoint.params()).unwrap();
    Tuned::new(Model::new(checkpoint, 2, Trained::Adapter(adapter)).unwrap(), 1 << 20)
}

fn order(steps: usize, per_step: usize) -> Order {
    Order { n_samples: steps * per_step, per_step, seed: 11 }
}

/// A run with TRL's defaults.
fn run(model: &mut Tuned, task: &Task, order: Order, balance: f32, curve: &Curve) -> Vec<StepReport> {
    let scratch = tempfile::tempdir().unwrap();
    let total_steps = curve.losses.len() as u64;
    let peak = curve.rates[0];
    let settings = Settings {
        order,
        schedule: Schedule { shape: Shape::Linear, peak, floor: 0.0, warmup_steps: 0, total_steps },
        adamw: AdamW { weight_decay: 0.0, ..AdamW::default() },
        max_norm: Some(1.0),
        pass_tokens: if balance > 0.0 { usize::MAX } else { 60 },
        balance,
        evaluate_every: None,
        patience: None,
        save_every: 1000,
        snapshots: scratch.path().to_owned(),
        fingerprint: "curve".into(),
    };
    let mut reports = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Step(report) = event {
            reports.push(report.clone());
        }
        Wish::Continue
    };
    Trainer::new(settings, model, task, None).run(watch, &mut |_| Ok(())).unwrap();
    reports
}

fn assert_same(curve: &Curve, reports: &[StepReport], balance: f64) {
    assert_eq!(reports.len(), curve.losses.len());
    let near = |what: &str, step: usize, got: f64, want: f32| {
        let want = f64::from(want);
        assert!((got - want).abs() <= TOLERANCE * want.abs(), "{what} of step {step}: {got}, not {want}");
    };
    for (i, report) in reports.iter().enumerate() {
        let loss = report.outcome.mean_loss() + balance * report.outcome.mean_balance_loss();
        near("loss", i, loss, curve.losses[i]);
        near("rate", i, f64::from(report.rate), curve.rates[i]);
        near("norm", i, report.gradient_norm, curve.norms[i]);
    }
    // A run that stood still would prove nothing.
    assert!(reports.iter().any(|report| report.gradient_norm > 1.0), "no gradient was clipped");
}

#[test]
fn preferences_are_learned_step_by_step_as_by_trl() {
    let folder = fixtures().join("mixtral-8x2");
    let curve = Curve::read(&folder, "dpo");
    let mut model = open(&folder);
    let pairs = |step: &Vec<Sample>| {
        let two = step.chunks_exact(2);
        two.map(|two| PairSample { chosen: two[0].clone(), rejected: two[1].clone() }).collect::<Vec<_>>()
    };
    let steps: Vec<Vec<PairSample>> = curve.steps.iter().map(pairs).collect();
    let order = order(steps.len(), steps[0].len());
    let pairs = Curve::in_order(&order, steps);
    let all: Vec<usize> = (0..pairs.len()).collect();
    let reference = Some(reference(&mut model, &pairs, &all, 64, |_| ()).unwrap());
    let task = Task::Preference { pairs, loss: PreferenceOptions::default(), reference };
    let reports = run(&mut model, &task, order, 0.02, &curve);
    assert_same(&curve, &reports, 0.02);
}

#[test]
fn answers_are_learned_step_by_step_as_by_trl() {
    let folder = fixtures().join("mixtral-8x2");
    let curve = Curve::read(&folder, "sft");
    let order = order(curve.steps.len(), curve.steps[0].len());
    let task = Task::NextToken(Curve::in_order(&order, curve.steps.clone()));
    let reports = run(&mut open(&folder), &task, order, 0.0, &curve);
    assert_same(&curve, &reports, 0.0);
}

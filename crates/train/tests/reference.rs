//! The way back against PyTorch: losses and every gradient of each fixture, DPO, and PEFT's adapters; and against
//! differences of our own forward pass.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octet_checkpoint::write::outlines;
use octet_checkpoint::{Checkpoint, Layout};
use octet_model::{Adapter, LoraOptions, LoraTarget};
use octet_train::{
    AdapterUse, Batch, Gradients, Model, ParameterName, PreferenceOptions, StepOptions, Trained, new_adapter,
};
use safetensors::SafeTensors;

/// Largest difference over the largest value of a tensor.
const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    std::env::var_os("OCTET_FIXTURES")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").into(), PathBuf::from)
}

/// Every folder of the fixtures that holds this file or folder.
fn models_with(part: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let mut models: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.join(part).exists()).collect();
    models.sort();
    assert!(!models.is_empty(), "no model with {part} in {}", fixtures().display());
    models
}

struct File(Vec<u8>);

impl File {
    fn read(path: PathBuf) -> File {
        File(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn parsed(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = self.parsed();
        let data = file.tensor(name).unwrap_or_else(|_| panic!("no {name}")).data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integers(&self, name: &str) -> (Vec<i64>, usize) {
        let file = self.parsed();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        let values = tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        (values, *tensor.shape().last().unwrap())
    }
}

fn scalar(folder: &Path, name: &str) -> Option<f64> {
    let json: serde_json::Value = serde_json::from_slice(&File::read(folder.join("reference.json")).0).unwrap();
    json.get(name).and_then(serde_json::Value::as_f64)
}

fn open(folder: &Path, trained: Trained) -> Model {
    Model::new(Arc::new(Checkpoint::open(folder).unwrap()), 2, trained).unwrap()
}

fn batch_of(reference: &File) -> Batch {
    let ((ids, length), (labels, _)) = (reference.integers("input_ids"), reference.integers("labels"));
    let mut batch = Batch::default();
    for (ids, labels) in ids.chunks_exact(length).zip(labels.chunks_exact(length)) {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let labels: Vec<Option<u32>> = labels.iter().map(|&label| u32::try_from(label).ok()).collect();
        batch.push(&ids, &labels);
    }
    batch
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |a, b| a.max(b.abs().into()));
    let difference = got.iter().zip(expected).fold(0f64, |a, (g, e)| a.max(f64::from((g - e).abs())));
    assert!(difference <= TOLERANCE * largest, "{what}: differs by {difference}, the largest value is {largest}");
}

fn assert_near(what: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() <= TOLERANCE * expected.abs(), "{what}: {got}, not {expected}");
}

/// Gradients by Hugging Face's names, rows in its order.
fn by_name(model: &Model, gradients: &Gradients) -> Vec<(String, Vec<f32>)> {
    let outlines = outlines(Layout::HuggingFace, model.checkpoint().params());
    let named = model.parameters().iter().zip(gradients.iter()).map(|(parameter, gradient)| {
        let outline = outlines.iter().find(|o| ParameterName::Weight(o.parts[0]) == parameter.name).unwrap();
        let [rows, cols] = parameter.shape;
        let stored = (0..rows).flat_map(|row| gradient[outline.order.canonical(row) * cols..][..cols].to_vec());
        (outline.name.clone(), stored.collect())
    });
    named.collect()
}

#[test]
fn losses_and_all_gradients_agree_with_pytorch() {
    for folder in models_with("gradients.safetensors") {
        let reference = File::read(folder.join("reference.safetensors"));
        let expected = File::read(folder.join("gradients.safetensors"));
        let model = open(&folder, Trained::All);
        let aux_coefficient = scalar(&folder, "aux_coefficient").unwrap_or(0.0) as f32;
        for kept_bytes in [0, usize::MAX] {
            let options = StepOptions { aux_coefficient, kept_bytes, ..Default::default() };
            let mut gradients = model.zero_gradients();
            let report = model.loss_and_gradients(&batch_of(&reference), &options, &mut gradients).unwrap();
            let name = folder.display();
            assert_near(&format!("{name} loss"), report.loss, scalar(&folder, "loss").unwrap());
            if let Some(aux_loss) = scalar(&folder, "aux_loss") {
                assert_near(&format!("{name} aux_loss"), report.aux_loss.unwrap(), aux_loss);
            }
            let named = by_name(&model, &gradients);
            assert_eq!(named.len(), expected.parsed().len(), "{name}: one gradient a tensor");
            for (tensor, gradient) in &named {
                assert_close(&format!("{name} {tensor}"), gradient, &expected.floats(tensor));
            }
            assert_near(&format!("{name} norm"), gradients.norm(), scalar(&folder, "grad_norm").unwrap());
        }
    }
}

fn pairs_of(reference: &File) -> Batch {
    let [(chosen, length), (rejected, _)] = ["dpo.chosen", "dpo.rejected"].map(|name| reference.integers(name));
    let (prompt_len, _) = reference.integers("dpo.prompt_len");
    let mut batch = Batch::default();
    for (pair, &prompt_len) in prompt_len.iter().enumerate() {
        for answers in [&chosen, &rejected] {
            let ids: Vec<u32> = answers[pair * length..][..length].iter().map(|&id| id as u32).collect();
            let is_answer = |i: usize| i as i64 >= prompt_len;
            let labels: Vec<_> = ids.iter().enumerate().map(|(i, &id)| is_answer(i).then_some(id)).collect();
            batch.push(&ids, &labels);
        }
    }
    batch
}

fn every_second(values: &[f64], first: usize) -> Vec<f32> {
    values.iter().skip(first).step_by(2).map(|&x| x as f32).collect()
}

#[test]
fn preferences_agree_with_pytorch() {
    for folder in models_with("dpo-reference") {
        let reference = File::read(folder.join("reference.safetensors"));
        let batch = pairs_of(&reference);
        let other = open(&folder.join("dpo-reference"), Trained::Nothing);
        let of_reference = other.log_probabilities(&batch, AdapterUse::Off).unwrap();
        let model = open(&folder, Trained::All);
        let mut gradients = model.zero_gradients();
        let preference = PreferenceOptions { beta: scalar(&folder, "beta").unwrap(), ..Default::default() };
        let how = (&preference, &StepOptions::default());
        let (report, compared) =
            model.preference_and_gradients(&batch, Some(&of_reference), how, &mut gradients).unwrap();
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
        let policy = &report.log_probabilities;
        let cases = [
            ("dpo.policy.chosen_logps", every_second(policy, 0)),
            ("dpo.policy.rejected_logps", every_second(policy, 1)),
            ("dpo.reference.chosen_logps", every_second(&of_reference, 0)),
            ("dpo.reference.rejected_logps", every_second(&of_reference, 1)),
            ("dpo.losses", narrow(&compared.losses)),
            ("dpo.chosen_rewards", narrow(&compared.chosen_rewards)),
            ("dpo.rejected_rewards", narrow(&compared.rejected_rewards)),
        ];
        for (name, got) in cases {
            assert_close(&format!("{} {name}", folder.display()), &got, &reference.floats(name));
        }
        for (tensor, gradient) in by_name(&model, &gradients) {
            let name = format!("dpo.loss.gradients.{tensor}");
            if reference.parsed().tensor(&name).is_ok() {
                assert_close(&format!("{} {name}", folder.display()), &gradient, &reference.floats(&name));
            }
        }
        assert_near("dpo norm", gradients.norm(), scalar(&folder, "dpo_grad_norm").unwrap());
    }
}

/// The log-probability of each learned token follows from PEFT's logits.
#[test]
fn adapters_of_peft_give_its_loss() {
    for folder in models_with("lora") {
        let reference = File::read(folder.join("reference.safetensors"));
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let adapter = Adapter::read(&folder.join("lora"), checkpoint.params()).unwrap();
        let batch = batch_of(&reference);
        let vocab_size = checkpoint.params().vocab_size;
        let expected = |logits: &str| -> f64 {
            let logits = reference.floats(logits);
            let rows = logits.chunks_exact(vocab_size).zip(batch.targets());
            let wanted = rows.filter_map(|(row, target)| Some((row, (*target)? as usize)));
            let log_p = wanted.map(|(row, target)| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                f64::from(row[target]) - sum.ln()
            });
            -log_p.sum::<f64>() / batch.n_targets() as f64
        };
        let model = open(&folder, Trained::Adapter(adapter.clone()));
        let loss = |adapter| model.loss(&batch, &StepOptions::default(), adapter).unwrap().loss;
        assert_near(&format!("{} with its adapter", folder.display()), loss(AdapterUse::On), expected("lora.logits"));
        assert_near(&format!("{} without", folder.display()), loss(AdapterUse::Off), expected("logits"));
        assert_eq!(model.adapter().as_ref(), Some(&adapter), "what is not trained stays as it was read");
    }
}

#[test]
fn adapters_survive_being_written_and_read() {
    let scratch = tempfile::tempdir().unwrap();
    for (index, folder) in models_with("reference.safetensors").iter().enumerate() {
        let params = Checkpoint::open(folder).unwrap().params().clone();
        let mut targets = vec![LoraTarget::Attention, LoraTarget::Experts, LoraTarget::Head];
        targets.extend(params.moe.map(|_| LoraTarget::Router));
        targets.sort();
        let options = LoraOptions { rank: 3, alpha: 5.0, dropout: 0.1, rank_stabilized: true, targets, seed: 0 };
        let mut adapter = new_adapter(options, &params).unwrap();
        for (i, change) in adapter.matrices.values_mut().enumerate() {
            change.b.iter_mut().enumerate().for_each(|(j, b)| *b = (i * 31 + j) as f32 / 100.0);
        }
        let out = scratch.path().join(index.to_string());
        adapter.write(&out, &params, "base").unwrap();
        assert_eq!(Adapter::read(&out, &params).unwrap(), adapter, "{}", folder.display());
    }
}

/// Every fifth trained array, of all kinds, against the difference quotient of the loss. A step of 1e-3 moves the
/// loss by more than its rounding (1e-6 or less); that and the second derivative leave some percent.
#[test]
fn adapters_gradients_agree_with_differences() {
    let has_router = |folder: &&PathBuf| Checkpoint::open(folder).unwrap().params().moe.is_some();
    let folders = models_with("gradients.safetensors");
    let folder = folders.iter().find(has_router).expect("a mixture of experts");
    let params = Checkpoint::open(folder).unwrap().params().clone();
    let targets = vec![LoraTarget::Attention, LoraTarget::Experts, LoraTarget::Router, LoraTarget::Head];
    let options = LoraOptions { rank: 2, alpha: 4.0, dropout: 0.2, rank_stabilized: false, targets, seed: 5 };
    let mut adapter = new_adapter(options, &params).unwrap();
    for (i, change) in adapter.matrices.values_mut().enumerate() {
        change.b.iter_mut().enumerate().for_each(|(j, b)| *b = ((i * 31 + j * 17) % 41) as f32 / 100.0 - 0.2);
    }
    let mut model = open(folder, Trained::Adapter(adapter));
    let batch = batch_of(&File::read(folder.join("reference.safetensors")));
    let step = StepOptions { dropout_seed: Some(11), ..Default::default() };
    let mut gradients = model.zero_gradients();
    model.loss_and_gradients(&batch, &step, &mut gradients).unwrap();
    let largest = gradients.iter().flatten().fold(0f32, |a, b| a.max(b.abs()));
    for index in (0..gradients.iter().len()).step_by(5) {
        let gradient = gradients.iter().nth(index).unwrap().to_vec();
        // The steepest number of each array.
        let at = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        let mut shifted = |by: f32| {
            model.parameters_mut().iter_mut().nth(index).unwrap().values[at] += by;
            let mut unused = model.zero_gradients();
            let loss = model.loss_and_gradients(&batch, &step, &mut unused).unwrap().loss;
            model.parameters_mut().iter_mut().nth(index).unwrap().values[at] -= by;
            loss
        };
        let (less, here, more) = (shifted(-1e-3), shifted(0.0), shifted(1e-3));
        // A step to one side may make a router choose another expert, which is a leap and no slope.
        let slopes = [(here - less) / 1e-3, (more - here) / 1e-3];
        let got = f64::from(gradient[at]);
        let name = model.parameters().iter().nth(index).unwrap().name;
        let is_near = |want: &f64| (got - want).abs() <= 0.03 * want.abs() + 5e-3 * f64::from(largest);
        assert!(slopes.iter().any(is_near), "{name}: {got}, but {slopes:?}");
    }
}

#[test]
fn samples_do_not_see_each_other() {
    let folder = &models_with("gradients.safetensors")[0];
    let model = open(folder, Trained::Nothing);
    let both = batch_of(&File::read(folder.join("reference.safetensors")));
    let together = model.log_probabilities(&both, AdapterUse::On).unwrap();
    let mut start = 0;
    for (sample, &len) in both.lengths().iter().enumerate() {
        let mut alone = Batch::default();
        let labels: Vec<_> = std::iter::once(None).chain(both.targets()[start..start + len - 1].to_vec()).collect();
        alone.push(&both.tokens()[start..start + len], &labels);
        let alone = model.log_probabilities(&alone, AdapterUse::On).unwrap()[0];
        assert!((alone - together[sample]).abs() < 1e-4, "sample {sample}: {alone} {}", together[sample]);
        start += len;
    }
}

//! Adapters over the model: PEFT's logits, quantized weights below, several adapters in one batch.

use std::path::{Path, PathBuf};

use octet_checkpoint::{Checkpoint, ElementType};
use octet_kernels::KvType;
use octet_model::{
    Adapter, AdapterId, Batch, KvCache, LoadOptions, Logits, LoraOptions, LoraTarget, LowRankValues, Nothing,
    Transformer, Workspace,
};
use safetensors::SafeTensors;

/// Largest difference over the largest value, as for the models themselves: f32 sums in another order than PyTorch's.
const TOLERANCE: f32 = 1e-4;

fn fixtures() -> PathBuf {
    std::env::var_os("OCTET_FIXTURES")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").into(), PathBuf::from)
}

/// Every model of the fixtures that has an adapter.
fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let models: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.join("lora").exists()).collect();
    assert!(!models.is_empty(), "no adapters in {}", fixtures().display());
    models
}

/// Token ids `[samples, length]` and an output of the reference.
struct Reference {
    ids: Vec<u32>,
    length: usize,
    bytes: Vec<u8>,
}

impl Reference {
    fn of(model: &Path) -> Reference {
        let bytes = std::fs::read(model.join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("input_ids").unwrap();
        let length = *ids.shape().last().unwrap();
        let ids = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        Reference { ids, length, bytes }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn samples(&self) -> impl Iterator<Item = &[u32]> {
        self.ids.chunks_exact(self.length)
    }
}

fn open(path: &Path, quantize: Option<ElementType>) -> Transformer {
    Transformer::open(path, 2, LoadOptions { quantize, ..Default::default() }).unwrap()
}

/// Logits of texts that run in one batch, each with an adapter or without; text after text.
fn logits(model: &Transformer, texts: &[(&[u32], Option<AdapterId>)], chunk: usize) -> Vec<Vec<f32>> {
    let n_tokens = texts.iter().map(|(text, _)| text.len().next_multiple_of(KvCache::PAGE_TOKENS)).sum();
    let mut cache = KvCache::new(model.config(), KvType::F32, n_tokens).unwrap();
    let (mut workspace, mut all) = (Workspace::default(), vec![Vec::new(); texts.len()]);
    let sequences: Vec<_> = texts.iter().map(|_| cache.add_sequence()).collect();
    let longest = texts.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
    for first in (0..longest).step_by(chunk) {
        let mut batch = Batch::default();
        let parts = texts.iter().map(|(text, _)| &text[first.min(text.len())..(first + chunk).min(text.len())]);
        let parts: Vec<&[u32]> = parts.collect();
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            batch.push_adapted(sequences[i], texts[i].1, part, Logits::All);
        }
        let mut rest = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap();
        for (of, part) in all.iter_mut().zip(parts) {
            let (own, after) = rest.split_at(part.len() * model.config().vocab_size);
            of.extend_from_slice(own);
            rest = after;
        }
    }
    all
}

/// Logits of the reference's texts in one batch.
fn all_logits(model: &Transformer, reference: &Reference, adapter: Option<AdapterId>) -> Vec<f32> {
    let texts: Vec<_> = reference.samples().map(|text| (text, adapter)).collect();
    logits(model, &texts, usize::MAX).concat()
}

/// Of each row: root of the mean square of the difference, over that of `expected`; the median of all rows. A row for which
/// rounding turns the router to another expert is far off, with an adapter and without, and is not what is looked for here.
fn error(got: &[f32], expected: &[f32], vocab_size: usize) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let of_row = |(got, expected): (&[f32], &[f32])| {
        let difference = squares(&mut got.iter().zip(expected).map(|(a, b)| a - b));
        (difference / squares(&mut expected.iter().copied())).sqrt()
    };
    let mut errors: Vec<f64> = got.chunks(vocab_size).zip(expected.chunks(vocab_size)).map(of_row).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

#[test]
fn adapters_of_peft_give_its_logits() {
    for folder in models() {
        let reference = Reference::of(&folder);
        let mut model = open(&folder, None);
        let params = Checkpoint::open(&folder).unwrap().params().clone();
        let adapter = model.add_adapter(&Adapter::read(&folder.join("lora"), &params).unwrap()).unwrap();
        for (adapter, name) in [(Some(adapter), "lora.logits"), (None, "logits")] {
            let (got, expected) = (all_logits(&model, &reference, adapter), reference.floats(name));
            let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
            let difference = got.iter().zip(&expected).fold(0f32, |a, (g, e)| a.max((g - e).abs()));
            let what = format!("{} {name}: {difference} of {largest}", folder.display());
            assert!(difference <= TOLERANCE * largest, "{what}");
        }
    }
}

/// Rounding the weights moves logits as much with an adapter as without: its own numbers stay f32. How much is no constant
/// of the model, so twice is allowed; a missing adapter would be off by much more, which is checked too.
#[test]
fn over_quantized_weights_they_err_as_the_weights_do() {
    for folder in models() {
        let reference = Reference::of(&folder);
        let params = Checkpoint::open(&folder).unwrap().params().clone();
        let [plain, adapted] = ["logits", "lora.logits"].map(|name| reference.floats(name));
        let read = Adapter::read(&folder.join("lora"), &params).unwrap();
        for kind in [ElementType::Q8_0, ElementType::BF16, ElementType::Q5_K, ElementType::Q4_0] {
            let mut model = open(&folder, Some(kind));
            let adapter = model.add_adapter(&read).unwrap();
            let without = error(&all_logits(&model, &reference, None), &plain, params.vocab_size);
            let with = error(&all_logits(&model, &reference, Some(adapter)), &adapted, params.vocab_size);
            assert!(with <= 2.0 * without, "{} {kind}: {with}, without an adapter {without}", folder.display());
            if kind == ElementType::Q8_0 {
                let missing = error(&plain, &adapted, params.vocab_size);
                assert!(with < missing / 2.0, "{}: {with}, without the adapter {missing}", folder.display());
            }
        }
    }
}

/// An adapter of everything, with numbers that mean nothing.
fn of_everything(folder: &Path, seed: usize) -> Adapter {
    let params = Checkpoint::open(folder).unwrap().params().clone();
    let targets = vec![LoraTarget::Attention, LoraTarget::Experts, LoraTarget::Router, LoraTarget::Head];
    let options = LoraOptions { rank: 3 + seed, targets, ..LoraOptions::default() };
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 5045.0 - 0.1;
    let change = |name| {
        let [rows, cols] = params.shape(name);
        let values = |n: usize| (0..n * options.rank).map(number).collect();
        (name, LowRankValues { rank: options.rank, scale: 1.5, a: values(cols), b: values(rows) })
    };
    let matrices = options.tensors(&params).into_iter().map(change).collect();
    Adapter { options, matrices }
}

#[test]
fn answers_depend_on_the_own_adapter_alone() {
    for folder in models() {
        let reference = Reference::of(&folder);
        let text = reference.samples().next().unwrap();
        for kind in [None, Some(ElementType::Q8_0), Some(ElementType::Q4_K)] {
            let mut model = open(&folder, kind);
            let [a, b] = [0, 4].map(|seed| Some(model.add_adapter(&of_everything(&folder, seed)).unwrap()));
            let texts = [(text, a), (&text[1..], None), (text, b), (&text[2..], a), (&text[3..], a), (text, None)];
            let together = logits(&model, &texts, 7);
            for (i, text) in texts.iter().enumerate() {
                for chunk in [1, 5, usize::MAX] {
                    let alone = logits(&model, &[*text], chunk).concat();
                    let same = alone.iter().zip(&together[i]).all(|(x, y)| x.to_bits() == y.to_bits());
                    assert!(same && alone.len() == together[i].len(), "{} {kind:?} text {i}", folder.display());
                }
            }
            assert!(
                error(&together[0], &together[2], model.config().vocab_size) > 1e-3,
                "two adapters answer differently"
            );
        }
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_by_name() {
    let folders = models();
    let read = |adapter: &Path, model: &Path| {
        let params = Checkpoint::open(model).unwrap().params().clone();
        Adapter::read(adapter, &params).map(|_| ())
    };
    let (own, other) =
        (&folders[0], folders.iter().find(|f| open(f, None).config() != open(&folders[0], None).config()));
    let other = other.expect("fixtures of two shapes");
    let message = read(&own.join("lora"), other).unwrap_err().to_string();
    assert!(message.contains("adapter_model.safetensors") && message.contains("another model's adapter"), "{message}");
    let message = read(&own.join("nowhere"), own).unwrap_err().to_string();
    assert!(message.contains("adapter_config.json") && message.contains("give the folder"), "{message}");
    assert!(open(other, None).add_adapter(&of_everything(own, 0)).is_err());
}

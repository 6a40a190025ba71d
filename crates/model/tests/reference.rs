//! The model against transformers: logits, hidden states, routing and greedy text of every fixture, from both float
//! layouts, at once, token by token and in any chunking.

use std::path::PathBuf;
use std::sync::Arc;

use octet_checkpoint::{Checkpoint, ExpertMatrix, LayerTensor};
use octet_kernels::KvType;
use octet_model::{
    Batch, KvCache, Layerwise, LoadOptions, Logits, Nothing, Packing, Record, Routing, Transformer, Workspace,
};
use safetensors::SafeTensors;

/// Largest difference over the largest value. f32 sums in another order than PyTorch's: the widths of the fixtures (256 at
/// most) and their three layers leave some 1e-6; wider models, which OCTET_FIXTURES may bring, leave more.
const TOLERANCE: f32 = 1e-4;

fn fixtures() -> PathBuf {
    std::env::var_os("OCTET_FIXTURES")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").into(), PathBuf::from)
}

/// Every folder of the fixtures that holds reference outputs.
fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let mut models: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.join("reference.safetensors").exists()).collect();
    models.sort();
    assert!(!models.is_empty(), "no models in {}", fixtures().display());
    models
}

struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    fn of(model: &std::path::Path) -> Reference {
        Reference { bytes: std::fs::read(model.join("reference.safetensors")).unwrap() }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap_or_else(|_| panic!("no {name}")).data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ids(&self, name: &str) -> (Vec<u32>, usize) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        let ids = tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
        (ids, *tensor.shape().last().unwrap())
    }
}

#[derive(Default, PartialEq, Debug)]
struct Seen {
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    router_logits: Vec<Vec<f32>>,
    experts: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
}

fn extend<T: Clone>(lists: &mut Vec<Vec<T>>, index: usize, values: &[T]) {
    lists.resize_with(lists.len().max(index + 1), Vec::new);
    lists[index].extend_from_slice(values);
}

impl Record for Seen {
    fn hidden(&mut self, index: usize, x: &[f32]) {
        extend(&mut self.hidden, index, x);
    }

    fn routing(&mut self, layer: usize, routing: &Routing) {
        extend(&mut self.router_logits, layer, &routing.logits);
        extend(&mut self.experts, layer, &routing.experts);
        extend(&mut self.weights, layer, &routing.weights);
    }
}

fn run(model: &Transformer, ids: &[u32], length: usize, chunk: usize) -> Seen {
    let mut seen = Seen::default();
    let mut cache = KvCache::new(model.config(), KvType::F32, length).unwrap();
    let mut workspace = Workspace::default();
    for tokens in ids.chunks_exact(length) {
        let sequence = cache.add_sequence();
        for chunk in tokens.chunks(chunk) {
            let mut batch = Batch::default();
            batch.push(sequence, chunk, Logits::All);
            let logits = model.forward(&batch, &mut cache, &mut workspace, &mut seen).unwrap();
            seen.logits.extend_from_slice(logits);
        }
        cache.remove_sequence(sequence);
    }
    seen
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let difference = got.iter().zip(expected).fold(0f32, |a, (g, e)| a.max((g - e).abs()));
    assert!(difference <= TOLERANCE * largest, "{what}: differs by {difference}, the largest value is {largest}");
}

fn open(path: &std::path::Path, threads: usize) -> Transformer {
    Transformer::open(path, threads, LoadOptions::default()).unwrap()
}

#[test]
fn every_layer_agrees_with_transformers() {
    for folder in models() {
        let reference = Reference::of(&folder);
        let (ids, length) = reference.ids("input_ids");
        // The repository leaves the widest model's second copy out, to stay small.
        let raw = Some(folder.join("mistral-raw").join("experts")).filter(|raw| raw.exists());
        for layout in std::iter::once(folder.clone()).chain(raw) {
            let name = layout.display().to_string();
            let seen = run(&open(&layout, 2), &ids, length, length);
            assert_close(&format!("{name} logits"), &seen.logits, &reference.floats("logits"));
            for (i, hidden) in seen.hidden.iter().enumerate() {
                assert_close(&format!("{name} hidden.{i}"), hidden, &reference.floats(&format!("hidden.{i}")));
            }
            for (i, logits) in seen.router_logits.iter().enumerate().filter(|(_, l)| !l.is_empty()) {
                assert_close(
                    &format!("{name} router_logits.{i}"),
                    logits,
                    &reference.floats(&format!("router_logits.{i}")),
                );
                assert_close(
                    &format!("{name} weights.{i}"),
                    &seen.weights[i],
                    &reference.floats(&format!("expert_weights.{i}")),
                );
                assert_eq!(seen.experts[i], reference.ids(&format!("experts.{i}")).0, "{name} experts.{i}");
            }
        }
    }
}

#[test]
fn chunks_threads_and_neighbours_change_no_bit() {
    for folder in models() {
        let (ids, length) = Reference::of(&folder).ids("input_ids");
        let model = open(&folder, 2);
        let whole = run(&model, &ids, length, length);
        for chunk in [1, 5, 16] {
            assert!(run(&model, &ids, length, chunk) == whole, "{}: chunks of {chunk}", folder.display());
        }
        for threads in [1, 3] {
            let other = run(&open(&folder, threads), &ids, length, 7);
            assert!(other == whole, "{}: {threads} threads", folder.display());
        }
        let together = run_ragged(&model, &ids, length);
        assert!(together == whole.logits, "{}: all sequences in one batch", folder.display());
    }
}

#[test]
fn packing_meanwhile_changes_no_bit() {
    for folder in models() {
        let (ids, length) = Reference::of(&folder).ids("input_ids");
        let packed = run(&open(&folder, 2), &ids, length, length);
        let options = LoadOptions { packing: Packing::Meanwhile, ..Default::default() };
        let model = Transformer::open(&folder, 2, options).unwrap();
        assert!(run(&model, &ids, length, 5) == packed, "{}: while it is packed", folder.display());
        model.settle();
        assert!(run(&model, &ids, length, 5) == packed, "{}: when it is packed", folder.display());
    }
}

#[test]
fn rows_that_nobody_asks_for_leave_early_and_change_no_bit() {
    for folder in models() {
        let (ids, length) = Reference::of(&folder).ids("input_ids");
        let model = open(&folder, 2);
        let vocab_size = model.config().vocab_size;
        let all = run(&model, &ids, length, length).logits;
        let mut cache =
            KvCache::new(model.config(), KvType::F32, ids.len() / length * length.next_multiple_of(256)).unwrap();
        let mut batch = Batch::default();
        for tokens in ids.chunks_exact(length) {
            batch.push(cache.add_sequence(), tokens, Logits::None);
        }
        batch.logit_rows = vec![length - 1, 1, ids.len() - 1];
        let mut workspace = Workspace::default();
        let logits = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap();
        for (&row, logits) in batch.logit_rows.iter().zip(logits.chunks_exact(vocab_size)) {
            assert!(logits == &all[row * vocab_size..][..vocab_size], "{}: row {row}", folder.display());
        }
    }
}

/// All sequences side by side in batches of uneven runs; gives the logits in the order of `run`.
fn run_ragged(model: &Transformer, ids: &[u32], length: usize) -> Vec<f32> {
    let n = ids.len() / length;
    let vocab_size = model.config().vocab_size;
    let mut cache = KvCache::new(model.config(), KvType::F32, n * KvCache::PAGE_TOKENS).unwrap();
    let mut workspace = Workspace::default();
    let sequences: Vec<_> = (0..n).map(|_| cache.add_sequence()).collect();
    let mut done = vec![0; n];
    let mut logits = vec![0.0; n * length * vocab_size];
    while done.iter().any(|&d| d < length) {
        let mut batch = Batch::default();
        let mut rows = Vec::new();
        for (i, &sequence) in sequences.iter().enumerate() {
            let take = (i * 3 + 1 + done[i] % 4).min(length - done[i]);
            batch.push(sequence, &ids[i * length + done[i]..][..take], Logits::All);
            rows.extend((0..take).map(|t| i * length + done[i] + t));
            done[i] += take;
        }
        let out = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap();
        for (row, out) in rows.into_iter().zip(out.chunks_exact(vocab_size)) {
            logits[row * vocab_size..][..vocab_size].copy_from_slice(out);
        }
    }
    logits
}

#[test]
fn greedy_text_agrees_with_transformers() {
    for folder in models() {
        let reference = Reference::of(&folder);
        let (ids, length) = reference.ids("input_ids");
        let (greedy, n) = reference.ids("greedy");
        let model = open(&folder, 2);
        let mut cache = KvCache::new(model.config(), KvType::F32, length + n).unwrap();
        let mut workspace = Workspace::default();
        for (prompt, expected) in ids.chunks_exact(length).zip(greedy.chunks_exact(n)) {
            let sequence = cache.add_sequence();
            let mut next = prompt.to_vec();
            let mut answer = Vec::new();
            while answer.len() < n {
                let mut batch = Batch::default();
                batch.push(sequence, &next, Logits::Last);
                let logits = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap();
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap();
                answer.push(best as u32);
                next = vec![best as u32];
            }
            assert_eq!(answer, expected, "{}", folder.display());
            cache.remove_sequence(sequence);
        }
    }
}

/// A layer at a time, an expert at a time, all texts at once: the same numbers, and the inputs of every matrix.
#[test]
fn a_layer_at_a_time_gives_the_same_numbers() {
    #[derive(Default)]
    struct Inputs {
        rows: std::collections::BTreeMap<(usize, usize), usize>,
        seen: Seen,
    }
    impl Record for Inputs {
        fn routing(&mut self, layer: usize, routing: &Routing) {
            self.seen.routing(layer, routing);
        }
        fn input(&mut self, layer: usize, tensor: LayerTensor, x: &[f32], cols: usize) {
            let kind = match tensor {
                LayerTensor::Wq => 0,
                LayerTensor::Wo => 1,
                LayerTensor::Expert(_, ExpertMatrix::W1) => 2,
                LayerTensor::Expert(_, ExpertMatrix::W2) => 3,
                _ => 4,
            };
            *self.rows.entry((layer, kind)).or_default() += x.len() / cols;
        }
    }
    for folder in models() {
        let (ids, length) = Reference::of(&folder).ids("input_ids");
        let expected = run(&open(&folder, 2), &ids, length, length);
        let model = Layerwise::new(Arc::new(Checkpoint::open(&folder).unwrap()), 2).unwrap();
        let texts: Vec<&[u32]> = ids.chunks_exact(length).collect();
        let (mut inputs, mut last) = (Inputs::default(), (0, 0));
        let normed = model.forward(&texts, &mut inputs, &mut |done, total| last = (done, total)).unwrap();
        assert_close("logits", &model.head().unwrap().logits(&normed), &expected.logits);
        assert_eq!(inputs.seen.experts.concat(), expected.experts.concat(), "{}", folder.display());
        assert!(last.0 > 0 && last.0 < last.1, "{last:?}: all but embedding and head");
        let per_token = model.config().num_experts_per_tok;
        for layer in 0..model.config().n_layers {
            let rows = |kind| inputs.rows[&(layer, kind)];
            let n = ids.len();
            assert_eq!([rows(0), rows(1), rows(2), rows(3)], [n, n, n * per_token, n * per_token]);
        }
        assert!(model.forward(&[&[u32::MAX]], &mut Nothing, &mut |_, _| {}).is_err());
    }
}

#[test]
fn bad_batches_change_nothing() {
    let model = open(&models()[0], 1);
    let mut cache = KvCache::new(model.config(), KvType::F16, KvCache::PAGE_TOKENS).unwrap();
    let mut workspace = Workspace::default();
    let (a, b) = (cache.add_sequence(), cache.add_sequence());
    let mut batch = Batch::default();
    batch.push(a, &[1, u32::MAX], Logits::Last);
    let error = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap_err().to_string();
    assert!(error.contains("4294967295") && error.contains("vocabulary"), "{error}");
    batch.clear();
    batch.push(a, &[1; 10], Logits::Last);
    batch.push(b, &[1; 60], Logits::Last);
    let error = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap_err().to_string();
    assert!(error.contains("60") && error.contains("cache is full"), "{error}");
    assert_eq!((cache.len(a), cache.len(b)), (0, 0));
    batch.clear();
    batch.experts_per_token = Some(99);
    batch.push(a, &[1], Logits::Last);
    let error = model.forward(&batch, &mut cache, &mut workspace, &mut Nothing).unwrap_err().to_string();
    assert!(error.contains("99 experts"), "{error}");
}

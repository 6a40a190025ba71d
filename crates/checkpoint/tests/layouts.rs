//! One model out of three layouts: the same numbers, bit for bit.
//!
//! The reference models were written by transformers and torch in Hugging Face's layout and in Mistral's two; the
//! GGUFs are built here from the first.

mod support;

use std::collections::HashMap;
use std::path::Path;

use octet_checkpoint::{Architecture, Checkpoint, Layout, Moe, Params, TensorName};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use support::{Experts, Key, MODELS, bytes, fixture, to_gguf, values};

fn open(path: &Path) -> Checkpoint {
    let checkpoint = Checkpoint::open(path).unwrap();
    let unexpected: Vec<_> = checkpoint.unexpected().map(|(_, tensor)| tensor.name.clone()).collect();
    assert_eq!(unexpected, Vec::<String>::new(), "{}", path.display());
    checkpoint
}

/// Every tensor of `a` equals that of `b`, `round` applied to the values of `a` first.
fn assert_same(a: &Checkpoint, b: &Checkpoint, round: fn(f32) -> f32) {
    for name in a.params().tensors() {
        let a: Vec<f32> = values(&a.tensor(name).unwrap()).into_iter().map(round).collect();
        assert_eq!(a, values(&b.tensor(name).unwrap()), "{name} of {}", b.path().display());
    }
}

/// The params agree in all that the other layout's file can say.
fn assert_same_shape(a: &Params, b: &Params) {
    let sayable = |params: &Params| Params {
        architecture: Architecture::Llama,
        context_length: None,
        tied_embeddings: false,
        router_aux_loss_coef: None,
        bos_id: None,
        eos_id: None,
        ..params.clone()
    };
    assert_eq!(sayable(a), sayable(b));
}

#[test]
fn mistrals_two_namings_hold_what_hugging_face_holds() {
    let mut compared = HashMap::new();
    for model in MODELS {
        let reference = open(&fixture(model));
        assert_eq!(reference.layout(), Layout::HuggingFace);
        let to_bf16 = |x| half::bf16::from_f32(x).to_f32();
        for naming in ["experts", "stacked"] {
            let round: fn(f32) -> f32 = if naming == "stacked" { to_bf16 } else { |x| x };
            let folder = fixture(model).join("mistral-raw").join(naming);
            if folder.is_dir() {
                let raw = open(&folder);
                assert_eq!(raw.layout(), Layout::MistralRelease);
                assert_same_shape(reference.params(), raw.params());
                assert_same(&reference, &raw, round);
                *compared.entry(naming).or_insert(0) += 1;
            }
        }
    }
    assert!(compared["experts"] >= 4 && compared["stacked"] >= 4, "the reference data is incomplete: {compared:?}");
}

#[test]
fn gguf_holds_what_hugging_face_holds() {
    let folder = tempfile::tempdir().unwrap();
    for model in MODELS {
        let reference = open(&fixture(model));
        for (experts, version) in [(Experts::Merged, 3), (Experts::OneTensorEach, 2)] {
            let path = folder.path().join(format!("{model}-{version}.gguf"));
            let mut file = to_gguf(&reference, experts);
            file.version = version;
            file.write(&path);
            let gguf = open(&path);
            assert_eq!(gguf.layout(), Layout::Gguf);
            assert_same_shape(reference.params(), gguf.params());
            assert_eq!(gguf.params().tied_embeddings, reference.params().tied_embeddings);
            assert_eq!((gguf.params().bos_id, gguf.params().eos_id), (Some(1), Some(2)));
            for name in reference.params().tensors() {
                let stored = gguf.tensor(name).unwrap();
                let to_f16 = |x| half::f16::from_f32(x).to_f32();
                let mut expected = values(&reference.tensor(name).unwrap());
                if stored.element_type() == octet_checkpoint::ElementType::F16 {
                    expected.iter_mut().for_each(|x| *x = to_f16(*x));
                }
                assert_eq!(values(&stored), expected, "{name}");
                assert_eq!(stored.borrow().unwrap(), bytes(&stored));
            }
        }
    }
}

#[test]
fn a_split_gguf_is_opened_by_any_part_and_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let reference = open(&fixture("mixtral-8x2"));
    let whole = to_gguf(&reference, Experts::Merged);
    let part = |n: usize| folder.path().join(format!("m-{:05}-of-00003.gguf", n + 1));
    for n in 0..3 {
        let mut file = whole.clone();
        if n > 0 {
            file.keys.clear();
        }
        file.tensors = whole.tensors.iter().skip(n).step_by(3).cloned().collect();
        file.key("split.no", Key::U16(n as u16))
            .key("split.count", Key::U16(3))
            .key("split.tensors.count", Key::I32(whole.tensors.len() as i32))
            .write(&part(n));
    }
    for path in [part(0), part(2), folder.path().to_owned()] {
        let checkpoint = open(&path);
        assert_eq!(checkpoint.files(), [part(0), part(1), part(2)]);
        assert_same(&reference, &checkpoint, |x| x);
    }
    std::fs::rename(part(1), folder.path().join("away")).unwrap();
    let message = Checkpoint::open(&part(0)).unwrap_err().to_string();
    assert!(message.contains("m-00002-of-00003.gguf: is missing"), "{message}");
    std::fs::copy(part(0), part(1)).unwrap();
    let message = Checkpoint::open(&part(0)).unwrap_err().to_string();
    assert!(message.contains("calls itself part 1 of 3, where part 2 of 3 is expected"), "{message}");
}

/// The tensors of a model's only weights file, by the format's own crate.
fn with_tensors<R>(model: &str, act: impl FnOnce(Vec<(String, TensorView<'_>)>) -> R) -> R {
    let bytes = std::fs::read(fixture(model).join("model.safetensors")).unwrap();
    act(SafeTensors::deserialize(&bytes).unwrap().tensors())
}

fn write(path: &Path, tensors: Vec<(String, TensorView<'_>)>) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

#[test]
fn a_sharded_checkpoint_is_the_union_of_its_shards() {
    let folder = tempfile::tempdir().unwrap();
    let reference = open(&fixture("mixtral-4x3"));
    std::fs::copy(fixture("mixtral-4x3/config.json"), folder.path().join("config.json")).unwrap();
    let shard = |n: usize| format!("model-{n:05}-of-00002.safetensors");
    with_tensors("mixtral-4x3", |tensors| {
        let map: HashMap<_, _> =
            tensors.iter().enumerate().map(|(i, (name, _))| (name.clone(), shard(1 + i % 2))).collect();
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        for n in 0..2 {
            write(&folder.path().join(shard(n + 1)), tensors.iter().skip(n).step_by(2).cloned().collect());
        }
    });
    for path in ["", "model.safetensors.index.json", "config.json", "model-00002-of-00002.safetensors"] {
        let checkpoint = open(&folder.path().join(path));
        assert_eq!(checkpoint.files().len(), 2);
        assert_same(&reference, &checkpoint, |x| x);
    }
    std::fs::remove_file(folder.path().join(shard(1))).unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("model-00001-of-00002.safetensors: is missing"), "{message}");
}

#[test]
fn a_release_in_parts_is_the_union_of_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let raw = "mixtral-8x2/mistral-raw/experts";
    let reference = open(&fixture(raw));
    std::fs::copy(fixture(raw).join("params.json"), folder.path().join("params.json")).unwrap();
    let whole = std::fs::read(fixture(raw).join("consolidated.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap().tensors();
    let part = |n: usize| folder.path().join(format!("consolidated.{n:02}.safetensors"));
    for n in 0..3 {
        write(&part(n), tensors.iter().skip(n).step_by(3).cloned().collect());
    }
    for path in [folder.path().to_owned(), part(1), folder.path().join("params.json")] {
        let checkpoint = open(&path);
        assert_eq!(checkpoint.files(), [part(0), part(1), part(2)]);
        assert_same(&reference, &checkpoint, |x| x);
    }
    // What the parts share may be repeated, but not contradicted.
    let repeated = tensors.first().unwrap().clone();
    write(&part(3), vec![repeated.clone()]);
    assert_same(&reference, &open(folder.path()), |x| x);
    let mut data = repeated.1.data().to_vec();
    *data.last_mut().unwrap() ^= 1;
    let other = TensorView::new(repeated.1.dtype(), repeated.1.shape().to_vec(), &data).unwrap();
    write(&part(3), vec![(repeated.0, other)]);
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("consolidated.03.safetensors: tensor") && message.contains("is also in"), "{message}");
}

#[test]
fn transformers_5_may_fuse_the_experts() {
    let folder = tempfile::tempdir().unwrap();
    let reference = open(&fixture("mixtral-8x2"));
    let (hidden, dim) = (reference.params().hidden_dim, reference.params().dim);
    std::fs::copy(fixture("mixtral-8x2/config.json"), folder.path().join("config.json")).unwrap();
    with_tensors("mixtral-8x2", |tensors| {
        let by_name: HashMap<_, _> = tensors.iter().map(|(name, view)| (name.clone(), view.data())).collect();
        let mut fused: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for layer in 0..reference.params().n_layers {
            let (mut gate_up, mut down) = (Vec::new(), Vec::new());
            for e in 0..8 {
                let matrix =
                    |w: &str| by_name[&format!("model.layers.{layer}.block_sparse_moe.experts.{e}.{w}.weight")];
                gate_up.extend([matrix("w1"), matrix("w3")].concat());
                down.extend(matrix("w2"));
            }
            fused.push((format!("model.layers.{layer}.mlp.experts.gate_up_proj"), vec![8, 2 * hidden, dim], gate_up));
            fused.push((format!("model.layers.{layer}.mlp.experts.down_proj"), vec![8, dim, hidden], down));
        }
        let mut all: Vec<_> = tensors.iter().filter(|(name, _)| !name.contains("experts")).cloned().collect();
        all.iter_mut().for_each(|(name, _)| *name = name.replace("block_sparse_moe.gate", "mlp.gate"));
        let view = |shape: &Vec<usize>, data| TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap();
        all.extend(fused.iter().map(|(name, shape, data)| (name.clone(), view(shape, data.as_slice()))));
        write(&folder.path().join("model.safetensors"), all);
    });
    assert_same(&reference, &open(folder.path()), |x| x);
}

#[test]
fn a_reference_tensor_lies_where_its_own_crate_says() {
    let checkpoint = open(&fixture("mixtral-8x2"));
    with_tensors("mixtral-8x2", |tensors| {
        let by_name: HashMap<_, _> = tensors.iter().map(|(name, view)| (name.as_str(), view.data())).collect();
        for name in checkpoint.params().tensors() {
            let tensor = checkpoint.tensor(name).unwrap();
            let data = by_name[tensor.stored_name()];
            match tensor.borrow() {
                Some(borrowed) => assert_eq!(borrowed, data),
                None => assert!(tensor.stored_name().contains("q_proj") || tensor.stored_name().contains("k_proj")),
            }
        }
    });
}

#[test]
fn what_a_checkpoint_holds_can_be_listed() {
    let checkpoint = open(&fixture("mixtral-window"));
    assert!(checkpoint.params().tied_embeddings && checkpoint.find(TensorName::Output).is_none());
    let total: u64 = checkpoint.stored().map(|(_, tensor)| tensor.elements()).sum();
    assert_eq!(total, checkpoint.params().n_parameters());
    assert!(checkpoint.stored().all(|(path, _)| path.ends_with("model.safetensors")));
    for name in checkpoint.params().tensors() {
        let tensor = checkpoint.tensor(name).unwrap();
        let before = bytes(&tensor);
        tensor.forget_pages();
        assert_eq!(bytes(&tensor), before, "{name} after its pages were dropped");
    }
}

#[test]
fn a_configuration_alone_says_what_the_model_is() {
    let folder = tempfile::tempdir().unwrap();
    let announced = r#"{"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-05, "vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}"#;
    let path = folder.path().join("params.json");
    std::fs::write(&path, announced).unwrap();
    for path in [&path, folder.path()] {
        let params = Params::read(path).unwrap();
        assert_eq!((params.n_parameters(), params.n_active_parameters()), (46_702_792_704, 12_879_925_248));
        assert_eq!(params.moe, Some(Moe { num_experts: 8, num_experts_per_tok: 2 }));
        assert_eq!((params.rope_theta, params.sliding_window), (1e6, None));
    }
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("holds params.json but no weights"), "{message}");
    for model in MODELS {
        let params = Params::read(&fixture(model).join("config.json")).unwrap();
        assert_eq!(&params, open(&fixture(model)).params());
        assert_eq!(params, Params::read(&fixture(model)).unwrap());
    }
}

//! `octet convert`: every layout into every other, held against the files that PyTorch wrote.

mod scratch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use octet_checkpoint::{Checkpoint, Layout, Params, StoredType, gguf};
use safetensors::SafeTensors;
use scratch::{Scratch, fixtures, octet, text};

/// The reference models by name.
fn models() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let folders = entries.map(|e| e.unwrap().path()).filter(|p| p.join("model.safetensors").exists());
    let models: Vec<_> = folders.map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(!models.is_empty(), "no models in {}", fixtures().display());
    models
}

fn convert(model: &Path, out: &Path, to: &str, more: &[&str]) {
    octet([&["convert", text(model), text(out), "--to", to], more].concat()).succeeded();
}

/// Type, shape and bytes of every tensor in a folder's safetensors files.
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") && !path.ends_with("reference.safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec());
                assert!(tensors.insert(name.clone(), tensor).is_none(), "{name} twice");
            }
        }
    }
    tensors
}

/// Like [`tensors`], of the files that make up a reference model.
fn reference(folder: &Path) -> Tensors {
    let keep = |name: &str| ["model.safetensors", "consolidated.safetensors"].contains(&name);
    let scratch = Scratch::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if keep(name) {
            std::fs::copy(&path, scratch.path(name)).unwrap();
        }
    }
    tensors(&scratch.path(""))
}

fn assert_same(what: &str, got: &Tensors, expected: &Tensors) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{what}");
    for (name, tensor) in expected {
        assert!(&got[name] == tensor, "{what}: {name} differs");
    }
}

/// What a conversion must not lose. Neither GGUF nor Mistral's files know the weight of the balancing loss.
fn essence(path: &Path) -> Params {
    let params = Checkpoint::open(path).unwrap().params().clone();
    Params { router_aux_loss_coef: None, ..params }
}

#[test]
fn hugging_face_through_gguf_and_back_is_the_same() {
    for name in models() {
        let (scratch, model) = (Scratch::new(), fixtures().join(&name));
        let (gguf, back) = (scratch.path("model.gguf"), scratch.path("back"));
        convert(&model, &gguf, "gguf", &[]);
        convert(&gguf, &back, "hf", &[]);
        assert_same(&name, &tensors(&back), &reference(&model));
        // GGUF's `llama` knows Mistral as a Llama; with its window it comes back as a Mistral.
        let (before, after) = (essence(&model), essence(&back));
        assert_eq!(Params { architecture: before.architecture, ..after }, before, "{name}");
        assert_eq!(before.moe.is_some(), after.moe.is_some(), "{name}");
    }
}

#[test]
fn mistral_files_are_those_that_pytorch_wrote() {
    let mut compared = 0;
    for name in models() {
        let (scratch, model) = (Scratch::new(), fixtures().join(&name));
        let (raw, back) = (scratch.path("raw"), scratch.path("back"));
        convert(&model, &raw, "mistral", &[]);
        // The repository leaves the widest model's second copy out, to stay small.
        if model.join("mistral-raw/experts").exists() {
            assert_same(&name, &tensors(&raw), &reference(&model.join("mistral-raw/experts")));
            compared += 1;
        }
        convert(&raw, &back, "hf", &[]);
        assert_same(&name, &tensors(&back), &reference(&model));
        assert_eq!(essence(&back).tied_embeddings, essence(&model).tied_embeddings, "{name}");
    }
    assert!(compared > 0, "no reference of Mistral's layout was there");
}

/// GGUF has canonical rows and merged experts: the bytes of PyTorch's unmerged, canonical matrices one after the other.
#[test]
fn gguf_tensors_are_the_canonical_ones_merged() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-8x2"));
    let out = scratch.path("model.gguf");
    convert(&model, &out, "gguf", &[]);
    let raw = reference(&model.join("mistral-raw/experts"));
    let file = gguf::File::open(&out).unwrap();
    let bytes =
        |name: &str| file.bytes(file.tensors().iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}")));
    for (gguf, mistral) in
        [("attn_q", "attention.wq"), ("attn_k", "attention.wk"), ("ffn_gate_inp", "feed_forward.gate")]
    {
        assert!(bytes(&format!("blk.1.{gguf}.weight")) == raw[&format!("layers.1.{mistral}.weight")].2, "{gguf}");
    }
    for (gguf, mistral) in [("gate", "w1"), ("down", "w2"), ("up", "w3")] {
        let experts =
            (0..8).flat_map(|e| raw[&format!("layers.1.feed_forward.experts.{e}.{mistral}.weight")].2.clone());
        assert!(bytes(&format!("blk.1.ffn_{gguf}_exps.weight")) == experts.collect::<Vec<u8>>(), "{gguf}");
    }
    let shape = |name: &str| file.tensors().iter().find(|t| t.name == name).unwrap().shape.clone();
    assert_eq!(shape("blk.0.ffn_down_exps.weight"), [8, 64, 96]);
    assert_eq!(shape("output_norm.weight"), [64]);
}

/// Nearest, ties to even, as IEEE 754 says and PyTorch does.
fn bf16(bytes: &[u8]) -> Vec<u8> {
    let round = |f: &[u8]| {
        let bits = u32::from_le_bytes(f.try_into().unwrap());
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
    };
    bytes.chunks_exact(4).flat_map(|f| round(f).to_le_bytes()).collect()
}

/// The stacked release is bfloat16 made by PyTorch: what we make of it, and of the float32 original, must be the same.
#[test]
fn the_stacked_release_comes_out_as_bfloat16() {
    for name in models().into_iter().filter(|name| name.starts_with("mixtral")) {
        let (scratch, model) = (Scratch::new(), fixtures().join(&name));
        let mut expected = reference(&model);
        expected.values_mut().for_each(|(dtype, _, bytes)| (*dtype, *bytes) = ("BF16".into(), bf16(bytes)));
        let (from_stacked, from_original) = (scratch.path("stacked"), scratch.path("original"));
        convert(&model.join("mistral-raw/stacked"), &from_stacked, "hf", &[]);
        let mut got = tensors(&from_stacked);
        if !expected.contains_key("lm_head.weight") {
            // A release always holds a head; where the model ties it, that is the embedding again.
            let head = got.remove("lm_head.weight").unwrap();
            assert!(head == got["model.embed_tokens.weight"], "{name}");
        }
        assert_same(&name, &got, &expected);
        convert(&model, &from_original, "hf", &["--type", "bf16"]);
        assert_same(&name, &tensors(&from_original), &expected);
    }
}

#[test]
fn sixteen_bits_survive_gguf_where_norms_are_wider() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-8x2"));
    let (half, gguf, back) = (scratch.path("half"), scratch.path("half.gguf"), scratch.path("back"));
    convert(&model, &half, "hf", &["--type", "bf16"]);
    convert(&half, &gguf, "gguf", &[]);
    let file = gguf::File::open(&gguf).unwrap();
    for tensor in file.tensors() {
        let wide = tensor.name.contains("norm") || tensor.name.contains("ffn_gate_inp");
        let expected = if wide { octet_checkpoint::ElementType::F32 } else { octet_checkpoint::ElementType::BF16 };
        assert_eq!(tensor.element_type, StoredType::Known(expected), "{}", tensor.name);
    }
    convert(&gguf, &back, "hf", &[]);
    assert_same("through GGUF", &tensors(&back), &tensors(&half));
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(back.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["dtype"], &config["torch_dtype"]), (&"bfloat16".into(), &"bfloat16".into()));
    assert_eq!(config["rope_theta"], config["rope_parameters"]["rope_theta"]);
}

#[test]
fn shards_have_an_index_and_hold_the_same() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-8x2"));
    let out = scratch.path("sharded");
    convert(&model, &out, "hf", &["--shard-size", "0.4MB"]);
    let names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let shards: Vec<_> = names.iter().filter(|name| name.contains("-of-00004.safetensors")).collect();
    assert_eq!(shards.len(), 4, "{names:?}");
    shards.iter().for_each(|name| assert!(out.join(name).metadata().unwrap().len() < 420_000, "{name}"));
    assert_same("shards", &tensors(&out), &reference(&model));
    assert_eq!(Checkpoint::open(&out).unwrap().layout(), Layout::HuggingFace);
}

/// A copy of a reference model whose first weight of `model.norm.weight` is this.
fn with_norm(scratch: &Scratch, value: f32) -> PathBuf {
    let model = scratch.copy_of("mixtral-8x2", "odd");
    let mut bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let at = {
        let view = SafeTensors::deserialize(&bytes).unwrap();
        view.tensor("model.norm.weight").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
    model
}

#[test]
fn numbers_that_have_no_place_in_the_new_type_are_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let to_f16 = |model: &Path| octet(["convert", text(model), text(&out), "--to", "hf", "--type", "f16"]);
    to_f16(&with_norm(&scratch, 70_000.0)).refused_naming(&["model.safetensors", "model.norm.weight", "70000", "bf16"]);
    to_f16(&with_norm(&scratch, f32::NAN)).refused_naming(&["model.norm.weight", "NaN", "verify"]);
    assert_eq!(scratch.names(), ["odd"], "a failed run leaves nothing");
    to_f16(&with_norm(&scratch, 65_504.0)).succeeded();
}

#[test]
fn outputs_that_would_harm_are_refused() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("llama-dense", "model");
    let to = |out: &Path, more: &[&str]| octet([&["convert", text(&model), text(out), "--to"], more].concat());
    to(&model.join("model.gguf"), &["gguf"]).refused_naming(&["model.gguf", "own folder"]);
    to(&model.join("sub"), &["hf"]).refused_naming(&["sub", "own folder"]);
    to(&model, &["hf", "--force"]).refused_naming(&["is the model itself"]);
    to(&model.join("model.safetensors"), &["gguf", "--force"]).refused_naming(&["is the model itself"]);
    let out = scratch.path("out.gguf");
    to(&out, &["ggml"]).refused_naming(&["--to", "mistral"]);
    to(&out, &["gguf", "--type", "q4_0"]).refused_naming(&["--type", "octet quantize"]);
    to(&out, &["gguf", "--threads", "0"]).refused_naming(&["--threads"]);
    to(&out, &["hf", "--shard-size", "5 parsecs"]).refused_naming(&["--shard-size"]);
    assert_eq!(scratch.names(), ["model"]);

    to(&out, &["gguf"]).succeeded();
    octet(["convert", text(&out), text(&out), "--to", "gguf", "--force"]).refused_naming(&["is the model itself"]);
    let (notes, precious) = (scratch.path("notes"), scratch.file("notes/a.json", "{}"));
    to(&notes, &["hf", "--force"]).refused_naming(&["notes", "is no checkpoint"]);
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "{}");
    let (folder, aside) = (scratch.path("folder"), scratch.file("folder.old/precious", ""));
    to(&folder, &["hf"]).succeeded();
    to(&folder, &["hf", "--force"]).refused_naming(&["folder.old", "move it away"]);
    assert!(aside.exists() && !scratch.path("folder.part").exists());
    let link = scratch.path("link.gguf");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&out, &link).unwrap();
        octet(["convert", text(&out), text(&link), "--to", "gguf", "--force"]).refused_naming(&["is the model itself"]);
    }
    Checkpoint::open(&out).unwrap();
}

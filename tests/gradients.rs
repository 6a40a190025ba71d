//! `octet gradients` and `octet merge` against PyTorch and PEFT, and through layouts.

use std::path::{Path, PathBuf};

use octet_checkpoint::{ElementType, StoredType};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

mod scratch;

use scratch::{Scratch, fixtures, octet, text};

/// Largest difference over the largest value of a tensor.
const TOLERANCE: f32 = 1e-4;

fn models_with(part: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let models: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.join(part).exists()).collect();
    assert!(!models.is_empty(), "no model with {part} in {}", fixtures().display());
    models
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference <= TOLERANCE * largest, "{what}: differs by {difference} of {largest}");
}

/// Compares those of `got` whose names stand in `expected`; tells how many.
fn compare(what: &str, got: &[u8], expected: &[u8]) -> usize {
    let (got, expected) = (SafeTensors::deserialize(got).unwrap(), SafeTensors::deserialize(expected).unwrap());
    let mut compared = 0;
    for name in got.names() {
        let Ok(want) = expected.tensor(name) else { continue };
        let tensor = got.tensor(name).unwrap();
        assert_eq!(tensor.shape(), want.shape(), "{what} {name}");
        assert_close(&format!("{what} {name}"), &floats(&tensor), &floats(&want));
        compared += 1;
    }
    compared
}

fn gradients(scratch: &Scratch, model: &Path, input: &Path, more: &[&str]) -> Vec<u8> {
    let out = scratch.path("out.safetensors");
    octet([&["gradients", text(model), "--input", text(input), "--output", text(&out)], more].concat()).succeeded();
    std::fs::read(out).unwrap()
}

#[test]
fn gradients_agree_with_pytorch() {
    for folder in models_with("gradients.safetensors") {
        let scratch = Scratch::new();
        let input = folder.join("reference.safetensors");
        let expected = std::fs::read(folder.join("gradients.safetensors")).unwrap();
        let got = gradients(&scratch, &folder, &input, &["--checkpointing"]);
        let all = SafeTensors::deserialize(&expected).unwrap().len();
        assert_eq!(compare(text(&folder), &got, &expected), all);
        let json = std::fs::read(folder.join("reference.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let got = SafeTensors::deserialize(&got).unwrap();
        let scalar = |name: &str| floats(&got.tensor(name).unwrap())[0];
        assert_close("loss", &[scalar("loss")], &[json["loss"].as_f64().unwrap() as f32]);
        if let Some(aux_loss) = json["aux_loss"].as_f64() {
            assert_close("aux_loss", &[scalar("aux_loss")], &[aux_loss as f32]);
        }
    }
}

#[test]
fn preferences_agree_with_pytorch() {
    for folder in models_with("dpo-reference") {
        let scratch = Scratch::new();
        let (input, reference) = (folder.join("reference.safetensors"), folder.join("dpo-reference"));
        let got = gradients(&scratch, &folder, &input, &["--dpo", text(&reference), "--beta", "0.1"]);
        assert_eq!(compare(text(&folder), &got, &std::fs::read(&input).unwrap()), 7 + 6);
    }
}

#[test]
fn merged_adapters_give_the_logits_of_peft() {
    for folder in models_with("lora") {
        let input = folder.join("reference.safetensors");
        let reference = std::fs::read(&input).unwrap();
        let expected = floats(&SafeTensors::deserialize(&reference).unwrap().tensor("lora.logits").unwrap());
        for layout in ["hf", "gguf"] {
            let scratch = Scratch::new();
            let (merged, out) = (scratch.path("merged.gguf"), scratch.path("logits.safetensors"));
            let adapter = folder.join("lora");
            octet(["merge", text(&folder), text(&adapter), "-o", text(&merged), "--to", layout]).succeeded();
            octet(["logits", text(&merged), "--input", text(&input), "--output", text(&out)]).succeeded();
            let got = std::fs::read(out).unwrap();
            let got = floats(&SafeTensors::deserialize(&got).unwrap().tensor("logits").unwrap());
            assert_close(&format!("{} {layout}", folder.display()), &got, &expected);
        }
    }
}

/// A GGUF of Q3_K whose weights are said to be IQ3_S, which has as many bytes for a block of 256.
fn of_code_books(scratch: &Scratch) -> PathBuf {
    let out = scratch.path("iq3.gguf");
    octet(["quantize", text(&fixtures().join("mixtral-4x1-wide")), text(&out), "--to", "Q3_K_S"]).succeeded();
    let mut bytes = std::fs::read(&out).unwrap();
    let file = octet_checkpoint::gguf::File::open(&out).unwrap();
    for tensor in file.tensors() {
        if tensor.element_type == StoredType::Known(ElementType::Q3_K) {
            // A tensor's description: its name, the number of dimensions, these, then the type.
            let name = [&(tensor.name.len() as u64).to_le_bytes()[..], tensor.name.as_bytes()].concat();
            let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
            let at = at + name.len() + 4 + 8 * tensor.shape.len();
            bytes[at..at + 4].copy_from_slice(&ElementType::IQ3_S.gguf_id().to_le_bytes());
        }
    }
    drop(file);
    std::fs::write(&out, bytes).unwrap();
    out
}

#[test]
fn a_type_that_cannot_be_written_is_refused_before_anything_is() {
    let scratch = Scratch::new();
    let (model, adapter) = (of_code_books(&scratch), fixtures().join("mixtral-4x1-wide/lora"));
    octet(["merge", text(&model), text(&adapter), "-o", text(&scratch.path("out.gguf"))]).refused_naming(&[
        "iq3.gguf",
        "IQ3_S",
        "--type bf16",
    ]);
    assert_eq!(scratch.names(), ["iq3.gguf"], "nothing is left behind");
}

#[test]
fn wrong_input_is_named() {
    let scratch = Scratch::new();
    let model = fixtures().join("mixtral-8x2");
    let other = fixtures().join("mixtral-4x3/lora");
    let out = scratch.path("out");
    octet(["merge", text(&model), text(&other), "-o", text(&out)]).refused_naming(&["another model's adapter"]);
    octet(["merge", text(&model), text(&model), "-o", text(&out)]).refused_naming(&["adapter_config.json"]);
    let own = scratch.copy_of("mixtral-8x2/lora", "adapter");
    let over_adapter = ["merge", text(&model), text(&own), "-o", text(&own), "--to", "hf", "--force"];
    octet(over_adapter).refused_naming(&["is an adapter"]);
    let input = model.join("lora/adapter_model.safetensors");
    let run = ["gradients", text(&model), "--input", text(&input), "--output", text(&out)];
    octet(run).refused_naming(&["input_ids"]);
    assert!(!out.exists(), "nothing is left behind");
}

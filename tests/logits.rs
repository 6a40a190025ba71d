//! `octet logits` against transformers, through all three layouts of every fixture, GGUF made by our own `convert`.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};

/// Largest difference over the largest value; see crates/model/tests/reference.rs.
const TOLERANCE: f32 = 1e-4;

fn fixtures() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::env::var_os("OCTET_FIXTURES").map_or_else(|| default.into(), PathBuf::from)
}

fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures are there: see OCTET_FIXTURES");
    let folders = entries.map(|e| e.unwrap().path()).filter(|p| p.join("reference.safetensors").exists());
    let models: Vec<_> = folders.collect();
    assert!(!models.is_empty(), "no models in {}", fixtures().display());
    models
}

fn octet(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_octet")).args(arguments).output().unwrap();
    assert!(output.status.success(), "octet {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `octet logits` on the inputs of a reference file and gives what it wrote.
fn logits(model: &Path, inputs: &Path, scratch: &Path, more: &[&str]) -> Vec<u8> {
    let out = scratch.join("out.safetensors");
    let [model, inputs, path] = [model, inputs, &out].map(|p| p.to_str().unwrap());
    octet(&[&["logits", model, "--input", inputs, "--output", path], more].concat());
    std::fs::read(out).unwrap()
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn assert_agrees(what: &str, got: &[u8], expected: &[u8]) {
    let (got, expected) = (SafeTensors::deserialize(got).unwrap(), SafeTensors::deserialize(expected).unwrap());
    let mut compared = 0;
    for name in got.names() {
        let (a, b) = (got.tensor(name).unwrap(), expected.tensor(name).unwrap_or_else(|_| panic!("{what}: {name}")));
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{what} {name}");
        compared += 1;
        if name.starts_with("experts.") {
            assert_eq!(a.data(), b.data(), "{what} {name}");
            continue;
        }
        let (a, b) = (floats(&a), floats(&b));
        let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        let difference = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(difference <= TOLERANCE * largest, "{what} {name}: differs by {difference} of {largest}");
    }
    let hidden = expected.names().into_iter().filter(|n| n.starts_with("hidden.") || n.starts_with("rout")).count();
    assert!(compared > hidden, "{what}: {compared} tensors compared, {hidden} and the logits expected");
}

#[test]
fn every_layout_agrees_with_transformers() {
    let scratch = tempfile::tempdir().unwrap();
    for model in models() {
        let reference = model.join("reference.safetensors");
        let expected = std::fs::read(&reference).unwrap();
        let gguf = scratch.path().join("model.gguf");
        octet(&[
            "convert",
            model.to_str().unwrap(),
            gguf.to_str().unwrap(),
            "--to",
            "gguf",
            "--type",
            "f32",
            "--force",
        ]);
        // The repository leaves the widest model's second copy out, to stay small.
        let raw = Some(model.join("mistral-raw/experts")).filter(|raw| raw.exists());
        for layout in [&model, &gguf].into_iter().chain(&raw) {
            let what = format!("{} as {}", model.display(), layout.display());
            assert_agrees(&what, &logits(layout, &reference, scratch.path(), &[]), &expected);
            let stepwise = logits(layout, &reference, scratch.path(), &["--chunk", "1", "--threads", "1"]);
            assert!(stepwise == logits(layout, &reference, scratch.path(), &[]), "{what}: token by token");
        }
    }
}

/// The torrent's form holds bfloat16, so it is compared with the Hugging Face form rounded to bfloat16: bit for bit.
#[test]
fn the_release_of_the_announcement_gives_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for model in models() {
        let release = model.join("mistral-raw/stacked");
        if !release.exists() {
            continue; // dense models were never released so
        }
        compared += 1;
        let rounded = scratch.path().join("rounded");
        std::fs::create_dir_all(&rounded).unwrap();
        std::fs::copy(model.join("config.json"), rounded.join("config.json")).unwrap();
        std::fs::write(rounded.join("model.safetensors"), round_to_bf16(&model.join("model.safetensors"))).unwrap();
        let reference = model.join("reference.safetensors");
        let expected = logits(&rounded, &reference, scratch.path(), &[]);
        assert!(logits(&release, &reference, scratch.path(), &[]) == expected, "{}", release.display());
    }
    assert!(compared > 0, "no release form among the fixtures");
}

/// A copy of a float32 safetensors file in bfloat16, rounded to the nearest, ties to even.
fn round_to_bf16(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let round = |v: f32| ((v.to_bits() + 0x7fff + (v.to_bits() >> 16 & 1)) >> 16) as u16;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = (file.tensors().into_iter())
        .map(|(name, t)| {
            (name, t.shape().to_vec(), floats(&t).into_iter().flat_map(|v| round(v).to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(safetensors::Dtype::BF16, shape.clone(), data).unwrap())
    });
    serialize(views, None).unwrap()
}

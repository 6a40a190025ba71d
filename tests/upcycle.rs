//! `octet upcycle`: experts are what they were copied from, and identical ones change nothing.

mod scratch;

use std::path::Path;

use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Moe, Tensor, TensorName};
use safetensors::SafeTensors;
use scratch::{Scratch, fixtures, octet, text};

/// All bytes of a tensor in canonical form.
fn bytes(tensor: Tensor<'_>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.rows() * tensor.row_bytes()];
    tensor.read_rows(0..tensor.rows(), &mut bytes);
    bytes
}

fn expert(layer: usize, expert: usize, matrix: ExpertMatrix) -> TensorName {
    TensorName::Layer(layer, LayerTensor::Expert(expert, matrix))
}

const MATRICES: [ExpertMatrix; 3] = [ExpertMatrix::W1, ExpertMatrix::W2, ExpertMatrix::W3];

/// The logits of a reference model's inputs.
fn logits(model: &Path, scratch: &Scratch) -> Vec<f32> {
    let out = scratch.path("logits.safetensors");
    let input = fixtures().join("llama-dense/reference.safetensors");
    octet(["logits", text(model), "--input", text(&input), "--output", text(&out)]).succeeded();
    let bytes = std::fs::read(out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("logits").unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn identical_experts_answer_as_the_dense_model() {
    let (scratch, dense) = (Scratch::new(), fixtures().join("llama-dense"));
    let expected = logits(&dense, &scratch);
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (name, more) in [
        ("random.gguf", &["--experts", "8", "--per-token", "2", "--router-seed", "7"][..]),
        ("zero.gguf", &["--experts", "4", "--per-token", "3", "--router", "zero"]),
        ("folder", &["--to", "hf"]),
    ] {
        let out = scratch.path(name);
        octet([&["upcycle", text(&dense), "-o", text(&out)], more].concat()).succeeded();
        let got = logits(&out, &scratch);
        let difference = got.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Only the sum of the experts' weights, 1 but for a rounding, stands between the two.
        assert!(difference <= 1e-5 * largest, "{name}: differs by {difference} of {largest}");
    }
}

#[test]
fn quantized_rows_are_copied_as_they_are() {
    let (scratch, dense) = (Scratch::new(), fixtures().join("llama-dense"));
    let (small, out) = (scratch.path("small.gguf"), scratch.path("out.gguf"));
    octet(["quantize", text(&dense), text(&small), "--to", "Q8_0"]).succeeded();
    octet(["upcycle", text(&small), "--experts", "3", "--per-token", "1", "--out", text(&out)]).succeeded();
    let (small, out) = (Checkpoint::open(&small).unwrap(), Checkpoint::open(&out).unwrap());
    assert_eq!(out.params().moe, Some(Moe { num_experts: 3, num_experts_per_tok: 1 }));
    for name in small.params().tensors() {
        let from = small.tensor(name).unwrap();
        let copies = match name {
            TensorName::Layer(layer, LayerTensor::Expert(_, matrix)) => {
                (0..3).map(|e| expert(layer, e, matrix)).collect()
            }
            name => vec![name],
        };
        for copy in copies {
            let to = out.tensor(copy).unwrap();
            assert_eq!(to.element_type(), from.element_type(), "{copy}");
            assert!(bytes(to) == bytes(from), "{copy}");
        }
    }
    let router = out.tensor(TensorName::Layer(1, LayerTensor::Router)).unwrap();
    assert_eq!((router.element_type(), router.rows(), router.cols()), (ElementType::F32, 3, 64));
}

/// A copy of a dense reference model that differs in its first down-projection and embedding.
fn another(scratch: &Scratch) -> std::path::PathBuf {
    let model = scratch.copy_of("llama-dense", "another");
    let path = model.join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    for name in ["model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"] {
        let (start, len) = {
            let view = SafeTensors::deserialize(&file).unwrap().tensor(name).unwrap();
            (view.data().as_ptr() as usize - file.as_ptr() as usize, view.data().len())
        };
        file[start..start + len].fill(0);
    }
    std::fs::write(path, file).unwrap();
    model
}

#[test]
fn several_models_give_an_expert_each_and_the_first_the_rest() {
    let (scratch, first) = (Scratch::new(), fixtures().join("llama-dense"));
    let (second, out) = (another(&scratch), scratch.path("out.gguf"));
    octet(["upcycle", text(&first), text(&second), "--experts", "4", "-o", text(&out)]).succeeded();
    let models = [Checkpoint::open(&first).unwrap(), Checkpoint::open(&second).unwrap()];
    let out = Checkpoint::open(&out).unwrap();
    for name in (0..4).flat_map(|e| MATRICES.map(|matrix| (e, matrix))) {
        let (e, matrix) = name;
        let from = models[e % 2].tensor(expert(0, 0, matrix)).unwrap();
        assert!(bytes(out.tensor(expert(0, e, matrix)).unwrap()) == bytes(from), "{name:?}");
    }
    let embedding = |model: &Checkpoint| bytes(model.tensor(TensorName::TokenEmbedding).unwrap());
    assert!(embedding(&out) == embedding(&models[0]) && embedding(&out) != embedding(&models[1]));
}

#[test]
fn the_seed_decides_the_routers() {
    let (scratch, dense) = (Scratch::new(), fixtures().join("llama-dense"));
    let make = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        octet([&["upcycle", text(&dense), "-o", text(&out)], more].concat()).succeeded();
        bytes(Checkpoint::open(&out).unwrap().tensor(TensorName::Layer(0, LayerTensor::Router)).unwrap())
    };
    let seven = make("a.gguf", &["--router-seed", "7"]);
    assert!(seven == make("b.gguf", &["--router-seed", "7", "--threads", "1"]));
    assert!(seven != make("c.gguf", &["--router-seed", "8"]));
    assert!(make("d.gguf", &["--router", "zero"]).iter().all(|&byte| byte == 0));
}

#[test]
fn models_that_do_not_fit_together_are_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out.gguf");
    let upcycle = |models: &[&str], more: &[&str]| {
        let models: Vec<String> = models.iter().map(|name| text(&fixtures().join(name)).to_owned()).collect();
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        octet([&["upcycle", "-o", text(&out)], more, &models[..]].concat())
    };
    upcycle(&["llama-dense", "mistral-dense"], &[]).refused_naming(&[
        "llama-dense",
        "mistral-dense",
        "hidden_dim",
        "176",
        "160",
    ]);
    upcycle(&["mixtral-8x2"], &[]).refused_naming(&["mixtral-8x2", "8 experts already"]);
    upcycle(&["llama-dense", "llama-dense"], &["--experts", "3"]).refused_naming(&["--experts 3"]);
    upcycle(&["llama-dense"], &["--experts", "2", "--per-token", "3"]).refused_naming(&["--per-token 3"]);
    upcycle(&["llama-dense"], &["--router", "best"]).refused_naming(&["--router", "zero"]);
    upcycle(&[], &[]).refused_naming(&["DENSE"]);
    assert!(scratch.names().is_empty(), "{:?}", scratch.names());
}

/// The share that each expert of each layer has of a text's choices.
fn loads(model: &Path, scratch: &Scratch, words: &str) -> Vec<Vec<f64>> {
    let rows = scratch.file("rows.jsonl", serde_json::json!({"text": words}).to_string());
    let report = octet(["finetune", text(model), text(&rows), "--evaluate"]).succeeded();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    serde_json::from_value(report["expert_load_of_layers"].clone()).unwrap()
}

#[test]
fn routers_begin_with_a_preference_for_the_tokens_of_texts() {
    let scratch = Scratch::new();
    let dense = scratch.copy_of("llama-dense", "dense");
    scratch.file("dense/tokenizer.json", scratch::bytes_tokenizer().to_string());
    let words = scratch.file("words.txt", "the sun was low and an old man sat by his door ".repeat(20));
    let numbers = scratch.file("numbers.txt", "27182 81828 45904 52353 60287 47135 26624 97757 ".repeat(20));
    let make = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        let fixed = ["upcycle", text(&dense), "--experts", "4", "--per-token", "1", "-o", text(&out)];
        octet([&fixed[..], more].concat()).succeeded();
        out
    };
    let texts = ["--router-text", text(&words), "--router-text", text(&numbers)];
    let out = make("out.gguf", &texts);
    // Other words and other numbers than it was made of.
    for (expert, sample) in
        ["and then they all went home with the last of it", "31415 92653 58979 32384 62643 38327 95028"]
            .into_iter()
            .enumerate()
    {
        for (layer, load) in loads(&out, &scratch, sample).iter().enumerate() {
            assert!(load[expert] > 2.0 * load[1 - expert], "layer {layer}: {load:?} for {sample:?}");
        }
    }
    let (got, expected) = (logits(&out, &scratch), logits(&dense, &scratch));
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "experts are alike yet");
    let router = |model: &Path| {
        bytes(Checkpoint::open(model).unwrap().tensor(TensorName::Layer(1, LayerTensor::Router)).unwrap())
    };
    assert!(router(&out) == router(&make("again.gguf", &[&texts[..], &["-t", "1"]].concat())));

    let refused = |files: &[&str], words: &[&str]| {
        let files: Vec<&str> = files.iter().flat_map(|file| ["--router-text", file]).collect();
        let out = scratch.path("refused.gguf");
        octet([&["upcycle", text(&dense), "-o", text(&out)], &files[..]].concat()).refused_naming(words);
        assert!(!out.exists());
    };
    let empty = scratch.file("empty.txt", "");
    refused(&[text(&words)], &["--router-text", "1 texts", "2 to 8"]);
    refused(&[text(&words), text(&empty)], &["empty.txt"]);
    refused(&[text(&words), "missing.txt"], &["missing.txt"]);
    // An output that cannot be is refused before a text is read.
    let texts = ["--router-text", text(&words), "--router-text", "missing.txt"];
    let taken = ["upcycle", text(&dense), "-o", text(&out)];
    octet([&taken[..], &texts].concat()).refused_naming(&["out.gguf", "--force"]);
}

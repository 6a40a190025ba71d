//! `octet perplexity` against what `octet logits` says of the same windows, which is held against transformers elsewhere.

mod scratch;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use scratch::{Scratch, letter_id, letters_tokenizer, octet, text};

const CONTEXT: usize = 16;
const TEXT: &str = "the quick brown fox jumps over the lazy dog and nobody knows why it does so again ";

#[test]
fn the_second_half_of_each_window_is_scored() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", letters_tokenizer().to_string());
    // One line break at the end of a file is not part of its text.
    let file = scratch.file("text.txt", TEXT.to_owned() + "\n");
    let context = CONTEXT.to_string();
    // `octet logits` keeps keys and values in f32.
    let options = ["-c", &context, "--kv", "f32", "--json"];
    let told = octet(["perplexity", text(&model), "--file", text(&file)].into_iter().chain(options)).succeeded();
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();

    let ids: Vec<i64> = TEXT.bytes().map(|byte| letter_id(byte) as i64).collect();
    let n_windows = ids.len() / CONTEXT;
    let logits = logits(&scratch, text(&model), &ids[..n_windows * CONTEXT]);
    let (mut nll, mut n) = (0.0, 0);
    for (window, logits) in ids.chunks_exact(CONTEXT).zip(logits.chunks_exact(logits.len() / n_windows)) {
        let rows: Vec<&[f32]> = logits.chunks_exact(logits.len() / CONTEXT).collect();
        for at in CONTEXT / 2..CONTEXT - 1 {
            let sum: f64 = rows[at].iter().map(|&logit| f64::from(logit).exp()).sum();
            nll += sum.ln() - f64::from(rows[at][window[at + 1] as usize]);
            n += 1;
        }
    }
    let (got, expected) = (report["perplexity"].as_f64().unwrap(), (nll / f64::from(n)).exp());
    assert_eq!((report["n_tokens"].as_u64(), report["chunks"].as_u64()), (Some(n as u64), Some(n_windows as u64)));
    // The same logits; only the order of a sum of exponentials differs.
    assert!((got / expected - 1.0).abs() < 1e-6, "{got} should be {expected}");
}

/// Logits `[windows, CONTEXT, vocab_size]` of windows that each begin anew.
fn logits(scratch: &Scratch, model: &str, ids: &[i64]) -> Vec<f32> {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![ids.len() / CONTEXT, CONTEXT], &bytes).unwrap();
    let input = scratch.file("ids.safetensors", serialize([("input_ids", view)], None).unwrap());
    let out = scratch.path("out.safetensors");
    octet(["logits", model, "--input", text(&input), "--output", text(&out)]).succeeded();
    let out = std::fs::read(out).unwrap();
    let tensors = SafeTensors::deserialize(&out).unwrap();
    let floats = tensors.tensor("logits").unwrap().data().chunks_exact(4);
    floats.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn what_cannot_be_scored_is_named() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", letters_tokenizer().to_string());
    let model = text(&model);
    let file = |name: &str, bytes: &[u8]| text(&scratch.file(name, bytes)).to_owned();
    let (short, binary) = (file("short.txt", b"too short"), file("binary.txt", &[0xff, 0xfe, 0x00]));
    octet(["perplexity", model, "--file", &short]).refused_naming(&["short.txt", "9 tokens", "512"]);
    octet(["perplexity", model, "--file", &binary]).refused_naming(&["binary.txt", "UTF-8"]);
    octet(["perplexity", model, "--file", "none.txt"]).refused_naming(&["none.txt"]);
    octet(["perplexity", model, "--file", &short, "-c", "3"]).refused_naming(&["4 or more"]);
}

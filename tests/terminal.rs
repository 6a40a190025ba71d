//! `octet chat --server`, `octet compare` and `octet experts`, held against what the same models say by other ways.

mod scratch;

use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use scratch::{Scratch, Serving, octet, octet_reading, text};
use serde_json::{Value, json};

/// Single letters, the space, and pairs of letters that no text is cut into but that a model may say: all of a vocabulary
/// of 512, so that whatever a random model says can be read.
fn tokenizer() -> Value {
    let letters = ('a'..='z').map(String::from);
    let pairs = ('a'..='z').flat_map(|a| ('a'..='z').map(move |b| format!("{a}{b}")));
    let vocab: serde_json::Map<_, _> =
        letters.chain(["Ġ".into()]).chain(pairs).take(512).zip(0..).map(|(piece, id)| (piece, json!(id))).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": null, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

fn id(byte: u8) -> i64 {
    if byte == b' ' { 26 } else { i64::from(byte - b'a') }
}

/// A reference model that talks.
fn talking(scratch: &Scratch, fixture: &str) -> PathBuf {
    let model = scratch.copy_of(fixture, fixture);
    scratch.file(&format!("{fixture}/tokenizer.json"), tokenizer().to_string());
    let template = "{% for message in messages %}{{ message.content }} {% endfor %}";
    scratch.file(&format!("{fixture}/tokenizer_config.json"), json!({ "chat_template": template }).to_string());
    model
}

fn read(told: &str) -> Value {
    serde_json::from_str(told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[test]
fn a_server_says_in_chat_and_comparison_what_its_model_says_here() {
    let scratch = Scratch::new();
    let (a, b) = (talking(&scratch, "mixtral-8x2"), talking(&scratch, "mistral-dense"));
    let server = Serving::new(&[&format!("a={}", text(&a)), &format!("b={}", text(&b))], &[]);
    let greedy = ["--temperature", "0", "--max-tokens", "24"];

    let chat = |model: &[&str]| {
        let line = ["chat"].iter().chain(model).chain(&greedy).copied().collect::<Vec<_>>();
        octet_reading("say something\n/reset\nand then\n", line).succeeded()
    };
    let here = chat(&[text(&b)]);
    assert_eq!(here.lines().count(), 2, "{here}");
    assert_eq!(chat(&["--server", &server.url, "--server-model", "b"]), here);

    let compare = |models: &[&str]| {
        let line = ["compare"].iter().chain(models).chain(&["say something", "--json"]).chain(&greedy).copied();
        read(&octet(line.collect::<Vec<_>>()).succeeded())
    };
    let here = compare(&[text(&a), text(&b)]);
    let there = compare(&["a", "b", "--server", &server.url]);
    for side in 0..2 {
        assert_eq!(here["answers"][side]["text"], there["answers"][side]["text"]);
        assert_eq!(here["answers"][side]["completion_tokens"], 24);
    }
    assert_eq!(here["parting"]["sides"], there["parting"]["sides"]);
    parts_as_told(&here);
    assert_eq!(compare(&[text(&b), text(&b)])["parting"], Value::Null);
}

/// The answers are alike before the place at which they are said to part, and each found its own token the likeliest.
fn parts_as_told(compared: &Value) {
    let tokens = |side: usize| compared["answers"][side]["tokens"].as_array().unwrap();
    let sides = compared["parting"]["sides"].as_array().unwrap();
    let at = sides[0]["token"].as_u64().unwrap() as usize;
    assert_eq!(sides[1]["token"].as_u64().unwrap() as usize, at);
    assert_eq!(
        tokens(0)[..at].iter().map(|t| &t["text"]).collect::<Vec<_>>(),
        tokens(1)[..at].iter().map(|t| &t["text"]).collect::<Vec<_>>()
    );
    assert_ne!(tokens(0)[at]["text"], tokens(1)[at]["text"]);
    for (side, choice) in sides.iter().enumerate() {
        let own = choice["probability"].as_f64().unwrap();
        assert_eq!(Some(own), tokens(side)[at]["probability"].as_f64());
        let other = choice["probability_of_other"].as_f64().or(choice["other_below"].as_f64()).unwrap();
        assert!(other <= own, "greedy answers take the likeliest: {choice}");
    }
}

#[test]
fn answers_are_drawn_in_columns_or_one_below_the_other() {
    let scratch = Scratch::new();
    let (a, b) = (talking(&scratch, "mixtral-8x2"), talking(&scratch, "mistral-dense"));
    let draw = |more: &[&str]| {
        let line = ["compare", text(&a), text(&b), "hello", "--max-tokens", "8"].into_iter();
        octet(line.chain(more.iter().copied())).succeeded()
    };
    let wide = draw(&["--width", "100"]);
    assert!(wide.starts_with("mixtral-8x2 ") && wide.lines().next().unwrap().ends_with("│ mistral-dense"), "{wide}");
    assert!(wide.lines().all(|line| line.chars().count() <= 100), "{wide}");
    let piped = draw(&[]);
    assert!(!piped.contains('│') && !piped.contains('\x1b') && piped.contains("They part at token"), "{piped}");
}

#[test]
fn a_text_goes_the_way_that_logits_reports() {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog and then does so again";
    let scratch = Scratch::new();
    let model = talking(&scratch, "mixtral-8x2");
    let told = read(&octet(["experts", text(&model), TEXT, "--json"]).succeeded());
    let ids: Vec<i64> = TEXT.bytes().map(id).collect();
    let shown = &told["texts"][0];
    assert_eq!(shown["tokens"].as_array().unwrap().len(), ids.len());

    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![1, ids.len()], &bytes).unwrap();
    let input = scratch.file("ids.safetensors", serialize([("input_ids", view)], None).unwrap());
    let out = scratch.path("out.safetensors");
    octet(["logits", text(&model), "--input", text(&input), "--output", text(&out)]).succeeded();
    let out = std::fs::read(out).unwrap();
    let tensors = SafeTensors::deserialize(&out).unwrap();
    for layer in 0..told["layers"].as_u64().unwrap() as usize {
        let data = tensors.tensor(&format!("experts.{layer}")).unwrap().data().to_vec();
        let chosen: Vec<i64> = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        let pairs: Vec<&[i64]> = chosen.chunks_exact(2).collect();
        assert_eq!(shown["experts"][layer], json!(pairs), "layer {layer}");
        // Counted here once more, in the plainest way.
        let n = pairs.windows(2).filter(|two| two[0][0] == two[1][0]).count();
        let first = shown["repeats"][layer]["first"].as_f64().unwrap();
        assert!((first - n as f64 / (pairs.len() - 1) as f64).abs() < 1e-12);
        let sum: f64 = shown["load"][layer].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}

#[test]
fn routing_is_drawn_for_one_text_and_for_several() {
    let scratch = Scratch::new();
    let model = talking(&scratch, "mixtral-8x2");
    let one = octet_reading("some text", ["experts", text(&model), "--layer", "0"]).succeeded();
    assert!(one.contains("Layer 0, experts 0 1 2 3 4 5 6 7") && one.contains("by chance 12.5 %"), "{one}");
    assert_eq!(one.lines().filter(|line| line.contains(" %   ") && line.trim_end().ends_with('e')).count(), 2, "{one}");
    let (prose, verse) = (scratch.file("prose.txt", "a plain text of words"), scratch.file("verse.txt", "o rose"));
    let named = format!("poem={}", text(&verse));
    let several = octet(["experts", text(&model), "--text", text(&prose), "--text", &named]).succeeded();
    assert!(several.contains("Load by text in layer 0") && several.contains("\npoem "), "{several}");
    assert!(!several.contains('\x1b'), "no colours in a pipe");
}

#[test]
fn what_cannot_be_asked_or_shown_is_named() {
    let scratch = Scratch::new();
    let (mixture, dense) = (talking(&scratch, "mixtral-8x2"), talking(&scratch, "mistral-dense"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{closed}");
    octet(["chat", "--server", &nobody]).refused_naming(&["cannot connect"]);
    octet(["compare", "a", "b", "hi", "--server", &nobody]).refused_naming(&["a: ", "cannot connect"]);
    octet(["chat", "--server", "ftp://x"]).refused_naming(&["ftp://x", "http://", "https://"]);
    octet(["chat"]).refused_naming(&["MODEL"]);
    let server = Serving::new(&[&format!("m={}", text(&mixture))], &["--api-key", "sk-1"]);
    octet(["chat", "--server", &server.url]).refused_naming(&["401", "no API key"]);
    let known = ["--server", &server.url, "--api-key", "sk-1"];
    octet(["compare", "m", "n", "hi"].into_iter().chain(known)).refused_naming(&["n: ", "404", "'n' not found"]);
    octet(["experts", text(&dense), "hi"]).refused_naming(&["mistral-dense", "dense"]);
    octet(["experts", text(&mixture), "hi", "--layer", "9"]).refused_naming(&["--layer 9", "last"]);
    octet(["experts", text(&mixture), ""]).refused_naming(&["empty"]);
    octet(["experts", text(&mixture), "--text", "x=missing.txt"]).refused_naming(&["missing.txt"]);
}

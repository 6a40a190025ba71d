//! Bad input on the command line: one line that names the file, the tensor or the flag, a non-zero exit, nothing left behind.

mod scratch;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use scratch::{Scratch, fixtures, octet, octet_reading, text};

/// Each layout of a reference model: what is called, the path to give, and the file that holds the weights.
fn layouts(scratch: &Scratch) -> Vec<(&'static str, PathBuf, PathBuf)> {
    let hugging_face = scratch.copy_of("mixtral-8x2", "hf");
    let experts = scratch.copy_of("mixtral-8x2/mistral-raw/experts", "experts");
    let stacked = scratch.copy_of("mixtral-8x2/mistral-raw/stacked", "stacked");
    let gguf = scratch.gguf_of("mixtral-8x2", "model.gguf");
    vec![
        ("Hugging Face", hugging_face.clone(), hugging_face.join("model.safetensors")),
        ("Mistral, safetensors", experts.clone(), experts.join("consolidated.safetensors")),
        ("Mistral, pth", stacked.clone(), stacked.join("consolidated.00.pth")),
        ("GGUF", gguf.clone(), gguf),
    ]
}

/// A generator of bytes for damage that is the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

#[test]
fn damaged_files_are_refused_by_name_in_every_layout() {
    let scratch = Scratch::new();
    for (layout, model, weights) in layouts(&scratch) {
        let whole = std::fs::read(&weights).unwrap();
        let name = weights.file_name().unwrap().to_str().unwrap().to_owned();
        let mut shuffled = whole.clone();
        let mut dice = Dice(7);
        (0..shuffled.len()).rev().for_each(|i| shuffled.swap(i, dice.roll(i + 1)));
        let damaged = [
            ("empty", Vec::new()),
            ("one byte", whole[..1].to_vec()),
            ("cut in the header", whole[..60].to_vec()),
            ("cut in the data", whole[..whole.len() * 2 / 3].to_vec()),
            ("cut at the end", whole[..whole.len() - 1].to_vec()),
            ("zeros", vec![0; whole.len()]),
            ("shuffled", shuffled),
        ];
        for (damage, bytes) in damaged {
            std::fs::write(&weights, bytes).unwrap();
            for command in ["inspect", "verify"] {
                let line = octet([command, text(&model)]).refused();
                assert!(line.contains(&name), "{layout}, {damage}: {line}\nshould name {name}");
            }
        }
        std::fs::write(&weights, whole).unwrap();
        octet(["verify", text(&model)]).succeeded();
    }
}

#[test]
fn flipped_bytes_in_headers_never_panic() {
    let scratch = Scratch::new();
    let mut dice = Dice(20231211);
    for (_, model, weights) in layouts(&scratch) {
        let whole = std::fs::read(&weights).unwrap();
        let header = whole.len().min(4096);
        for _ in 0..25 {
            let mut flipped = whole.clone();
            for _ in 0..=dice.roll(3) {
                flipped[dice.roll(header)] = dice.roll(256) as u8;
            }
            std::fs::write(&weights, &flipped).unwrap();
            let outcome = octet(["inspect", text(&model)]);
            if !outcome.output.status.success() {
                outcome.refused();
            }
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let scratch = Scratch::new();
    octet(["inspect", text(&scratch.path("nowhere"))]).refused_naming(&["nowhere"]);
    std::fs::create_dir(scratch.path("empty")).unwrap();
    octet(["inspect", text(&scratch.path("empty"))]).refused_naming(&["empty", "no checkpoint"]);
    let readme = scratch.file("README.txt", "hello");
    octet(["inspect", text(&readme)]).refused_naming(&["README.txt"]);

    let both = scratch.copy_of("mixtral-8x2", "both");
    std::fs::copy(both.join("model.safetensors"), both.join("consolidated.safetensors")).unwrap();
    octet(["inspect", text(&both)]).refused_naming(&[
        "two checkpoints",
        "model.safetensors",
        "consolidated.safetensors",
    ]);
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "hf");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
        octet(["inspect", text(&model)])
    };
    change("\"MixtralForCausalLM\"", "\"GPT2LMHeadModel\"").refused_naming(&["config.json", "GPT2LMHeadModel"]);
    change("\"intermediate_size\": 96", "\"intermediate_size\": 128").refused_naming(&[
        "w1.weight",
        "[96, 64]",
        "[128, 64]",
    ]);
    change("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3").refused_naming(&["layers.2", "missing"]);
    change("\"num_local_experts\": 8", "\"num_local_experts\": 1000000000").refused_naming(&["config.json", "num_"]);
    change("\"num_hidden_layers\": 2", "\"num_hidden_layers\": -2")
        .refused_naming(&["config.json", "num_hidden_layers"]);
    let long = ["config.json", "context_length", "4294967296"];
    change("_embeddings\": 512", "_embeddings\": 4294967296").refused_naming(&long);
    change("\"hidden_act\": \"silu\"", "\"hidden_act\": \"relu\"").refused_naming(&["config.json", "relu"]);
    change("{", "[").refused_naming(&["config.json"]);
    change("\"vocab_size\": 512", "\"vocab_size\": 512}").refused_naming(&["config.json"]);
}

#[test]
fn weights_that_no_model_has_are_found_by_verify() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "hf");
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let mut with_nan = whole.clone();
    let last = with_nan.len() - 4;
    with_nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &with_nan).unwrap();
    octet(["verify", text(&model)]).refused_naming(&["model.safetensors", "1 NaN"]);
    octet(["inspect", text(&model)]).succeeded();

    std::fs::write(&weights, &whole).unwrap();
    scratch.file("hf/SHA256SUMS", format!("{}  model.safetensors\n", "0".repeat(64)));
    octet(["verify", text(&model)]).refused_naming(&["model.safetensors", "SHA256SUMS"]);
    octet(["verify", text(&model), "--no-checksums"]).succeeded();
}

#[test]
fn token_ids_and_prompts_beyond_the_model_are_refused() {
    let scratch = Scratch::new();
    let model = fixtures().join("mixtral-8x2");
    let out = scratch.path("out.safetensors");
    let ids = |ids: &[i64]| {
        let data: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1, ids.len()], &data).unwrap();
        scratch.file("ids.safetensors", safetensors::serialize([("input_ids", view)], None).unwrap())
    };
    let logits = |input: PathBuf| octet(["logits", text(&model), "--input", text(&input), "--output", text(&out)]);
    logits(ids(&[1, 512])).refused_naming(&["512"]);
    logits(ids(&[1, -1])).refused_naming(&["-1"]);
    logits(scratch.file("no.safetensors", "no")).refused_naming(&["no.safetensors"]);
    assert!(!out.exists(), "a refused run leaves no output");
}

#[test]
fn flags_that_make_no_sense_are_refused_in_one_line() {
    let model = fixtures().join("mixtral-8x2");
    let model = text(&model);
    octet(["frobnicate"]).refused_naming(&["frobnicate"]);
    octet(["inspect"]).refused_naming(&["MODEL"]);
    octet(["inspect", model, "--tensor"]).refused_naming(&["--tensor"]);
    octet(["plan", model, "--quantize", "Q5"]).refused_naming(&["--quantize", "Q5_K_M"]);
    octet(["plan", model, "--context", "0"]).refused_naming(&["--context"]);
    octet(["plan", model, "--kv", "f64"]).refused_naming(&["--kv", "q8_0"]);
    octet(["verify", model, "--threads", "0"]).refused_naming(&["--threads"]);
    octet(["bench", model, "-r", "0"]).refused_naming(&["--repetitions"]);
    octet(["bench", model, "-p", "0", "-n", "0"]).refused_naming(&["-p", "-n", "nothing to measure"]);
    octet(["bench", model, "--npl", "2", "--npp", "0", "--ntg", "0"]).refused_naming(&["--npp", "--ntg"]);
    octet(["generate", model, "hello", "--temperature=-1"]).refused_naming(&["temperature"]);
    octet(["generate", model, "hello", "--temperature", "NaN"]).refused_naming(&["temperature"]);
    octet(["generate", model, "hello", "--top-p", "1.5"]).refused_naming(&["top-p"]);
}

#[test]
fn experts_that_a_model_does_not_have_are_refused_before_it_is_loaded() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", scratch::bytes_tokenizer().to_string());
    let words = scratch.file("words.txt", "hello world");
    for experts in ["9", "0"] {
        let named = [&format!("experts_per_token is {experts}")[..], "from 1 to 8"];
        octet(["generate", text(&model), "hello", "--experts-per-token", experts]).refused_naming(&named);
        octet(["chat", text(&model), "--experts-per-token", experts]).refused_naming(&named);
        octet(["perplexity", text(&model), "--file", text(&words), "--experts-per-token", experts])
            .refused_naming(&named);
    }
}

#[test]
fn outputs_appear_whole_or_not_at_all() {
    let scratch = Scratch::new();
    let model = fixtures().join("mixtral-8x2");
    let taken = scratch.file("taken.gguf", "mine");
    let before = scratch.names();
    let convert = |out: &Path| octet(["convert", text(&model), text(out), "--to", "gguf"]);
    convert(&taken).refused_naming(&["taken.gguf", "--force"]);
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "mine");
    convert(&scratch.path("no/such/folder/out.gguf")).refused_naming(&["no/such/folder"]);
    convert(&taken.join("out.gguf")).refused();
    assert_eq!(scratch.names(), before, "refused runs leave nothing behind");
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_ends_in_one_line() {
    // A limit on the size of files stands in for a full disk: writing beyond it fails in the same call.
    let scratch = Scratch::new();
    let out = scratch.path("out.gguf");
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec {} convert {} {} --to gguf",
        env!("CARGO_BIN_EXE_octet"),
        text(&fixtures().join("mixtral-8x2")),
        text(&out)
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    scratch::Outcome { arguments: "convert".into(), output }.refused_naming(&["out.gguf"]);
    assert!(!out.exists(), "a failed run leaves no output");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_panic() {
    let model = fixtures().join("mixtral-8x2");
    for command in ["inspect MODEL --tensors --json", "bench MODEL -p 4 -n 2 -r 1", "bench MODEL -p 4 -n 0 -r 1 --json"]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let arguments = command.split(' ').map(|word| if word == "MODEL" { text(&model) } else { word });
        let mut octet = std::process::Command::new(env!("CARGO_BIN_EXE_octet"));
        let output = octet.args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
        let output = output.unwrap();
        assert!(output.status.success(), "{command}: {}", output.status);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "", "{command}: whoever closed the pipe has read enough");
    }
}

#[test]
fn filters_refuse_what_is_no_json() {
    let model = scratch::tokenizer("tokenizer.model.v1");
    let model = text(&model);
    octet_reading("[1, 2", ["tokenize", model, "--json"]).refused_naming(&["standard input"]);
    octet_reading("{}", ["tokenize", model, "--json"]).refused_naming(&["standard input"]);
    octet_reading("[]", ["render", model, "--json"]).refused_naming(&["standard input"]);
}

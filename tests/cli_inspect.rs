//! What `octet inspect`, `octet verify` and `octet plan` tell.

mod scratch;

use scratch::{Scratch, fixtures, octet, text};
use serde_json::Value;

/// The params.json of Mixtral 8x7B, as announced on 8 December 2023.
const ANNOUNCED: &str = r#"{"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}"#;

fn json<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Value {
    serde_json::from_str(&octet(arguments).succeeded()).unwrap()
}

#[test]
fn the_announcement_alone_is_enough() {
    let scratch = Scratch::new();
    let params = scratch.file("release/params.json", ANNOUNCED);
    for path in [&params, &scratch.path("release")] {
        let report = json(["inspect", text(path), "--json"]);
        assert_eq!(report["architecture"], "Mixtral");
        assert_eq!(report["parameters"], 46_702_792_704u64);
        assert_eq!(report["active_parameters"], 12_879_925_248u64);
        assert_eq!(report["shape"]["num_experts"], 8);
        assert_eq!(report["shape"]["rope_theta"], 1e6);
        let f16 = report["kv_cache"].as_array().unwrap().iter().find(|kv| kv["type"] == "f16").unwrap();
        assert_eq!(f16["bytes_per_token"], 128 << 10);
        assert_eq!(f16["bytes_at_32k"], 4u64 << 30);
    }
    let said = octet(["inspect", text(&params)]).succeeded();
    for fact in
        ["46,702,792,704", "12,879,925,248", "2 of 8 experts", "128 KiB a token", "4.00 GiB at 32,768", "Q4_K_M"]
    {
        assert!(said.contains(fact), "{said}\nshould say {fact}");
    }
}

#[test]
fn sizes_follow_the_bits() {
    let scratch = Scratch::new();
    let report = json(["inspect", text(&scratch.file("params.json", ANNOUNCED)), "--json"]);
    let bytes = |mix: &str| {
        let sizes = report["sizes"].as_array().unwrap();
        let size = sizes.iter().find(|size| size["mix"] == mix).unwrap_or_else(|| panic!("no {mix}"));
        size["bytes"].as_u64().unwrap()
    };
    for pair in ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"].windows(2) {
        assert!(bytes(pair[0]) > bytes(pair[1]), "{pair:?}");
    }
    // 34 bytes for 32 weights, but for the routers and norms, which are F32.
    let q8_0 = 46_702_792_704.0 * 34.0 / 32.0;
    assert!((bytes("Q8_0") as f64 / q8_0 - 1.0).abs() < 1e-3, "{}", bytes("Q8_0"));
}

#[test]
fn every_layout_tells_the_same_shape() {
    let scratch = Scratch::new();
    let gguf = scratch.gguf_of("mixtral-4x3", "model.gguf");
    let folder = fixtures().join("mixtral-4x3");
    let reference = json(["inspect", text(&folder), "--json"]);
    assert_eq!(reference["layout"], "Hugging Face");
    let stacked = folder.join("mistral-raw/stacked");
    for (path, layout) in [(&stacked, "Mistral release"), (&gguf, "GGUF")] {
        let report = json(["inspect", text(path), "--json", "--tensors"]);
        assert_eq!(report["layout"], layout);
        assert_eq!(report["parameters"], reference["parameters"]);
        assert_eq!(report["active_parameters"], reference["active_parameters"]);
        for field in ["dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "num_experts"]
        {
            assert_eq!(report["shape"][field], reference["shape"][field], "{layout}: {field}");
        }
        let tensors = report["tensors"].as_array().unwrap();
        let counted: u64 = report["types"].as_object().unwrap().values().map(|t| t["tensors"].as_u64().unwrap()).sum();
        assert_eq!(tensors.len() as u64, counted);
    }
}

#[test]
fn parameters_are_those_in_the_file() {
    for model in ["mixtral-8x2", "mixtral-window", "llama-dense"] {
        let report = json(["inspect", text(&fixtures().join(model)), "--json"]);
        let stored: u64 =
            report["types"].as_object().unwrap().values().map(|t| t["parameters"].as_u64().unwrap()).sum();
        assert_eq!(report["parameters"], stored, "{model}");
    }
}

#[test]
fn verify_reads_every_weight() {
    let model = fixtures().join("mixtral-8x2");
    let report = json(["verify", text(&model), "--json"]);
    assert_eq!(report["tensors_present"], report["tensors_expected"]);
    assert_eq!(report["values"], json(["inspect", text(&model), "--json"])["parameters"]);
    assert_eq!(report["faults"], Value::Array(Vec::new()));
}

#[test]
fn verify_lists_every_fault_and_checks_sums() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "hf");
    // Of the tiny model's weights, as sha256sum prints it.
    let sum = std::process::Command::new("sha256sum").arg(model.join("model.safetensors")).output();
    let sum = sum.expect("coreutils are everywhere").stdout;
    let digest = String::from_utf8(sum).unwrap().split(' ').next().unwrap().to_owned();
    scratch.file("hf/SHA256SUMS", format!("{digest}  model.safetensors\n"));
    let report = json(["verify", text(&model), "--json"]);
    assert_eq!(report["checksums"][0]["matches"], true);

    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config.replace("\"vocab_size\": 512", "\"vocab_size\": 500")).unwrap();
    let outcome = octet(["verify", text(&model), "--json"]);
    let report: Value = serde_json::from_str(&outcome.stdout()).unwrap();
    assert_eq!(report["faults"].as_array().unwrap().len(), 2, "embedding and output head: {report}");
    outcome.refused_naming(&["2 faults"]);
}

#[test]
fn plan_tells_what_tuning_takes() {
    let model = fixtures().join("mixtral-8x2");
    let tuning = |more: &[&str]| {
        let report = json([&["plan", text(&model), "--json", "--tune", "10k", "--length", "100"], more].concat());
        report["tuning"].clone()
    };
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_else(|| panic!("{name} of {of}"));
    let adapter = tuning(&[]);
    // Seven steps of 16 samples of 100 tokens; each is one pass.
    assert_eq!(["steps", "passes", "tokens", "look_tokens"].map(|name| number(&adapter, name)), [7, 7, 11_200, 0]);
    assert!(adapter["seconds"].as_f64().unwrap() > 0.0 && adapter["fits"] == true, "{adapter}");
    let preferences = tuning(&["--dpo"]);
    assert_eq!(["steps", "tokens", "look_tokens"].map(|name| number(&preferences, name)), [4, 12_800, 12_800]);
    let all = tuning(&["--all"]);
    let parameters = json(["inspect", text(&model), "--json"])["parameters"].as_u64().unwrap();
    assert_eq!(number(&all, "trained"), parameters);
    let said = octet(["plan", text(&model), "--tune", "10k"]).succeeded();
    assert!(said.contains("tuning reads") && said.contains("as some layers and the head were measured"), "{said}");
    octet(["plan", text(&model), "--tune", "many"]).refused_naming(&["number of tokens"]);
    octet(["plan", text(&model), "--all"]).refused_naming(&["--tune"]);
    octet(["plan", text(&model), "--tune", "1k", "--targets", "heart"]).refused_naming(&["attention"]);
    assert!(json(["plan", text(&model), "--json"]).get("tuning").is_none(), "nobody asked");
}

#[test]
fn plan_measures_no_more_than_there_is_memory_for() {
    let scratch = Scratch::new();
    let wide = serde_json::json!({"dim": 1u32 << 31, "n_layers": 1, "head_dim": 2, "hidden_dim": 2, "n_heads": 1, "n_kv_heads": 1,
                                  "vocab_size": 2, "norm_eps": 1e-5});
    let params = scratch.file("params.json", wide.to_string());
    for more in [&[][..], &["--quantize", "Q4_K_M"]] {
        let report = json([&["plan", text(&params), "--json"], more].concat());
        assert!(report["speed"]["multiply_adds"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn plan_adds_up() {
    let scratch = Scratch::new();
    let params = scratch.file("params.json", ANNOUNCED);
    let plan = |more: &[&str]| json([&["plan", text(&params), "--json"], more].concat());
    let one = plan(&["--quantize", "Q4_K_M", "--context", "8192"]);
    assert_eq!(one["fit"]["footprint"]["kv_cache"], 1u64 << 30);
    let by_name = json(["plan", "mixtral-8x7b", "--json", "--quantize", "Q4_K_M", "--context", "8192"]);
    assert_eq!(by_name["fit"]["footprint"], one["fit"]["footprint"]);
    let four = plan(&["--quantize", "Q4_K_M", "--context", "8192", "--users", "4"]);
    assert_eq!(four["fit"]["footprint"]["kv_cache"], 4u64 << 30);
    assert_eq!(four["fit"]["footprint"]["weights"], one["fit"]["footprint"]["weights"]);
    // Each run measures the machine anew, so speeds are compared by the byte read and not by the second.
    let per_byte = |report: &serde_json::Value| {
        let [tokens, bytes] = ["generate", "read_bandwidth"].map(|field| report["speed"][field].as_f64().unwrap());
        tokens / bytes
    };
    let (alone, together) = (per_byte(&one), per_byte(&four));
    assert!(together > alone, "{together} tokens a byte of four users, {alone} of one");
    let small = plan(&["--quantize", "Q2_K", "--context", "8192", "--kv", "q8_0"]);
    assert!(small["fit"]["footprint"]["weights"].as_u64() < one["fit"]["footprint"]["weights"].as_u64());
}

//! Each way in which a checkpoint can be wrong: one line that names the file, the tensor or key, and the way out.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use octet_checkpoint::{Checkpoint, ElementType, Params};
use serde_json::{Value, json};
use support::{Experts, GgufFile, Key, Stored, fixture, to_gguf};

/// Asserts that the path is refused in one line that holds all of `parts`.
#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    let message = Checkpoint::open(path).err().unwrap_or_else(|| panic!("{} opens", path.display())).to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    assert!(!message.contains('\n') && message.len() < 700, "{message}");
}

/// A copy of a reference model's Hugging Face layout, free to be damaged.
fn copy_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture(model).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// Like [`copy_of`], of Mistral's stacked layout.
fn torch_copy_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["params.json", "consolidated.00.pth"] {
        fs::copy(fixture(model).join("mistral-raw/stacked").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn edit_bytes(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Replaces bytes that occur in the file by others of the same length.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let starts: Vec<_> = (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert!(!starts.is_empty(), "nothing to replace");
    starts.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
}

#[test]
fn a_path_without_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    refused(&path.join("nowhere"), &["nowhere: ", "No such file", "check the path"]);
    refused(path, &["holds no checkpoint"]);
    refused("/dev/null".as_ref(), &["/dev/null: is neither a file nor a folder"]);
    fs::write(path.join("notes.txt"), "hello").unwrap();
    refused(&path.join("notes.txt"), &["notes.txt: is no checkpoint", ".safetensors"]);
    fs::write(path.join("pytorch_model.bin"), "x").unwrap();
    refused(path, &["pytorch_model.bin", "get the model's safetensors"]);
    fs::write(path.join("model.safetensors"), "").unwrap();
    refused(path, &["config.json: is missing beside"]);
    fs::write(path.join("config.json"), fs::read(fixture("llama-dense/config.json")).unwrap()).unwrap();
    refused(path, &["model.safetensors: the file is empty; fetch it again"]);
}

#[test]
fn a_folder_with_two_checkpoints() {
    let folder = copy_of("mixtral-4x3");
    let path = folder.path();
    for name in ["params.json", "consolidated.00.pth"] {
        fs::copy(fixture("mixtral-4x3/mistral-raw/stacked").join(name), path.join(name)).unwrap();
    }
    let says =
        ["holds two checkpoints", "model.safetensors", "consolidated.00.pth", "give the path of the one you mean"];
    refused(path, &says);
    for one in ["model.safetensors", "config.json", "consolidated.00.pth", "params.json"] {
        Checkpoint::open(&path.join(one)).unwrap_or_else(|e| panic!("{e}"));
    }
    fs::rename(path.join("consolidated.00.pth"), path.join("away")).unwrap();
    for name in ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"] {
        fs::write(path.join(name), "").unwrap();
    }
    refused(path, &["holds two checkpoints", "model.safetensors", "a.gguf"]);
    fs::remove_file(path.join("model.safetensors")).unwrap();
    refused(path, &["holds two checkpoints", "a.gguf", "b-00001-of-00002.gguf"]);
}

#[test]
fn a_config_that_octet_does_not_run() {
    let cases: [(&str, Value, &[&str]); 16] = [
        (
            "architectures",
            json!(["Qwen2ForCausalLM"]),
            &["\"Qwen2ForCausalLM\" is not supported", "MixtralForCausalLM"],
        ),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}), &["rope scaling \"yarn\""]),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0}), &["rope scaling \"linear\""]),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), &["rope scaling \"llama3\""]),
        ("quantization_config", json!({"quant_method": "awq"}), &["\"awq\"", "BF16"]),
        ("hidden_act", json!("gelu"), &["`hidden_act` \"gelu\""]),
        ("attention_bias", json!(true), &["`attention_bias` true"]),
        ("hidden_size", json!(-1), &["`hidden_size` is no whole number"]),
        ("hidden_size", json!("64"), &["`hidden_size` is no whole number"]),
        ("hidden_size", Value::Null, &["`hidden_size` is missing"]),
        ("hidden_size", json!(1u64 << 60), &["`dim` is 1152921504606846976, outside 1 to"]),
        ("num_attention_heads", json!(0), &["is 0, outside 1 to"]),
        ("num_key_value_heads", json!(3), &["`n_kv_heads` is 3, no divisor"]),
        ("num_experts_per_tok", json!(9), &["`num_experts_per_tok` is 9, outside 1 to num_experts 8"]),
        ("vocab_size", json!(513), &["shape [512, 64]", "[513, 64]", "model.embed_tokens.weight"]),
        ("num_hidden_layers", json!(3), &["model.layers.2.input_layernorm.weight", "of shape [64] is missing"]),
    ];
    for (key, value, parts) in cases {
        let folder = copy_of("mixtral-8x2");
        edit_json(&folder.path().join("config.json"), |config| config[key] = value);
        refused(folder.path(), parts);
    }
    let by_layer = json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}});
    let folder = copy_of("mixtral-8x2");
    edit_json(&folder.path().join("config.json"), |config| config["rope_parameters"] = by_layer);
    refused(folder.path(), &["`rope_parameters` that differs by kind of layer"]);
    for text in ["", "[]", "{", "\u{0}", &"[".repeat(100_000)] {
        fs::write(folder.path().join("config.json"), text).unwrap();
        refused(folder.path(), &["config.json: is no", "fetch it again"]);
    }
}

#[test]
fn params_that_octet_does_not_run() {
    let announced = json!({"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2,
        "norm_eps": 1e-5, "vocab_size": 512, "moe": {"num_experts_per_tok": 2, "num_experts": 8}});
    let read = |key: &str, value: Value| {
        let mut params = announced.clone();
        params[key] = value;
        Params::from_json("params.json".as_ref(), &params.to_string())
    };
    let message = |key, value| read(key, value).unwrap_err().to_string();
    assert!(message("moe", json!({"num_experts": 8})).contains("`moe.num_experts_per_tok` is missing"));
    assert!(message("head_dim", Value::Null).contains("`head_dim` is missing"));
    assert!(message("yarn", json!({"factor": 8})).contains("`yarn` is not supported"));
    assert!(message("norm_eps", json!("small")).contains("`norm_eps` is no number"));
    assert!(message("sliding_window", json!(0)).contains("`sliding_window` is 0"));
    // Mistral's own default, and what a window changes about it.
    assert_eq!(read("dim", json!(64)).unwrap().rope_theta, 1e6);
    assert_eq!(read("sliding_window", json!(4096)).unwrap().rope_theta, 1e4);
    assert_eq!(read("sliding_window", Value::Null).unwrap().rope_theta, 1e6);
    assert_eq!(read("rope_theta", json!(2e5)).unwrap().rope_theta, 2e5);
}

#[test]
fn configs_of_transformers_4_and_5_say_the_same() {
    let text = fs::read_to_string(fixture("mixtral-window/config.json")).unwrap();
    let of_5: Value = serde_json::from_str(&text).unwrap();
    let mut of_4 = of_5.clone();
    of_4.as_object_mut().unwrap().remove("rope_parameters");
    of_4["rope_theta"] = json!(1000000.0);
    of_4["rope_scaling"] = Value::Null;
    let read = |value: &Value| Params::from_json("config.json".as_ref(), &value.to_string()).unwrap();
    assert_eq!(read(&of_4), read(&of_5));
    of_4.as_object_mut().unwrap().remove("rope_theta");
    assert_eq!(read(&of_4), read(&of_5), "MixtralConfig's own default is 1e6");
    // MistralConfig has a window of 4096 unless told otherwise, LlamaConfig has none whatever it is told.
    let window = |architecture: &str, window: Option<Value>| {
        let mut config = of_4.clone();
        config["architectures"] = json!([architecture]);
        config.as_object_mut().unwrap().remove("sliding_window");
        window.into_iter().for_each(|value| config["sliding_window"] = value);
        read(&config).sliding_window
    };
    assert_eq!(window("MistralForCausalLM", None), Some(4096));
    assert_eq!(window("MistralForCausalLM", Some(Value::Null)), None);
    assert_eq!(window("MixtralForCausalLM", None), None);
    assert_eq!(window("LlamaForCausalLM", Some(json!(8))), None);
}

#[test]
fn weights_that_are_damaged() {
    let folder = copy_of("mixtral-8x2");
    let path = folder.path().join("model.safetensors");
    edit_bytes(&path, |bytes| bytes.truncate(bytes.len() - 1));
    refused(&path, &["model.safetensors: tensor", "not within", "fetch the file again"]);
    edit_bytes(&path, |bytes| bytes.truncate(7));
    refused(&path, &["too short for a safetensors file"]);
    edit_bytes(&path, |bytes| bytes.resize(1000, 0));
    refused(&path, &["model.safetensors: "]);
    fs::write(&path, vec![0; 5000]).unwrap();
    refused(&path, &["model.safetensors: "]);
    fs::write(&path, vec![0xff; 5000]).unwrap();
    refused(&path, &["header claims 18446744073709551615 bytes"]);
    let folder = copy_of("mixtral-8x2");
    let path = folder.path().join("model.safetensors");
    edit_bytes(&path, |bytes| replace(bytes, b"model.norm.weight", b"model.Norm.weight"));
    refused(&path, &["tensor model.norm.weight of shape [64] is missing"]);
    let (checkpoint, problems) = Checkpoint::examine(folder.path()).unwrap();
    assert_eq!(problems.len(), 1);
    let unexpected: Vec<_> = checkpoint.unexpected().map(|(_, tensor)| tensor.name.as_str()).collect();
    assert_eq!(unexpected, ["model.Norm.weight"]);
}

#[test]
fn an_index_that_names_files_elsewhere() {
    let folder = copy_of("mixtral-8x2");
    let index = folder.path().join("model.safetensors.index.json");
    for (map, part) in [
        (json!({"a": "../secret.safetensors"}), "which is no file beside it"),
        (json!({"a": 7}), "which is no file beside it"),
        (json!({}), "names no file"),
        (json!([]), "is no index of shards"),
        (json!({"a": "model-1.safetensors"}), "is missing, though"),
    ] {
        fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        refused(&index, &[part]);
    }
}

#[test]
fn biases_and_other_types_are_not_passed_over() {
    let folder = copy_of("llama-dense");
    let path = folder.path().join("model.safetensors");
    let header_of = |from: &[u8], to: &[u8], parts: &[&str]| {
        fs::copy(fixture("llama-dense/model.safetensors"), &path).unwrap();
        edit_bytes(&path, |bytes| replace(bytes, from, to));
        refused(folder.path(), parts);
    };
    header_of(
        b"model.layers.1.mlp.up_proj.weight",
        b"model.layers.1.mlp.gate_proj.bias",
        &["gate_proj.bias", "without biases"],
    );
    header_of(b"\"dtype\":\"F32\"", b"\"dtype\":\"I32\"", &["tensor model.embed_tokens.weight of type I32"]);
}

struct Gguf {
    folder: tempfile::TempDir,
    file: GgufFile,
}

impl Gguf {
    fn new() -> Gguf {
        let checkpoint = Checkpoint::open(&fixture("mixtral-8x2")).unwrap();
        Gguf { folder: tempfile::tempdir().unwrap(), file: to_gguf(&checkpoint, Experts::Merged) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("m.gguf")
    }

    #[track_caller]
    fn refused(&self, change: impl FnOnce(GgufFile) -> GgufFile, parts: &[&str]) {
        change(self.file.clone()).write(&self.path());
        refused(&self.path(), parts);
    }

    #[track_caller]
    fn refused_bytes(&self, change: impl FnOnce(&mut Vec<u8>), parts: &[&str]) {
        let mut bytes = self.file.bytes();
        change(&mut bytes);
        fs::write(self.path(), bytes).unwrap();
        refused(&self.path(), parts);
    }

    /// Where in the file the description of a tensor follows its name.
    fn description(&self, name: &str) -> usize {
        let bytes = self.file.bytes();
        let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(name.as_bytes())).unwrap();
        at + name.len()
    }
}

#[test]
fn a_gguf_that_octet_does_not_run() {
    let gguf = Gguf::new();
    let text = |t: &str| Key::Text(t.into());
    gguf.refused(
        |f| f.key("general.architecture", text("qwen2")),
        &["m.gguf: architecture \"qwen2\" is not supported"],
    );
    gguf.refused(|f| f.without("general.architecture"), &["`general.architecture` is missing"]);
    gguf.refused(|f| f.key("llama.rope.scaling.type", text("yarn")), &["rope scaling \"yarn\""]);
    gguf.refused(
        |f| f.key("llama.rope.dimension_count", Key::U32(8)),
        &["`llama.rope.dimension_count` 8 beside a head of 16"],
    );
    gguf.refused(|f| f.key("llama.attention.head_count_kv", Key::U32s(vec![2, 1])), &["that differs by layer"]);
    gguf.refused(|f| f.key("llama.block_count", Key::F32(2.0)), &["`llama.block_count` is no whole number"]);
    gguf.refused(|f| f.key("llama.embedding_length", Key::U32(0)), &["`dim` is 0"]);
    gguf.refused(|f| f.without("llama.expert_used_count"), &["`llama.expert_used_count` is missing"]);
    gguf.refused(|f| f.key("general.alignment", Key::U32(48)), &["`general.alignment` is no power of two"]);
    gguf.refused(
        |f| f.without("blk.1.ffn_up_exps.weight"),
        &["tensor blk.1.ffn_up_exps.weight or blk.1.ffn_up.0.weight of shape [96, 64]", "is missing"],
    );
    gguf.refused(
        |f| f.key("tokenizer.ggml.tokens", Key::Texts(vec!["a".into()])),
        &["token_embd.weight has shape [512, 64]", "[1, 64]"],
    );
    let scaled = |mut f: GgufFile| {
        f.tensors.push(Stored::f32("rope_freqs.weight", &[8], &[1.0; 8]));
        f
    };
    gguf.refused(scaled, &["tensor rope_freqs.weight is not supported"]);
    // A list of equal numbers, one a layer, is as good as one number.
    gguf.file.clone().key("llama.attention.head_count_kv", Key::U32s(vec![2, 2])).write(&gguf.path());
    Checkpoint::open(&gguf.path()).unwrap();
}

#[test]
fn a_gguf_that_breaks_its_format() {
    let gguf = Gguf::new();
    let at = gguf.description("blk.0.attn_q.weight");
    let put =
        |at: usize, value: u64| move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let put_u32 =
        |at: usize, value: u32| move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    gguf.refused_bytes(|b| b.clear(), &["the file is empty"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    gguf.refused_bytes(|b| *b = pointer.to_vec(), &["m.gguf: is a pointer of Git LFS", "git lfs pull"]);
    gguf.refused_bytes(|b| b.fill(0), &["m.gguf: is no GGUF file"]);
    gguf.refused_bytes(|b| b[..4].copy_from_slice(b"tjgg"), &["before GGUF"]);
    gguf.refused_bytes(put_u32(4, 1), &["GGUF version 1 is not supported", "newer GGUF"]);
    gguf.refused_bytes(put_u32(4, 3 << 24), &["a big-endian GGUF"]);
    gguf.refused_bytes(put_u32(4, 4), &["GGUF version 4"]);
    gguf.refused_bytes(put(8, u64::MAX), &["m.gguf: "]);
    gguf.refused_bytes(put(16, u64::MAX), &["m.gguf: "]);
    gguf.refused_bytes(put_u32(at, 1_000_000_000), &["tensor blk.0.attn_q.weight claims 1000000000 dimensions"]);
    gguf.refused_bytes(put(at + 4, u64::MAX), &["tensor blk.0.attn_q.weight", "too large for any file"]);
    gguf.refused_bytes(put(at + 4, 1 << 60), &["tensor blk.0.attn_q.weight", "too large for any file"]);
    gguf.refused_bytes(put(at + 4, 1 << 40), &["tensor blk.0.attn_q.weight", "past the end of the file"]);
    gguf.refused_bytes(put(at + 4, 0), &["shape [64, 0] cannot be stored as F32"]);
    gguf.refused_bytes(put_u32(at + 20, 39), &["tensor blk.0.attn_q.weight of type MXFP4 is not supported"]);
    gguf.refused_bytes(put_u32(at + 20, 999), &["of type number 999"]);
    gguf.refused_bytes(put_u32(at + 20, ElementType::Q4_K.gguf_id()), &["shape [64, 64] cannot be stored as Q4_K"]);
    gguf.refused_bytes(put(at + 24, 0), &["overlap in the file"]);
    gguf.refused_bytes(put(at + 24, 1), &["offset 1 is no multiple of 32"]);
    gguf.refused_bytes(put(at + 24, u64::MAX - 31), &["past the end of the file"]);
    gguf.refused_bytes(|b| b.truncate(b.len() - 64), &["past the end of the file", "cut short"]);
    gguf.refused_bytes(|b| b.truncate(200), &["the file ends at byte 200 within"]);
    gguf.refused_bytes(
        |b| replace(b, b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
        &["blk.0.attn_q.weight is there twice"],
    );
    gguf.refused_bytes(
        |b| replace(b, b"llama.rope.freq_base", b"llama.context_length"),
        &["`llama.context_length` is there twice"],
    );
    gguf.refused_bytes(|b| replace(b, b"blk.1.attn_q.weight", b"blk.1.attn_q.we\xffght"), &["is no UTF-8"]);
    let tokens = gguf.description("tokenizer.ggml.tokens");
    gguf.refused_bytes(put(tokens + 8, u64::MAX), &["`tokenizer.ggml.tokens` claims a list of 18446744073709551615"]);
    gguf.refused_bytes(put_u32(tokens + 4, 9), &["`tokenizer.ggml.tokens` is a list of lists"]);
    gguf.refused_bytes(put_u32(tokens + 4, 77), &["list of unknown type 77"]);
}

#[test]
fn a_torch_file_that_is_not_just_weights() {
    let folder = torch_copy_of("mixtral-4x3");
    let path = folder.path().join("consolidated.00.pth");
    let whole = fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        refused(folder.path(), parts);
    };
    // Same lengths as the names that they replace, so that the archive stays in order.
    with(
        &|b| replace(b, b"ctorch._utils\n_rebuild_tensor_v2\n", b"cposix123456\nsystem4567890123456\n"),
        &["posix123456.system4567890123456", "nothing was run"],
    );
    with(&|b| replace(b, b"collections\nOrderedDict", b"__builtin__\nevalevaleva"), &["__builtin__.evalevaleva"]);
    with(&|b| replace(b, b"BFloat16Storage", b"DoubleddStorage"), &["torch.DoubleddStorage"]);
    with(&|b| replace(b, b"little", b"biglit"), &["byte order"]);
    with(&|b| b.truncate(b.len() - 5), &["no zip directory at its end", "fetch it again"]);
    with(&|b| b.truncate(b.len() / 2), &["no zip directory at its end"]);
    with(&|b| b.fill(0), &["no zip directory at its end"]);
    with(
        &|b| replace(b, b"consolidated.00/data/7", b"consolidated.00/data/x"),
        &["storage data/7 is not in the archive"],
    );
    with(&|b| replace(b, b"/data.pkl", b"/data.pk_"), &["without data.pkl"]);
    with(&|b| b[..9].copy_from_slice(&[0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9]), &["before version 1.6"]);
    // The first record of the directory says method 8, deflate.
    with(
        &|b| {
            let central = (0..b.len()).find(|&at| b[at..].starts_with(b"PK\x01\x02")).unwrap();
            b[central + 10] = 8;
        },
        &["the compressed or encrypted entry consolidated.00/data.pkl"],
    );
    // A storage shorter than the tensor in it: 500 rows become 65280.
    with(
        &|b| {
            let tensor = (0..b.len()).find(|&at| b[at..].starts_with(b"M\xf4\x01K0\x86")).unwrap();
            b[tensor + 1..tensor + 3].copy_from_slice(&[0, 0xff]);
        },
        &["tensor tok_embeddings.weight of shape [65280, 48] reaches out of its storage of 48000 bytes"],
    );
}

#[test]
fn a_missing_head_means_tied_embeddings_only_where_the_layout_says_so() {
    let folder = copy_of("mixtral-8x2");
    edit_bytes(&folder.path().join("model.safetensors"), |bytes| replace(bytes, b"lm_head.weight", b"xm_head.weight"));
    refused(folder.path(), &["lm_head.weight", "is missing"]);
    let gguf = Gguf::new();
    gguf.file.clone().without("output.weight").write(&gguf.path());
    assert!(Checkpoint::open(&gguf.path()).unwrap().params().tied_embeddings);
}

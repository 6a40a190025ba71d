//! Damaged and hostile tokenizer files give an error or a tokenizer that works, never a panic; and what holds of
//! encoding holds of any text.

mod reference;

use octet_checkpoint::gguf::read_header;
use octet_checkpoint::write::{Existing, Job, gguf};
use octet_tokenizer::{ChatFormat, Conversation, DecodeStream, Message, Role, Tokenizer};
use proptest::prelude::*;
use reference::{V1, V3, data, open, read};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;

/// A small vocabulary of SentencePiece's kind, with byte fallback, control and user-defined tokens.
fn small_sentencepiece() -> Value {
    const ADDED: [&str; 6] = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<tool>"];
    const TEXT: [&str; 12] = ["▁", "a", "b", "n", "é", "▁a", "an", "▁an", "ana", "▁b", "▁▁", "ba"];
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ADDED.map(String::from).into_iter().chain(bytes).chain(TEXT.map(String::from));
    let vocab: serde_json::Map<String, Value> = pieces.zip(0u32..).map(|(piece, id)| (piece, id.into())).collect();
    let added = |(id, content)| json!({"id": id, "content": content, "special": content != "<tool>"});
    json!({
        "added_tokens": ADDED.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "a n", "▁a n", "▁ an", "an a", "▁ b", "▁ ▁", "b a"]},
    })
}

fn tokenizer(file: &Value) -> Tokenizer {
    Tokenizer::from_tokenizer_json(file.to_string().as_bytes(), Path::new("small.json")).unwrap()
}

static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&small_sentencepiece()));
static SMALL_JSON: LazyLock<Vec<u8>> = LazyLock::new(|| small_sentencepiece().to_string().into_bytes());
static SMALL_MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| SMALL.to_sentencepiece_model().unwrap());
static SMALL_GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.gguf");
    let job = Job { out: out.clone(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
    job.run(&gguf::plan(&SMALL.to_gguf(), Vec::new()), &mut |_| {}).unwrap();
    std::fs::read(out).unwrap()
});
static BYTE_LEVEL: LazyLock<Tokenizer> =
    LazyLock::new(|| tokenizer(&read::<Value>(data("byte-level.json"))["tokenizer"]));
static MISTRAL_V1: LazyLock<Tokenizer> = LazyLock::new(|| open(V1));
static MISTRAL_V3: LazyLock<Tokenizer> = LazyLock::new(|| open(V3));

/// Whatever a tokenizer came from, it must be usable.
fn exercise(tokenizer: &Tokenizer) {
    let ids = tokenizer.encode("banana é\u{10ffff} <tool> [INST]\n▁▁");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.decode(&ids);
    tokenizer.decode(&[0, 1, 2, 999_999, u32::MAX]);
    tokenizer.encode_with_control("<s>[INST] x");
    for id in [0, 7, u32::MAX] {
        tokenizer.piece(id);
        tokenizer.bytes(id);
    }
    if let Ok(format) = ChatFormat::for_tokenizer(tokenizer) {
        let _ = format.render(&Conversation { messages: vec![Message::user("x")], tools: Vec::new() });
    }
    tokenizer.to_gguf();
    tokenizer.to_tokenizer_json();
    tokenizer.to_sentencepiece_model();
}

/// Bytes changed, cut out, put in.
fn damage() -> impl Strategy<Value = Vec<(usize, u8, usize)>> {
    prop::collection::vec((any::<usize>(), any::<u8>(), 0usize..4), 1..8)
}

fn damaged(bytes: &[u8], damage: &[(usize, u8, usize)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, byte, kind) in damage {
        let at = at % bytes.len().max(1);
        match kind {
            0 if !bytes.is_empty() => bytes[at] = byte,
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, byte),
            _ => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
        }
    }
    bytes
}

fn try_all(bytes: &[u8]) {
    let path = Path::new("hostile");
    let outcomes = [
        Tokenizer::from_sentencepiece_model(bytes, path),
        Tokenizer::from_tokenizer_json(bytes, path),
        read_header(path, bytes)
            .map_err(octet_tokenizer::Error::from)
            .and_then(|header| Tokenizer::from_gguf_metadata(header.metadata(), path)),
    ];
    for outcome in outcomes {
        match outcome {
            Ok(tokenizer) => exercise(&tokenizer),
            Err(error) => assert!(error.to_string().starts_with("hostile"), "{error}"),
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(damage in damage()) {
        for file in [&*SMALL_JSON, &*SMALL_MODEL, &*SMALL_GGUF] {
            try_all(&damaged(file, &damage));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        try_all(&bytes);
        try_all(&[&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn text_comes_back(text in ".{0,60}") {
        // `▁` means a space to SentencePiece, so it alone does not come back.
        let spaced = text.replace('▁', " ");
        for tokenizer in [&*MISTRAL_V1, &*MISTRAL_V3, &*SMALL] {
            let ids = tokenizer.encode(&text);
            prop_assert_eq!(tokenizer.decode(&ids), spaced.clone());
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_control(id)));
        }
        prop_assert_eq!(BYTE_LEVEL.decode(&BYTE_LEVEL.encode(&text)), text);
    }

    #[test]
    fn streams_give_what_decode_gives(ids in prop::collection::vec(0u32..700, 0..40)) {
        for tokenizer in [&*MISTRAL_V1, &*SMALL, &*BYTE_LEVEL] {
            let mut stream = DecodeStream::new(tokenizer);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed += &stream.finish();
            prop_assert_eq!(streamed, tokenizer.decode(&ids));
        }
    }

    /// What users type is text in every format: a prompt has the control tokens that it has for harmless text.
    #[test]
    fn no_text_becomes_a_control_token(
        texts in prop::collection::vec(r"( |\[|\]|/|INST|IN|ST|TOOL_CALLS|<|>|s|</s>|\[/INST\]|x){0,8}", 1..5)
    ) {
        let messages = |texts: &[String]| {
            let roles = [Role::User, Role::Assistant].into_iter().cycle();
            let messages = roles.zip(texts).map(|(role, text)| Message::new(role, format!("{text}!"))).collect();
            Conversation { messages, tools: Vec::new() }
        };
        let harmless: Vec<String> = texts.iter().map(|_| "x".into()).collect();
        let template = "{{ bos_token }}[INST]{% for m in messages %}{{ m.content[:-1] | trim }}{% endfor %}[/INST]";
        let formats = [
            ChatFormat::for_tokenizer(&MISTRAL_V3).unwrap(),
            ChatFormat::template(&MISTRAL_V3, template, Path::new("t")).unwrap(),
        ];
        for format in formats {
            let controls = |texts: &[String]| -> Vec<u32> {
                let ids = format.render(&messages(texts)).unwrap().ids;
                ids.into_iter().filter(|&id| MISTRAL_V3.is_control(id)).collect()
            };
            prop_assert_eq!(controls(&texts), controls(&harmless));
        }
    }
}

#[test]
fn refusals_name_the_component() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut file = small_sentencepiece();
        change(&mut file);
        let outcome = Tokenizer::from_tokenizer_json(file.to_string().as_bytes(), Path::new("t.json"));
        outcome.expect_err("refused").to_string()
    };
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 10] = [
        ("model Unigram", |file| file["model"]["type"] = "Unigram".into()),
        ("model WordPiece", |file| file["model"]["type"] = "WordPiece".into()),
        ("normalizer NFC", |file| file["normalizer"] = json!({"type": "NFC"})),
        ("normalizer Lowercase", |file| file["normalizer"]["normalizers"][0] = json!({"type": "Lowercase"})),
        ("pre_tokenizer Whitespace", |file| file["pre_tokenizer"] = json!({"type": "Whitespace"})),
        ("prepend_scheme sometimes", |file| {
            file["normalizer"] = Value::Null;
            file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "sometimes"});
        }),
        ("decoder WordPiece", |file| file["decoder"] = json!({"type": "WordPiece"})),
        ("post_processor BertProcessing", |file| file["post_processor"] = json!({"type": "BertProcessing"})),
        ("model.end_of_word_suffix", |file| file["model"]["end_of_word_suffix"] = "</w>".into()),
        ("\"<tool>\" with single_word", |file| file["added_tokens"][5]["single_word"] = true.into()),
    ];
    for (component, change) in cases {
        let message = refused(&change);
        assert!(message.starts_with("t.json: ") && message.contains(component), "{message}");
        assert!(message.contains("not supported; use"), "{message}");
    }
    let far = refused(&|file| file["model"]["vocab"]["a"] = 4_000_000_000u32.into());
    assert!(far.contains("id 4000000000 is far beyond"), "{far}");
    let merge = refused(&|file| file["model"]["merges"][3] = "x y".into());
    assert!(merge.contains("merge 3 names a piece that is no token"), "{merge}");
}

#[test]
fn a_normaliser_in_a_sentencepiece_model_is_refused() {
    // normalizer_spec (field 3) { precompiled_charsmap (field 2): "x" }
    let bytes = [&SMALL_MODEL[..], &[0x1a, 3, 0x12, 1, b'x']].concat();
    let error = Tokenizer::from_sentencepiece_model(&bytes, Path::new("m")).unwrap_err().to_string();
    assert!(error.contains("a normaliser (precompiled_charsmap) is not supported"), "{error}");
    // trainer_spec (field 2) { model_type (field 3): UNIGRAM }
    let bytes = [&SMALL_MODEL[..], &[0x12, 2, 0x18, 1]].concat();
    let error = Tokenizer::from_sentencepiece_model(&bytes, Path::new("m")).unwrap_err().to_string();
    assert!(error.contains("model_type unigram is not supported"), "{error}");
}

#[test]
fn an_unknown_pre_is_named() {
    use octet_checkpoint::gguf::Value as GgufValue;
    let mut keys = BYTE_LEVEL.to_gguf();
    for (key, value) in &mut keys {
        if key == "tokenizer.ggml.pre" {
            *value = GgufValue::String("martian".into());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let job = Job { out: out.clone(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
    job.run(&gguf::plan(&keys, Vec::new()), &mut |_| {}).unwrap();
    let error = Tokenizer::open(&out).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre \"martian\" is not supported"), "{error}");
}

#[test]
fn paths_without_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| Tokenizer::open(path).unwrap_err().to_string();
    assert!(message(folder.path()).contains("holds no tokenizer: expected tokenizer.json"));
    assert!(message(&folder.path().join("none.model")).contains("cannot read"));
    for (name, content) in
        [("tokenizer.json", "{}"), ("empty.model", ""), ("zero.model", "\0\0\0\0\0"), ("x.gguf", "GGUF")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let line = message(&path);
        assert!(line.contains(name) && !line.contains('\n'), "{line}");
    }
}

/// Found by fuzzing: of two tokens with one name the second is written as an unused one.
#[test]
fn tokens_of_one_name_are_written_apart() {
    let mut file = small_sentencepiece();
    file["model"]["vocab"]["b"] = 300.into();
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 299, "content": "<0x0A>", "special": false}));
    let twice = tokenizer(&file);
    let model = twice.to_sentencepiece_model().unwrap();
    let reread = Tokenizer::from_sentencepiece_model(&model, Path::new("m")).unwrap();
    assert_eq!((reread.vocab_size(), reread.piece(299), reread.piece(298)), (301, "[PAD299]", "[PAD298]"));
    assert_eq!(reread.encode("a\nb"), twice.encode("a\nb"));
}

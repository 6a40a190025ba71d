//! What the reference tokenizers say, id for id: sentencepiece on Mistral's own models and mistral-common on whole
//! conversations, from every form in which a vocabulary comes.

mod reference;

use octet_checkpoint::write::{Existing, Job, gguf};
use octet_tokenizer::{ChatFormat, DecodeStream, Tokenizer};
use reference::{InstructRow, V1, V2, V3, data, fetched, fixtures, open, read};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct Goldens {
    sentencepiece: BTreeMap<String, Vec<TextRow>>,
    instruct: BTreeMap<String, Vec<InstructRow>>,
}

#[derive(Deserialize)]
struct TextRow {
    text: String,
    ids: Vec<u32>,
    pieces: Vec<String>,
    decoded: String,
}

fn goldens() -> Goldens {
    read(fixtures("tokenizer-goldens.json"))
}

/// Every golden string encodes and decodes as the reference does, at once and token by token.
fn assert_goldens(tokenizer: &Tokenizer, rows: &[TextRow]) {
    assert!(rows.len() > 200, "too few strings");
    for row in rows {
        assert_eq!(tokenizer.encode(&row.text), row.ids, "{:?}", row.text);
        let pieces: Vec<_> = row.ids.iter().map(|&id| tokenizer.piece(id)).collect();
        assert_eq!(pieces, row.pieces, "{:?}", row.text);
        assert_eq!(tokenizer.decode(&row.ids), row.decoded, "{:?}", row.text);
        let mut stream = DecodeStream::new(tokenizer);
        let mut streamed: String = row.ids.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, row.decoded, "{:?}", row.text);
    }
}

#[test]
fn sentencepiece_models() {
    for (name, rows) in goldens().sentencepiece {
        assert_goldens(&open(&name), &rows);
    }
}

#[test]
fn tokenizer_json() {
    for (name, rows) in goldens().sentencepiece {
        let version = if name == V1 { "v1" } else { "v3" };
        assert_goldens(&open(&format!("tokenizer.{version}.json")), &rows);
    }
}

#[test]
fn gguf_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    for (name, rows) in goldens().sentencepiece {
        let original = open(&name);
        let path = folder.path().join(format!("{name}.gguf"));
        write_gguf(&original, &path);
        let reread = Tokenizer::open(&path).unwrap();
        assert_goldens(&reread, &rows);
        assert_eq!((reread.bos(), reread.eos(), reread.adds_bos()), (Some(1), Some(2), true));
    }
}

fn write_gguf(tokenizer: &Tokenizer, path: &Path) {
    let job = Job { out: path.into(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
    job.run(&gguf::plan(&tokenizer.to_gguf(), Vec::new()), &mut |_| {}).unwrap();
}

#[test]
fn what_we_write_reads_back() {
    for (name, rows) in goldens().sentencepiece {
        let original = open(&name);
        let model = original.to_sentencepiece_model().unwrap();
        assert_goldens(&Tokenizer::from_sentencepiece_model(&model, Path::new("written.model")).unwrap(), &rows);
        let json = original.to_tokenizer_json();
        let from_json = Tokenizer::from_tokenizer_json(json.as_bytes(), Path::new("written.json")).unwrap();
        assert_goldens(&from_json, &rows);
        // Scores that were merges in between lead to the same ids.
        let again = from_json.to_sentencepiece_model().unwrap();
        assert_goldens(&Tokenizer::from_sentencepiece_model(&again, Path::new("again.model")).unwrap(), &rows);
    }
}

#[test]
fn instruct_formats() {
    for (version, rows) in goldens().instruct {
        let tokenizer = open(if version == "v1" { V1 } else { V3 });
        assert_conversations(&tokenizer, &version, &rows);
    }
}

#[test]
fn instruct_formats_fold_as_the_reference_does() {
    let rows: BTreeMap<String, Vec<InstructRow>> = read(data("instruct.json"));
    for (version, file) in [("v1", V1), ("v2", V2), ("v3", V3)] {
        assert_conversations(&open(file), version, &rows[version]);
    }
}

fn assert_conversations(tokenizer: &Tokenizer, version: &str, rows: &[InstructRow]) {
    let format = ChatFormat::for_tokenizer(tokenizer).unwrap();
    assert_eq!(format.name(), version);
    assert!(rows.len() >= 12, "{version} has too few conversations");
    for row in rows {
        let prompt = format.render(&row.conversation).unwrap();
        assert_eq!(prompt.text, row.text, "{version}");
        assert_eq!(prompt.ids, row.ids, "{version}: {}", row.text);
    }
}

/// tokenizers' answers where control tokens in the text are meant as such: around them the files differ.
#[test]
fn control_tokens_in_text() {
    #[derive(Deserialize)]
    struct Control {
        texts: Vec<String>,
        ids: BTreeMap<String, Vec<Vec<u32>>>,
    }
    let control: Control = read(data("control.json"));
    assert_eq!(control.ids.len(), 4);
    for (name, ids) in control.ids {
        let tokenizer = open(&name);
        for (text, ids) in control.texts.iter().zip(ids) {
            assert_eq!(tokenizer.encode_with_control(text), ids, "{name}: {text:?}");
        }
    }
}

/// Thousands of random strings thick with control tokens and pieces of them, as Hugging Face's tokenizers cut them:
/// `tests/hugging_face_cases.py` makes them anew for each of its versions.
#[test]
fn random_strings_around_control_tokens() {
    #[derive(Deserialize)]
    struct Answers {
        tokenizer: String,
        cases: Vec<(String, Vec<u32>)>,
    }
    let answers: Vec<Answers> = read(fetched("hugging-face.json"));
    let byte_level = answers.iter().filter(|answers| answers.tokenizer.starts_with("byte-level.")).count();
    assert!(byte_level >= 3 && answers.len() >= byte_level + 6, "too few tokenizers");
    for Answers { tokenizer: name, cases } in answers {
        assert!(cases.len() > 1000, "{name}: too few strings");
        let tokenizer = open(&name);
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode_with_control(&text), ids, "{name}: {text:?}");
        }
    }
}

/// A folder as Hugging Face has it: the SentencePiece model goes before an equal tokenizer.json, and the small files
/// count.
#[test]
fn a_folder_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
    put("tokenizer.json", &std::fs::read(fetched("metaspace.v1.json")).unwrap());
    put(
        "tokenizer_config.json",
        br#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": null,
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#,
    );
    put("generation_config.json", br#"{"eos_token_id": [2, 28705]}"#);
    let from_json = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(from_json.encode(" x").len(), 1);
    assert_eq!((from_json.bos(), from_json.eos(), from_json.adds_bos()), (Some(1), Some(2), false));
    assert!(from_json.is_end_of_generation(28705));
    assert_eq!(from_json.chat_template(), Some("D"));

    put("tokenizer.model", &std::fs::read(fetched(V1)).unwrap());
    put("chat_template.jinja", b"J");
    let from_model = Tokenizer::open(folder.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(from_model.encode(" x").len(), 2);
    assert_eq!(from_model.chat_template(), Some("J"));
}

/// A fine-tuned model of 2023: the original's tokenizer.model, and two tokens that other files name.
#[test]
fn added_tokens_beside_a_sentencepiece_model() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
    put("tokenizer.model", &std::fs::read(fetched(V1)).unwrap());
    put("added_tokens.json", br#"{"<|im_end|>": 32000, "<|im_start|>": 32001}"#);
    put(
        "tokenizer_config.json",
        br#"{"eos_token": "<|im_end|>", "added_tokens_decoder": {"2": {"content": "</s>", "special": true},
            "32000": {"content": "<|im_end|>", "special": true}, "32002": {"content": "<tool>", "special": false}}}"#,
    );
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (32003, Some(32000)));
    assert_eq!(tokenizer.encode_with_control("<|im_start|>Hello<|im_end|>"), [32001, 22557, 32000]);
    assert!(tokenizer.encode("<|im_start|>").iter().all(|&id| id < 32000), "typed control tokens are text");
    assert!(tokenizer.encode("a<tool>b").contains(&32002), "tokens that are not special are text of their own");
    assert_eq!(ChatFormat::for_tokenizer(&tokenizer).unwrap().name(), "chatml");
    assert!(tokenizer.is_end_of_generation(32000) && !tokenizer.is_end_of_generation(32002));

    put("added_tokens.json", br#"{"x": 4000000000}"#);
    let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("\"x\" has the id 4000000000, far beyond"), "{error}");
}

#[test]
fn padding_changes_no_ids() {
    let tokenizer = open(V1);
    let padded = tokenizer.padded_to(32002);
    assert_eq!(padded.vocab_size(), 32002);
    assert_eq!(padded.encode("[PAD32000] x"), tokenizer.encode("[PAD32000] x"));
    assert_eq!(padded.decode(&[32001]), "");
    let model = padded.to_sentencepiece_model().unwrap();
    let reread = Tokenizer::from_sentencepiece_model(&model, Path::new("padded")).unwrap();
    assert_eq!((reread.vocab_size(), reread.piece(32001)), (32002, "[PAD32001]"));
}

//! Byte-level BPE against Hugging Face's tokenizers: one small vocabulary, every way to cut words.

mod reference;

use octet_tokenizer::{DecodeStream, Tokenizer};
use reference::{data, read};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct Reference {
    tokenizer: Value,
    pre_tokenizers: BTreeMap<String, Value>,
    ignore_merges: Vec<String>,
    texts: Vec<String>,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
    decoded: BTreeMap<String, Vec<String>>,
    garbled: Vec<(Vec<u32>, String)>,
}

fn reference() -> Reference {
    read(data("byte-level.json"))
}

impl Reference {
    fn tokenizer(&self, name: &str) -> Tokenizer {
        let mut file = self.tokenizer.clone();
        file["pre_tokenizer"] = self.pre_tokenizers[name].clone();
        file["model"]["ignore_merges"] = self.ignore_merges.iter().any(|other| other == name).into();
        Tokenizer::from_tokenizer_json(file.to_string().as_bytes(), Path::new(name)).unwrap()
    }

    fn assert_equal(&self, tokenizer: &Tokenizer, name: &str) {
        assert!(self.texts.len() > 100);
        for ((text, ids), decoded) in self.texts.iter().zip(&self.ids[name]).zip(&self.decoded[name]) {
            assert_eq!(tokenizer.encode(text), *ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(ids), *decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn tokenizer_json() {
    let reference = reference();
    assert_eq!(reference.ids.len(), 7);
    for name in reference.ids.keys() {
        reference.assert_equal(&reference.tokenizer(name), name);
    }
}

#[test]
fn what_we_write_reads_back() {
    let reference = reference();
    for name in reference.ids.keys() {
        let json = reference.tokenizer(name).to_tokenizer_json();
        let reread = Tokenizer::from_tokenizer_json(json.as_bytes(), Path::new(name)).unwrap();
        reference.assert_equal(&reread, name);
    }
}

#[test]
fn gguf_vocabulary() {
    use octet_checkpoint::gguf::Value;
    use octet_checkpoint::write::{Existing, Job, gguf};
    let reference = reference();
    let folder = tempfile::tempdir().unwrap();
    for name in reference.ids.keys() {
        let keys = reference.tokenizer(name).to_gguf();
        let pre = keys.iter().find(|(key, _)| key == "tokenizer.ggml.pre").map(|(_, value)| value.clone());
        assert_eq!(pre, Some(Value::String(name.trim_end_matches("-space").into())));
        let out = folder.path().join(name);
        let job = Job { out: out.clone(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
        job.run(&gguf::plan(&keys, Vec::new()), &mut |_| {}).unwrap();
        reference.assert_equal(&Tokenizer::open(&out).unwrap(), name);
    }
}

/// Any ids decode as the reference does them, bytes that are no UTF-8 included; and so do they one by one.
#[test]
fn garbled_ids() {
    let reference = reference();
    let tokenizer = reference.tokenizer("gpt-2");
    for (ids, decoded) in &reference.garbled {
        assert_eq!(tokenizer.decode(ids), *decoded, "{ids:?}");
        let mut stream = DecodeStream::new(&tokenizer);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, *decoded, "{ids:?}");
    }
}

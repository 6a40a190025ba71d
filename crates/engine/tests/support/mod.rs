//! A tiny real model with a tokenizer of single bytes and a few words, and answers collected from its engine.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use octet_checkpoint::Checkpoint;
use octet_engine::{
    AdapterSource, Engine, EngineOptions, Event, Handle, OpenOptions, Request, StopReason, TextStart, Usage,
};
use octet_kernels::KvType;
use octet_model::Adapter;

/// Folder of a model: a fixture's weights beside a tokenizer of 512 tokens.
pub fn model() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let fixture = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/mixtral-8x2"));
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
        }
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).unwrap();
        folder
    });
    folder.path()
}

/// Two adapters of the model: PEFT's, called `first`, and `second` with other numbers in it.
pub fn adapters() -> Vec<AdapterSource> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let fixture = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/mixtral-8x2/lora"));
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(model()).unwrap();
        let mut adapter = Adapter::read(&fixture, checkpoint.params()).unwrap();
        adapter.matrices.values_mut().for_each(|change| change.b.iter_mut().for_each(|b| *b *= -1.5));
        adapter.write(folder.path(), checkpoint.params(), "tiny").unwrap();
        folder
    });
    let named = |name: &str, folder: &Path| AdapterSource { name: name.into(), folder: folder.into() };
    vec![named("first", &fixture), named("second", folder.path())]
}

/// Byte-level BPE without merges: ids 3 to 258 are the bytes, the rest are made-up words.
fn tokenizer_json() -> String {
    let mut vocab = serde_json::Map::new();
    for (id, name) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(name.into(), id.into());
    }
    // GPT-2's byte alphabet: printable bytes stand for themselves, the others for U+0100 and up.
    let mut shifted = 0;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let symbol = if printable { char::from(byte) } else { char::from_u32(0x100 + shifted).unwrap() };
        shifted += u32::from(!printable);
        vocab.insert(symbol.to_string(), vocab.len().into());
    }
    while vocab.len() < 512 {
        vocab.insert(format!("w{}", vocab.len()), vocab.len().into());
    }
    let special = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}
    })
    .to_string()
}

/// Options with `pages` pages of 64 tokens of f32 keys and values.
pub fn options(pages: u64) -> EngineOptions {
    let open = OpenOptions { threads: Some(2), kv: KvType::F32, ..Default::default() };
    // Two layers, a key and a value, two heads of 16, four bytes each.
    let kv_bytes = Some(pages * 64 * 2 * 2 * 2 * 16 * 4);
    EngineOptions { open, kv_bytes, ..Default::default() }
}

pub fn engine(options: &EngineOptions) -> Engine {
    Engine::open(model(), options).unwrap()
}

/// What came of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: String,
    /// Bits of the log-probabilities, the token's and the alternatives'.
    pub logprobs: Vec<(u32, Vec<(u32, u32)>)>,
    pub reason: Option<StopReason>,
    pub stop_string: Option<String>,
}

/// Everything that came of a request.
#[derive(Debug, Default)]
pub struct Outcome {
    pub choices: Vec<Answer>,
    pub usage: Usage,
    pub prompt_logprobs: Vec<octet_engine::Logprobs>,
    pub hidden: Option<Vec<f32>>,
    pub routed: Vec<octet_engine::Routed>,
    pub progress: Vec<(usize, usize)>,
    pub failed: Option<String>,
}

/// Reads a request's events to their end.
pub fn collect(events: impl Iterator<Item = Event>) -> Outcome {
    let mut outcome = Outcome::default();
    for event in events {
        outcome.take(event);
    }
    outcome
}

impl Outcome {
    fn choice(&mut self, choice: usize) -> &mut Answer {
        if self.choices.len() <= choice {
            self.choices.resize_with(choice + 1, Answer::default);
        }
        let answer = &mut self.choices[choice];
        assert_eq!(answer.reason, None, "nothing comes after the end");
        answer
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started { .. } => {}
            Event::PromptProgress { done, total } => self.progress.push((done, total)),
            Event::PromptLogprobs { first, tokens } => {
                assert_eq!(first, self.prompt_logprobs.len() + 1);
                self.prompt_logprobs.extend(tokens);
            }
            Event::Hidden(hidden) => assert!(self.hidden.replace(hidden).is_none()),
            Event::Routing(routed) => self.routed.push(routed),
            Event::Token { choice, id, text, logprobs } => {
                let answer = self.choice(choice);
                answer.ids.push(id);
                answer.text.push_str(&text);
                let bits = |l: octet_engine::Logprobs| {
                    (l.logprob.to_bits(), l.top.iter().map(|t| (t.0, t.1.to_bits())).collect())
                };
                answer.logprobs.extend(logprobs.map(bits));
            }
            Event::Finished { choice, reason, stop_string, text, usage } => {
                let answer = self.choice(choice);
                answer.text.push_str(&text);
                (answer.reason, answer.stop_string) = (Some(reason), stop_string);
                self.usage = usage;
            }
            Event::Failed(error) => self.failed = Some(error.to_string()),
        }
    }
}

/// Submits all at once and collects all.
pub fn ask_all(handle: &Handle, requests: &[Request]) -> Vec<Outcome> {
    let events: Vec<_> = requests.iter().map(|request| handle.generate(request.clone()).unwrap()).collect();
    events.into_iter().map(collect).collect()
}

pub fn ask(handle: &Handle, request: Request) -> Outcome {
    collect(handle.generate(request).unwrap())
}

/// A prompt of `len` made-up tokens; equal seeds begin equally.
pub fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut random = octet_engine::Random::new(seed);
    (0..len).map(|_| 3 + (random.bits() % 500) as u32).collect()
}

/// A request of `n` tokens after such a prompt.
pub fn request(prompt: Vec<u32>, n: usize) -> Request {
    let mut request = Request::new(prompt, TextStart::Continued);
    request.stop.max_tokens = Some(n);
    request.stop.ignore_eos = true;
    request
}

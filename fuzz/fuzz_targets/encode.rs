//! Any text through the encoders and back, and through a chat template.
//!
//! The vocabulary is small and made here, so that a run needs no files: byte fallback, merges, control tokens.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use octet_tokenizer::{ChatFormat, Conversation, Message, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut pieces = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into(), "<|im_start|>".into(), "<|im_end|>".into()];
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend(["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁"].map(str::to_owned));
    let vocab: Vec<String> = pieces.iter().enumerate().map(|(id, piece)| format!("{piece:?}: {id}")).collect();
    let special = |id: usize| format!(r#"{{"id": {id}, "content": {:?}, "special": true}}"#, pieces[id]);
    let json = format!(
        r#"{{"added_tokens": [{}], "normalizer": {{"type": "Sequence", "normalizers": [
            {{"type": "Prepend", "prepend": "▁"}},
            {{"type": "Replace", "pattern": {{"String": " "}}, "content": "▁"}}]}},
            "model": {{"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": {{{}}},
            "merges": ["▁ a", "a b", "▁a b", "▁ ab", "▁ ▁"]}}}}"#,
        (0..5).map(special).collect::<Vec<_>>().join(", "),
        vocab.join(", "),
    );
    Tokenizer::from_tokenizer_json(json.as_bytes(), "fuzz".as_ref()).expect("valid")
});

fuzz_target!(|text: &str| {
    let ids = TOKENIZER.encode(text);
    assert_eq!(TOKENIZER.decode(&ids), text.replace('▁', " "));
    assert!(ids.iter().all(|&id| !TOKENIZER.is_control(id)));
    let format = ChatFormat::for_tokenizer(&TOKENIZER).expect("it has <|im_start|>");
    let halves = text.split_at(text.floor_char_boundary(text.len() / 2));
    let messages = vec![Message::user(halves.0), Message::user(halves.1)];
    let prompt = format.render(&Conversation { messages, tools: Vec::new() }).expect("ChatML takes all");
    let controls: Vec<u32> = prompt.ids.into_iter().filter(|&id| TOKENIZER.is_control(id)).collect();
    assert_eq!(controls, [3, 4, 3, 4, 3]);
});

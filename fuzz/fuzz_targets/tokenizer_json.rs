//! A `tokenizer.json` of any bytes, and the tokenizer that it makes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_tokenizer_json(bytes, "fuzz.json".as_ref()) else { return };
    let ids = tokenizer.encode("Hello, wörld 日本 \u{10ffff}\n [INST]");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.decode(&ids);
    tokenizer.encode_with_control("<s>[INST] x</s>");
    tokenizer.to_gguf();
    tokenizer.to_tokenizer_json();
});

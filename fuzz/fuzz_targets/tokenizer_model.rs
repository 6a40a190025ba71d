//! A SentencePiece `tokenizer.model` of any bytes, and the tokenizer that it makes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece_model(bytes, "fuzz.model".as_ref()) else { return };
    let ids = tokenizer.encode("Hello, wörld 日本 \u{10ffff}\n [INST]");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.decode(&ids);
    let written = tokenizer.to_sentencepiece_model().expect("it came from one");
    let reread = Tokenizer::from_sentencepiece_model(&written, "written.model".as_ref()).expect("we wrote it");
    assert_eq!(reread.vocab_size(), tokenizer.vocab_size());
});

//! A tokenizer as `tokenizer.json`: the inverse of [`crate::tokenizer_json`], for folders that transformers opens.

use crate::Tokenizer;
use crate::byte_level::{ByteLevel, LeadingSpace, WholeWords};
use crate::sentencepiece::SpacePrefix;
use crate::split::Splitter;
use crate::tokenizer::{Algorithm, Parts};
use crate::vocabulary::{TokenKind, Vocabulary};
use serde_json::{Map, Value, json};

impl Tokenizer {
    /// This tokenizer in Hugging Face's form: the text of a `tokenizer.json`.
    pub fn to_tokenizer_json(&self) -> String {
        let Parts { vocabulary, algorithm, .. } = self.parts();
        let pipeline = match &**algorithm {
            Algorithm::SentencePiece { encoder, ranking, .. } => {
                sentencepiece(encoder.prefix, model(vocabulary, &ranking.merges(vocabulary)))
            }
            Algorithm::ByteLevel { encoder, merges } => byte_level(encoder, model(vocabulary, merges)),
        };
        let mut file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens(vocabulary),
            "normalizer": pipeline.normalizer,
            "pre_tokenizer": pipeline.pre_tokenizer,
            "post_processor": self.bos_processor(),
            "decoder": pipeline.decoder,
            "model": null,
        });
        file["model"] = pipeline.model;
        file.to_string()
    }

    /// What puts BOS in front of a text.
    fn bos_processor(&self) -> Value {
        let Some(id) = self.bos().filter(|_| self.adds_bos()) else { return Value::Null };
        let bos = self.piece(id);
        let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        let (first, second) =
            (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}}));
        json!({
            "type": "TemplateProcessing",
            "single": [special, first],
            "pair": [special, first, special, second],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        })
    }
}

struct Pipeline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

fn sentencepiece(prefix: SpacePrefix, model: Value) -> Pipeline {
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "normalizers": steps});
    let metaspace = |scheme| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let (normalizer, pre_tokenizer) = match prefix {
        SpacePrefix::Start | SpacePrefix::EachPart => (sequence(&[&prepend, &replace]), Value::Null),
        SpacePrefix::StartUnlessSpace => (Value::Null, metaspace("first")),
        SpacePrefix::EachPartUnlessSpace => (Value::Null, metaspace("always")),
        SpacePrefix::Never => (sequence(&[&replace]), Value::Null),
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix != SpacePrefix::Never {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Pipeline { normalizer, pre_tokenizer, decoder: json!({"type": "Sequence", "decoders": decoders}), model }
}

fn byte_level(encoder: &ByteLevel, mut model: Value) -> Pipeline {
    let ensures_space = encoder.leading_space == LeadingSpace::Ensure;
    let byte_level = |uses_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": ensures_space, "trim_offsets": true, "use_regex": uses_regex});
    let pre_tokenizer = match encoder.splitter {
        Splitter::Gpt2 => byte_level(true),
        Splitter::Smollm => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
        }
        other => {
            let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            let splits: Vec<Value> = other.patterns().iter().map(split).chain([byte_level(false)]).collect();
            json!({"type": "Sequence", "pretokenizers": splits})
        }
    };
    model["ignore_merges"] = (encoder.whole_words == WholeWords::Take).into();
    Pipeline { normalizer: Value::Null, pre_tokenizer, decoder: byte_level(true), model }
}

fn model(vocabulary: &Vocabulary, merges: &[(u32, u32)]) -> Value {
    let pieces = vocabulary.exported().map(|(piece, _)| piece.into_owned());
    let vocab: Map<String, Value> = pieces.zip(0u32..).map(|(piece, id)| (piece, id.into())).collect();
    let pair = |&(left, right): &(u32, u32)| json!([vocabulary.piece(left), vocabulary.piece(right)]);
    let unknown = vocabulary.of_kind(TokenKind::Unknown).map(|(_, token)| token.piece.as_str()).next();
    let has_bytes = vocabulary.tokens().any(|(_, token)| matches!(token.kind, TokenKind::Byte(_)));
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": has_bytes,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges.iter().map(pair).collect::<Vec<_>>(),
    })
}

fn added_tokens(vocabulary: &Vocabulary) -> Vec<Value> {
    let added = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
    let tokens = vocabulary.tokens().filter(|(_, token)| added(token.kind));
    let json = tokens.map(|(id, token)| {
        json!({
            "id": id,
            "content": token.piece,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": token.kind != TokenKind::UserDefined,
        })
    });
    json.collect()
}

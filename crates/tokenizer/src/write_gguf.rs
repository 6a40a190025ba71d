//! A tokenizer as the keys of a GGUF: the inverse of [`crate::gguf`].

use crate::Tokenizer;
use crate::byte_level::LeadingSpace;
use crate::gguf::pre_name;
use crate::sentencepiece::SpacePrefix;
use crate::sentencepiece_model::kind_number;
use crate::tokenizer::{Algorithm, Parts};
use octet_checkpoint::gguf::{Array, Value};

impl Tokenizer {
    /// The keys and values that describe this tokenizer in a GGUF, chat template included.
    pub fn to_gguf(&self) -> Vec<(String, Value)> {
        let Parts { vocabulary, algorithm, specials, templates, .. } = self.parts();
        let mut keys = Keys::default();
        match &**algorithm {
            Algorithm::SentencePiece { encoder, ranking, .. } => {
                keys.text("model", "llama");
                keys.text("pre", "default");
                self.tokens_to(&mut keys);
                keys.add("scores", Value::Array(Array::F32(ranking.scores(vocabulary))));
                keys.add("add_space_prefix", Value::Bool(encoder.prefix != SpacePrefix::Never));
            }
            Algorithm::ByteLevel { encoder, merges } => {
                let line = |&(left, right): &(u32, u32)| format!("{} {}", self.piece(left), self.piece(right));
                keys.text("model", "gpt2");
                keys.text("pre", pre_name(encoder.splitter, encoder.whole_words));
                self.tokens_to(&mut keys);
                keys.add("merges", Value::Array(Array::String(merges.iter().map(line).collect())));
                keys.add("add_space_prefix", Value::Bool(encoder.leading_space == LeadingSpace::Ensure));
            }
        }
        let ids = [
            ("bos_token_id", specials.bos),
            ("eos_token_id", specials.eos),
            ("unknown_token_id", specials.unknown),
            ("padding_token_id", specials.padding),
        ];
        for (key, id) in ids {
            keys.0.extend(id.map(|id| (format!("tokenizer.ggml.{key}"), Value::U32(id))));
        }
        keys.add("add_bos_token", Value::Bool(self.adds_bos()));
        keys.add("add_eos_token", Value::Bool(false));
        let named = [
            ("tokenizer.chat_template", &templates.default),
            ("tokenizer.chat_template.tool_use", &templates.with_tools),
        ];
        for (key, template) in named {
            keys.0.extend(template.clone().map(|template| (key.to_owned(), Value::String(template))));
        }
        keys.0
    }

    fn tokens_to(&self, keys: &mut Keys) {
        let vocabulary = &self.parts().vocabulary;
        let (pieces, kinds) =
            vocabulary.exported().map(|(piece, kind)| (piece.into_owned(), kind_number(kind) as i32)).unzip();
        keys.add("tokens", Value::Array(Array::String(pieces)));
        keys.add("token_type", Value::Array(Array::I32(kinds)));
    }
}

#[derive(Default)]
struct Keys(Vec<(String, Value)>);

impl Keys {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push((format!("tokenizer.ggml.{key}"), value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.add(key, Value::String(value.into()));
    }
}

//! What several tests need: the reference data, values of tensors, and files built by hand.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};

use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Params, Tensor, TensorName};

/// The reference models, in the folder that `OCTET_FIXTURES` names or the repository's own.
pub const MODELS: [&str; 6] =
    ["mixtral-8x2", "mixtral-4x3", "mixtral-4x1-wide", "mixtral-window", "mistral-dense", "llama-dense"];

/// A path in the reference data.
pub fn fixture(path: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    PathBuf::from(std::env::var("OCTET_FIXTURES").unwrap_or_else(|_| own.into())).join(path)
}

/// All canonical bytes of a tensor, read in uneven pieces so that piece borders are tried too.
pub fn bytes(tensor: &Tensor<'_>) -> Vec<u8> {
    let mut out = vec![0; tensor.rows() * tensor.row_bytes()];
    for (i, piece) in out.chunks_mut(7 * tensor.row_bytes()).enumerate() {
        let rows = piece.len() / tensor.row_bytes();
        tensor.read_rows(7 * i..7 * i + rows, piece);
    }
    out
}

/// All canonical values of a tensor of plain floats.
pub fn values(tensor: &Tensor<'_>) -> Vec<f32> {
    let bytes = bytes(tensor);
    match tensor.element_type() {
        ElementType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        ElementType::F16 => bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        ElementType::BF16 => bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        other => panic!("{other} in a test of plain floats"),
    }
}

/// Little-endian bytes of floats.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A key's value, of the kinds that the tests write.
#[derive(Clone)]
pub enum Key {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    U32s(Vec<u32>),
}

/// A tensor to be written.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    pub type_id: u32,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn f32(name: impl Into<String>, shape: &[u64], values: &[f32]) -> Stored {
        Stored { name: name.into(), shape: shape.to_vec(), type_id: 0, bytes: f32_bytes(values) }
    }

    pub fn f16(name: impl Into<String>, shape: &[u64], values: &[f32]) -> Stored {
        let bytes = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        Stored { name: name.into(), shape: shape.to_vec(), type_id: 1, bytes }
    }
}

/// A GGUF file, byte for byte by the format's description and not by our writer.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub alignment: usize,
    pub keys: Vec<(String, Key)>,
    pub tensors: Vec<Stored>,
}

impl GgufFile {
    pub fn key(mut self, name: &str, value: Key) -> GgufFile {
        self.keys.retain(|(key, _)| key != name);
        self.keys.push((name.into(), value));
        self
    }

    pub fn without(mut self, name: &str) -> GgufFile {
        self.keys.retain(|(key, _)| key != name);
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            put(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Key) {
    value.type_ids().iter().for_each(|id| out.extend(id.to_le_bytes()));
    match value {
        Key::U16(n) => out.extend(n.to_le_bytes()),
        Key::U32(n) => out.extend(n.to_le_bytes()),
        Key::I32(n) => out.extend(n.to_le_bytes()),
        Key::F32(x) => out.extend(x.to_le_bytes()),
        Key::Text(t) => text(out, t),
        Key::Texts(list) => {
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|t| text(out, t));
        }
        Key::U32s(list) => {
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}

impl Key {
    /// GGUF's number of the type; of a list, that of lists and that of its elements.
    fn type_ids(&self) -> &'static [u32] {
        match self {
            Key::U16(_) => &[2],
            Key::U32(_) => &[4],
            Key::I32(_) => &[5],
            Key::F32(_) => &[6],
            Key::Text(_) => &[8],
            Key::Texts(_) => &[9, 8],
            Key::U32s(_) => &[9, 4],
        }
    }
}

/// How the experts of a GGUF stand.
#[derive(Clone, Copy, PartialEq)]
pub enum Experts {
    /// `blk.N.ffn_gate_exps.weight`.
    Merged,
    /// `blk.N.ffn_gate.E.weight`, as before April 2024, with the router in F16.
    OneTensorEach,
}

/// A checkpoint of plain floats as GGUF in F32.
pub fn to_gguf(checkpoint: &Checkpoint, experts: Experts) -> GgufFile {
    let params = checkpoint.params();
    let mut tensors: Vec<Stored> = Vec::new();
    for name in params.tensors() {
        let values = values(&checkpoint.tensor(name).unwrap());
        let [rows, cols] = params.shape(name).map(|n| n as u64);
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        match name {
            TensorName::Layer(layer, LayerTensor::Expert(e, matrix)) if params.moe.is_some() => {
                let part = ["gate", "down", "up"][matrix_index(matrix)];
                let merged = format!("blk.{layer}.ffn_{part}_exps.weight");
                if experts == Experts::OneTensorEach {
                    tensors.push(Stored::f32(format!("blk.{layer}.ffn_{part}.{e}.weight"), &shape, &values));
                } else if let Some(stack) = tensors.iter_mut().find(|tensor| tensor.name == merged) {
                    stack.bytes.extend(f32_bytes(&values));
                } else {
                    tensors.push(Stored::f32(merged, &[params.n_experts() as u64, rows, cols], &values));
                }
            }
            TensorName::Layer(_, LayerTensor::Router) if experts == Experts::OneTensorEach => {
                tensors.push(Stored::f16(name.gguf(params.moe), &shape, &values));
            }
            _ => tensors.push(Stored::f32(name.gguf(params.moe), &shape, &values)),
        }
    }
    GgufFile { version: 3, alignment: 32, keys: llama_keys(params), tensors }
}

fn matrix_index(matrix: ExpertMatrix) -> usize {
    match matrix {
        ExpertMatrix::W1 => 0,
        ExpertMatrix::W2 => 1,
        ExpertMatrix::W3 => 2,
    }
}

fn llama_keys(params: &Params) -> Vec<(String, Key)> {
    let count = |n: usize| Key::U32(n as u32);
    let tokens = (0..params.vocab_size).map(|i| format!("t{i}")).collect();
    let mut keys = vec![
        ("general.architecture", Key::Text("llama".into())),
        ("llama.embedding_length", count(params.dim)),
        ("llama.block_count", count(params.n_layers)),
        ("llama.feed_forward_length", count(params.hidden_dim)),
        ("llama.attention.head_count", count(params.n_heads)),
        ("llama.attention.head_count_kv", count(params.n_kv_heads)),
        ("llama.attention.key_length", count(params.head_dim)),
        ("llama.attention.value_length", count(params.head_dim)),
        ("llama.rope.dimension_count", count(params.head_dim)),
        ("llama.rope.freq_base", Key::F32(params.rope_theta)),
        ("llama.attention.layer_norm_rms_epsilon", Key::F32(params.norm_eps)),
        ("llama.context_length", count(params.context_length.unwrap_or(512))),
        ("tokenizer.ggml.tokens", Key::Texts(tokens)),
        ("tokenizer.ggml.bos_token_id", count(1)),
        ("tokenizer.ggml.eos_token_id", count(2)),
    ];
    keys.extend(params.sliding_window.map(|n| ("llama.attention.sliding_window", count(n))));
    if let Some(moe) = params.moe {
        keys.push(("llama.expert_count", count(moe.num_experts)));
        keys.push(("llama.expert_used_count", count(moe.num_experts_per_tok)));
    }
    keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

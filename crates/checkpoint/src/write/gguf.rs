//! GGUF version 3: keys and values, tensor descriptions, then the data, each tensor at a multiple of the alignment.

use super::plan::{Form, NewFile, Place};
use super::{NewTensor, Plan, context_length};
use crate::Params;
use crate::gguf::{Array, DEFAULT_ALIGNMENT, Value};

/// The key that would change the alignment; we always write [`DEFAULT_ALIGNMENT`].
const ALIGNMENT_KEY: &str = "general.alignment";

/// Lays out a GGUF file of these keys and tensors, in this order.
///
/// A `general.alignment` among the keys is left out: the file has GGUF's own alignment of 32 bytes.
pub fn plan<'a>(metadata: &[(String, Value)], tensors: Vec<NewTensor<'a>>) -> Plan<'a> {
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut data_len = 0u64;
    for tensor in &tensors {
        offsets.push(data_len);
        data_len += tensor.bytes().next_multiple_of(DEFAULT_ALIGNMENT);
    }
    let mut head = header(metadata, &tensors, &offsets);
    head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    let data_start = head.len() as u64;
    let place = |offset| Place { file: 0, offset: data_start + offset };
    let tensors = tensors.into_iter().zip(offsets).map(|(tensor, offset)| (tensor, place(offset))).collect();
    let file = NewFile { name: String::new(), head, len: data_start + data_len };
    Plan { form: Form::File, files: vec![file], tensors, small_files: Vec::new() }
}

/// The keys that describe a model's shape, beginning with `general.architecture`.
///
/// llama.cpp does not know a sliding window in its `llama` architecture and passes over that key.
pub fn shape_keys(params: &Params) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(u32::try_from(n).expect("dimensions are bounded when a checkpoint is opened"));
    let mut keys = vec![
        ("general.architecture", Value::String("llama".into())),
        ("general.type", Value::String("model".into())),
        ("llama.block_count", count(params.n_layers)),
        ("llama.context_length", count(context_length(params))),
        ("llama.embedding_length", count(params.dim)),
        ("llama.feed_forward_length", count(params.hidden_dim)),
        ("llama.attention.head_count", count(params.n_heads)),
        ("llama.attention.head_count_kv", count(params.n_kv_heads)),
        ("llama.attention.key_length", count(params.head_dim)),
        ("llama.attention.value_length", count(params.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(params.norm_eps)),
        ("llama.rope.freq_base", Value::F32(params.rope_theta)),
        ("llama.rope.dimension_count", count(params.head_dim)),
        ("llama.vocab_size", count(params.vocab_size)),
    ];
    keys.extend(params.sliding_window.map(|n| ("llama.attention.sliding_window", count(n))));
    if let Some(moe) = params.moe {
        keys.push(("llama.expert_count", count(moe.num_experts)));
        keys.push(("llama.expert_used_count", count(moe.num_experts_per_tok)));
    }
    keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn header(metadata: &[(String, Value)], tensors: &[NewTensor<'_>], offsets: &[u64]) -> Vec<u8> {
    let keys: Vec<_> = metadata.iter().filter(|(key, _)| key != ALIGNMENT_KEY).collect();
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        put_string(&mut out, key);
        out.extend_from_slice(&value_type(value).to_le_bytes());
        put_value(&mut out, value);
    }
    for (tensor, offset) in tensors.iter().zip(offsets) {
        put_string(&mut out, &tensor.name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for n in tensor.shape.iter().rev() {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&tensor.element_type.gguf_id().to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
    out
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The number by which the format knows a value's type.
fn value_type(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.push(*n),
        Value::I8(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => put_elements(out, 0, v, |out, n| out.push(*n)),
        Array::I8(v) => put_elements(out, 1, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U16(v) => put_elements(out, 2, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I16(v) => put_elements(out, 3, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U32(v) => put_elements(out, 4, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I32(v) => put_elements(out, 5, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F32(v) => put_elements(out, 6, v, |out, x| out.extend_from_slice(&x.to_le_bytes())),
        Array::Bool(v) => put_elements(out, 7, v, |out, b| out.push(u8::from(*b))),
        Array::String(v) => put_elements(out, 8, v, |out, text| put_string(out, text)),
        Array::U64(v) => put_elements(out, 10, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I64(v) => put_elements(out, 11, v, |out, n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F64(v) => put_elements(out, 12, v, |out, x| out.extend_from_slice(&x.to_le_bytes())),
    }
}

fn put_elements<T>(out: &mut Vec<u8>, type_id: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend_from_slice(&type_id.to_le_bytes());
    out.extend_from_slice(&(values.len() as u64).to_le_bytes());
    for value in values {
        put(out, value);
    }
}

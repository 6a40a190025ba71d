//! Safetensors: a JSON header, then the tensors without a gap; a large model in several files with an index.

use serde_json::{Map, Value, json};

use super::plan::{Form, NewFile, Place};
use super::{NewTensor, Plan};
use crate::ElementType;

/// Lays out a folder of safetensors files called `stem.safetensors`, or, where one file of at most `shard_bytes` does
/// not hold all, `stem-00001-of-0000N.safetensors` and so on with `stem.safetensors.index.json`.
///
/// Errors come later; a tensor larger than `shard_bytes` gets a file for itself.
///
/// # Panics
/// If a tensor is of a quantized type, which the format does not know.
pub fn plan<'a>(stem: &str, tensors: Vec<NewTensor<'a>>, shard_bytes: u64) -> Plan<'a> {
    let total: u64 = tensors.iter().map(NewTensor::bytes).sum();
    let shards = split(tensors, shard_bytes);
    let n_shards = shards.len();
    let mut plan = Plan { form: Form::Folder, files: Vec::new(), tensors: Vec::new(), small_files: Vec::new() };
    let mut index = Map::new();
    for (i, mut shard) in shards.into_iter().enumerate() {
        let name = match n_shards {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{n_shards:05}.safetensors", i + 1),
        };
        index.extend(shard.iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
        // Wider types first, so that every tensor begins at a multiple of its element's size.
        shard.sort_by_key(|tensor| std::cmp::Reverse(tensor.element_type.block_bytes()));
        add_shard(&mut plan, name, shard);
    }
    if n_shards > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
        plan.add_file(&format!("{stem}.safetensors.index.json"), super::json_bytes(&index));
    }
    plan
}

/// Cuts the tensors, in their order, into runs of at most `shard_bytes`.
fn split(tensors: Vec<NewTensor<'_>>, shard_bytes: u64) -> Vec<Vec<NewTensor<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        if filled > 0 && filled + tensor.bytes() > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes();
        shards.last_mut().expect("begun with one").push(tensor);
    }
    shards
}

fn add_shard<'a>(plan: &mut Plan<'a>, name: String, tensors: Vec<NewTensor<'a>>) {
    let mut header = Map::new();
    // Readers of PyTorch's family refuse a file without this entry.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut at = 0;
    for tensor in &tensors {
        let end = at + tensor.bytes();
        let entry = json!({ "dtype": dtype(tensor.element_type), "shape": tensor.shape, "data_offsets": [at, end] });
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    let mut offset = head.len() as u64;
    let file = plan.files.len();
    plan.files.push(NewFile { name, len: offset + at, head });
    for tensor in tensors {
        let bytes = tensor.bytes();
        plan.tensors.push((tensor, Place { file, offset }));
        offset += bytes;
    }
}

fn dtype(element_type: ElementType) -> &'static str {
    assert!(!element_type.is_quantized(), "safetensors has no {element_type}");
    element_type.name()
}

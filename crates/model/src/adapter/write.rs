//! From an adapter to a PEFT folder.

use std::collections::BTreeSet;
use std::path::Path;

use octet_checkpoint::{Params, TensorName};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::{Adapter, peft_name, rotary_head};
use crate::Error;

pub(super) fn write(adapter: &Adapter, folder: &Path, params: &Params, base: &str) -> Result<(), Error> {
    let cannot = |e: String| Error::Adapter { path: folder.to_owned(), problem: format!("cannot be written: {e}") };
    let mut tensors = Vec::new();
    for (&name, change) in &adapter.matrices {
        let [rows, cols] = params.shape(name);
        let (rank, order) = (change.rank, rotary_head(name, params));
        let stored = (0..rows).flat_map(|row| &change.b[order.canonical(row) * rank..][..rank]);
        tensors.push((format!("{}.lora_A.weight", peft_name(name, params)), [rank, cols], bytes(&change.a)));
        tensors.push((format!("{}.lora_B.weight", peft_name(name, params)), [rows, rank], bytes(stored)));
    }
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect();
    let views = views.map_err(|e: safetensors::SafeTensorError| cannot(e.to_string()))?;
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    let weights = safetensors::serialize(views, metadata).map_err(|e| cannot(e.to_string()))?;
    let config = format!("{:#}\n", config(adapter, params, base));
    write_files(folder, &[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &weights)])
        .map_err(|e| cannot(e.to_string()))
}

fn bytes<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u8> {
    values.into_iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The folder appears with all its files, or stays as it was but for a folder that was not there.
fn write_files(folder: &Path, files: &[(&str, &[u8])]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let part = |name: &str| folder.join(format!("{name}.part"));
    let all = || -> std::io::Result<()> {
        for (name, content) in files {
            std::fs::write(part(name), content)?;
            std::fs::File::open(part(name))?.sync_all()?;
        }
        files.iter().try_for_each(|(name, _)| std::fs::rename(part(name), folder.join(name)))
    };
    all().inspect_err(|_| {
        // The error that matters is the one above; some parts may not exist.
        files.iter().for_each(|(name, _)| drop(std::fs::remove_file(part(name))));
    })
}

fn config(adapter: &Adapter, params: &Params, base: &str) -> serde_json::Value {
    let options = &adapter.options;
    let module = |name: &TensorName| {
        let name = name.hugging_face(params.moe);
        let stem = name.strip_suffix(".weight").unwrap_or(&name).to_string();
        stem.rsplit('.').next().unwrap_or_default().to_string()
    };
    let modules: BTreeSet<String> = adapter.matrices.keys().map(module).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": f64::from(options.alpha),
        "lora_dropout": options.dropout.to_string().parse::<f64>().unwrap_or(0.0),
        "use_rslora": options.rank_stabilized,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

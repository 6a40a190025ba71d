//! From a PEFT folder to an adapter.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use octet_checkpoint::{ElementType, Params, TensorName};
use octet_kernels::blocks::dequantize_row;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Adapter, LoraOptions, LoraTarget, LowRankValues, peft_name, rotary_head};
use crate::Error;

/// Largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

pub(super) fn read(folder: &Path, params: &Params) -> Result<Adapter, Error> {
    let config_path = folder.join("adapter_config.json");
    let config = read_config(&config_path)?;
    refuse_other_kinds(&config_path, &config)?;
    let options = options(&config_path, &config)?;
    let path = folder.join("adapter_model.safetensors");
    let bytes =
        std::fs::read(&path).map_err(|e| problem(&path, format!("cannot be read ({e}); an adapter needs it")))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| problem(&path, format!("is no safetensors file ({e}); fetch it again")))?;
    let matrices = Tensors { path, file, params, options: &options, config: &config }.matrices()?;
    let targets = [LoraTarget::Attention, LoraTarget::Experts, LoraTarget::Router, LoraTarget::Head];
    let covers = |target: &LoraTarget| matrices.keys().any(|name| target.covers(*name));
    let options = LoraOptions { targets: targets.into_iter().filter(covers).collect(), ..options };
    Ok(Adapter { options, matrices })
}

fn problem(path: &Path, problem: impl Into<String>) -> Error {
    Error::Adapter { path: path.to_owned(), problem: problem.into() }
}

fn read_config(path: &Path) -> Result<Value, Error> {
    let cannot = |e: std::io::Error| problem(path, format!("cannot be read ({e}); give the folder of a PEFT adapter"));
    let size = path.metadata().map_err(cannot)?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(problem(path, format!("has {size} bytes, too many for a configuration")));
    }
    let text = std::fs::read(path).map_err(cannot)?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| problem(path, format!("is no valid JSON ({e})")))?;
    if config.is_object() { Ok(config) } else { Err(problem(path, "is no JSON object")) }
}

/// Refuses what would change the numbers if we passed over it.
fn refuse_other_kinds(path: &Path, config: &Value) -> Result<(), Error> {
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("unknown");
    if kind != "LORA" {
        return Err(problem(path, format!("is an adapter of type {kind:?}; Octet reads LORA")));
    }
    for key in ["use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias"] {
        if config.get(key).and_then(Value::as_bool) == Some(true) {
            return Err(problem(path, format!("`{key}` is true; Octet reads plain LoRA and rsLoRA")));
        }
    }
    match config.get("bias").and_then(Value::as_str) {
        None | Some("none") => {}
        Some(bias) => return Err(problem(path, format!("`bias` is {bias:?}; Octet's models have no biases"))),
    }
    if config.get("modules_to_save").and_then(Value::as_array).is_some_and(|m| !m.is_empty()) {
        return Err(problem(path, "`modules_to_save` is not empty; Octet reads adapters of low-rank changes alone"));
    }
    if config.get("target_parameters").and_then(Value::as_array).is_some_and(|m| !m.is_empty()) {
        let what = "`target_parameters` is not empty; Octet reads adapters that name each expert's matrices, not fused experts";
        return Err(problem(path, what));
    }
    Ok(())
}

fn options(path: &Path, config: &Value) -> Result<LoraOptions, Error> {
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let rank = config.get("r").and_then(Value::as_u64).ok_or_else(|| problem(path, "`r`, the rank, is missing"))?;
    let options = LoraOptions {
        rank: usize::try_from(rank).unwrap_or(usize::MAX),
        alpha: number("lora_alpha").ok_or_else(|| problem(path, "`lora_alpha` is missing"))? as f32,
        dropout: number("lora_dropout").unwrap_or(0.0) as f32,
        rank_stabilized: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        targets: Vec::new(),
        seed: 0,
    };
    options.check().map_err(|e| problem(path, e.to_string()))?;
    Ok(options)
}

/// The tensors of an adapter's file.
struct Tensors<'a> {
    path: PathBuf,
    file: SafeTensors<'a>,
    params: &'a Params,
    options: &'a LoraOptions,
    config: &'a Value,
}

impl Tensors<'_> {
    fn matrices(&self) -> Result<BTreeMap<TensorName, LowRankValues>, Error> {
        let known = known_names(self.params);
        let mut matrices = BTreeMap::new();
        for stored in self.file.names() {
            let stem = stored.strip_suffix(".lora_A.weight").or_else(|| stored.strip_suffix(".lora_B.weight"));
            let Some(&name) = stem.and_then(|stem| known.get(stem)) else {
                let what = "is no low-rank change of a matrix of this model; is it another model's adapter?";
                return Err(problem(&self.path, format!("tensor {stored:.200} {what}")));
            };
            if let Entry::Vacant(place) = matrices.entry(name) {
                place.insert(self.matrix(name, stem.unwrap_or_default())?);
            }
        }
        if matrices.is_empty() {
            return Err(problem(&self.path, "holds no tensor, so there is nothing to apply"));
        }
        Ok(matrices)
    }

    fn matrix(&self, name: TensorName, stem: &str) -> Result<LowRankValues, Error> {
        let [rows, cols] = self.params.shape(name);
        let (a, [rank, a_cols]) = self.floats(&format!("{stem}.lora_A.weight"))?;
        let (stored, [b_rows, b_rank]) = self.floats(&format!("{stem}.lora_B.weight"))?;
        if [a_cols, b_rows, b_rank] != [cols, rows, rank] || rank == 0 {
            let (a, b) = (format!("[{rank}, {a_cols}]"), format!("[{b_rows}, {b_rank}]"));
            let what = format!("{stem} has A {a} and B {b}, but the model's matrix is [{rows}, {cols}]");
            return Err(problem(&self.path, format!("{what}; is it another model's adapter?")));
        }
        let order = rotary_head(name, self.params);
        let mut b = vec![0.0; stored.len()];
        for (row, stored) in stored.chunks_exact(rank).enumerate() {
            b[order.canonical(row) * rank..][..rank].copy_from_slice(stored);
        }
        Ok(LowRankValues { rank, scale: self.scale(stem, rank), a, b })
    }

    /// The scale of a matrix, whose strength may differ from the others' (`alpha_pattern`).
    fn scale(&self, stem: &str, rank: usize) -> f32 {
        let patterns = self.config.get("alpha_pattern").and_then(Value::as_object);
        let is_own = |key: &str| stem == key || stem.ends_with(&format!(".{key}"));
        let own = patterns.and_then(|p| p.iter().find(|(key, _)| is_own(key)).and_then(|(_, alpha)| alpha.as_f64()));
        let alpha = own.map_or(self.options.alpha, |alpha| alpha as f32);
        LoraOptions { rank, alpha, ..self.options.clone() }.scale()
    }

    fn floats(&self, name: &str) -> Result<(Vec<f32>, [usize; 2]), Error> {
        let missing = |_| problem(&self.path, format!("lacks tensor {name:.200}; fetch the adapter again"));
        let tensor: TensorView<'_> = self.file.tensor(name).map_err(missing)?;
        let &[rows, cols] = tensor.shape() else {
            return Err(problem(&self.path, format!("tensor {name:.200} is no matrix")));
        };
        let kind = match tensor.dtype() {
            Dtype::F32 => ElementType::F32,
            Dtype::F16 => ElementType::F16,
            Dtype::BF16 => ElementType::BF16,
            other => {
                let what = format!("tensor {name:.200} has type {other:?}; it has to be F32, F16 or BF16");
                return Err(problem(&self.path, what));
            }
        };
        let mut values = vec![0.0; rows * cols];
        dequantize_row(kind, tensor.data(), &mut values);
        if values.iter().any(|x| !x.is_finite()) {
            return Err(problem(&self.path, format!("tensor {name:.200} holds a number that is not finite")));
        }
        Ok((values, [rows, cols]))
    }
}

/// PEFT's names of all matrices; of the router also the name that transformers 5 gives it.
fn known_names(params: &Params) -> HashMap<String, TensorName> {
    use octet_checkpoint::LayerTensor::Router;
    let mut known = HashMap::new();
    let head = params.tied_embeddings.then_some(TensorName::Output);
    let is_matrix = |name: &TensorName| params.shape(*name)[0] > 1 && *name != TensorName::TokenEmbedding;
    for name in params.tensors().filter(is_matrix).chain(head) {
        known.insert(peft_name(name, params), name);
        if let TensorName::Layer(layer, Router) = name {
            known.insert(format!("base_model.model.model.layers.{layer}.mlp.gate"), name);
        }
    }
    known
}

//! `octet quantize`: a GGUF of fewer bits, streamed from any checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use octet_checkpoint::gguf::Value;
use octet_checkpoint::mix::Mix;
use octet_checkpoint::write::{self, NewTensor, Outline, Plan, outlines};
use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Layout, TensorName};

use crate::calibrate::{self, MAX_TOKENS};
use crate::compare;
use crate::format;
use crate::importance::{Importance, MIN_TOKENS};
use crate::output::{self, OutputOptions};
use crate::recode::Recoded;
use crate::tokenizer_files::{self, TokenizerFiles};

/// Write a smaller GGUF with quantized weights
///
/// Needs little memory for a model of any size (--calibrate aside, which runs the model). A mix gives each role its type:
/// attention v and the experts' down-projection are kept finer, routers and norms stay F32, and rows that are no multiple
/// of 256 wide get a type of blocks of 32. A run that was killed goes on where it stopped when given again.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, in Mistral's, Hugging Face's or GGUF's layout
    model: PathBuf,
    /// GGUF to write
    out: PathBuf,
    /// Mix of types, such as Q4_K_M
    #[arg(long, value_name = "MIX", value_parser = mix)]
    to: Mix,
    /// Run the model over this text, to learn which columns of its matrices matter
    #[arg(long, value_name = "TEXT", conflicts_with = "importance")]
    calibrate: Option<PathBuf>,
    /// Most tokens of the text to use
    #[arg(long, value_name = "N", requires = "calibrate", default_value_t = MAX_TOKENS)]
    calibrate_tokens: usize,
    /// Write what --calibrate learns to this GGUF, in the format of llama-imatrix
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    save_importance: Option<PathBuf>,
    /// Take what --calibrate or llama-imatrix learned from this GGUF
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Another type for one role, such as ffn_down=Q6_K or output=Q8_0; may be given several times
    #[arg(long = "set", value_name = "ROLE=TYPE", value_parser = override_)]
    overrides: Vec<Override>,
    /// Compare the result with the source, role by role
    #[arg(long)]
    compare: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// A type that the user wants for all tensors of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Override {
    role: String,
    element_type: ElementType,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    output::refuse_inside(&args.out, &checkpoint)?;
    let mut notes = Vec::from_iter(requantizing(&checkpoint)?);
    let importance = importance(&args, &checkpoint, &mut notes)?;
    let text = tokenizer_files::carry(&checkpoint, Layout::Gguf)?;
    notes.extend(text.notes.iter().cloned());
    let plan = plan(&args, &checkpoint, &text, importance.as_ref())?;
    notes.push(summary(&args, &plan));
    args.output.write(&args.out, &plan, made_from(&args, &checkpoint)?)?;
    notes.iter().for_each(|note| output::tell(note));
    if args.compare {
        compare::print(&checkpoint, &Checkpoint::open(&args.out)?, args.output.threads()?)?;
    }
    Ok(())
}

/// Weights that were quantized once lose twice; whoever has no others may go on.
fn requantizing(checkpoint: &Checkpoint) -> anyhow::Result<Option<String>> {
    let matrix = TensorName::Layer(0, LayerTensor::Expert(0, ExpertMatrix::W1));
    let (stored, path) = (checkpoint.tensor(matrix)?.element_type(), checkpoint.path().display());
    let note = || format!("the weights of {path} were {stored} already; a source of F16 or BF16 would lose less");
    Ok(stored.is_quantized().then(note))
}

/// What is known of the columns' importance, by this run or by an earlier one.
fn importance(
    args: &Args,
    checkpoint: &Arc<Checkpoint>,
    notes: &mut Vec<String>,
) -> anyhow::Result<Option<Importance>> {
    let params = checkpoint.params();
    let mut importance = match (&args.calibrate, &args.importance) {
        (Some(text), _) => calibrate::run(checkpoint, text, args.calibrate_tokens, args.output.threads()?)?,
        (None, Some(file)) => Importance::read(file, params)?,
        (None, None) => return Ok(None),
    };
    if let Some(file) = &args.save_importance {
        args.output.write(file, &importance.plan(params), Vec::new())?;
    }
    let unseen = importance.lend_to_unseen(params);
    if !unseen.is_empty() {
        let shown: Vec<String> =
            unseen.iter().take(8).map(|(layer, e, n)| format!("layer {layer} expert {e}: {n}")).collect();
        let more = if unseen.len() > shown.len() { ", …" } else { "" };
        let (n, shown) = (unseen.len(), shown.join(", "));
        notes.push(format!(
            "{n} experts saw fewer than {MIN_TOKENS} tokens ({shown}{more}) and were given the mean of their layer"
        ));
    }
    Ok(Some(importance))
}

/// Lays out the whole file.
fn plan<'a>(
    args: &Args,
    checkpoint: &'a Checkpoint,
    text: &TokenizerFiles,
    importance: Option<&Importance>,
) -> anyhow::Result<Plan<'a>> {
    let params = text.complete(checkpoint.params());
    let mut tensors = Vec::new();
    for outline in outlines(Layout::Gguf, &params) {
        tensors.push(new_tensor(args, checkpoint, outline, importance)?);
    }
    let main = args.to.element_type(TensorName::Layer(0, LayerTensor::Wq), &params);
    let mut keys = text.gguf_keys(checkpoint, &params, main);
    if let Some(file_type) = file_type(args.to.name()) {
        keys.retain(|(key, _)| key != "general.file_type");
        keys.push(("general.file_type".into(), Value::U32(file_type)));
    }
    if let Some(importance) = importance {
        let dataset = importance.datasets.first().cloned().unwrap_or_default();
        keys.push(("quantize.imatrix.dataset".into(), Value::String(dataset)));
    }
    Ok(write::gguf::plan(&keys, tensors))
}

fn new_tensor<'a>(
    args: &Args,
    checkpoint: &'a Checkpoint,
    outline: Outline,
    importance: Option<&Importance>,
) -> anyhow::Result<NewTensor<'a>> {
    let parts = outline.parts.iter().map(|&name| checkpoint.tensor(name)).collect::<Result<Vec<_>, _>>()?;
    let element_type = element_type(args, checkpoint, &outline)?;
    let of_part = |&name: &TensorName| match name {
        TensorName::TokenEmbedding if checkpoint.params().tied_embeddings => importance?.of(TensorName::Output),
        name => importance?.of(name),
    };
    let of_parts = outline.parts.iter().map(of_part).collect();
    let rows = Recoded::new(parts, outline.order, element_type).with_importance(of_parts);
    Ok(NewTensor::new(outline.name, element_type, outline.shape, Box::new(rows)))
}

/// The type of a tensor: the user's, or the mix's.
fn element_type(args: &Args, checkpoint: &Checkpoint, outline: &Outline) -> anyhow::Result<ElementType> {
    let of_mix = args.to.element_type(outline.parts[0], checkpoint.params());
    let cols = *outline.shape.last().expect("no tensor is without dimensions") as usize;
    let role = role(outline.parts[0]);
    let Some(wish) = args.overrides.iter().rev().find(|wish| Some(wish.role.as_str()) == role) else {
        return Ok(of_mix);
    };
    if wish.element_type.row_bytes(cols).is_none() {
        let (role, wanted) = (&wish.role, wish.element_type);
        bail!("--set {role}={wanted}: its rows are {cols} wide, no multiple of {}; {of_mix} fits", wanted.block_len());
    }
    Ok(wish.element_type)
}

/// The role by which a tensor is named in `--set`, as GGUF calls it; none for norms and routers, which stay F32.
fn role(name: TensorName) -> Option<&'static str> {
    Some(match name {
        TensorName::TokenEmbedding => "token_embd",
        TensorName::Output => "output",
        TensorName::OutputNorm => return None,
        TensorName::Layer(_, tensor) => match tensor {
            LayerTensor::AttentionNorm | LayerTensor::FfnNorm | LayerTensor::Router => return None,
            LayerTensor::Wq => "attn_q",
            LayerTensor::Wk => "attn_k",
            LayerTensor::Wv => "attn_v",
            LayerTensor::Wo => "attn_output",
            LayerTensor::Expert(_, ExpertMatrix::W1) => "ffn_gate",
            LayerTensor::Expert(_, ExpertMatrix::W2) => "ffn_down",
            LayerTensor::Expert(_, ExpertMatrix::W3) => "ffn_up",
        },
    })
}

/// Every role that `--set` knows.
const ROLES: [&str; 9] =
    ["token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"];

/// How large the file is and of which types.
fn summary(args: &Args, plan: &Plan<'_>) -> String {
    let mut by_type: BTreeMap<ElementType, u64> = BTreeMap::new();
    let mut weights = 0;
    for tensor in plan.tensors() {
        weights += tensor.shape().iter().product::<u64>();
        *by_type.entry(tensor.element_type()).or_default() += tensor.bytes();
    }
    let types: Vec<String> = by_type.iter().map(|(t, &bytes)| format!("{t} {}", format::bytes(bytes))).collect();
    let bits = plan.bytes() as f64 * 8.0 / weights as f64;
    let (size, bits) = (format::bytes(plan.bytes()), format::three_digits(bits));
    format!("{} takes {size}, {bits} bits a weight ({})", args.to.name(), types.join(", "))
}

/// Everything that the bytes of the output depend on, beyond its header.
fn made_from(args: &Args, checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
    let mut made_from = output::identity(checkpoint)?;
    made_from.push(format!("quantize to {}", args.to.name()));
    if let Some(file) = &args.importance {
        made_from.push(format!("importance {}", output::file_identity(file)?));
    }
    if let Some(text) = &args.calibrate {
        made_from.push(format!("calibrate {} {} tokens", output::file_identity(text)?, args.calibrate_tokens));
    }
    Ok(made_from)
}

/// llama.cpp's number for a mix, which it shows as the file's type.
fn file_type(mix: &str) -> Option<u32> {
    Some(match mix {
        "Q4_0" => 2,
        "Q4_1" => 3,
        "Q8_0" => 7,
        "Q5_0" => 8,
        "Q5_1" => 9,
        "Q2_K" => 10,
        "Q3_K_S" => 11,
        "Q3_K_M" => 12,
        "Q3_K_L" => 13,
        "Q4_K_S" => 14,
        "Q4_K_M" => 15,
        "Q5_K_S" => 16,
        "Q5_K_M" => 17,
        "Q6_K" => 18,
        _ => return None,
    })
}

fn mix(name: &str) -> Result<Mix, String> {
    let known = || Mix::all().map(|mix| mix.name()).collect::<Vec<_>>().join(", ");
    Mix::from_name(name).ok_or_else(|| format!("not a mix that can be written; there are {}", known()))
}

fn override_(text: &str) -> Result<Override, String> {
    let (role, name) = text.split_once('=').ok_or("give ROLE=TYPE, such as ffn_down=Q6_K")?;
    let role = role.strip_suffix("_exps").unwrap_or(role);
    if !ROLES.contains(&role) {
        return Err(format!("no such role; there are {}", ROLES.join(", ")));
    }
    match ElementType::from_name(name).filter(|t| !t.name().starts_with("IQ")) {
        Some(element_type) => Ok(Override { role: role.to_owned(), element_type }),
        None => Err(format!("{name:?} is no type that can be written; Q4_K, Q8_0 and F16 are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_name_a_role_and_a_type() {
        let q6 = Override { role: "ffn_down".into(), element_type: ElementType::Q6_K };
        assert_eq!(override_("ffn_down=q6_k"), Ok(q6.clone()));
        assert_eq!(override_("ffn_down_exps=Q6_K"), Ok(q6));
        for wrong in ["ffn_down", "router=Q4_0", "output=Q9", "output=IQ2_S", "=Q4_0"] {
            assert!(override_(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_role_is_some_tensors() {
        let layer = |tensor| TensorName::Layer(0, tensor);
        let expert = |matrix| layer(LayerTensor::Expert(0, matrix));
        let names = [
            TensorName::TokenEmbedding,
            TensorName::Output,
            layer(LayerTensor::Wq),
            layer(LayerTensor::Wk),
            layer(LayerTensor::Wv),
            layer(LayerTensor::Wo),
            expert(ExpertMatrix::W1),
            expert(ExpertMatrix::W2),
            expert(ExpertMatrix::W3),
        ];
        assert_eq!(names.map(|name| role(name).unwrap()), ROLES);
        assert_eq!(role(layer(LayerTensor::Router)), None);
    }
}

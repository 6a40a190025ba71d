//! `octet quantize`: a GGUF of fewer bits, streamed from any checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use octet_checkpoint::gguf::Value;
use octet_checkpoint::mix::Mix;
use octet_checkpoint::write::{self, NewTensor, Outline, Plan, outlines};
use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Layout, TensorName};

use crate::calibrate::{self, MAX_TOKENS};
use crate::comparison::CompareOptions;
use crate::format;
use crate::importance::{Importance, MIN_TOKENS};
use crate::output::{self, OutputOptions};
use crate::recode::Recoded;
use crate::tokenizer_files::{self, TokenizerFiles};
use crate::type_choice::{self, Override};

/// Write a smaller GGUF with quantized weights
///
/// Needs under 4 GiB of memory for a model of any size: also --calibrate and --compare run it a layer at a time. A mix gives each role its type:
/// attention v and the experts' down-projection are kept finer, routers and norms stay F32, and rows that are no multiple
/// of 256 wide get a type of blocks of 32. A run that was killed goes on where it stopped when given again.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, in Mistral's, Hugging Face's or GGUF's layout
    model: PathBuf,
    /// GGUF to write
    out: PathBuf,
    /// Mix of types, such as Q4_K_M
    #[arg(long, value_name = "MIX", value_parser = type_choice::mix)]
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
    /// Take what --calibrate or llama-imatrix learned from this file, a GGUF or an older .dat
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Another type for one role, such as ffn_down=Q6_K or output=Q8_0; may be given several times
    #[arg(long = "set", value_name = "ROLE=TYPE", value_parser = type_choice::override_)]
    overrides: Vec<Override>,
    #[command(flatten)]
    compare: CompareOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    check_outputs(&args, &checkpoint)?;
    let mut notes = Vec::from_iter(requantizing(&checkpoint)?);
    let compared_on = args.compare.prepare(&checkpoint)?;
    let text = tokenizer_files::carry(&checkpoint, Layout::Gguf)?;
    notes.extend(text.notes.iter().cloned());
    // Calibrating may take hours; types that do not fit are refused before.
    plan(&args, &checkpoint, &text, None)?;
    let importance = importance(&args, &checkpoint, &mut notes)?;
    let plan = plan(&args, &checkpoint, &text, importance.as_ref())?;
    notes.push(summary(&args, &plan));
    args.output.write(&args.out, &plan, made_from(&args, &checkpoint)?)?;
    args.compare.run(Arc::clone(&checkpoint), &args.out, compared_on.as_ref(), args.output.threads()?)?;
    notes.iter().for_each(|note| output::tell(note));
    Ok(())
}

/// Refuses outputs that cannot be, or would stand in each other's or the model's place.
fn check_outputs(args: &Args, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    for out in [Some(&args.out), args.save_importance.as_ref()].into_iter().flatten() {
        output::refuse_inside(out, checkpoint)?;
        args.output.check(out, Layout::Gguf)?;
    }
    args.save_importance.as_ref().map_or(Ok(()), |file| output::refuse_same(file, &args.out))
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
        args.output.write(file, &importance.plan(params), learned_from(args, checkpoint)?)?;
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
    let mut keys = text.gguf_keys(checkpoint, &params, args.to.base());
    keys.retain(|(key, _)| key != "general.file_type");
    keys.push(("general.file_type".into(), Value::U32(args.to.file_type())));
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
    let element_type = type_choice::element_type(args.to, &args.overrides, &outline, checkpoint.params())?;
    let of_part = |&name: &TensorName| match name {
        TensorName::TokenEmbedding if checkpoint.params().tied_embeddings => importance?.of(TensorName::Output),
        name => importance?.of(name),
    };
    let of_parts = outline.parts.iter().map(of_part).collect();
    let rows = Recoded::new(parts, outline.order, element_type).with_importance(of_parts);
    Ok(NewTensor::new(outline.name, element_type, outline.shape, Box::new(rows)))
}

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
    let mut made_from = learned_from(args, checkpoint)?;
    made_from.push(format!("quantize to {}", args.to.name()));
    Ok(made_from)
}

/// Everything that the importance of columns depends on.
fn learned_from(args: &Args, checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
    let mut made_from = output::identity(checkpoint)?;
    if let Some(file) = &args.importance {
        made_from.push(format!("importance {}", output::file_identity(file)?));
    }
    if let Some(text) = &args.calibrate {
        made_from.push(format!("calibrate {} {} tokens", output::file_identity(text)?, args.calibrate_tokens));
    }
    Ok(made_from)
}

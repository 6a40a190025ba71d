//! What is trained: an adapter or all weights; opened, and written when the run ends.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::write::{self, NewTensor, Outline, outlines};
use octet_checkpoint::{Checkpoint, ElementType, LayerTensor, Layout, Params, TensorName};
use octet_kernels::quantize::quantize_row;
use octet_model::{Adapter, LoraOptions, LoraTarget};
use octet_train::learner::Learner;
use octet_train::snapshot::{Named, Values};
use octet_train::{Model, ParameterName, Parameters, RunError, Trained, Tuned, new_adapter};

use super::data::Method;
use crate::tokenizer_files;

/// What is trained.
#[derive(clap::Args, Debug)]
pub struct TargetOptions {
    /// Train every weight in place of an adapter; OUT gets the whole model
    #[arg(long, conflicts_with_all = ["rank", "alpha", "dropout", "rslora", "targets", "adapter"])]
    pub all: bool,
    /// Rank of the adapter's matrices
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub rank: usize,
    /// Strength of the adapter: its change is multiplied by ALPHA / R [default: twice the rank]
    #[arg(long, value_name = "ALPHA")]
    pub alpha: Option<f32>,
    /// Share of the adapter's inputs that a step leaves out
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub dropout: f32,
    /// Multiply the change by ALPHA / √R
    #[arg(long)]
    pub rslora: bool,
    /// What the adapter changes, of attention, experts, router and head
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "attention,experts", value_parser = target)]
    pub targets: Vec<LoraTarget>,
    /// Let routers learn of every expert, also of those that a token did not visit: these run once more for it, forward
    #[arg(long)]
    pub dense_router: bool,
    /// Train this adapter further (a folder in PEFT's format) in place of a new one
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["rank", "alpha", "rslora", "targets"])]
    pub adapter: Option<PathBuf>,
    /// Activations that are kept for the way back, in MiB; layers beyond are computed twice
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub keep: usize,
}

/// A target by its name.
pub fn target(name: &str) -> Result<LoraTarget, String> {
    match name {
        "attention" => Ok(LoraTarget::Attention),
        "experts" => Ok(LoraTarget::Experts),
        "router" => Ok(LoraTarget::Router),
        "head" => Ok(LoraTarget::Head),
        _ => Err("choose among attention, experts, router and head".into()),
    }
}

/// The learning rate where nobody says one.
pub fn default_rate(targets: &TargetOptions, method: Method) -> f32 {
    let rate = if targets.all { 1e-5 } else { 1e-4 };
    if method == Method::Dpo { rate / 10.0 } else { rate }
}

/// The coefficient of the load-balancing loss where nobody says one: the configuration's, else transformers'.
pub fn balance_coefficient(params: &Params) -> f32 {
    const DEFAULT: f32 = 0.001;
    params.router_aux_loss_coef.unwrap_or(DEFAULT)
}

/// Opens the model for training. `seed` draws a new adapter's first numbers.
pub fn open(
    checkpoint: &Arc<Checkpoint>,
    targets: &TargetOptions,
    threads: Option<usize>,
    seed: u64,
) -> anyhow::Result<Tuned> {
    let params = checkpoint.params();
    let trained = match &targets.adapter {
        _ if targets.all => Trained::All,
        Some(folder) => Trained::Adapter(Adapter::read(folder, params)?),
        None => Trained::Adapter(new_adapter(lora(targets, seed), params)?),
    };
    let threads = threads.unwrap_or_else(Model::default_threads);
    let model = Model::new(checkpoint.clone(), threads, trained)?;
    let mut names = model.parameters().iter().map(|parameter| parameter.name);
    if targets.dense_router && !names.any(is_of_router) {
        bail!("--dense-router: no router is trained; give --targets with router among them, or --all, for a mixture");
    }
    Ok(Tuned::new(model, targets.keep << 20).with_dense_router(targets.dense_router))
}

fn is_of_router(name: ParameterName) -> bool {
    let (ParameterName::Weight(name) | ParameterName::LoraA(name) | ParameterName::LoraB(name)) = name;
    matches!(name, TensorName::Layer(_, LayerTensor::Router))
}

/// Opens the model to be asked only, with an adapter if one is given.
pub fn open_to_ask(
    checkpoint: &Arc<Checkpoint>,
    targets: &TargetOptions,
    threads: Option<usize>,
) -> anyhow::Result<Tuned> {
    let trained = match &targets.adapter {
        Some(folder) => Trained::Adapter(Adapter::read(folder, checkpoint.params())?),
        None => Trained::Nothing,
    };
    let threads = threads.unwrap_or_else(Model::default_threads);
    Ok(Tuned::new(Model::new(checkpoint.clone(), threads, trained)?, 0))
}

/// The adapter that the options ask for.
pub fn lora(targets: &TargetOptions, seed: u64) -> LoraOptions {
    LoraOptions {
        rank: targets.rank,
        alpha: targets.alpha.unwrap_or(2.0 * targets.rank as f32),
        dropout: targets.dropout,
        rank_stabilized: targets.rslora,
        targets: targets.targets.clone(),
        seed,
    }
}

/// The trained numbers of the best evaluation of a run in `out`.
pub fn best(out: &Path) -> PathBuf {
    out.join("best")
}

/// Keeps the trained numbers of the best evaluation, whole or not at all.
pub fn keep_best(learner: &mut dyn Learner, best: &Path) -> Result<(), RunError> {
    let parameters = learner.parameters();
    let values = parameters.iter().map(|p| Named { name: &p.name, values: &*p.weights });
    Values { path: best }.write(values).map_err(|error| RunError::Output(format!("{}: {error}", best.display())))
}

/// Takes the numbers of the best evaluation, which have to be there.
pub fn take_best(learner: &mut dyn Learner, best: &Path) -> anyhow::Result<()> {
    let parameters = learner.parameters();
    let names: Vec<String> = parameters.iter().map(|p| p.name.clone()).collect();
    let slices = names.iter().map(String::as_str).zip(parameters.into_iter().map(|p| p.weights));
    match (Values { path: best }).read(slices).map_err(anyhow::Error::msg)? {
        true => Ok(()),
        false => Err(no_best(best)),
    }
}

/// Refuses to go on with a run whose best evaluation is known, but not what was trained by then.
pub fn check_best(best: &Path) -> anyhow::Result<()> {
    if (Values { path: best }).exist() { Ok(()) } else { Err(no_best(best)) }
}

fn no_best(best: &Path) -> anyhow::Error {
    let (best, snapshots) = (best.display(), best.with_file_name("snapshots"));
    anyhow::anyhow!(
        "{best}: is missing, and with it the result of the best evaluation; remove {} to start anew",
        snapshots.display()
    )
}

/// Removes what a run that is not gone on with kept of its best evaluation.
pub fn forget_best(best: &Path) -> anyhow::Result<()> {
    Values { path: best }.remove().with_context(|| format!("cannot remove {}", best.display()))
}

/// Writes the adapter into `out`, or the whole model into `out/model`. Gives what was written, for people.
pub fn write(tuned: &Tuned, source: &Path, out: &Path) -> anyhow::Result<String> {
    let model = tuned.model();
    let params = model.checkpoint().params();
    if let Some(adapter) = model.adapter() {
        adapter.write(out, params, &source.to_string_lossy())?;
        let folder = out.display();
        return Ok(format!("the adapter to {folder}; octet merge {} {folder} folds it in", source.display()));
    }
    let folder = out.join("model");
    write_all(model, &folder)?;
    Ok(format!("the model to {}", folder.display()))
}

/// Writes every weight, in f32 as trained, in Hugging Face's layout.
fn write_all(model: &Model, folder: &Path) -> anyhow::Result<()> {
    let checkpoint = model.checkpoint();
    let text = tokenizer_files::carry(checkpoint, Layout::HuggingFace)?;
    let params = text.complete(checkpoint.params());
    let tensors = outlines(Layout::HuggingFace, &params)
        .into_iter()
        .map(|outline| new_tensor(model.parameters(), outline))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let shard = write::hugging_face::DEFAULT_SHARD_BYTES;
    let mut plan = write::hugging_face::plan(&params, ElementType::F32, tensors, shard);
    text.files.into_iter().for_each(|(name, content)| plan.add_file(&name, content));
    let threads = octet_kernels::cpu::available_threads();
    let job = write::Job { out: folder.to_owned(), existing: write::Existing::Replace, threads, made_from: vec![] };
    job.run(&plan, &mut |_| {})?;
    Ok(())
}

fn new_tensor(parameters: &Parameters, outline: Outline) -> anyhow::Result<NewTensor<'_>> {
    let name: TensorName = outline.parts[0];
    let Some(parameter) = parameters.iter().find(|p| p.name == ParameterName::Weight(name)) else {
        bail!("{name} was not trained; this is a mistake in octet");
    };
    let (cols, order) = (parameter.shape[1], outline.order);
    let fill = move |rows: Range<usize>, out: &mut [u8]| {
        for (row, out) in rows.zip(out.chunks_exact_mut(4 * cols)) {
            let values = &parameter.values[order.canonical(row) * cols..][..cols];
            quantize_row(ElementType::F32, values, None, out);
        }
        Ok(())
    };
    Ok(NewTensor::new(outline.name, ElementType::F32, outline.shape, Box::new(fill)))
}

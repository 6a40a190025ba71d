//! `octet gradients`: what training computes for given token ids, to be held against another implementation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::Checkpoint;
use octet_checkpoint::write::{Outline, outlines};
use octet_train::{
    AdapterUse, Batch, Gradients, Model, ParameterName, Preference, PreferenceOptions, StepOptions, Trained,
};

use crate::tensor_file::{self, Tensor, TensorFile};

/// Write the loss and its gradients for given token ids
///
/// IN holds `input_ids` [B,T] and `labels` [B,T] (negative: not learned; default: the ids), and perhaps `attention_mask`
/// [B,T] (0: padding). OUT gets `loss` (cross-entropy alone), `aux_loss` (load balancing, of a mixture of experts), and by
/// the checkpoint's own tensor names the gradients of loss + `router_aux_loss_coef` * aux_loss.
///
/// With --dpo IN holds `dpo.chosen`, `dpo.rejected` [N,T] and `dpo.prompt_len` [N]; OUT gets
/// `dpo.policy.chosen_logps`, `dpo.policy.rejected_logps`, the same of `dpo.reference`, `dpo.losses`,
/// `dpo.chosen_rewards`, `dpo.rejected_rewards` [N], `loss` (their mean) and its gradients `dpo.loss.gradients.NAME`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// Safetensors file with token ids, of type I64 or I32
    #[arg(long, value_name = "IN")]
    input: PathBuf,
    /// Safetensors file to write
    #[arg(long, value_name = "OUT")]
    output: PathBuf,
    /// Compare preferences against this reference model
    #[arg(long, value_name = "REFERENCE")]
    dpo: Option<PathBuf>,
    /// How strongly DPO holds the model to the reference
    #[arg(long, default_value_t = 0.1, requires = "dpo")]
    beta: f64,
    /// Weight of the load-balancing loss [default: the model's own, else 0.001]
    #[arg(long, value_name = "C", conflicts_with = "dpo")]
    aux_coefficient: Option<f32>,
    /// Keep no activations: run every layer once more on the way back
    #[arg(long)]
    checkpointing: bool,
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.threads == Some(0) {
        bail!("--threads is 0; it has to be 1 or more");
    }
    if !(args.beta.is_finite() && args.beta > 0.0) {
        bail!("--beta is {}; it has to be more than 0", args.beta);
    }
    let file = tensor_file::read(&args.input)?;
    let tensors = match &args.dpo {
        None => of_loss(&args, &file)?,
        Some(reference) => of_preferences(&args, &file, reference)?,
    };
    tensor_file::write(&args.output, tensors)
}

fn open(path: &Path, args: &Args, trained: Trained) -> anyhow::Result<Model> {
    let cannot = || format!("cannot open {}", path.display());
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    Model::new(checkpoint, args.threads.unwrap_or_else(Model::default_threads), trained).with_context(cannot)
}

fn step_options(args: &Args, aux_coefficient: f32) -> StepOptions {
    let kept_bytes = if args.checkpointing { 0 } else { StepOptions::default().kept_bytes };
    StepOptions { aux_coefficient, kept_bytes, ..Default::default() }
}

fn of_loss(args: &Args, file: &TensorFile) -> anyhow::Result<Vec<(String, Tensor)>> {
    let batch = batch(file, &args.input)?;
    let model = open(&args.model, args, Trained::All)?;
    let own = || crate::finetune::balance_coefficient(model.checkpoint().params());
    let options = step_options(args, args.aux_coefficient.unwrap_or_else(own));
    let mut gradients = model.zero_gradients();
    let report = model.loss_and_gradients(&batch, &options, &mut gradients)?;
    let mut tensors = vec![("loss".to_string(), Tensor::floats(&[], &[report.loss as f32]))];
    tensors.extend(report.aux_loss.map(|loss| ("aux_loss".to_string(), Tensor::floats(&[], &[loss as f32]))));
    tensors.extend(by_name(&model, &gradients, ""));
    Ok(tensors)
}

/// The sequences without their padding.
fn batch(file: &TensorFile, path: &Path) -> anyhow::Result<Batch> {
    let ids = file.integers("input_ids")?;
    let (_, length) = ids.two_dimensions()?;
    let optional = |name| file.has(name).then(|| file.integers(name)?.like(&ids)).transpose();
    let (labels, mask) = (optional("labels")?, optional("attention_mask")?);
    let mut batch = Batch::default();
    for start in (0..ids.values.len()).step_by(length) {
        let is_there = |i: &usize| mask.as_ref().is_none_or(|mask| mask.values[*i] != 0);
        let kept: Vec<usize> = (start..start + length).filter(is_there).collect();
        let tokens = kept.iter().map(|&i| token(ids.values[i], path)).collect::<Result<Vec<_>, _>>()?;
        let label = |&i: &usize| {
            let label = labels.as_ref().unwrap_or(&ids).values[i];
            (label >= 0).then(|| token(label, path)).transpose()
        };
        batch.push(&tokens, &kept.iter().map(label).collect::<Result<Vec<_>, _>>()?);
    }
    match batch.n_targets() {
        0 => bail!("{}: no label counts, so there is no loss", path.display()),
        _ => Ok(batch),
    }
}

fn token(id: i64, path: &Path) -> anyhow::Result<u32> {
    u32::try_from(id).map_err(|_| anyhow::anyhow!("{}: token id {id} is outside any vocabulary", path.display()))
}

fn of_preferences(args: &Args, file: &TensorFile, reference: &Path) -> anyhow::Result<Vec<(String, Tensor)>> {
    let batch = pairs(file, &args.input)?;
    let of_reference = open(reference, args, Trained::Nothing)?.log_probabilities(&batch, AdapterUse::Off)?;
    let model = open(&args.model, args, Trained::All)?;
    let preference = PreferenceOptions { beta: args.beta, ..Default::default() };
    let options = step_options(args, 0.0);
    let mut gradients = model.zero_gradients();
    let (report, compared) =
        model.preference_and_gradients(&batch, Some(&of_reference), (&preference, &options), &mut gradients)?;
    let mut tensors = of_pairs(&report.log_probabilities, &of_reference, &compared);
    tensors.push(("loss".into(), Tensor::floats(&[], &[compared.loss() as f32])));
    tensors.extend(by_name(&model, &gradients, "dpo.loss.gradients."));
    Ok(tensors)
}

/// Chosen, rejected, chosen, ...: of each what follows its prompt is learned.
fn pairs(file: &TensorFile, path: &Path) -> anyhow::Result<Batch> {
    let chosen = file.integers("dpo.chosen")?;
    let (n, length) = chosen.two_dimensions()?;
    let rejected = file.integers("dpo.rejected")?.like(&chosen)?;
    let prompt_len = file.integers("dpo.prompt_len")?.of_length(n)?;
    let mut batch = Batch::default();
    for (pair, &prompt_len) in prompt_len.values.iter().enumerate() {
        if !(1..length as i64).contains(&prompt_len) {
            bail!("{}: `dpo.prompt_len` {prompt_len} leaves no answer of {length} tokens", path.display());
        }
        for answers in [&chosen, &rejected] {
            let row = &answers.values[pair * length..(pair + 1) * length];
            let tokens = row.iter().map(|&id| token(id, path)).collect::<Result<Vec<_>, _>>()?;
            let is_answer = |i: usize| i as i64 >= prompt_len;
            let labels: Vec<_> = tokens.iter().enumerate().map(|(i, &id)| is_answer(i).then_some(id)).collect();
            batch.push(&tokens, &labels);
        }
    }
    Ok(batch)
}

fn of_pairs(policy: &[f64], reference: &[f64], compared: &Preference) -> Vec<(String, Tensor)> {
    let answers = |values: &[f64], first: usize| values.iter().copied().skip(first).step_by(2).collect();
    let lists: [(&str, Vec<f64>); 7] = [
        ("dpo.policy.chosen_logps", answers(policy, 0)),
        ("dpo.policy.rejected_logps", answers(policy, 1)),
        ("dpo.reference.chosen_logps", answers(reference, 0)),
        ("dpo.reference.rejected_logps", answers(reference, 1)),
        ("dpo.losses", compared.losses.clone()),
        ("dpo.chosen_rewards", compared.chosen_rewards.clone()),
        ("dpo.rejected_rewards", compared.rejected_rewards.clone()),
    ];
    let tensor =
        |values: &[f64]| Tensor::floats(&[values.len()], &values.iter().map(|&x| x as f32).collect::<Vec<_>>());
    lists.into_iter().map(|(name, values)| (name.to_string(), tensor(&values))).collect()
}

/// Gradients as the checkpoint's own tensors: names, shapes, order of rows, merged experts.
fn by_name(model: &Model, gradients: &Gradients, prefix: &str) -> Vec<(String, Tensor)> {
    let of = |name| {
        let named = |p: &octet_train::Parameter| p.name == ParameterName::Weight(name);
        let index = model.parameters().iter().position(named).expect("all weights are trained");
        let parameter = model.parameters().iter().nth(index);
        (parameter.map_or(1, |p| p.shape[1]), gradients.iter().nth(index).unwrap_or_default())
    };
    let params = model.checkpoint().params();
    // Mistral's layout repeats tied embeddings as a head: they are one tensor, whose gradient stands under its first name.
    let mut seen = std::collections::HashSet::new();
    let own = outlines(model.checkpoint().layout(), params).into_iter().filter(|o| seen.insert(o.parts[0]));
    let tensor = |outline: Outline| {
        let mut values = Vec::new();
        for &part in &outline.parts {
            let (cols, gradient) = of(part);
            let rows = (0..gradient.len() / cols).map(|row| &gradient[outline.order.canonical(row) * cols..][..cols]);
            rows.for_each(|row| values.extend_from_slice(row));
        }
        let shape: Vec<usize> = outline.shape.iter().map(|&n| n as usize).collect();
        (format!("{prefix}{}", outline.name), Tensor::floats(&shape, &values))
    };
    own.map(tensor).collect()
}

//! `octet upcycle`: a mixture of experts out of dense models.

mod preferences;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::gguf::Value;
use octet_checkpoint::write::{self, NewTensor, Outline, outlines};
use octet_checkpoint::{Architecture, Checkpoint, ElementType, LayerTensor, Layout, Moe, Params, Tensor, TensorName};
use octet_kernels::quantize::quantize_row;
use octet_tokenizer::Tokenizer;

use self::preferences::Preferences;
use crate::float_types::{FloatType, FloatTypes};
use crate::output::{self, OutputOptions};
use crate::random_weights::normal;
use crate::recode::Recoded;
use crate::tokenizer_files;

/// Spread of a random router's weights: what transformers starts training with.
const ROUTER_SPREAD: f32 = 0.02;

/// Make a mixture of experts of one dense model, or of several of the same shape
///
/// Expert E is a copy of the feed-forward layers of model E modulo the number of models; attention, norms, embeddings and
/// tokenizer are those of the first model. Quantized weights are copied as they are. With one model all experts are
/// alike, so that the mixture answers as the dense model does, until it is trained. Experts come to differ sooner where
/// routers begin with a preference: --router-text.
#[derive(clap::Args)]
pub struct Args {
    /// Dense checkpoints, in any layout
    #[arg(required = true, value_name = "DENSE")]
    models: Vec<PathBuf>,
    /// Experts in each layer [default: 8 of one model, else one of each]
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts that each token visits
    #[arg(long, value_name = "K", default_value_t = 2)]
    per_token: usize,
    /// File (gguf) or folder (hf) to write
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Layout to write: gguf or hf
    #[arg(long, value_name = "LAYOUT", default_value = "gguf", value_parser = layout)]
    to: Layout,
    /// Weights of the routers: random (small, from the seed) or zero (every token goes to the first experts)
    #[arg(long, default_value = "random", value_parser = router)]
    router: Router,
    /// A text whose kind of tokens an expert is to begin with: the first of these for expert 0, and so on; give several. Rows
    /// of other experts are random
    #[arg(long, value_name = "FILE", conflicts_with = "router")]
    router_text: Vec<PathBuf>,
    /// Seed of random routers
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    router_seed: u64,
    #[command(flatten)]
    output: OutputOptions,
}

/// What routers start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Router {
    Random,
    Zero,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let open = |path: &PathBuf| Ok(Arc::new(Checkpoint::open(path)?));
    let models = args.models.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    for model in &models {
        output::refuse_inside(&args.out, model)?;
    }
    args.output.check(&args.out, args.to)?;
    let mut notes = check_alike(&models)?;
    let moe = experts(&args, models.len())?;
    let params = Params { architecture: Architecture::Mixtral, moe: Some(moe), ..models[0].params().clone() };
    let types = FloatTypes::choose(&models[0], args.to, None::<FloatType>)?;
    let all_tensors = |routers| -> anyhow::Result<Vec<_>> {
        let outlines = outlines(args.to, &params).into_iter();
        outlines.map(|outline| new_tensor(&models, outline, &types, routers, &args)).collect()
    };
    let text = tokenizer_files::carry(&models[0], args.to)?;
    // Reading texts takes a while; models that do not go together are refused before.
    all_tensors(None)?;
    let preferences = match args.router_text.as_slice() {
        [] => None,
        files => {
            Some(Preferences::learn(&models[0], files, moe.num_experts, args.output.threads()?, args.router_seed)?)
        }
    };
    let tensors = all_tensors(preferences.as_ref().map(|preferences| preferences.routers.as_slice()))?;
    notes.extend(text.notes.iter().cloned());
    let params = text.complete(&params);
    let mut plan = match args.to {
        Layout::HuggingFace => {
            write::hugging_face::plan(&params, types.main, tensors, write::hugging_face::DEFAULT_SHARD_BYTES)
        }
        _ => {
            let mut keys = text.gguf_keys(&models[0], &params, types.main);
            // It is another model than the one whose name it would carry on.
            keys.retain(|(key, _)| key != "general.name");
            keys.push(("general.name".into(), Value::String(output::model_name(&args.out))));
            write::gguf::plan(&keys, tensors)
        }
    };
    text.files.into_iter().for_each(|(name, content)| plan.add_file(&name, content));
    let mut made_from = Vec::new();
    for model in &models {
        made_from.extend(output::identity(model)?);
    }
    made_from.push(format!("upcycle, {:?} routers, seed {}", args.router, args.router_seed));
    made_from.extend(preferences.as_ref().map(|learned| format!("router texts {}", digest(&learned.routers))));
    args.output.write(&args.out, &plan, made_from)?;
    notes.push(description(&args, &params, preferences.as_ref()));
    notes.iter().for_each(|note| output::tell(note));
    Ok(())
}

/// What the mixture is, and how its routers start: a trainer must know.
fn description(args: &Args, params: &Params, preferences: Option<&Preferences>) -> String {
    let moe = params.moe.expect("an upcycled model has experts");
    let routers = match (preferences, args.router) {
        (Some(Preferences { tokens, .. }), _) => {
            let tokens: Vec<String> = tokens.iter().map(|&n| crate::format::count(n as u64)).collect();
            format!("learned of {} tokens of the texts", tokens.join(", "))
        }
        (None, Router::Random) => format!("random (normal, spread {ROUTER_SPREAD}, seed {})", args.router_seed),
        (None, Router::Zero) => "zero".into(),
    };
    let [all, active] = [params.n_parameters(), params.n_active_parameters()].map(crate::format::count);
    let (n_experts, per_token, n_layers) = (moe.num_experts, moe.num_experts_per_tok, params.n_layers);
    format!(
        "{n_experts} experts in {n_layers} layers, {per_token} a token; {all} parameters, {active} active; routers {routers}"
    )
}

fn experts(args: &Args, n_models: usize) -> anyhow::Result<Moe> {
    let num_experts = args.experts.unwrap_or(if n_models == 1 { 8 } else { n_models });
    if num_experts == 0 || !num_experts.is_multiple_of(n_models) {
        bail!("--experts {num_experts}: {n_models} models give {n_models} experts, or twice as many, and so on");
    }
    if num_experts > MAX_EXPERTS {
        bail!("--experts {num_experts}: the limit is {MAX_EXPERTS}");
    }
    if !(1..=num_experts).contains(&args.per_token) {
        bail!("--per-token {}: it has to be from 1 to the {num_experts} experts", args.per_token);
    }
    Ok(Moe { num_experts, num_experts_per_tok: args.per_token })
}

/// Experts of a layer that llama.cpp takes.
const MAX_EXPERTS: usize = 512;

/// Refuses models that are mixtures already, of different shapes, or of different vocabularies. Returns what could not
/// be checked.
fn check_alike(models: &[Arc<Checkpoint>]) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    for model in models {
        if let Some(moe) = model.params().moe {
            bail!("{}: has {} experts already; upcycle takes dense models", model.path().display(), moe.num_experts);
        }
    }
    let first = &models[0];
    for other in &models[1..] {
        let (a, b) = (first.path().display(), other.path().display());
        for ((what, of_first), (_, of_other)) in shape(first.params()).into_iter().zip(shape(other.params())) {
            if of_first != of_other {
                bail!("{what} is {of_first} in {a}, but {of_other} in {b}; experts must be of the same shape");
            }
        }
        notes.extend(check_vocabularies(first, other)?);
    }
    Ok(notes)
}

/// What must agree for experts to take each other's place, by name.
fn shape(params: &Params) -> [(&'static str, f64); 9] {
    [
        ("dim", params.dim as f64),
        ("n_layers", params.n_layers as f64),
        ("head_dim", params.head_dim as f64),
        ("hidden_dim", params.hidden_dim as f64),
        ("n_heads", params.n_heads as f64),
        ("n_kv_heads", params.n_kv_heads as f64),
        ("vocab_size", params.vocab_size as f64),
        ("norm_eps", f64::from(params.norm_eps)),
        ("rope_theta", f64::from(params.rope_theta)),
    ]
}

/// Refuses two models whose tokens of the same id are different texts. Models without a tokenizer cannot be compared,
/// which is worth a note.
fn check_vocabularies(first: &Checkpoint, other: &Checkpoint) -> anyhow::Result<Option<String>> {
    let (Ok(a), Ok(b)) = (Tokenizer::of_checkpoint(first), Tokenizer::of_checkpoint(other)) else {
        let (a, b) = (first.path().display(), other.path().display());
        return Ok(Some(format!("{a} or {b} has no tokenizer, so their vocabularies are not compared")));
    };
    let n = a.vocab_size().min(b.vocab_size()) as u32;
    if let Some(id) = (0..n).find(|&id| a.bytes(id) != b.bytes(id)) {
        let (first, other) = (first.path().display(), other.path().display());
        bail!(
            "token {id} is {:?} in {first}, but {:?} in {other}; experts must share a vocabulary",
            a.piece(id),
            b.piece(id)
        );
    }
    Ok(None)
}

fn new_tensor<'a>(
    models: &'a [Arc<Checkpoint>],
    outline: Outline,
    types: &FloatTypes,
    routers: Option<&'a [Vec<f32>]>,
    args: &Args,
) -> anyhow::Result<NewTensor<'a>> {
    if let [TensorName::Layer(layer, LayerTensor::Router)] = outline.parts[..] {
        let element_type = if args.to == Layout::Gguf { ElementType::F32 } else { types.main };
        return Ok(new_router(outline, element_type, layer, routers.map(|routers| routers[layer].as_slice()), args));
    }
    let part = |&name: &TensorName| {
        let (model, name) = match name {
            TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)) => {
                (expert % models.len(), TensorName::Layer(layer, LayerTensor::Expert(0, matrix)))
            }
            name => (0, name),
        };
        Ok(models[model].tensor(name)?)
    };
    let parts = outline.parts.iter().map(part).collect::<anyhow::Result<Vec<Tensor<'_>>>>()?;
    let element_type = types.of(&parts).with_context(|| "the models are quantized in different ways")?;
    let rows = Recoded::new(parts, outline.order, element_type);
    Ok(NewTensor::new(outline.name, element_type, outline.shape, Box::new(rows)))
}

/// A router `[num_experts, dim]` that nobody trained yet.
fn new_router<'a>(
    outline: Outline,
    element_type: ElementType,
    layer: usize,
    learned: Option<&'a [f32]>,
    args: &Args,
) -> NewTensor<'a> {
    let cols = outline.shape[1] as usize;
    let row_bytes = element_type.row_bytes(cols).expect("floats fill any row");
    let (router, seed) = (args.router, args.router_seed);
    let fill = move |rows: Range<usize>, out: &mut [u8]| {
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            let weight = |col| match (learned, router) {
                (Some(learned), _) => learned[row * cols + col],
                (None, Router::Zero) => 0.0,
                (None, Router::Random) => ROUTER_SPREAD * normal(seed, [layer, row, col]),
            };
            let weights: Vec<f32> = (0..cols).map(weight).collect();
            quantize_row(element_type, &weights, None, out);
        }
        Ok(())
    };
    NewTensor::new(outline.name, element_type, outline.shape, Box::new(fill))
}

/// What tells routers from others, so that no interrupted output is gone on with for other ones.
fn digest(routers: &[Vec<f32>]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    routers.iter().flatten().for_each(|weight| hash.update(weight.to_le_bytes()));
    crate::format::hex(&hash.finalize())
}

fn layout(name: &str) -> Result<Layout, String> {
    match name {
        "gguf" => Ok(Layout::Gguf),
        "hf" | "huggingface" => Ok(Layout::HuggingFace),
        _ => Err("choose gguf or hf; `octet convert` makes the other layouts of those".into()),
    }
}

fn router(name: &str) -> Result<Router, String> {
    match name {
        "random" => Ok(Router::Random),
        "zero" => Ok(Router::Zero),
        _ => Err("choose random or zero".into()),
    }
}

//! `octet experts`: which experts work on a text, token by token and layer by layer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::Checkpoint;
use octet_model::Layerwise;
use octet_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::generate::read_prompt;
use crate::stdout;
use crate::text_tokens::{self, TextTokens};

mod drawing;
mod routes;

use routes::{Recorded, Routes, chance};

/// Show which experts work on a text
///
/// Each token in the colours of its experts, in one layer; the share of each expert in each layer; how often neighbouring
/// tokens have the same expert, beside what chance would give; and with several texts the load by kind of text: the figures
/// of section 5 of the Mixtral paper. Weights are read a layer at a time, so a model may be larger than memory.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// The text; `-` reads standard input, and so does none where no --text is given
    text: Option<String>,
    /// A file with a text, and what to call it; several times
    #[arg(long = "text", value_name = "NAME=FILE", value_parser = named)]
    texts: Vec<(String, PathBuf)>,
    /// Layer whose choices colour the text [default: the middle one]
    #[arg(short, long, value_name = "N")]
    layer: Option<usize>,
    /// Most tokens of each text
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Threads [default: as many as this process may use]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    if let Some((name, file)) = text.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty()) {
        return Ok((name.into(), file.into()));
    }
    let name = Path::new(text).file_stem().ok_or("write it as NAME=FILE")?;
    Ok((name.to_string_lossy().into_owned(), text.into()))
}

/// A text and who worked on it.
struct Text {
    name: String,
    /// Without BOS.
    ids: Vec<u32>,
    routes: Routes,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let cannot = || format!("cannot open {}", args.model.display());
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let threads = args.threads.map_or_else(octet_kernels::cpu::available_threads, usize::from);
    let model = Layerwise::new(checkpoint.clone(), threads)?;
    let config = model.config();
    if config.num_experts < 2 {
        bail!("{}: this model is dense: one expert sees every token", args.model.display());
    }
    let layer = args.layer.unwrap_or(config.n_layers / 2);
    if layer >= config.n_layers {
        bail!("--layer {layer}: the last of {} layers is {}", config.n_layers, config.n_layers - 1);
    }
    let tokenizer = Tokenizer::of_checkpoint(&checkpoint).with_context(cannot)?;
    let texts = route(&model, args.texts(&checkpoint, &tokenizer)?)?;
    if args.json {
        return stdout::print_json(&shown(&args.model, &tokenizer, &texts));
    }
    stdout::print(&drawing::draw(&args.model, &tokenizer, &texts, layer, args.layer.is_some()))
}

impl Args {
    /// All texts by name.
    fn texts(&self, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> anyhow::Result<Vec<(String, TextTokens)>> {
        let most = self.tokens as usize;
        let mut texts = Vec::new();
        if self.text.is_some() || self.texts.is_empty() {
            let text = read_prompt(self.text.as_deref())?;
            let tokens = TextTokens::of(tokenizer, &text, most).context("the text is empty: give some to look at")?;
            texts.push(("text".to_owned(), tokens));
        }
        for (name, file) in &self.texts {
            texts.push((name.clone(), TextTokens::read("--text", checkpoint, file, most)?));
        }
        Ok(texts)
    }
}

/// Runs all texts together, so that each weight is read once.
fn route(model: &Layerwise, texts: Vec<(String, TextTokens)>) -> anyhow::Result<Vec<Text>> {
    let n_lead = texts.first().map_or(0, |(_, tokens)| tokens.n_lead);
    let chunks = texts.iter().flat_map(|(_, tokens)| tokens.chunks.clone()).collect();
    let mut recorded = Recorded::default();
    let all = TextTokens { chunks, n_lead };
    text_tokens::forward(model, "routing", &all, &mut recorded, &mut |_, _| Ok(()))?;
    let mut first_row = 0;
    let of_text = |(name, tokens): (String, TextTokens)| {
        let routes = Routes::of(&recorded, first_row, &tokens);
        first_row += tokens.chunks.iter().map(Vec::len).sum::<usize>();
        let ids = tokens.chunks.iter().flat_map(|chunk| &chunk[n_lead..]).copied().collect();
        Text { name, ids, routes }
    };
    Ok(texts.into_iter().map(of_text).collect())
}

/// Everything for programs.
fn shown(model: &Path, tokenizer: &Tokenizer, texts: &[Text]) -> Value {
    let routes = &texts[0].routes;
    let text = |text: &Text| {
        let Text { name, ids, routes } = text;
        let layers = 0..routes.n_layers();
        let load = routes.load();
        json!({
            "name": name,
            "tokens": ids.iter().map(|&id| json!({"id": id, "piece": tokenizer.piece(id)})).collect::<Vec<_>>(),
            "experts": layers.clone().map(|layer| routes.experts(layer).collect()).collect::<Vec<Vec<_>>>(),
            "weights": layers.clone().map(|layer| routes.weights(layer).collect()).collect::<Vec<Vec<_>>>(),
            "load": layers.clone().map(|layer| load.shares(layer)).collect::<Vec<_>>(),
            "repeats": layers.map(|layer| routes.repeats(layer)).collect::<Vec<_>>(),
        })
    };
    json!({
        "model": model,
        "layers": routes.n_layers(),
        "experts": routes.num_experts,
        "experts_per_token": routes.per_token,
        "even_load": 1.0 / routes.num_experts as f64,
        "repeats_by_chance": chance(routes.num_experts, routes.per_token),
        "texts": texts.iter().map(text).collect::<Vec<_>>(),
    })
}

//! Running a model over a text to learn which columns of its matrices matter.

use std::path::Path;
use std::sync::Arc;

use octet_checkpoint::{Checkpoint, ExpertMatrix, LayerTensor, TensorName};
use octet_model::Layerwise;

use crate::importance::Importance;
use crate::stdout;
use crate::text_tokens::{self, TextTokens};

/// Tokens used of a text, unless the user says otherwise: what the field's calibration texts come to.
pub const MAX_TOKENS: usize = 65_536;

/// Runs the model over the text, a layer at a time, and prints how many tokens each expert saw.
///
/// Errors: no tokenizer, no text, a model that does not run.
pub fn run(checkpoint: &Arc<Checkpoint>, text: &Path, max_tokens: usize, threads: usize) -> anyhow::Result<Importance> {
    let tokens = TextTokens::read("--calibrate", checkpoint, text, max_tokens)?;
    let model = Layerwise::new(Arc::clone(checkpoint), threads)?;
    let name = text.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut importance = Importance::default();
    importance.datasets.push(name);
    text_tokens::forward(&model, "calibrating", &tokens, &mut importance, &mut |_, _| Ok(()))?;
    print_tokens(&importance, checkpoint)?;
    Ok(importance)
}

/// Tokens that each expert saw, a line a layer.
fn print_tokens(importance: &Importance, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let params = checkpoint.params();
    if params.moe.is_none() {
        return Ok(());
    }
    let mut table = String::from("tokens seen by each expert\n");
    for layer in 0..params.n_layers {
        let tokens = |e| importance.tokens(TensorName::Layer(layer, LayerTensor::Expert(e, ExpertMatrix::W1)));
        let counts: Vec<String> = (0..params.n_experts()).map(|e| format!("{:>7}", tokens(e))).collect();
        table += &format!("  layer {layer:>3} {}\n", counts.concat());
    }
    stdout::print(&table)
}

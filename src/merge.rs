//! `octet merge`: an adapter folded into the weights that it changes.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::bail;
use octet_checkpoint::write::{self, NewTensor, Outline, RowOrder, Rows, outlines};
use octet_checkpoint::{Checkpoint, Error, Layout, Tensor, TensorName};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::quantize::{is_writable, quantize_row};
use octet_model::Adapter;

use crate::float_types::{FloatType, FloatTypes};
use crate::output::{self, OutputOptions};
use crate::recode::Recoded;
use crate::tokenizer_files;

/// Fold an adapter into a model's weights
///
/// ADAPTER is a folder in PEFT's format, as `octet finetune` writes it. Weights that it does not change are copied as they
/// are; changed ones are written in the type that they had, so quantized ones are quantized anew. The result runs like any
/// other model.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// Folder of the adapter
    adapter: PathBuf,
    /// File (gguf) or folder (hf, mistral) to write
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Layout to write: gguf, hf or mistral [default: the model's own]
    #[arg(long, value_name = "LAYOUT", value_parser = crate::convert::layout)]
    to: Option<Layout>,
    /// Type of the weights: f32, f16, bf16, or keep [default: keep; bf16 where quantized weights go to hf or mistral]
    #[arg(long = "type", value_name = "TYPE", value_parser = FloatType::parse)]
    float: Option<FloatType>,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    output::refuse_inside(&args.out, &checkpoint)?;
    let params = checkpoint.params();
    let adapter = Adapter::read(&args.adapter, params)?;
    if params.tied_embeddings && adapter.matrices.contains_key(&TensorName::Output) {
        bail!(
            "{}: changes the output head, which in this model is the embedding table too; merging would change both",
            args.adapter.display()
        );
    }
    let layout = args.to.unwrap_or(checkpoint.layout());
    let types = FloatTypes::choose(&checkpoint, layout, args.float)?;
    let mut tensors = Vec::new();
    for outline in outlines(layout, params) {
        tensors.push(tensor(&checkpoint, &types, &adapter, outline)?);
    }
    let text = tokenizer_files::carry(&checkpoint, layout)?;
    let written = text.complete(params);
    let mut plan = match layout {
        Layout::Gguf => write::gguf::plan(&text.gguf_keys(&checkpoint, &written, types.main), tensors),
        Layout::HuggingFace => {
            write::hugging_face::plan(&written, types.main, tensors, write::hugging_face::DEFAULT_SHARD_BYTES)
        }
        Layout::MistralRelease => write::mistral::plan(&written, tensors),
    };
    let notes = text.notes.clone();
    text.files.into_iter().for_each(|(name, content)| plan.add_file(&name, content));
    let mut made_from = output::identity(&checkpoint)?;
    made_from.push(output::file_identity(&args.adapter.join("adapter_model.safetensors"))?);
    made_from.push(format!("merge to {}", layout.name()));
    args.output.write(&args.out, &plan, made_from)?;
    notes.iter().for_each(|note| output::tell(note));
    output::tell(&format!("{} matrices changed", adapter.matrices.len()));
    Ok(())
}

fn tensor<'a>(
    checkpoint: &'a Checkpoint,
    types: &FloatTypes,
    adapter: &'a Adapter,
    outline: Outline,
) -> anyhow::Result<NewTensor<'a>> {
    let parts = outline.parts.iter().map(|&name| checkpoint.tensor(name)).collect::<Result<Vec<_>, _>>()?;
    let element_type = types.of(&parts)?;
    let is_changed = outline.parts.iter().any(|name| adapter.matrices.contains_key(name));
    if is_changed && !is_writable(element_type) {
        let (stored, path) = (parts[0].stored_name(), checkpoint.path().display());
        bail!(
            "{path}: {stored} is {element_type}, which Octet reads but does not write, and the adapter changes it; use --type bf16"
        );
    }
    let rows: Box<dyn Rows + 'a> = match is_changed {
        true => Box::new(Merged { parts, order: outline.order, element_type, adapter }),
        false => Box::new(Recoded::new(parts, outline.order, element_type)),
    };
    Ok(NewTensor::new(outline.name, element_type, outline.shape, rows))
}

/// Rows of one tensor, or of several merged ones of one shape, with the adapter's change in them.
struct Merged<'a> {
    parts: Vec<Tensor<'a>>,
    order: RowOrder,
    element_type: octet_checkpoint::ElementType,
    adapter: &'a Adapter,
}

impl Rows for Merged<'_> {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let (cols, rows_of_part) = (self.parts[0].cols(), self.parts[0].rows());
        let row_bytes = out.len() / rows.len();
        let mut values = vec![0.0; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            let part = &self.parts[row / rows_of_part];
            let row = self.order.canonical(row % rows_of_part);
            let mut stored = vec![0; part.row_bytes()];
            part.read_rows(row..row + 1, &mut stored);
            dequantize_row(part.element_type(), &stored, &mut values);
            self.adapter.add_to(part.name(), row, cols, &mut values);
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                let problem = format!("tensor {}: {value} in row {row} after merging", part.stored_name());
                return Err(Error::Malformed { path: part.path().to_owned(), problem });
            }
            quantize_row(self.element_type, &values, None, out);
        }
        Ok(())
    }
}

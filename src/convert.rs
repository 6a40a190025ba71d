//! `octet convert`: a checkpoint in another layout, its numbers the same.

use std::path::PathBuf;

use octet_checkpoint::write::{self, NewTensor, Plan, outlines};
use octet_checkpoint::{Checkpoint, ElementType, Layout};

use crate::float_types::{FloatType, FloatTypes};
use crate::output::{self, OutputOptions};
use crate::recode::Recoded;
use crate::tokenizer_files::{self, TokenizerFiles};

/// Translate a checkpoint between Mistral's, Hugging Face's and GGUF's layouts
///
/// Rows of q and k are put in the order that the layout wants, tokenizer and chat template go along. Norms and routers
/// of a GGUF are F32, as every reader of GGUF expects. A run that was killed goes on where it stopped when given again.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint, in Mistral's, Hugging Face's or GGUF's layout
    model: PathBuf,
    /// File (gguf) or folder (hf, mistral) to write
    out: PathBuf,
    /// Layout to write: gguf, hf or mistral
    #[arg(long, value_name = "LAYOUT", value_parser = layout)]
    to: Layout,
    /// Type of the weights: f32, f16, bf16, or keep [default: keep; bf16 where quantized weights go to hf or mistral]
    #[arg(long = "type", value_name = "TYPE", value_parser = FloatType::parse)]
    float: Option<FloatType>,
    /// Most bytes of one weights file of the hf layout, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "5GB")]
    shard_size: u64,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    output::refuse_inside(&args.out, &checkpoint)?;
    let types = FloatTypes::choose(&checkpoint, args.to, args.float)?;
    let mut tensors = Vec::new();
    for outline in outlines(args.to, checkpoint.params()) {
        let parts = outline.parts.iter().map(|&name| checkpoint.tensor(name)).collect::<Result<Vec<_>, _>>()?;
        let element_type = types.of(&parts)?;
        let rows = Recoded::new(parts, outline.order, element_type);
        tensors.push(NewTensor::new(outline.name, element_type, outline.shape, Box::new(rows)));
    }
    let text = tokenizer_files::carry(&checkpoint, args.to)?;
    let mut notes = text.notes.clone();
    if args.to == Layout::Gguf && checkpoint.params().sliding_window.is_some() {
        notes.push("llama.cpp passes over the sliding window that this file records; Octet keeps it".into());
    }
    let plan = plan(&checkpoint, &args, types.main, (tensors, text));
    let mut made_from = output::identity(&checkpoint)?;
    made_from.push(format!("convert to {}", args.to.name()));
    args.output.write(&args.out, &plan, made_from)?;
    notes.iter().for_each(|note| output::tell(note));
    Ok(())
}

/// Lays out what is to be written: the weights, and what makes text of their tokens. Most weights are of type `main`.
fn plan<'a>(
    checkpoint: &Checkpoint,
    args: &Args,
    main: ElementType,
    (tensors, text): (Vec<NewTensor<'a>>, TokenizerFiles),
) -> Plan<'a> {
    let params = text.complete(checkpoint.params());
    let mut plan = match args.to {
        Layout::Gguf => write::gguf::plan(&text.gguf_keys(checkpoint, &params, main), tensors),
        Layout::HuggingFace => write::hugging_face::plan(&params, main, tensors, args.shard_size),
        Layout::MistralRelease => write::mistral::plan(&params, tensors),
    };
    text.files.into_iter().for_each(|(name, content)| plan.add_file(&name, content));
    plan
}

/// Reads the name of a layout.
pub fn layout(name: &str) -> Result<Layout, String> {
    match name {
        "gguf" => Ok(Layout::Gguf),
        "hf" | "huggingface" => Ok(Layout::HuggingFace),
        "mistral" => Ok(Layout::MistralRelease),
        _ => Err("choose gguf, hf or mistral".into()),
    }
}

/// Reads a size such as 5GB, 500MB or 2GiB.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..].to_ascii_lowercase()[..] {
        "" | "b" => 1,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("give a number and MB, GB, MiB or GiB".into()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| "give a number and MB, GB, MiB or GiB".to_string())?;
    let bytes = number * unit as f64;
    if bytes >= 1.0 && bytes < 2f64.powi(63) { Ok(bytes as u64) } else { Err("is out of range".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(size("100"), Ok(100));
        for wrong in ["", "GB", "-1GB", "5TB", "0", "1e400GB", "infGB", "NaN"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}

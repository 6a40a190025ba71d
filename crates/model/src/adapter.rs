//! Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, whose tensors are
//! `base_model.model.NAME.lora_A.weight [rank, cols]` and `lora_B.weight [rows, rank]`, `NAME` being Hugging Face's name of
//! the matrix, each expert by itself.
//!
//! `B`'s rows of queries and keys stand there as rotary halves; here they are in canonical order, as the model's are.

use std::collections::BTreeMap;
use std::path::Path;

use octet_checkpoint::{Params, TensorName};

use crate::Error;

mod options;
mod read;
mod write;

pub use options::{LoraOptions, LoraTarget};

/// The change of one matrix `[rows, cols]`: `scale · B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankValues {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f32,
    /// `[rank, cols]`.
    pub a: Vec<f32>,
    /// `[rows, rank]`, rows in canonical order.
    pub b: Vec<f32>,
}

/// Low-rank changes of some of a model's matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// How it was made.
    pub options: LoraOptions,
    /// Of each changed matrix. A tied output head is [`TensorName::Output`].
    pub matrices: BTreeMap<TensorName, LowRankValues>,
}

impl Adapter {
    /// Reads a PEFT folder for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Adapter`]: no such folder, an adapter of another kind or for another model.
    pub fn read(folder: &Path, params: &Params) -> Result<Adapter, Error> {
        read::read(folder, params)
    }

    /// Writes a PEFT folder, whole or not at all. `base` is how the model is called there.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it cannot be written.
    pub fn write(&self, folder: &Path, params: &Params, base: &str) -> Result<(), Error> {
        write::write(self, folder, params, base)
    }

    /// Adds the change of rows `first_row..` of a matrix to them; `rows [n, cols]`.
    pub fn add_to(&self, name: TensorName, first_row: usize, cols: usize, rows: &mut [f32]) {
        let Some(change) = self.matrices.get(&name) else { return };
        for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
            let b = &change.b[(first_row + i) * change.rank..][..change.rank];
            for (b, a) in b.iter().zip(change.a.chunks_exact(cols)) {
                let factor = change.scale * b;
                row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
        }
    }

    /// The same with empty arrays.
    pub fn without_numbers(&self) -> Adapter {
        let empty =
            |change: &LowRankValues| LowRankValues { rank: change.rank, scale: change.scale, a: vec![], b: vec![] };
        let matrices = self.matrices.iter().map(|(name, change)| (*name, empty(change))).collect();
        Adapter { options: self.options.clone(), matrices }
    }

    /// Whether every matrix is one of the model, and of its shape.
    ///
    /// # Errors
    /// [`Error::Config`] naming the one that is not.
    pub fn check(&self, params: &Params) -> Result<(), Error> {
        for (&name, change) in &self.matrices {
            let [rows, cols] = params.shape(name);
            let known = params.tensors().any(|n| n == name) || name == TensorName::Output;
            if !known || change.a.len() != change.rank * cols || change.b.len() != rows * change.rank {
                return Err(Error::Config(format!("the adapter's {name} does not fit this model; is it another's?")));
            }
        }
        Ok(())
    }
}

/// PEFT's name of a matrix, without `lora_A` and `lora_B`.
fn peft_name(name: TensorName, params: &Params) -> String {
    let name = name.hugging_face(params.moe);
    format!("base_model.model.{}", name.strip_suffix(".weight").unwrap_or(&name))
}

/// Rows of a head where the file has them as rotary halves.
fn rotary_head(name: TensorName, params: &Params) -> octet_checkpoint::write::RowOrder {
    use octet_checkpoint::LayerTensor::{Wk, Wq};
    use octet_checkpoint::write::RowOrder;
    match name {
        TensorName::Layer(_, Wq | Wk) => RowOrder::RotaryHalves { head_dim: params.head_dim },
        _ => RowOrder::Canonical,
    }
}

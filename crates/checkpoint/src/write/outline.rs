//! Which tensors a file of each layout has, and of which of the model's tensors their rows are made.
//!
//! GGUF merges the experts of a layer and keeps canonical rows; Hugging Face has each expert by itself and the rows of
//! q and k as halves; Mistral's own has each expert by itself and canonical rows.

use crate::{ExpertMatrix, LayerTensor, Layout, Params, TensorName};

/// A tensor that an output shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its name in the layout.
    pub name: String,
    /// Its shape there, outermost dimension first; a vector has one dimension.
    pub shape: Vec<u64>,
    /// The model's tensors whose rows it holds, one after the other: several for merged experts.
    pub parts: Vec<TensorName>,
    /// In which order it holds each part's rows.
    pub order: RowOrder,
}

/// The order of a matrix's rows in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As [`crate::Tensor`] gives them.
    Canonical,
    /// Of each head the first members of all rotary pairs, then the second members.
    RotaryHalves {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The canonical row that stands at `row` in the file.
    ///
    /// Of a head of 6 rows the file has 0 2 4 1 3 5.
    pub fn canonical(self, row: usize) -> usize {
        match self {
            RowOrder::Canonical => row,
            RowOrder::RotaryHalves { head_dim } => {
                let (head, p) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (p % half) + p / half
            }
        }
    }
}

/// The tensors of a model in this layout, in the order in which a token meets them.
///
/// A model with tied embeddings has no output head, but for Mistral's layout, whose own program expects one.
pub fn outlines(layout: Layout, params: &Params) -> Vec<Outline> {
    let mut outlines: Vec<Outline> = params.tensors().filter_map(|name| outline(layout, params, name)).collect();
    if layout == Layout::MistralRelease && params.tied_embeddings {
        let head = outline(layout, params, TensorName::Output);
        outlines.extend(head.map(|head| Outline { parts: vec![TensorName::TokenEmbedding], ..head }));
    }
    outlines
}

/// The output's tensor that begins with this one; `None` if it is merged into another's.
fn outline(layout: Layout, params: &Params, name: TensorName) -> Option<Outline> {
    let [rows, cols] = params.shape(name).map(|n| n as u64);
    let shape = if is_vector(name) { vec![cols] } else { vec![rows, cols] };
    let (moe, parts) = (params.moe, vec![name]);
    let plain = |name| Outline { name, shape: shape.clone(), parts: parts.clone(), order: RowOrder::Canonical };
    match layout {
        Layout::MistralRelease => Some(plain(name.mistral(moe))),
        Layout::HuggingFace => {
            let order = match name {
                TensorName::Layer(_, LayerTensor::Wq | LayerTensor::Wk) => {
                    RowOrder::RotaryHalves { head_dim: params.head_dim }
                }
                _ => RowOrder::Canonical,
            };
            Some(Outline { order, ..plain(name.hugging_face(moe)) })
        }
        Layout::Gguf => match (name, moe) {
            (TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)), Some(moe)) => {
                (expert == 0).then(|| merged(layer, matrix, moe.num_experts, plain(name.gguf(Some(moe)))))
            }
            _ => Some(plain(name.gguf(moe))),
        },
    }
}

/// All experts' matrices of a layer as one tensor.
fn merged(layer: usize, matrix: ExpertMatrix, n_experts: usize, first: Outline) -> Outline {
    let shape = [vec![n_experts as u64], first.shape].concat();
    let parts = (0..n_experts).map(|e| TensorName::Layer(layer, LayerTensor::Expert(e, matrix))).collect();
    Outline { shape, parts, ..first }
}

/// True for the weights of norms, which files store with one dimension.
fn is_vector(name: TensorName) -> bool {
    use LayerTensor::{AttentionNorm, FfnNorm};
    matches!(name, TensorName::OutputNorm | TensorName::Layer(_, AttentionNorm | FfnNorm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_hold_every_row_of_a_head_once() {
        let order = RowOrder::RotaryHalves { head_dim: 6 };
        let rows: Vec<usize> = (0..12).map(|row| order.canonical(row)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}

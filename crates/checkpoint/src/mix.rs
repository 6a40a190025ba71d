//! Which type each tensor gets when a model is quantized, and which published choices were mistakes.
//!
//! A mix names one type for most weights, and gives more bits to those that are few and matter much. The rules are those
//! of the field (llama.cpp's `llama-quantize`), so that a name such as `Q4_K_M` means to us what it means to everyone:
//!
//! - attention values serve several query heads at once and are small: finer, and Q8_0 in models of 8 experts, where all
//!   attention is 3% of the weights; keys likewise there;
//! - down projections sum over the hidden width, half of the layers' are finer in the `_M` mixes, the first and last layers'
//!   among them;
//! - the output head is Q6_K; the router, which decides whom to ask, and the norms stay F32.

mod faults;

use crate::{ElementType, ExpertMatrix, LayerTensor, Params, TensorName};
use ElementType::*;

pub use faults::faults;

/// A mix of types, finest first.
#[allow(non_camel_case_types, missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mix {
    F32,
    BF16,
    F16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q4_K_M,
    Q4_K_S,
    Q4_0,
    Q3_K_L,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
}

/// One row a mix: its name in the field, the type of most weights, llama.cpp's number for it.
const TABLE: [(Mix, &str, ElementType, u32); 14] = [
    (Mix::F32, "F32", F32, 0),
    (Mix::BF16, "BF16", BF16, 32),
    (Mix::F16, "F16", F16, 1),
    (Mix::Q8_0, "Q8_0", Q8_0, 7),
    (Mix::Q6_K, "Q6_K", Q6_K, 18),
    (Mix::Q5_K_M, "Q5_K_M", Q5_K, 17),
    (Mix::Q5_K_S, "Q5_K_S", Q5_K, 16),
    (Mix::Q4_K_M, "Q4_K_M", Q4_K, 15),
    (Mix::Q4_K_S, "Q4_K_S", Q4_K, 14),
    (Mix::Q4_0, "Q4_0", Q4_0, 2),
    (Mix::Q3_K_L, "Q3_K_L", Q3_K, 13),
    (Mix::Q3_K_M, "Q3_K_M", Q3_K, 12),
    (Mix::Q3_K_S, "Q3_K_S", Q3_K, 11),
    (Mix::Q2_K, "Q2_K", Q2_K, 10),
];

impl Mix {
    /// Every mix, finest first.
    pub fn all() -> impl Iterator<Item = Mix> {
        TABLE.iter().map(|row| row.0)
    }

    /// The field's name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The mix of this name, in any case; `Q3_K`, `Q4_K` and `Q5_K` mean the medium one. `None` if there is none.
    pub fn from_name(name: &str) -> Option<Mix> {
        let medium = format!("{name}_M");
        let of_name = |name: &str| TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0);
        of_name(name).or_else(|| of_name(&medium))
    }

    /// The number that llama.cpp's files give this mix, `general.file_type`.
    pub fn file_type(self) -> u32 {
        TABLE[self as usize].3
    }

    /// The mix with this number.
    pub fn from_file_type(number: u64) -> Option<Mix> {
        TABLE.iter().find(|row| u64::from(row.3) == number).map(|row| row.0)
    }

    /// The type of most weights.
    pub fn base(self) -> ElementType {
        TABLE[self as usize].2
    }

    /// The type of a tensor of this model; one that its rows are a whole number of blocks of.
    pub fn element_type(self, name: TensorName, params: &Params) -> ElementType {
        let [rows, cols] = params.shape(name);
        if rows == 1 || matches!(name, TensorName::Layer(_, LayerTensor::Router)) {
            return F32;
        }
        fallback(self.wanted(name, params), cols)
    }

    /// The type of a matrix, were it wide enough.
    fn wanted(self, name: TensorName, params: &Params) -> ElementType {
        use LayerTensor::*;
        let base = self.base();
        if !base.is_quantized() {
            return base;
        }
        match name {
            TensorName::Output => head(base),
            TensorName::TokenEmbedding if params.tied_embeddings => head(base),
            TensorName::Layer(_, Wk) if has_eight_experts(params) => Q8_0,
            TensorName::Layer(layer, Wv) => self.values(layer, params),
            TensorName::Layer(_, Wo) => self.attention_output(params),
            TensorName::Layer(layer, Expert(_, ExpertMatrix::W2)) => self.down(layer, params.n_layers),
            _ => base,
        }
    }

    fn values(self, layer: usize, params: &Params) -> ElementType {
        let shared_by_four = params.n_heads / params.n_kv_heads >= 4;
        let wanted = match self {
            _ if has_eight_experts(params) => Q8_0,
            Mix::Q5_K_M | Mix::Q4_K_M if is_worth_more(layer, params.n_layers) => Q6_K,
            Mix::Q4_K_S if layer < 4 => Q5_K,
            Mix::Q3_K_L => Q5_K,
            Mix::Q3_K_M => {
                if layer < 2 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            Mix::Q2_K => {
                if shared_by_four {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            _ => self.base(),
        };
        // Llama 2 70B: eight query heads share each value head.
        let is_70b = params.n_layers == 80 && params.n_heads != params.n_kv_heads;
        if is_70b && matches!(wanted, Q3_K | Q4_K) { Q5_K } else { wanted }
    }

    fn attention_output(self, params: &Params) -> ElementType {
        match self {
            Mix::Q2_K | Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q4_K_S | Mix::Q4_K_M if has_eight_experts(params) => Q5_K,
            Mix::Q3_K_L => Q5_K,
            Mix::Q3_K_M => Q4_K,
            Mix::Q2_K => Q3_K,
            _ => self.base(),
        }
    }

    fn down(self, layer: usize, n_layers: usize) -> ElementType {
        match self {
            Mix::Q5_K_M | Mix::Q4_K_M if is_worth_more(layer, n_layers) => Q6_K,
            Mix::Q4_K_S if layer < n_layers / 8 => Q5_K,
            Mix::Q3_K_L => Q5_K,
            Mix::Q3_K_M => {
                if layer < n_layers / 16 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            Mix::Q2_K => Q3_K,
            _ => self.base(),
        }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of the output head, be it the embedding's matrix too.
fn head(base: ElementType) -> ElementType {
    if base == Q8_0 { Q8_0 } else { Q6_K }
}

/// Mixtral 8x7B and 8x22B, in which all attention is 3% of the weights.
fn has_eight_experts(params: &Params) -> bool {
    params.n_experts() == 8
}

/// The layers whose errors hurt most: the first and last eighth, and every third between.
fn is_worth_more(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// The type that stands in for `wanted` where rows of `cols` are no whole number of its blocks: one with blocks of 32 and no
/// fewer bits, or F16 where that does not fit either.
pub fn fallback(wanted: ElementType, cols: usize) -> ElementType {
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let small = match wanted {
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        IQ4_XS | IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => IQ4_NL,
        other => other,
    };
    if cols.is_multiple_of(small.block_len()) { small } else { F16 }
}

#[cfg(test)]
mod tests;

//! Files whose mix of types was a mistake.
//!
//! Until 12 January 2024 llama-quantize looked for the down-projection by a name that expert tensors do not have, so that
//! Mixtral's were as coarse as everything else (llama.cpp#4872), and until 14 January the attention output of eight-expert
//! models was too (llama.cpp#4906). Many of the most downloaded files are from that December; nothing in them says so but
//! the types themselves.

use super::Mix;
use crate::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, TensorName};

/// What is known to be wrong with a checkpoint's mix of types: a sentence each, with what to do.
pub fn faults(checkpoint: &Checkpoint) -> Vec<String> {
    let params = checkpoint.params();
    if params.moe.is_none() {
        return Vec::new();
    }
    let file_type = checkpoint.gguf().and_then(|keys| keys.u64("general.file_type"));
    let claimed = file_type.and_then(Mix::from_file_type);
    let layers = |tensor| {
        let name = move |layer| TensorName::Layer(layer, tensor);
        (0..params.n_layers).filter_map(|layer| Some(checkpoint.find(name(layer))?.element_type())).collect()
    };
    of_types(&Types {
        claimed,
        gates: layers(LayerTensor::Expert(0, ExpertMatrix::W1)),
        downs: layers(LayerTensor::Expert(0, ExpertMatrix::W2)),
        attention_outputs: layers(LayerTensor::Wo),
    })
}

/// The types that tell, layer by layer.
pub(super) struct Types {
    /// The mix that the file says it is.
    pub(super) claimed: Option<Mix>,
    pub(super) gates: Vec<ElementType>,
    pub(super) downs: Vec<ElementType>,
    pub(super) attention_outputs: Vec<ElementType>,
}

pub(super) fn of_types(types: &Types) -> Vec<String> {
    use ElementType::{Q2_K, Q3_K, Q5_K};
    let finest = |types: &[ElementType]| types.iter().map(|t| t.bits_per_weight()).fold(0.0, f64::max);
    let Some(&base) = types.gates.first().filter(|base| types.gates.iter().all(|gate| gate == *base)) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    let downs_are_coarse = finest(&types.downs) <= base.bits_per_weight();
    let wants_finer = |mix: &Mix| matches!(mix, Mix::Q3_K_L | Mix::Q3_K_M | Mix::Q4_K_M | Mix::Q5_K_M);
    if base == Q2_K && downs_are_coarse {
        faults.push(
            "every down-projection is Q2_K, where a sound Q2_K has Q3_K: a fault of December 2023 (llama.cpp#4872) that takes \
             Mixtral 8x7B's perplexity from 5.06 to 7.47; take a newer file, or quantize a finer one again"
                .to_owned(),
        );
    } else if let Some(claimed) = types.claimed.filter(wants_finer)
        && claimed.base() == base
        && downs_are_coarse
    {
        faults.push(format!(
            "it says {claimed}, but no down-projection is finer than {base}, as only a {base}_S has it: a fault of December \
             2023 (llama.cpp#4872); take a newer file, or quantize a finer one again"
        ));
    }
    let outputs = finest(&types.attention_outputs);
    if matches!(base, Q2_K | Q3_K) && outputs < Q5_K.bits_per_weight() && !types.attention_outputs.is_empty() {
        faults.push(format!(
            "attention outputs have {outputs} bits a weight, where {base} mixes of experts have Q5_K since January 2024 \
             (llama.cpp#4906): they are 1% of the model; take a newer file, or quantize a finer one again"
        ));
    }
    faults
}

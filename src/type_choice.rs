//! Which type each tensor of a new GGUF gets: a mix's, or what `--set` says of its role.

use anyhow::bail;
use octet_checkpoint::mix::Mix;
use octet_checkpoint::write::Outline;
use octet_checkpoint::{ElementType, ExpertMatrix, LayerTensor, Params, TensorName};
use octet_kernels::quantize::is_writable;

/// A type that the user wants for all tensors of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    role: String,
    element_type: ElementType,
}

/// The type of a tensor: the user's, the last of its role, or the mix's.
pub fn element_type(
    mix: Mix,
    overrides: &[Override],
    outline: &Outline,
    params: &Params,
) -> anyhow::Result<ElementType> {
    let of_mix = mix.element_type(outline.parts[0], params);
    let cols = *outline.shape.last().expect("no tensor is without dimensions") as usize;
    let role = role(outline.parts[0]);
    let Some(wish) = overrides.iter().rev().find(|wish| Some(wish.role.as_str()) == role) else {
        return Ok(of_mix);
    };
    if wish.element_type.row_bytes(cols).is_none() {
        let (role, wanted) = (&wish.role, wish.element_type);
        bail!("--set {role}={wanted}: its rows are {cols} wide, no multiple of {}; {of_mix} fits", wanted.block_len());
    }
    Ok(wish.element_type)
}

/// The role by which a tensor is named in `--set`, as GGUF calls it; none for norms and routers, which stay F32.
fn role(name: TensorName) -> Option<&'static str> {
    Some(match name {
        TensorName::TokenEmbedding => "token_embd",
        TensorName::Output => "output",
        TensorName::OutputNorm => return None,
        TensorName::Layer(_, tensor) => match tensor {
            LayerTensor::AttentionNorm | LayerTensor::FfnNorm | LayerTensor::Router => return None,
            LayerTensor::Wq => "attn_q",
            LayerTensor::Wk => "attn_k",
            LayerTensor::Wv => "attn_v",
            LayerTensor::Wo => "attn_output",
            LayerTensor::Expert(_, ExpertMatrix::W1) => "ffn_gate",
            LayerTensor::Expert(_, ExpertMatrix::W2) => "ffn_down",
            LayerTensor::Expert(_, ExpertMatrix::W3) => "ffn_up",
        },
    })
}

/// Every role that `--set` knows.
const ROLES: [&str; 9] =
    ["token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"];

/// Reads the name of a mix, in any case.
pub fn mix(name: &str) -> Result<Mix, String> {
    let known = || Mix::all().map(|mix| mix.name()).collect::<Vec<_>>().join(", ");
    Mix::from_name(name).ok_or_else(|| format!("not a mix that can be written; there are {}", known()))
}

/// Reads `ROLE=TYPE`.
pub fn override_(text: &str) -> Result<Override, String> {
    let (role, name) = text.split_once('=').ok_or("give ROLE=TYPE, such as ffn_down=Q6_K")?;
    let role = role.strip_suffix("_exps").unwrap_or(role);
    if !ROLES.contains(&role) {
        return Err(format!("no such role; there are {}", ROLES.join(", ")));
    }
    match ElementType::from_name(name).filter(|&element_type| is_writable(element_type)) {
        Some(element_type) => Ok(Override { role: role.to_owned(), element_type }),
        None => Err(format!("{name:?} is no type that can be written; Q4_K, Q8_0 and F16 are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_name_a_role_and_a_type() {
        let q6 = Override { role: "ffn_down".into(), element_type: ElementType::Q6_K };
        assert_eq!(override_("ffn_down=q6_k"), Ok(q6.clone()));
        assert_eq!(override_("ffn_down_exps=Q6_K"), Ok(q6));
        for wrong in ["ffn_down", "router=Q4_0", "output=Q9", "output=IQ2_S", "=Q4_0"] {
            assert!(override_(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_role_is_some_tensors() {
        let layer = |tensor| TensorName::Layer(0, tensor);
        let expert = |matrix| layer(LayerTensor::Expert(0, matrix));
        let names = [
            TensorName::TokenEmbedding,
            TensorName::Output,
            layer(LayerTensor::Wq),
            layer(LayerTensor::Wk),
            layer(LayerTensor::Wv),
            layer(LayerTensor::Wo),
            expert(ExpertMatrix::W1),
            expert(ExpertMatrix::W2),
            expert(ExpertMatrix::W3),
        ];
        assert_eq!(names.map(|name| role(name).unwrap()), ROLES);
        assert_eq!(role(layer(LayerTensor::Router)), None);
    }
}

//! Which float type each tensor of a new checkpoint gets, where nothing is to be quantized.

use anyhow::bail;
use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Layout, Tensor, TensorName};

use crate::recode::is_exact;

/// The type that weights shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// The one they have.
    Keep,
    /// This one.
    Exactly(ElementType),
}

impl FloatType {
    /// Reads `f32`, `f16`, `bf16` or `keep`.
    pub fn parse(name: &str) -> Result<FloatType, String> {
        match name {
            "keep" => Ok(FloatType::Keep),
            "f32" => Ok(FloatType::Exactly(ElementType::F32)),
            "f16" => Ok(FloatType::Exactly(ElementType::F16)),
            "bf16" => Ok(FloatType::Exactly(ElementType::BF16)),
            _ => Err("choose f32, f16, bf16 or keep; `octet quantize` makes smaller types".into()),
        }
    }
}

/// Which type each tensor gets.
pub struct FloatTypes {
    layout: Layout,
    choice: FloatType,
    /// What most weights are.
    pub main: ElementType,
}

impl FloatTypes {
    /// Follows the user's wish, or finds what is best where there is none.
    ///
    /// Errors: quantized weights shall be kept where the layout has no place for them.
    pub fn choose(checkpoint: &Checkpoint, layout: Layout, asked: Option<FloatType>) -> anyhow::Result<FloatTypes> {
        let largest = TensorName::Layer(0, LayerTensor::Expert(0, ExpertMatrix::W1));
        let stored = checkpoint.tensor(largest)?.element_type();
        let quantized = checkpoint
            .params()
            .tensors()
            .find(|&name| checkpoint.find(name).is_some_and(|tensor| tensor.element_type().is_quantized()));
        let choice = match (asked, quantized) {
            (Some(FloatType::Keep), Some(name)) if layout != Layout::Gguf => {
                let (tensor, name) = (checkpoint.tensor(name)?, layout.name());
                let kind = tensor.element_type();
                bail!(
                    "--type keep: {} is {kind}, which the {name} layout has no place for; use --type bf16",
                    tensor.stored_name()
                )
            }
            (None, Some(_)) if layout != Layout::Gguf => FloatType::Exactly(ElementType::BF16),
            (asked, _) => asked.unwrap_or(FloatType::Keep),
        };
        let main = if let FloatType::Exactly(float) = choice { float } else { stored };
        Ok(FloatTypes { layout, choice, main })
    }

    /// The type of a tensor made of these. Errors: they have several.
    pub fn of(&self, parts: &[Tensor<'_>]) -> anyhow::Result<ElementType> {
        let first = &parts[0];
        let is_small = first.rows() == 1 || matches!(first.name(), TensorName::Layer(_, LayerTensor::Router));
        if self.layout == Layout::Gguf && is_small {
            return Ok(ElementType::F32);
        }
        if let FloatType::Exactly(float) = self.choice {
            return Ok(float);
        }
        if let Some(other) = parts.iter().find(|part| part.element_type() != first.element_type()) {
            let (a, b) = (first.stored_name(), other.stored_name());
            bail!(
                "--type keep: {a} is {}, but {b}, which is merged with it, is {}; use --type f16",
                first.element_type(),
                other.element_type()
            );
        }
        // A GGUF made of 16-bit weights holds norms and routers in F32; if that was all, they go back to 16 bits.
        let from_gguf = is_small && first.element_type() == ElementType::F32 && !self.main.is_quantized();
        Ok(if from_gguf && is_exact(first, self.main) { self.main } else { first.element_type() })
    }
}

//! What an adapter changes, and how strongly.

use octet_checkpoint::{LayerTensor, Params, TensorName};

use crate::Error;

/// Which matrices get a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoraTarget {
    /// Queries, keys, values and output of attention.
    Attention,
    /// The three matrices of every expert, each expert its own; the feed-forward matrices of a dense model.
    Experts,
    /// The router.
    Router,
    /// The output head.
    Head,
}

impl LoraTarget {
    /// Whether it names this tensor.
    pub fn covers(self, name: TensorName) -> bool {
        use LayerTensor::{Expert, Router, Wk, Wo, Wq, Wv};
        let TensorName::Layer(_, tensor) = name else {
            return self == LoraTarget::Head && name == TensorName::Output;
        };
        match self {
            LoraTarget::Attention => matches!(tensor, Wq | Wk | Wv | Wo),
            LoraTarget::Experts => matches!(tensor, Expert(..)),
            LoraTarget::Router => tensor == Router,
            LoraTarget::Head => false,
        }
    }
}

/// The shape of an adapter, and what it starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Strength of the change; see `scale` above.
    pub alpha: f32,
    /// Share of the inputs of `A` that a training step sets to zero.
    pub dropout: f32,
    /// Whether the scale is `alpha / √rank` (rsLoRA).
    pub rank_stabilized: bool,
    /// What is changed.
    pub targets: Vec<LoraTarget>,
    /// What a new adapter's first numbers are drawn from.
    pub seed: u64,
}

impl Default for LoraOptions {
    fn default() -> LoraOptions {
        let targets = vec![LoraTarget::Attention];
        LoraOptions { rank: 16, alpha: 32.0, dropout: 0.0, rank_stabilized: false, targets, seed: 0 }
    }
}

impl LoraOptions {
    /// What `B A` is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// Every tensor that gets a change, in the order in which a token meets them.
    pub fn tensors(&self, params: &Params) -> Vec<TensorName> {
        let head = params.tied_embeddings.then_some(TensorName::Output);
        let covered = |name: &TensorName| self.targets.iter().any(|target| target.covers(*name));
        params.tensors().chain(head).filter(covered).collect()
    }
}

impl LoraOptions {
    /// # Errors
    /// [`Error::Config`] naming the option that cannot be.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Config(what));
        match self {
            LoraOptions { rank: 0, .. } => wrong("the rank is 0; it has to be 1 or more".into()),
            o if o.rank > 4096 => wrong(format!("the rank is {}; the limit is 4096", o.rank)),
            o if !o.alpha.is_finite() => wrong(format!("alpha is {}; it has to be a number", o.alpha)),
            o if !(0.0..1.0).contains(&o.dropout) => {
                wrong(format!("dropout is {}; it has to be from 0 to 1", o.dropout))
            }
            _ => Ok(()),
        }
    }
}

//! The model's shape, as its file said it, in Mistral's words whatever the file's dialect.
//!
//! `Params` describes; what actually runs is `octet-model`'s `Config`.

use std::path::Path;

use crate::config_file::ConfigFile;
use crate::{Checkpoint, Error, ExpertMatrix, LayerTensor, TensorName, find, hugging_face, mistral};

/// Which family of model a checkpoint says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// A mixture of experts.
    Mixtral,
    /// Mistral 7B's dense decoder.
    Mistral,
    /// Llama's dense decoder.
    Llama,
}

impl Architecture {
    /// The family's name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Mixtral => "Mixtral",
            Architecture::Mistral => "Mistral",
            Architecture::Llama => "Llama",
        }
    }
}

/// How many experts each layer has, and how many of them a token visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moe {
    /// Experts in each layer.
    pub num_experts: usize,
    /// Experts that each token visits.
    pub num_experts_per_tok: usize,
}

/// The model's shape and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub dim: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of one attention head.
    pub head_dim: usize,
    /// Inner width of one expert.
    pub hidden_dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Added to the mean square by RMS norm.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Tokens that attention sees, itself included; `None`: all.
    pub sliding_window: Option<usize>,
    /// Tokens that the model was made for, where the file says it.
    pub context_length: Option<usize>,
    /// The output head is the token embedding.
    pub tied_embeddings: bool,
    /// Experts; `None` for a dense model.
    pub moe: Option<Moe>,
    /// Weight of the router's load balancing loss in training, where the file says it.
    pub router_aux_loss_coef: Option<f32>,
    /// Token that begins a text.
    pub bos_id: Option<u32>,
    /// Token that ends a text (the first, where the file names several).
    pub eos_id: Option<u32>,
}

/// Largest value of any single dimension: 2^31, so that a product of two fits 63 bits.
const MAX_DIMENSION: usize = 1 << 31;
/// Most tokens of a context or a window: what a GGUF's U32 holds.
const MAX_TOKENS: usize = u32::MAX as usize;
/// Most layers, and most experts of a layer, that we take seriously.
const MAX_COUNT: usize = 1 << 16;

/// Most experts of all layers together, so that going through all tensors is never long; Mixtral 8x22B has 448.
const MAX_EXPERTS_IN_ALL: u128 = 1 << 18;

impl Params {
    /// Reads the shape at a path: a `params.json` or `config.json` (under any name ending in `.json`, with or without
    /// weights beside it), a folder that holds one, or any checkpoint.
    ///
    /// Errors: none of these is there, or it describes a model that Octet does not run.
    pub fn read(path: &Path) -> Result<Params, Error> {
        match find::configuration(path)? {
            Some(config) => Params::from_config(&ConfigFile::read(&config)?),
            None => Ok(Checkpoint::open(path)?.params().clone()),
        }
    }

    /// Reads the text of a `params.json` or `config.json`; `path` is for messages.
    pub fn from_json(path: &Path, text: &str) -> Result<Params, Error> {
        Params::from_config(&ConfigFile::parse(path, text)?)
    }

    /// Reads a configuration of either dialect; their names for the model's width tell which.
    fn from_config(config: &ConfigFile) -> Result<Params, Error> {
        if config.has("dim") { mistral::params(config) } else { hugging_face::params(config) }
    }

    /// Experts of a layer; 1 for a dense model.
    pub fn n_experts(&self) -> usize {
        self.moe.map_or(1, |moe| moe.num_experts)
    }

    /// Every weight of the model.
    pub fn n_parameters(&self) -> u64 {
        self.count(self.n_experts())
    }

    /// The weights that one token meets: its experts only.
    pub fn n_active_parameters(&self) -> u64 {
        self.count(self.moe.map_or(1, |moe| moe.num_experts_per_tok))
    }

    /// Weights with `experts` experts counted in each layer.
    fn count(&self, experts: usize) -> u64 {
        let size = |name| self.shape(name).iter().map(|&n| n as u64).product::<u64>();
        let layer = |tensor| size(TensorName::Layer(0, tensor));
        let outside: u64 = self.outer_tensors().into_iter().flatten().map(size).sum();
        let attention: u64 = self.attention_tensors().into_iter().flatten().map(layer).sum();
        let expert: u64 = EXPERT_MATRICES.map(|m| layer(LayerTensor::Expert(0, m))).iter().sum();
        outside + self.n_layers as u64 * (attention + experts as u64 * expert)
    }

    /// Rows and columns of a tensor; a vector is one row.
    pub fn shape(&self, name: TensorName) -> [usize; 2] {
        use LayerTensor::*;
        let (queries, keys) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        match name {
            TensorName::TokenEmbedding | TensorName::Output => [self.vocab_size, self.dim],
            TensorName::OutputNorm => [1, self.dim],
            TensorName::Layer(_, tensor) => match tensor {
                AttentionNorm | FfnNorm => [1, self.dim],
                Wq => [queries, self.dim],
                Wk | Wv => [keys, self.dim],
                Wo => [self.dim, queries],
                Router => [self.n_experts(), self.dim],
                Expert(_, ExpertMatrix::W1 | ExpertMatrix::W3) => [self.hidden_dim, self.dim],
                Expert(_, ExpertMatrix::W2) => [self.dim, self.hidden_dim],
            },
        }
    }

    /// Every tensor of the model, in the order in which a token meets them.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + use<> {
        let experts = self.n_experts();
        let attention = self.attention_tensors();
        let [embedding, norm, output] = self.outer_tensors();
        let layers = (0..self.n_layers).flat_map(move |layer| {
            let experts = (0..experts).flat_map(|e| EXPERT_MATRICES.map(|m| LayerTensor::Expert(e, m)));
            attention.into_iter().flatten().chain(experts).map(move |tensor| TensorName::Layer(layer, tensor))
        });
        embedding.into_iter().chain(layers).chain(norm).chain(output)
    }

    /// The tensors outside the layers: embedding, norm, output head.
    fn outer_tensors(&self) -> [Option<TensorName>; 3] {
        let output = (!self.tied_embeddings).then_some(TensorName::Output);
        [Some(TensorName::TokenEmbedding), Some(TensorName::OutputNorm), output]
    }

    /// The tensors of a layer other than the experts.
    fn attention_tensors(&self) -> [Option<LayerTensor>; 7] {
        use LayerTensor::*;
        let all = [AttentionNorm, Wq, Wk, Wv, Wo, FfnNorm, Router];
        all.map(|tensor| (tensor != Router || self.moe.is_some()).then_some(tensor))
    }

    /// Refuses shapes that no model has, so that later arithmetic cannot overflow.
    pub(crate) fn check(self, path: &Path) -> Result<Params, Error> {
        let dimensions = [
            ("dim", self.dim, MAX_DIMENSION),
            ("n_layers", self.n_layers, MAX_COUNT),
            ("head_dim", self.head_dim, MAX_COUNT),
            ("hidden_dim", self.hidden_dim, MAX_DIMENSION),
            ("n_heads", self.n_heads, MAX_COUNT),
            ("n_kv_heads", self.n_kv_heads, MAX_COUNT),
            ("vocab_size", self.vocab_size, MAX_DIMENSION),
            ("num_experts", self.n_experts(), MAX_COUNT),
        ];
        for (key, value, limit) in dimensions {
            if value == 0 || value > limit {
                return Err(Error::key(path, key, format!("is {value}, outside 1 to {limit}")));
            }
        }
        for (key, tokens) in [("context_length", self.context_length), ("sliding_window", self.sliding_window)] {
            if let Some(tokens) = tokens.filter(|&tokens| tokens > MAX_TOKENS) {
                return Err(Error::key(path, key, format!("is {tokens} tokens, more than {MAX_TOKENS}")));
            }
        }
        self.check_relations(path)?;
        Ok(self)
    }

    fn check_relations(&self, path: &Path) -> Result<(), Error> {
        let wrong = |key, problem: String| Err(Error::key(path, key, problem));
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return wrong("n_kv_heads", format!("is {}, no divisor of n_heads {}", self.n_kv_heads, self.n_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", format!("is {}, but rotary pairs need an even width", self.head_dim));
        }
        if let Some(moe) = self.moe
            && !(1..=moe.num_experts).contains(&moe.num_experts_per_tok)
        {
            let problem = format!("is {}, outside 1 to num_experts {}", moe.num_experts_per_tok, moe.num_experts);
            return wrong("num_experts_per_tok", problem);
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return wrong("norm_eps", format!("is {}, no small positive number", self.norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return wrong("rope_theta", format!("is {}, no positive number", self.rope_theta));
        }
        if self.sliding_window == Some(0) {
            return wrong("sliding_window", "is 0; leave it out for attention to everything".into());
        }
        self.check_total(path)
    }

    /// Bounds the whole model, in arithmetic wide enough for the bounds of its parts.
    fn check_total(&self, path: &Path) -> Result<(), Error> {
        let wide = |a: usize, b: usize| a as u128 * b as u128;
        let heads = wide(self.n_heads, self.head_dim);
        let expert = 3 * wide(self.dim, self.hidden_dim);
        let layer = self.n_experts() as u128 * expert + 4 * heads * self.dim as u128;
        let total = 2 * wide(self.vocab_size, self.dim) + self.n_layers as u128 * layer;
        let experts = wide(self.n_layers, self.n_experts());
        if experts > MAX_EXPERTS_IN_ALL {
            return Err(Error::key(path, "n_layers", format!("and num_experts make {experts} experts in all")));
        }
        if total >= 1 << 60 {
            return Err(Error::key(path, "dim", format!("and its fellows make a model of {total} weights")));
        }
        Ok(())
    }
}

/// The matrices of an expert, in the order of their names.
const EXPERT_MATRICES: [ExpertMatrix; 3] = [ExpertMatrix::W1, ExpertMatrix::W2, ExpertMatrix::W3];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn mixtral_8x7b() -> Params {
        Params {
            architecture: Architecture::Mixtral,
            dim: 4096,
            n_layers: 32,
            head_dim: 128,
            hidden_dim: 14336,
            n_heads: 32,
            n_kv_heads: 8,
            vocab_size: 32000,
            norm_eps: 1e-5,
            rope_theta: 1e6,
            sliding_window: None,
            context_length: None,
            tied_embeddings: false,
            moe: Some(Moe { num_experts: 8, num_experts_per_tok: 2 }),
            router_aux_loss_coef: None,
            bos_id: None,
            eos_id: None,
        }
    }

    #[test]
    fn counts_are_those_of_the_announcement() {
        assert_eq!(mixtral_8x7b().n_parameters(), 46_702_792_704);
        assert_eq!(mixtral_8x7b().n_active_parameters(), 12_879_925_248);
    }

    #[test]
    fn the_tensors_add_up_to_the_count() {
        for (tied, moe) in [(false, mixtral_8x7b().moe), (true, mixtral_8x7b().moe), (false, None), (true, None)] {
            let params = Params { tied_embeddings: tied, moe, ..mixtral_8x7b() };
            let size = |name| params.shape(name).iter().map(|&n| n as u64).product::<u64>();
            assert_eq!(params.tensors().map(size).sum::<u64>(), params.n_parameters());
        }
    }

    #[test]
    fn impossible_shapes_are_refused() {
        type Change = fn(&mut Params);
        let changes: [(&str, Change); 12] = [
            ("`n_layers`", |p| (p.n_layers, p.moe) = (1 << 16, Some(Moe { num_experts: 8, num_experts_per_tok: 2 }))),
            ("`dim`", |p| p.dim = 0),
            ("`n_layers`", |p| p.n_layers = usize::MAX),
            ("`n_kv_heads`", |p| p.n_kv_heads = 5),
            ("`head_dim`", |p| p.head_dim = 127),
            ("`num_experts_per_tok`", |p| p.moe = Some(Moe { num_experts: 8, num_experts_per_tok: 9 })),
            ("`rope_theta`", |p| p.rope_theta = f32::INFINITY),
            ("`norm_eps`", |p| p.norm_eps = -1.0),
            ("`sliding_window`", |p| p.sliding_window = Some(0)),
            ("`sliding_window`", |p| p.sliding_window = Some(1 << 32)),
            ("`context_length`", |p| p.context_length = Some(1 << 32)),
            ("`dim`", |p| (p.dim, p.hidden_dim) = (1 << 31, 1 << 31)),
        ];
        for (key, change) in changes {
            let mut params = mixtral_8x7b();
            change(&mut params);
            let message = params.check(Path::new("params.json")).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}

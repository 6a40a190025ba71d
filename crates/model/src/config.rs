//! What we run: the checkpoint's parameters, checked once at the border and trusted inside.

use octet_checkpoint::Params;

use crate::Error;

/// The shape of the model, in Mistral's words. Every field has been checked against the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of one attention head; even.
    pub head_dim: usize,
    /// Width inside an expert.
    pub hidden_dim: usize,
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Epsilon of RMS norm.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// A token sees this many tokens, itself included; `None` for all before it.
    pub sliding_window: Option<usize>,
    /// Tokens of context that the model was made for, where its files say so.
    pub context_length: Option<usize>,
    /// Experts of a layer; 1 in dense models.
    pub num_experts: usize,
    /// Experts that work on a token; 1 in dense models.
    pub num_experts_per_tok: usize,
    /// Whether there is a router: false in dense models.
    pub routed: bool,
}

impl Config {
    /// Checks what the file said.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that cannot be, with its value.
    pub fn new(params: &Params) -> Result<Config, Error> {
        let (num_experts, num_experts_per_tok) =
            params.moe.as_ref().map_or((1, 1), |moe| (moe.num_experts, moe.num_experts_per_tok));
        let config = Config {
            dim: params.dim,
            n_layers: params.n_layers,
            head_dim: params.head_dim,
            hidden_dim: params.hidden_dim,
            n_heads: params.n_heads,
            n_kv_heads: params.n_kv_heads,
            vocab_size: params.vocab_size,
            norm_eps: params.norm_eps,
            rope_theta: params.rope_theta,
            sliding_window: params.sliding_window,
            context_length: params.context_length,
            num_experts,
            num_experts_per_tok,
            routed: params.moe.is_some(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("head_dim", self.head_dim),
            ("hidden_dim", self.hidden_dim),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("vocab_size", self.vocab_size),
            ("num_experts", self.num_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
        ];
        for (name, size) in sizes {
            require(size > 0, || format!("{name} is 0"))?;
        }
        require(self.head_dim.is_multiple_of(2), || {
            format!("head_dim {} is odd: rotary pairs need an even one", self.head_dim)
        })?;
        require(self.n_heads.is_multiple_of(self.n_kv_heads), || {
            format!("n_heads {} is no multiple of n_kv_heads {}", self.n_heads, self.n_kv_heads)
        })?;
        require(self.num_experts_per_tok <= self.num_experts, || {
            format!("{} experts per token of only {}", self.num_experts_per_tok, self.num_experts)
        })?;
        require(self.norm_eps.is_finite() && self.norm_eps >= 0.0, || {
            format!("norm_eps {} is no small number", self.norm_eps)
        })?;
        require(self.rope_theta.is_finite() && self.rope_theta > 0.0, || {
            format!("rope_theta {} is no positive number", self.rope_theta)
        })?;
        require(self.sliding_window != Some(0), || "sliding_window is 0".into())
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Config(format!("the model's configuration cannot be: {}", what()))) }
}

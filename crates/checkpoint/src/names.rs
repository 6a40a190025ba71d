//! One vocabulary for the tensors of a Mixtral, and the three schemes by which files name them.
//!
//! A dense model is the case of one expert and no router: its feed-forward matrices are `Expert(0, _)`.

use crate::Moe;
use LayerTensor::*;

/// A tensor of the model, whatever its file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorName {
    /// Token embeddings `[vocab_size, dim]`.
    TokenEmbedding,
    /// A tensor of layer `.0`.
    Layer(usize, LayerTensor),
    /// Weight of the last RMS norm `[dim]`.
    OutputNorm,
    /// Output head `[vocab_size, dim]`; absent where the embeddings are tied.
    Output,
}

/// A tensor within a layer. Matrices are `[out, in]`, as in `y = W x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// RMS norm before attention `[dim]`.
    AttentionNorm,
    /// Queries `[n_heads * head_dim, dim]`, rotary pairs as neighbours.
    Wq,
    /// Keys `[n_kv_heads * head_dim, dim]`, rotary pairs as neighbours.
    Wk,
    /// Values `[n_kv_heads * head_dim, dim]`.
    Wv,
    /// Attention output `[dim, n_heads * head_dim]`.
    Wo,
    /// RMS norm before the experts `[dim]`.
    FfnNorm,
    /// Router `[num_experts, dim]`; absent in dense models.
    Router,
    /// A matrix of expert `.0`.
    Expert(usize, ExpertMatrix),
}

/// The three matrices of an expert: `w2 (silu(w1 x) * (w3 x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpertMatrix {
    /// Gate `[hidden_dim, dim]`.
    W1,
    /// Down `[dim, hidden_dim]`.
    W2,
    /// Up `[hidden_dim, dim]`.
    W3,
}

impl TensorName {
    /// The name in Mistral's own files: `layers.3.feed_forward.experts.5.w1.weight`.
    ///
    /// `moe` is `None` for a dense model, whose matrices are `feed_forward.w1.weight`.
    pub fn mistral(self, moe: Option<Moe>) -> String {
        let (layer, tensor) = match self {
            TensorName::TokenEmbedding => return "tok_embeddings.weight".into(),
            TensorName::OutputNorm => return "norm.weight".into(),
            TensorName::Output => return "output.weight".into(),
            TensorName::Layer(layer, tensor) => (layer, tensor),
        };
        let rest = match tensor {
            AttentionNorm => "attention_norm".into(),
            Wq => "attention.wq".into(),
            Wk => "attention.wk".into(),
            Wv => "attention.wv".into(),
            Wo => "attention.wo".into(),
            FfnNorm => "ffn_norm".into(),
            Router => "feed_forward.gate".into(),
            Expert(e, matrix) if moe.is_some() => format!("feed_forward.experts.{e}.{}", matrix.mistral()),
            Expert(_, matrix) => format!("feed_forward.{}", matrix.mistral()),
        };
        format!("layers.{layer}.{rest}.weight")
    }

    /// The name in Hugging Face's files: `model.layers.3.block_sparse_moe.experts.5.w1.weight`, or
    /// `model.layers.3.mlp.gate_proj.weight` of a dense model.
    pub fn hugging_face(self, moe: Option<Moe>) -> String {
        let (layer, tensor) = match self {
            TensorName::TokenEmbedding => return "model.embed_tokens.weight".into(),
            TensorName::OutputNorm => return "model.norm.weight".into(),
            TensorName::Output => return "lm_head.weight".into(),
            TensorName::Layer(layer, tensor) => (layer, tensor),
        };
        let rest = match tensor {
            AttentionNorm => "input_layernorm".into(),
            Wq => "self_attn.q_proj".into(),
            Wk => "self_attn.k_proj".into(),
            Wv => "self_attn.v_proj".into(),
            Wo => "self_attn.o_proj".into(),
            FfnNorm => "post_attention_layernorm".into(),
            Router => "block_sparse_moe.gate".into(),
            Expert(e, matrix) if moe.is_some() => format!("block_sparse_moe.experts.{e}.{}", matrix.mistral()),
            Expert(_, ExpertMatrix::W1) => "mlp.gate_proj".into(),
            Expert(_, ExpertMatrix::W2) => "mlp.down_proj".into(),
            Expert(_, ExpertMatrix::W3) => "mlp.up_proj".into(),
        };
        format!("model.layers.{layer}.{rest}.weight")
    }

    /// The name of the tensor in GGUF files that holds this one: `blk.3.ffn_gate_exps.weight` holds the gates of
    /// all experts of its layer, `blk.3.ffn_gate.weight` is a dense model's.
    pub fn gguf(self, moe: Option<Moe>) -> String {
        let (layer, tensor) = match self {
            TensorName::TokenEmbedding => return "token_embd.weight".into(),
            TensorName::OutputNorm => return "output_norm.weight".into(),
            TensorName::Output => return "output.weight".into(),
            TensorName::Layer(layer, tensor) => (layer, tensor),
        };
        let rest = match tensor {
            AttentionNorm => "attn_norm".into(),
            Wq => "attn_q".into(),
            Wk => "attn_k".into(),
            Wv => "attn_v".into(),
            Wo => "attn_output".into(),
            FfnNorm => "ffn_norm".into(),
            Router => "ffn_gate_inp".into(),
            Expert(_, matrix) if moe.is_some() => format!("ffn_{}_exps", matrix.gguf()),
            Expert(_, matrix) => format!("ffn_{}", matrix.gguf()),
        };
        format!("blk.{layer}.{rest}.weight")
    }
}

/// Mistral's name; a dense model's matrices appear as those of expert 0.
impl std::fmt::Display for TensorName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.mistral(Some(Moe { num_experts: 1, num_experts_per_tok: 1 })))
    }
}

impl ExpertMatrix {
    /// `w1`, `w2` or `w3`.
    pub fn mistral(self) -> &'static str {
        match self {
            ExpertMatrix::W1 => "w1",
            ExpertMatrix::W2 => "w2",
            ExpertMatrix::W3 => "w3",
        }
    }

    /// `gate`, `down` or `up`, as GGUF and transformers call them.
    pub fn gguf(self) -> &'static str {
        match self {
            ExpertMatrix::W1 => "gate",
            ExpertMatrix::W2 => "down",
            ExpertMatrix::W3 => "up",
        }
    }
}

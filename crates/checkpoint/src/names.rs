//! One vocabulary for the tensors of a Mixtral, and the three schemes by which files name them.
//!
//! A dense model is the case of one expert and no router: its feed-forward matrices are `Expert(0, _)`.

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

//! Token embeddings: rows looked up where they lie in the file, so that the table takes no memory of its own.

use std::sync::Arc;

use octet_checkpoint::{Checkpoint, Params, TensorName};
use octet_kernels::blocks::dequantize_row;

use crate::Error;

/// The table `[vocab_size, dim]`.
pub(crate) struct Embedding {
    checkpoint: Arc<Checkpoint>,
}

impl Embedding {
    /// # Errors
    /// If the checkpoint lacks the table.
    pub(crate) fn new(checkpoint: Arc<Checkpoint>) -> Result<Embedding, Error> {
        checkpoint.tensor(TensorName::TokenEmbedding)?;
        Ok(Embedding { checkpoint })
    }

    /// The shape of the model, as its files say it.
    pub(crate) fn params(&self) -> &Params {
        self.checkpoint.params()
    }

    /// `out [tokens, dim]` = the rows of `tokens`, which have been checked against the vocabulary.
    pub(crate) fn look_up(&self, tokens: &[u32], dim: usize, row: &mut Vec<u8>, out: &mut [f32]) {
        let table = self.checkpoint.find(TensorName::TokenEmbedding).expect("it was there when the model was opened");
        row.resize(table.row_bytes(), 0);
        for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(dim)) {
            let index = token as usize;
            table.read_rows(index..index + 1, row);
            dequantize_row(table.element_type(), row, out);
        }
    }
}

//! What can go wrong here that is not a mistake of the caller.

use thiserror::Error;

use crate::KvType;

/// An error of this library.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Keys and values cannot be laid out in such pages.
    #[error(
        "a KV cache with pages of {page_tokens} tokens and heads of {head_dim} elements cannot be: \
         pages need a multiple of 16 tokens, heads an even number of elements"
    )]
    KvShape {
        /// Tokens of a page.
        page_tokens: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// The system does not promise the memory for keys and values.
    #[error(
        "no memory for a {} KV cache of {n_pages} pages of {page_tokens} tokens ({}): \
         ask for fewer tokens, or for a smaller type such as q8_0",
        kind.name(),
        bytes.map_or("more than a machine can address".to_string(), |bytes| format!("{bytes} bytes"))
    )]
    KvMemory {
        /// How numbers were to be stored.
        kind: KvType,
        /// Pages asked for.
        n_pages: usize,
        /// Tokens of a page.
        page_tokens: usize,
        /// Bytes in all, where that is a number.
        bytes: Option<usize>,
    },
}

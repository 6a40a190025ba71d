//! The key-value cache: what the attention of earlier tokens left behind, in pages shared by all sequences.
//!
//! A sequence owns a list of pages; token `p` of it lies in page `pages[p / page_tokens]`, slot `p % page_tokens`, of
//! every layer. With pages of 64 tokens, a sequence of 130 tokens owns three pages, the last with two tokens in it.

use octet_kernels::{KvPages, KvType, Queries};

use crate::{Config, Error, Run};

/// Names a sequence of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(usize);

#[derive(Default)]
struct Sequence {
    pages: Vec<u32>,
    len: usize,
    live: bool,
}

/// Keys and values of any number of sequences, for all layers.
pub struct KvCache {
    pages: KvPages,
    page_tokens: usize,
    free: Vec<u32>,
    sequences: Vec<Sequence>,
}

/// Who owns which page.
#[derive(Clone, Copy)]
pub(crate) struct PageTables<'a> {
    sequences: &'a [Sequence],
}

impl<'a> PageTables<'a> {
    /// Where the tokens of a run lie, once the sequence has been extended by them.
    pub(crate) fn queries(self, run: &Run) -> Queries<'a> {
        let sequence = &self.sequences[run.sequence.0];
        Queries { pages: &sequence.pages, first_position: sequence.len - run.n_tokens, n_tokens: run.n_tokens }
    }
}

impl KvCache {
    /// Tokens of a page: small enough to waste little, large enough for long streams of memory reads.
    pub const PAGE_TOKENS: usize = 64;

    /// Room for `n_tokens` tokens in all, rounded up to whole pages. Memory is taken as it is used.
    ///
    /// # Errors
    /// [`Error::Kernels`] if the machine cannot give the memory.
    pub fn new(config: &Config, kind: KvType, n_tokens: usize) -> Result<KvCache, Error> {
        let n_pages = n_tokens.div_ceil(Self::PAGE_TOKENS);
        let pages =
            KvPages::new(kind, config.n_layers, config.n_kv_heads, config.head_dim, Self::PAGE_TOKENS, n_pages)?;
        let free = (0..n_pages as u32).rev().collect();
        Ok(KvCache { pages, page_tokens: Self::PAGE_TOKENS, free, sequences: Vec::new() })
    }

    /// Starts an empty sequence.
    pub fn add_sequence(&mut self) -> SequenceId {
        let index = self.sequences.iter().position(|s| !s.live).unwrap_or_else(|| {
            self.sequences.push(Sequence::default());
            self.sequences.len() - 1
        });
        self.sequences[index].live = true;
        SequenceId(index)
    }

    /// Ends a sequence and frees its pages.
    pub fn remove_sequence(&mut self, id: SequenceId) {
        self.truncate(id, 0);
        self.sequences[id.0].live = false;
    }

    /// Tokens of a sequence so far.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequences[id.0].len
    }

    /// True if no token of the sequence has been seen yet.
    pub fn is_empty(&self, id: SequenceId) -> bool {
        self.len(id) == 0
    }

    /// Tokens that the sequence can still take.
    pub fn room(&self, id: SequenceId) -> usize {
        let sequence = &self.sequences[id.0];
        (self.free.len() + sequence.pages.len()) * self.page_tokens - sequence.len
    }

    /// Forgets all but the first `len` tokens of a sequence.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let sequence = &mut self.sequences[id.0];
        sequence.len = sequence.len.min(len);
        let kept = sequence.len.div_ceil(self.page_tokens);
        self.free.extend(sequence.pages.drain(kept..));
    }

    /// Bytes that one token takes, over all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.pages.bytes_per_token()
    }

    /// Makes room for `n_tokens` more and counts them as present; the forward pass writes them.
    ///
    /// # Errors
    /// [`Error::CacheFull`]; the sequence is then unchanged.
    pub(crate) fn extend(&mut self, id: SequenceId, n_tokens: usize) -> Result<(), Error> {
        let room = self.room(id);
        if n_tokens > room {
            return Err(Error::CacheFull { asked: n_tokens, free: room });
        }
        let sequence = &mut self.sequences[id.0];
        sequence.len += n_tokens;
        while sequence.pages.len() * self.page_tokens < sequence.len {
            sequence.pages.push(self.free.pop().expect("room has been counted above"));
        }
        Ok(())
    }

    /// The page tables, and the pages themselves to be written.
    pub(crate) fn split(&mut self) -> (PageTables<'_>, &mut KvPages) {
        (PageTables { sequences: &self.sequences }, &mut self.pages)
    }
}

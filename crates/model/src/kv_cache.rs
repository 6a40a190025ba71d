//! The key-value cache: what the attention of earlier tokens left behind, in pages shared by all sequences.
//!
//! A sequence owns a list of pages; token `p` of it lies in page `pages[p / page_tokens]`, slot `p % page_tokens`, of
//! every layer. With pages of 64 tokens, a sequence of 130 tokens owns three pages, the last with two tokens in it.

use octet_kernels::{KvPages, KvType, Queries};

use crate::{Config, Error, Run};

mod sharing;

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
    /// How many hold each page: sequences, and whoever called [`KvCache::retain`].
    holders: Vec<u32>,
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
        Ok(KvCache { pages, page_tokens: Self::PAGE_TOKENS, holders: vec![0; n_pages], free, sequences: Vec::new() })
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
        match self.free.len().checked_sub(usize::from(self.writes_to_shared(sequence))) {
            Some(free) => (free + sequence.pages.len()) * self.page_tokens - sequence.len,
            None => 0,
        }
    }

    /// Free pages that `n_tokens` more of a sequence will take.
    pub fn pages_needed(&self, id: SequenceId, n_tokens: usize) -> usize {
        let sequence = &self.sequences[id.0];
        let more = (sequence.len + n_tokens).div_ceil(self.page_tokens) - sequence.pages.len();
        more + usize::from(n_tokens > 0 && self.writes_to_shared(sequence))
    }

    /// Forgets all but the first `len` tokens of a sequence.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let sequence = &mut self.sequences[id.0];
        sequence.len = sequence.len.min(len);
        let kept = sequence.len.div_ceil(self.page_tokens);
        while self.sequences[id.0].pages.len() > kept {
            let page = self.sequences[id.0].pages.pop().expect("longer than what is kept");
            self.release(page);
        }
    }

    /// See [`KvPages::commit_some`].
    pub fn commit_some(&mut self) -> bool {
        self.pages.commit_some()
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
        if n_tokens > 0 && self.writes_to_shared(&self.sequences[id.0]) {
            let copy = self.take().expect("room has been counted above");
            let last = self.sequences[id.0].pages.last_mut().expect("a shared page is there");
            let shared = std::mem::replace(last, copy);
            self.pages.copy_page(shared, copy);
            self.release(shared);
        }
        self.sequences[id.0].len += n_tokens;
        while self.sequences[id.0].pages.len() * self.page_tokens < self.sequences[id.0].len {
            let page = self.take().expect("room has been counted above");
            self.sequences[id.0].pages.push(page);
        }
        Ok(())
    }

    /// Whether the next token of a sequence falls into a page that others hold too, which must be copied first.
    fn writes_to_shared(&self, sequence: &Sequence) -> bool {
        let partial = !sequence.len.is_multiple_of(self.page_tokens);
        partial && sequence.pages.last().is_some_and(|&page| self.holders[page as usize] > 1)
    }

    /// The page tables, and the pages themselves to be written.
    pub(crate) fn split(&mut self) -> (PageTables<'_>, &mut KvPages) {
        (PageTables { sequences: &self.sequences }, &mut self.pages)
    }
}

//! Keys and values of all sequences, in pages of a fixed number of tokens.
//!
//! Who owns which page is decided elsewhere; here a page is a number, and a sequence is a list of such numbers: token
//! `p` lies in page `pages[p / page_tokens]`, slot `p % page_tokens`. A page holds its tokens for all layers and heads in
//! one piece, so that it can be copied or written to disk as a whole.
//!
//! Memory is promised at once and committed as pages are first written, or before by [`KvPages::commit_some`], in huge pages where the system has them: a pass
//! reads all that a layer holds of each sequence, and to look up an address anew every 4 KiB doubles the time, in a virtual
//! machine.

mod append;
mod encode;
mod layout;

pub use append::Projections;
pub use layout::KvType;
pub(crate) use layout::{BLOCK, BLOCK_BYTES, GROUP_TOKENS, Layout, SCALES_BYTES, STRIP};
use memmap2::MmapMut;

use crate::Error;

/// Consecutive tokens of one sequence: new ones of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Page table of the sequence.
    pub pages: &'a [u32],
    /// Position of the first of these tokens in its sequence.
    pub first_position: usize,
    /// Number of tokens.
    pub n_tokens: usize,
}

/// Storage for keys and values.
pub struct KvPages {
    layout: Layout,
    n_pages: usize,
    /// Anonymous memory: pages that were never written take none.
    memory: MmapMut,
    /// Bytes that [`KvPages::commit_some`] has committed.
    committed: usize,
}

/// Bytes that are committed at once: a huge page of most systems.
const COMMIT_BYTES: usize = 2 << 20;

impl KvPages {
    /// Room for `n_pages` pages of `page_tokens` tokens (a multiple of 16), each with a key and a value of `head_dim`
    /// elements (even) for each of `n_layers` layers and `n_kv_heads` heads.
    ///
    /// # Errors
    /// [`Error::KvShape`] for sizes that cannot be, [`Error::KvMemory`] if the system will not promise the memory.
    pub fn new(
        kind: KvType,
        n_layers: usize,
        n_kv_heads: usize,
        head_dim: usize,
        page_tokens: usize,
        n_pages: usize,
    ) -> Result<KvPages, Error> {
        let layout = Layout { kind, n_layers, n_kv_heads, head_dim, page_tokens };
        if page_tokens == 0 || !page_tokens.is_multiple_of(GROUP_TOKENS) || head_dim == 0 || !head_dim.is_multiple_of(2)
        {
            return Err(Error::KvShape { page_tokens, head_dim });
        }
        let bytes = layout.checked_page_bytes().and_then(|bytes| bytes.checked_mul(n_pages));
        let memory = bytes.and_then(|bytes| MmapMut::map_anon(bytes.max(1)).ok()).ok_or(Error::KvMemory {
            kind,
            n_pages,
            page_tokens,
            bytes,
        })?;
        #[cfg(target_os = "linux")]
        // Without them it works too.
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(KvPages { layout, n_pages, memory, committed: 0 })
    }

    /// Commits the next two MiB of memory, which takes 0.2 to 5 ms, so that their first writer need not wait for that. False
    /// where all is committed, or the system has no such service.
    pub fn commit_some(&mut self) -> bool {
        let (at, bytes) = (self.committed, COMMIT_BYTES.min(self.memory.len() - self.committed));
        self.committed += bytes;
        #[cfg(target_os = "linux")]
        return bytes > 0 && self.memory.advise_range(memmap2::Advice::PopulateWrite, at, bytes).is_ok();
        #[cfg(not(target_os = "linux"))]
        {
            let _ = at;
            false
        }
    }

    /// How the numbers are stored.
    pub fn kind(&self) -> KvType {
        self.layout.kind
    }

    /// Number of pages.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.layout.page_tokens
    }

    /// Bytes that a token takes in all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layout.page_bytes() / self.layout.page_tokens
    }

    /// The bytes of a page, all layers; what they mean depends on [`KvPages::format`].
    pub fn page(&self, page: u32) -> &[u8] {
        let bytes = self.layout.page_bytes();
        &self.memory[page as usize * bytes..][..bytes]
    }

    /// Replaces a page by bytes that [`KvPages::page`] gave. Any bytes are safe; those of another format are noise.
    ///
    /// # Panics
    /// If there is no such page, or if `bytes` is not as long as a page.
    pub fn write_page(&mut self, page: u32, bytes: &[u8]) {
        let length = self.layout.page_bytes();
        self.memory[page as usize * length..][..length].copy_from_slice(bytes);
    }

    /// Copies a page, all layers: a sequence that shares a page does so before it writes to it.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let length = self.layout.page_bytes();
        let from = from as usize * length;
        self.memory.copy_within(from..from + length, to as usize * length);
    }

    /// Names the meaning of a page's bytes: pages can be exchanged where this is equal.
    pub fn format(&self) -> String {
        let Layout { kind, n_layers, n_kv_heads, head_dim, page_tokens } = self.layout;
        let (kind, endian) = (kind.name(), if cfg!(target_endian = "little") { "le" } else { "be" });
        format!(
            "octet-kv-1 {kind} {endian} layers={n_layers} kv_heads={n_kv_heads} head_dim={head_dim} tokens={page_tokens}"
        )
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Keys and values of one group of tokens.
    #[inline]
    pub(crate) fn group(&self, layer: usize, head: usize, page: u32, group: usize) -> (&[u8], &[u8]) {
        let page = self.page(page);
        let keys = &page[self.layout.keys_at(layer, head, group)..][..self.layout.key_bytes()];
        let values = &page[self.layout.values_at(layer, head, group)..][..self.layout.value_bytes()];
        (keys, values)
    }

    fn check(&self, layer: usize, page: u32, slot: usize) {
        let Layout { n_layers, page_tokens, .. } = self.layout;
        assert!(layer < n_layers, "layer {layer} of {n_layers}");
        assert!((page as usize) < self.n_pages, "page {page} of {}", self.n_pages);
        assert!(slot < page_tokens, "slot {slot} of {page_tokens}");
    }
}

#[cfg(test)]
mod tests;

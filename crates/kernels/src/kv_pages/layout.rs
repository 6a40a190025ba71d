//! Where the numbers of a page lie, so that attention reads them in order and eight at a time.
//!
//! A page is `[layer, kv head]`, each the keys of all its tokens, then their values, in groups of [`GROUP_TOKENS`]:
//!
//! ```text
//! keys, F32 and F16    [head_dim][16 tokens]                 16 scores grow side by side, one dimension at a time
//! values, F32 and F16  [strip of 16 dims][16 tokens][16]     16 dimensions of the output grow, one token at a time
//! keys, Q8_0           per 32 dims: [16 tokens] f16 scale, [pair of dims][16 tokens][2] i8
//! values, Q8_0         per 32 dims: [16 tokens] f16 scale, [strip of 16 dims][pair of tokens][16 dims][2] i8
//! ```
//!
//! The pairs of Q8_0 are what one multiply-add instruction takes. Values are padded to whole strips; the last 32 dims
//! may be fewer.

/// Tokens whose keys and values are interleaved.
pub(crate) const GROUP_TOKENS: usize = 16;
/// Dimensions of a strip of values.
pub(crate) const STRIP: usize = 16;
/// Dimensions that share a scale in Q8_0.
pub(crate) const BLOCK: usize = 32;
/// Bytes of the scales of a group's block.
pub(crate) const SCALES_BYTES: usize = 2 * GROUP_TOKENS;
/// Bytes of a whole block of a group.
pub(crate) const BLOCK_BYTES: usize = SCALES_BYTES + BLOCK * GROUP_TOKENS;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the names are the field's own
pub enum KvType {
    /// As they were computed.
    F32,
    /// Rounded to half precision: what other programs do unless told otherwise.
    F16,
    /// Bytes with an f16 scale for each 32: half the memory of F16.
    Q8_0,
}

impl KvType {
    /// The name in the field: `f32`, `f16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// The type of this name, if there is one.
    pub fn from_name(name: &str) -> Option<KvType> {
        [KvType::F32, KvType::F16, KvType::Q8_0].into_iter().find(|kind| kind.name() == name)
    }
}

/// The layout of the pages of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) kind: KvType,
    pub(crate) n_layers: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) page_tokens: usize,
}

impl Layout {
    /// Groups of one page.
    pub(crate) fn groups(&self) -> usize {
        self.page_tokens / GROUP_TOKENS
    }

    /// `head_dim` in whole strips.
    pub(crate) fn value_dim(&self) -> usize {
        self.head_dim.next_multiple_of(STRIP)
    }

    /// Bytes of the keys of one group and head.
    pub(crate) fn key_bytes(&self) -> usize {
        self.group_bytes(self.head_dim)
    }

    /// Bytes of the values of one group and head.
    pub(crate) fn value_bytes(&self) -> usize {
        self.group_bytes(self.value_dim())
    }

    fn group_bytes(&self, dim: usize) -> usize {
        match self.kind {
            KvType::F32 => dim * GROUP_TOKENS * 4,
            KvType::F16 => dim * GROUP_TOKENS * 2,
            KvType::Q8_0 => dim * GROUP_TOKENS + self.blocks() * SCALES_BYTES,
        }
    }

    /// Blocks of [`BLOCK`] dimensions of a head, of which the last may be shorter.
    pub(crate) fn blocks(&self) -> usize {
        self.head_dim.div_ceil(BLOCK)
    }

    /// Bytes of the keys, or of the values, of a whole block of a group: it lies in one piece whatever the kind.
    pub(crate) fn block_bytes(&self) -> usize {
        match self.kind {
            KvType::F32 => BLOCK * GROUP_TOKENS * 4,
            KvType::F16 => BLOCK * GROUP_TOKENS * 2,
            KvType::Q8_0 => BLOCK_BYTES,
        }
    }

    /// Bytes of one layer and head within a page.
    fn head_bytes(&self) -> usize {
        self.groups() * (self.key_bytes() + self.value_bytes())
    }

    /// Bytes of a page; `None` if no machine could hold it.
    pub(crate) fn checked_page_bytes(&self) -> Option<usize> {
        let elements = self.n_layers.checked_mul(self.n_kv_heads)?.checked_mul(self.page_tokens)?;
        elements.checked_mul(self.head_dim.checked_add(BLOCK)?)?.checked_mul(16)?;
        Some(self.page_bytes())
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.n_layers * self.n_kv_heads * self.head_bytes()
    }

    /// Where the keys of a group begin, in bytes from the start of the page.
    pub(crate) fn keys_at(&self, layer: usize, head: usize, group: usize) -> usize {
        (layer * self.n_kv_heads + head) * self.head_bytes() + group * self.key_bytes()
    }

    /// Where the values of a group begin, in bytes from the start of the page.
    pub(crate) fn values_at(&self, layer: usize, head: usize, group: usize) -> usize {
        self.keys_at(layer, head, self.groups()) + group * self.value_bytes()
    }
}

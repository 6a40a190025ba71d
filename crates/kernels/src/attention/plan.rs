//! Cuts a batch into work items.
//!
//! Keys are cut into splits of [`SPLIT`] tokens and tiles of [`TILE`](super::TILE), both at absolute positions. A row's
//! result is a fold over its splits, in order, and each split a fold over its tiles, in order; which thread computes
//! what, and together with which rows, changes no bit. So items are cut to suit the machine: a few rows over a long past
//! give an item for each split, whose results are folded afterwards; many rows give an item for each block of rows.

use std::ops::Range;

use crate::kv_pages::Queries;

/// Tokens of a split.
pub(crate) const SPLIT: usize = 1024;
/// Rows (heads of tokens) of a block: enough to use each key and value often, few enough to stay in cache.
const BLOCK_ROWS: usize = 64;
/// Up to so many rows, splits are computed side by side.
const SPLIT_ROWS: usize = 16;
/// Blocks are made smaller until there are so many items for each thread.
const ITEMS_PER_THREAD: usize = 4;

/// Sizes that plan and kernels share.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens that a token sees, itself included.
    pub(crate) window: Option<usize>,
}

impl Shape {
    /// Query heads of a KV head.
    pub(crate) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// First position that the token at `position` sees.
    pub(crate) fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Tokens that share their keys and values: a part of a sequence's new tokens.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Where the sequence's page table lies in [`Plan::pages`].
    pub(crate) pages: Range<usize>,
    /// Row of `q` and `out` of the first token.
    pub(crate) first_token: usize,
    pub(crate) n_tokens: usize,
    /// Position of the first token.
    pub(crate) first_position: usize,
}

/// What a thread does at a time: one block, one KV head.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) block: Block,
    pub(crate) head: usize,
    /// Splits to fold.
    pub(crate) splits: Range<usize>,
    pub(crate) result: Destination,
}

impl Item {
    /// The positions that any of its rows sees.
    pub(crate) fn positions(&self, shape: &Shape) -> Range<usize> {
        let block = &self.block;
        let first = shape.first_visible(block.first_position).max(self.splits.start * SPLIT);
        first..(block.first_position + block.n_tokens).min(self.splits.end * SPLIT)
    }
}

/// Where an item's result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination {
    /// It is final.
    Out,
    /// It is one split of several; this is its place, in floats, among the partial results.
    Partial(usize),
}

/// The splits of a block and head, to be folded.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub(crate) block: Block,
    pub(crate) head: usize,
    /// Place of the first split; the others follow.
    pub(crate) partials: usize,
    pub(crate) n_splits: usize,
}

/// A batch, cut up. Memory is kept from call to call.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    /// All page tables, one after the other.
    pub(crate) pages: Vec<u32>,
    pub(crate) items: Vec<Item>,
    pub(crate) folds: Vec<Fold>,
    /// Floats that all partial results take.
    pub(crate) partials_len: usize,
    /// Most rows of an item.
    pub(crate) most_rows: usize,
}

/// Floats of the partial result of one row: its values, its largest score, its sum.
pub(crate) fn partial_len(value_dim: usize) -> usize {
    value_dim + 2
}

impl Plan {
    /// Cuts up `queries` for `threads` threads.
    pub(crate) fn make<'a>(
        &mut self,
        shape: Shape,
        value_dim: usize,
        threads: usize,
        queries: impl Iterator<Item = Queries<'a>> + Clone,
    ) {
        self.shape = shape;
        self.pages.clear();
        self.items.clear();
        self.folds.clear();
        (self.partials_len, self.most_rows) = (0, 0);
        let n_tokens: usize = queries.clone().map(|q| q.n_tokens).sum();
        let wanted = (ITEMS_PER_THREAD * threads).div_ceil(shape.n_kv_heads);
        let block_tokens = (BLOCK_ROWS / shape.group()).min(n_tokens.div_ceil(wanted)).max(1);
        let mut first_token = 0;
        for query in queries {
            let pages = self.pages.len()..self.pages.len() + query.pages.len();
            self.pages.extend_from_slice(query.pages);
            // The last blocks see most, so they come first.
            for start in (0..query.n_tokens).step_by(block_tokens).rev() {
                self.add(
                    value_dim,
                    Block {
                        pages: pages.clone(),
                        first_token: first_token + start,
                        n_tokens: block_tokens.min(query.n_tokens - start),
                        first_position: query.first_position + start,
                    },
                );
            }
            first_token += query.n_tokens;
        }
    }

    fn add(&mut self, value_dim: usize, block: Block) {
        let rows = block.n_tokens * self.shape.group();
        self.most_rows = self.most_rows.max(rows);
        let last = block.first_position + block.n_tokens - 1;
        let splits = self.shape.first_visible(block.first_position) / SPLIT..last / SPLIT + 1;
        let side_by_side = rows <= SPLIT_ROWS && splits.len() > 1;
        for head in 0..self.shape.n_kv_heads {
            if !side_by_side {
                self.items.push(Item { block: block.clone(), head, splits: splits.clone(), result: Destination::Out });
                continue;
            }
            let partials = self.partials_len;
            for split in splits.clone() {
                let result = Destination::Partial(self.partials_len);
                self.items.push(Item { block: block.clone(), head, splits: split..split + 1, result });
                self.partials_len += rows * partial_len(value_dim);
            }
            self.folds.push(Fold { block: block.clone(), head, partials, n_splits: splits.len() });
        }
    }
}

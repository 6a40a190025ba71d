//! Cuts a batch into work items.
//!
//! Keys are cut into splits of [`SPLIT`] tokens and tiles of [`TILE`], both at absolute positions. A row's
//! result is a fold over its splits, in order, and each split a fold over its tiles, in order; which thread computes
//! what, and together with which rows, changes no bit. So items are cut to suit the machine: a few rows over a long past
//! give an item for each split, whose results are folded afterwards; many rows give an item for each block of rows; and
//! sequences that begin with the same pages, each with one new token, share a block, so that those pages are read once.

use std::ops::Range;

use crate::attention::TILE;
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

/// Tokens that share keys and values: a part of a sequence's new tokens, or the new tokens of several sequences.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Where the sequence's page table lies in [`Plan::pages`].
    pub(crate) pages: Range<usize>,
    /// Row of `q` and `out` of the first token.
    pub(crate) first_token: usize,
    pub(crate) n_tokens: usize,
    /// Position of the first token; of several sequences, the least.
    pub(crate) first_position: usize,
    /// Where there are several sequences.
    pub(crate) joint: Option<Joint>,
}

/// Sequences that begin with the same pages.
#[derive(Clone, Debug)]
pub(crate) struct Joint {
    /// Where they lie in [`Plan::members`], one for each token of the block.
    pub(crate) members: Range<usize>,
    /// Positions that are in pages of all of them, and seen by all: whole tiles.
    pub(crate) shared: usize,
}

/// A sequence with one new token that sees a single split, and so may share a block.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// As in [`Block`].
    pub(crate) pages: Range<usize>,
    token: usize,
    pub(crate) position: usize,
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
    /// How many [`Stretch`]es its tokens see.
    pub(crate) fn n_stretches(&self) -> usize {
        1 + self.block.joint.as_ref().map_or(0, |joint| joint.members.len())
    }
}

/// Keys and values that lie one after the other, and the tokens of an item that see them.
pub(crate) struct Stretch<'a> {
    /// Page table of a sequence that has them.
    pub(crate) table: &'a [u32],
    pub(crate) head: usize,
    /// Positions that any of the tokens sees.
    pub(crate) positions: Range<usize>,
    /// Tokens of the block.
    pub(crate) tokens: Range<usize>,
    /// Position of the block's first token, if all its tokens were of the sequence of these.
    pub(crate) first_position: usize,
}

impl<'a> Stretch<'a> {
    /// Number `index` of an item. All its tokens see the first; where they are of several sequences, each sees one more.
    pub(crate) fn of(plan: &'a Plan, item: &Item, index: usize) -> Stretch<'a> {
        let Item { block, head, splits, .. } = item;
        let all = |positions| Stretch {
            table: &plan.pages[block.pages.clone()],
            head: *head,
            positions,
            tokens: 0..block.n_tokens,
            first_position: block.first_position,
        };
        let Some(joint) = &block.joint else {
            let first = plan.shape.first_visible(block.first_position).max(splits.start * SPLIT);
            return all(first..(block.first_position + block.n_tokens).min(splits.end * SPLIT));
        };
        let Some(token) = index.checked_sub(1) else { return all(0..joint.shared) };
        let member = &plan.members[joint.members.start + token];
        Stretch {
            table: &plan.pages[member.pages.clone()],
            head: *head,
            positions: joint.shared..member.position + 1,
            tokens: token..token + 1,
            // A block has no more tokens than a tile has positions, and a member sees a whole one at least.
            first_position: member.position - token,
        }
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
    pub(crate) members: Vec<Member>,
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
        (value_dim, page_tokens): (usize, usize),
        threads: usize,
        queries: impl Iterator<Item = Queries<'a>> + Clone,
    ) {
        self.shape = shape;
        self.pages.clear();
        self.members.clear();
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
            if query.n_tokens == 1 && query.first_position < SPLIT && shape.window.is_none() {
                self.members.push(Member { pages, token: first_token, position: query.first_position });
                first_token += 1;
                continue;
            }
            // The last blocks see most, so they come first.
            for start in (0..query.n_tokens).step_by(block_tokens).rev() {
                self.add(
                    value_dim,
                    Block {
                        pages: pages.clone(),
                        first_token: first_token + start,
                        n_tokens: block_tokens.min(query.n_tokens - start),
                        first_position: query.first_position + start,
                        joint: None,
                    },
                );
            }
            first_token += query.n_tokens;
        }
        let mut first = 0;
        while first < self.members.len() {
            let joint = self.joint(first, block_tokens, page_tokens);
            first = joint.members.end;
            self.add(value_dim, self.block_of(joint));
        }
    }

    /// The member `first` and those right behind it, at most `most` in all, that have at least half as much in common
    /// with it as those before them.
    fn joint(&self, first: usize, most: usize, page_tokens: usize) -> Joint {
        let Member { pages, token, position } = &self.members[first];
        let whole_tiles = |positions: usize| positions / TILE * TILE;
        let mut joint = Joint { members: first..first + 1, shared: whole_tiles(position + 1) };
        for member in self.members[first + 1..].iter().take(most - 1) {
            let (ours, theirs) = (&self.pages[pages.clone()], &self.pages[member.pages.clone()]);
            let common = ours.iter().zip(theirs).take_while(|(our, their)| our == their).count() * page_tokens;
            let shared = whole_tiles(common.min(member.position + 1)).min(joint.shared);
            if member.token != token + joint.members.len() || shared == 0 || 2 * shared < joint.shared {
                break;
            }
            joint = Joint { members: first..joint.members.end + 1, shared };
        }
        joint
    }

    fn block_of(&self, joint: Joint) -> Block {
        let members = &self.members[joint.members.clone()];
        Block {
            pages: members[0].pages.clone(),
            first_token: members[0].token,
            n_tokens: members.len(),
            first_position: members.iter().map(|member| member.position).min().unwrap_or(0),
            joint: (members.len() > 1).then_some(joint),
        }
    }

    fn add(&mut self, value_dim: usize, block: Block) {
        let rows = block.n_tokens * self.shape.group();
        self.most_rows = self.most_rows.max(rows);
        let splits = match &block.joint {
            Some(_) => 0..1,
            None => {
                let last = block.first_position + block.n_tokens - 1;
                self.shape.first_visible(block.first_position) / SPLIT..last / SPLIT + 1
            }
        };
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

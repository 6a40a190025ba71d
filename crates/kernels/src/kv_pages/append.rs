//! New tokens into the pages, keys turned by their positions on the way.
//!
//! A work item has 32 dimensions of one head, of all tokens: these lie in one piece in every kind of storage, and belong to
//! no other item, whoever's the tokens are. Queries are turned in the same region, a head an item.

use crate::kv_pages::encode::encode;
use crate::kv_pages::{BLOCK, GROUP_TOKENS, KvPages, Layout, Queries, STRIP};
use crate::lanes::{Instructions, Kernel, Lanes};
use crate::rope::turn;
use crate::shared_slice::SharedSlice;
use crate::{RopeAngles, ThreadPool};

/// Fewer numbers than this one thread has stored before another has come.
const PARALLEL_FROM: usize = 1 << 11;

/// What a layer's first products made of the tokens of a pass.
pub struct Projections<'a> {
    /// The angles of the tokens.
    pub angles: &'a RopeAngles,
    /// `[tokens, n_heads, head_dim]`; turned in place.
    pub q: &'a mut [f32],
    /// `[tokens, n_kv_heads, head_dim]`, not yet turned.
    pub k: &'a [f32],
    /// `[tokens, n_kv_heads, head_dim]`.
    pub v: &'a [f32],
}

impl KvPages {
    /// Stores one token of one layer as it is: `k` and `v` are `[n_kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer, page or slot.
    pub fn append(&mut self, layer: usize, page: u32, slot: usize, k: &[f32], v: &[f32]) {
        let layout = self.layout;
        self.check(layer, page, slot);
        let width = layout.n_kv_heads * layout.head_dim;
        assert_eq!((k.len(), v.len()), (width, width), "k and v are [n_kv_heads, head_dim]");
        let memory = SharedSlice::new(&mut self.memory);
        for item in 0..layout.n_kv_heads * layout.blocks() {
            let block = Block::new(layout, layer, item);
            Instructions::best().run(One { block, at: block.place(page, slot), memory, k, v });
        }
    }

    /// Turns `q` and `k` by their positions, and stores `k` and `v` in one layer: the tokens of `sequences` one after the
    /// other.
    ///
    /// # Panics
    /// If a page table is too short or names no page, or if lengths do not match.
    pub fn append_turned<'a>(
        &mut self,
        pool: &ThreadPool,
        layer: usize,
        sequences: impl Iterator<Item = Queries<'a>> + Clone + Sync,
        new: Projections<'_>,
    ) {
        let Projections { angles, q, k, v } = new;
        let (layout, n_tokens) = (self.layout, angles.tokens());
        let width = layout.n_kv_heads * layout.head_dim;
        assert_eq!(sequences.clone().map(|s| s.n_tokens).sum::<usize>(), n_tokens, "an angle for each token");
        assert_eq!((k.len(), v.len()), (n_tokens * width, n_tokens * width), "k and v are [tokens, n_kv_heads, head_dim]");
        let n_heads = q.len() / (n_tokens * layout.head_dim).max(1);
        assert_eq!(q.len(), n_tokens * n_heads * layout.head_dim, "q is [tokens, n_heads, head_dim]");
        let places = || sequences.clone().flat_map(|s| places(s, layout.page_tokens));
        places().for_each(|(page, slot)| self.check(layer, page, slot));

        let (n_blocks, few) = (layout.n_kv_heads * layout.blocks(), q.len() + k.len() < PARALLEL_FROM);
        let (q, memory) = (SharedSlice::new(q), SharedSlice::new(&mut self.memory));
        let run = |item: usize, _: usize| match item.checked_sub(n_blocks) {
            Some(head) => Instructions::best().run(TurnQueries { angles, q, head, n_heads }),
            None => {
                let block = Block::new(layout, layer, item);
                Instructions::best().run(AppendBlock { block, memory, places: places(), angles, k, v });
            }
        };
        match few {
            true => (0..n_blocks + n_heads).for_each(|item| run(item, 0)),
            false => pool.run(n_blocks + n_heads, &run),
        }
    }
}

/// Page and slot of every token.
fn places(tokens: Queries<'_>, page_tokens: usize) -> impl Iterator<Item = (u32, usize)> + Clone {
    let positions = tokens.first_position..tokens.first_position + tokens.n_tokens;
    positions.map(move |p| (tokens.pages[p / page_tokens], p % page_tokens))
}

/// Some dimensions of a head in a layer.
#[derive(Clone, Copy)]
struct Block {
    layout: Layout,
    layer: usize,
    head: usize,
    /// Of this head's blocks.
    index: usize,
}

/// Where a token's part of a block lies in memory.
#[derive(Clone, Copy)]
struct Place {
    /// Of its group's block, in bytes.
    keys: usize,
    values: usize,
    /// In the group.
    slot: usize,
}

impl Block {
    /// The `item`-th block of all heads.
    fn new(layout: Layout, layer: usize, item: usize) -> Block {
        Block { layout, layer, head: item / layout.blocks(), index: item % layout.blocks() }
    }

    /// The first of its dimensions, among those of its head.
    fn first(&self) -> usize {
        self.index * BLOCK
    }

    fn dims(&self) -> usize {
        (self.layout.head_dim - self.first()).min(BLOCK)
    }

    /// Where its numbers begin in a token's row `[n_kv_heads, head_dim]`.
    fn in_row(&self) -> usize {
        self.head * self.layout.head_dim + self.first()
    }

    /// Bytes of its keys, and of its values, in a group.
    fn bytes(&self) -> (usize, usize) {
        let (layout, start) = (&self.layout, self.index * self.layout.block_bytes());
        let of = |all: usize| (all - start).min(layout.block_bytes());
        (of(layout.key_bytes()), of(layout.value_bytes()))
    }

    fn place(&self, page: u32, slot: usize) -> Place {
        let Block { layout, layer, head, index } = *self;
        let (group, start) = (slot / GROUP_TOKENS, page as usize * layout.page_bytes() + index * layout.block_bytes());
        let (keys, values) = (layout.keys_at(layer, head, group), layout.values_at(layer, head, group));
        Place { keys: start + keys, values: start + values, slot: slot % GROUP_TOKENS }
    }

    /// Asks for the lines that a token is written to: all of its group's keys, and one in each strip of values.
    #[inline(always)]
    fn prefetch<V: Lanes>(&self, memory: &SharedSlice<'_, u8>, at: Place) {
        let (key_bytes, value_bytes) = self.bytes();
        (0..key_bytes).step_by(64).for_each(|line| memory.prefetch::<V>(at.keys + line));
        let row_bytes = STRIP * self.layout.block_bytes() / (BLOCK * GROUP_TOKENS);
        let strips = (at.slot * row_bytes..value_bytes).step_by(GROUP_TOKENS * row_bytes);
        strips.for_each(|row| memory.prefetch::<V>(at.values + row));
    }

    /// Stores a token's `key` and `value`, both `[dims]`.
    ///
    /// # Safety
    /// No other thread uses this block.
    #[inline(always)]
    unsafe fn store<V: Lanes>(&self, memory: &SharedSlice<'_, u8>, at: Place, key: &[f32], value: &[f32]) {
        let (key_bytes, value_bytes) = self.bytes();
        // SAFETY: this block's by the caller's promise, and keys and values lie apart.
        let (keys, values) = unsafe { (memory.part(at.keys, key_bytes), memory.part(at.values, value_bytes)) };
        encode::<V>(self.layout.kind, at.slot, (key, keys), (value, values));
    }
}

/// A token's part of a block, as it is.
struct One<'a> {
    block: Block,
    at: Place,
    memory: SharedSlice<'a, u8>,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for One<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let One { block, at, memory, k, v } = self;
        let row = block.in_row()..block.in_row() + block.dims();
        // SAFETY: the one thread that has `memory`.
        unsafe { block.store::<V>(&memory, at, &k[row.clone()], &v[row]) };
    }
}

/// A block of all tokens.
struct AppendBlock<'a, P> {
    block: Block,
    memory: SharedSlice<'a, u8>,
    places: P,
    angles: &'a RopeAngles,
    k: &'a [f32],
    v: &'a [f32],
}

impl<P: Iterator<Item = (u32, usize)>> Kernel for AppendBlock<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let AppendBlock { block, memory, places, angles, k, v } = self;
        let (dims, first, width) = (block.dims(), block.first(), block.layout.n_kv_heads * block.layout.head_dim);
        let mut places = places.map(|(page, slot)| block.place(page, slot)).peekable();
        let mut token = 0;
        while let Some(at) = places.next() {
            // A token's keys are spread over a group, of which others read the lines long ago: the next ones are asked for.
            if let Some(next) = places.peek().filter(|next| next.keys != at.keys) {
                block.prefetch::<V>(&memory, *next);
            }
            let row = token * width + block.in_row()..token * width + block.in_row() + dims;
            let mut key = [0.0; BLOCK];
            key[..dims].copy_from_slice(&k[row.clone()]);
            let (cos, sin) = angles.of_token(token);
            turn(&mut key[..dims], &cos[first..first + dims], &sin[first..first + dims]);
            // SAFETY: a block is one item, so one thread has it.
            unsafe { block.store::<V>(&memory, at, &key[..dims], &v[row]) };
            token += 1;
        }
    }
}

/// A head's queries of all tokens.
struct TurnQueries<'a> {
    angles: &'a RopeAngles,
    q: SharedSlice<'a, f32>,
    head: usize,
    n_heads: usize,
}

impl Kernel for TurnQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        for token in 0..self.angles.tokens() {
            let (cos, sin) = self.angles.of_token(token);
            // SAFETY: a head is one item, so one thread has it.
            let x = unsafe { self.q.part((token * self.n_heads + self.head) * cos.len(), cos.len()) };
            turn(x, cos, sin);
        }
    }
}

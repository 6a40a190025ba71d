//! New tokens into the pages, keys turned by their positions on the way.
//!
//! A work item has 32 dimensions of one head, of all tokens: these lie in one piece in every kind of storage, and belong to
//! no other item, whoever's the tokens are. Queries are turned in the same region, some tokens an item.

use std::ops::Range;

use crate::kv_pages::encode::encode;
use crate::kv_pages::{BLOCK, GROUP_TOKENS, KvPages, KvType, Layout, Queries, STRIP};
use crate::lanes::{Instructions, Kernel, Lanes};
use crate::rope::turn;
use crate::shared_slice::SharedSlice;
use crate::{RopeAngles, ThreadPool};

/// Fewer numbers than this one thread has stored before another has come.
const PARALLEL_FROM: usize = 1 << 11;

/// Tokens of a work item that turns queries.
const CHUNK_TOKENS: usize = 8;

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
        if n_tokens == 0 {
            return assert!(q.is_empty() && k.is_empty() && v.is_empty(), "numbers are given for no token");
        }
        assert_eq!(
            (k.len(), v.len()),
            (n_tokens * width, n_tokens * width),
            "k and v are [tokens, n_kv_heads, head_dim]"
        );
        let n_heads = q.len() / (n_tokens * layout.head_dim);
        assert_eq!(q.len(), n_tokens * n_heads * layout.head_dim, "q is [tokens, n_heads, head_dim]");
        let places = || sequences.clone().flat_map(|s| places(s, layout.page_tokens));
        places().for_each(|(page, slot)| self.check(layer, page, slot));

        let (n_blocks, few) = (layout.n_kv_heads * layout.blocks(), q.len() + k.len() < PARALLEL_FROM);
        let (q_width, q, memory) = (n_heads * layout.head_dim, SharedSlice::new(q), SharedSlice::new(&mut self.memory));
        let n_items = n_blocks + n_tokens.div_ceil(CHUNK_TOKENS);
        let run = |item: usize, _: usize| match item.checked_sub(n_blocks) {
            Some(chunk) => {
                let tokens = chunk * CHUNK_TOKENS..((chunk + 1) * CHUNK_TOKENS).min(n_tokens);
                // SAFETY: a chunk of tokens is one item, so one thread has its queries.
                let q = unsafe { q.part(tokens.start * q_width, tokens.len() * q_width) };
                Instructions::best().run(TurnQueries { angles, tokens, q });
            }
            None => {
                let block = Block::new(layout, layer, item);
                Instructions::best().run(AppendBlock { block, memory, places: places(), angles, k, v });
            }
        };
        match few {
            true => (0..n_items).for_each(|item| run(item, 0)),
            false => pool.run(n_items, &run),
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
    kind: KvType,
    /// The first of its dimensions, among those of its head.
    first: usize,
    dims: usize,
    /// Where they begin in a token's row `[n_kv_heads, head_dim]`.
    in_row: usize,
    page_bytes: usize,
    keys: Part,
    values: Part,
}

/// The keys or values of a block.
#[derive(Clone, Copy)]
struct Part {
    /// Where those of the first group begin in a page.
    start: usize,
    /// From one group to the next.
    step: usize,
    bytes: usize,
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
        let (head, index) = (item / layout.blocks(), item % layout.blocks());
        let (first, before) = (index * BLOCK, index * layout.block_bytes());
        let part = |start: usize, step: usize| Part {
            start: start + before,
            step,
            bytes: (step - before).min(layout.block_bytes()),
        };
        Block {
            kind: layout.kind,
            first,
            dims: (layout.head_dim - first).min(BLOCK),
            in_row: head * layout.head_dim + first,
            page_bytes: layout.page_bytes(),
            keys: part(layout.keys_at(layer, head, 0), layout.key_bytes()),
            values: part(layout.values_at(layer, head, 0), layout.value_bytes()),
        }
    }

    #[inline(always)]
    fn place(&self, page: u32, slot: usize) -> Place {
        let (page, group) = (page as usize * self.page_bytes, slot / GROUP_TOKENS);
        let of = |part: &Part| page + part.start + group * part.step;
        Place { keys: of(&self.keys), values: of(&self.values), slot: slot % GROUP_TOKENS }
    }

    /// Asks for the lines that a token is written to: all of its group's keys, and one in each strip of values.
    #[inline(always)]
    fn prefetch<V: Lanes>(&self, memory: &SharedSlice<'_, u8>, at: Place) {
        (0..self.keys.bytes).step_by(64).for_each(|line| memory.prefetch::<V>(at.keys + line));
        let strip_bytes = self.values.bytes / self.dims.div_ceil(STRIP);
        let rows = (0..self.values.bytes).step_by(strip_bytes);
        rows.for_each(|strip| memory.prefetch::<V>(at.values + strip + at.slot * strip_bytes / GROUP_TOKENS));
    }

    /// Stores a token's `key` and `value`, both `[dims]`.
    ///
    /// # Safety
    /// No other thread uses this block.
    #[inline(always)]
    unsafe fn store<V: Lanes>(&self, memory: &SharedSlice<'_, u8>, at: Place, key: &[f32], value: &[f32]) {
        // SAFETY: this block's by the caller's promise, and keys and values lie apart.
        let (keys, values) =
            unsafe { (memory.part(at.keys, self.keys.bytes), memory.part(at.values, self.values.bytes)) };
        encode::<V>(self.kind, at.slot, (key, keys), (value, values));
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
        let row = block.in_row..block.in_row + block.dims;
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
        let Block { first, dims, .. } = block;
        let width = k.len() / angles.tokens();
        let mut places = places.map(|(page, slot)| block.place(page, slot)).peekable();
        let rows = k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate();
        for (token, (k, v)) in rows {
            let at = places.next().expect("there is a place for each token");
            // The keys of a group lie dimension by dimension, so a token's touch all its lines, which nobody has had in a
            // cache since the last pass: the next token's are asked for meanwhile.
            if let Some(next) = places.peek().filter(|next| next.keys != at.keys) {
                block.prefetch::<V>(&memory, *next);
            }
            let row = block.in_row..block.in_row + dims;
            let mut key = [0.0; BLOCK];
            let key = &mut key[..dims];
            key.copy_from_slice(&k[row.clone()]);
            let (cos, sin) = angles.of_token(token);
            turn::<V>(key, &cos[first..first + dims], &sin[first..first + dims]);
            // SAFETY: a block is one item, so one thread has it.
            unsafe { block.store::<V>(&memory, at, key, &v[row]) };
        }
    }
}

/// The queries of some tokens.
struct TurnQueries<'a> {
    angles: &'a RopeAngles,
    tokens: Range<usize>,
    /// `[tokens, n_heads, head_dim]`.
    q: &'a mut [f32],
}

impl Kernel for TurnQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let width = self.q.len() / self.tokens.len();
        for (token, q) in self.tokens.zip(self.q.chunks_exact_mut(width)) {
            let (cos, sin) = self.angles.of_token(token);
            q.chunks_exact_mut(cos.len()).for_each(|head| turn::<V>(head, cos, sin));
        }
    }
}

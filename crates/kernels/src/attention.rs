//! Attention over paged keys and values: `softmax(q kᵀ / sqrt(head_dim)) v`, causal, for the new tokens of any number of
//! sequences at once.
//!
//! Query heads that share a KV head are rows of one block, as are neighbouring tokens, and the new tokens of sequences that
//! begin with the same pages, so that every key and value read serves all of them. A row walks the keys it sees in tiles of
//! 64 tokens, with a running softmax, and starts anew after every split of 1024; the splits are folded in order. Tiles and
//! splits lie at absolute positions and every row has its own chain of operations, so that a row's bits depend on its query,
//! its keys and its values alone: not on the other rows, on how a prompt was cut into passes, or on the number of threads.
//!
//! | | |
//! |-|-|
//! | `plan.rs` | cuts a batch into items for the threads |
//! | `walk.rs` | one item: a block of rows walks its tiles |
//! | `tile.rs` | one tile: scores, running softmax, weighted values |
//! | `floats.rs`, `bytes.rs` | the products, for f32 and f16, and for Q8_0 |
//! | `steps.rs` | how much of it a step takes |
//! | `work.rs` | the memory of a thread |

mod bytes;
mod floats;
mod plan;
mod steps;
#[cfg(test)]
mod tests;
mod tile;
mod walk;
mod work;

use std::sync::{Mutex, PoisonError};

use crate::kv_pages::{GROUP_TOKENS, KvPages, Queries};
use crate::lanes::Instructions;
use crate::shared_slice::SharedSlice;
use crate::{ThreadPool, kv_pages::Layout};
use plan::{Plan, Shape};
use walk::{Fold, Results, Walk};
use work::Work;

/// Tokens of a tile.
const TILE: usize = 64;
const GROUPS_PER_TILE: usize = TILE / GROUP_TOKENS;
const _: () = assert!(plan::SPLIT.is_multiple_of(TILE) && TILE.is_multiple_of(GROUP_TOKENS));

/// A thread takes several items at once, so that it knows whose memory to ask for next, while there are so many left for
/// each thread that all end at the same time.
const RUNS_PER_THREAD: usize = 16;
const MOST_ITEMS: usize = 4;

/// The past that the tokens of one layer look at.
#[derive(Clone, Copy)]
pub struct AttentionLayer<'a> {
    /// Keys and values; those of the new tokens must have been appended.
    pub pages: &'a KvPages,
    /// Whose.
    pub layer: usize,
    /// A token sees this many tokens, itself included; `None` for all before it. Page table entries wholly before the
    /// window are never looked at.
    pub window: Option<usize>,
}

/// Memory of [`attention`], kept from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    plan: Plan,
    partials: Vec<f32>,
    /// One for each thread; never contended.
    works: Vec<Mutex<Work>>,
}

/// `out = softmax(q kᵀ / sqrt(head_dim)) v`, where `q` and `out` are `[tokens, n_heads, head_dim]`, the tokens of `queries`
/// one after the other. The token at position `p` sees positions `0..=p` of its sequence.
///
/// # Panics
/// If the lengths do not match, if a page table is too short or names no page, or if the window is empty.
pub fn attention<'a>(
    pool: &ThreadPool,
    q: &[f32],
    layer: &AttentionLayer<'_>,
    queries: impl Iterator<Item = Queries<'a>> + Clone,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    attention_with(Instructions::best(), pool, q, layer, queries, scratch, out);
}

fn attention_with<'a>(
    instructions: Instructions,
    pool: &ThreadPool,
    q: &[f32],
    layer: &AttentionLayer<'_>,
    queries: impl Iterator<Item = Queries<'a>> + Clone,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let n_tokens: usize = queries.clone().map(|q| q.n_tokens).sum();
    assert_eq!(q.len(), out.len(), "queries and output have one shape");
    if n_tokens == 0 {
        return assert!(q.is_empty(), "queries are given for no token");
    }
    let layout = layer.pages.layout();
    let shape = shape(layout, layer, q.len(), n_tokens);
    scratch.plan.make(shape, (layout.value_dim(), layer.pages.page_tokens()), pool.threads(), queries);
    attend(instructions, pool, q, layer, scratch, out);
}

/// Computes what is planned. Not generic, so that its kernels are compiled here once, and not again where it is called.
fn attend(
    instructions: Instructions,
    pool: &ThreadPool,
    q: &[f32],
    layer: &AttentionLayer<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let AttentionScratch { plan, partials, works } = scratch;
    let layout = layer.pages.layout();
    fit(works, pool.threads(), plan, layout);
    partials.resize(plan.partials_len.max(partials.len()), 0.0);
    let results = Results { out: SharedSlice::new(out), partials: SharedSlice::new(partials) };

    let at_once = (plan.items.len() / (RUNS_PER_THREAD * pool.threads())).clamp(1, MOST_ITEMS);
    let n_items = plan.items.len();
    pool.run(n_items.div_ceil(at_once), &|run, thread| {
        let mut work = works[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let items = &plan.items[run * at_once..n_items.min((run + 1) * at_once)];
        instructions.run_wide(Walk { layer, plan, q, results: &results, items, work: &mut work });
    });
    if !plan.folds.is_empty() {
        pool.run(plan.folds.len(), &|fold, thread| {
            let mut work = works[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let value_dim = layout.value_dim();
            instructions.run_wide(Fold {
                shape: plan.shape,
                value_dim,
                results: &results,
                fold: &plan.folds[fold],
                work: &mut work,
            });
        });
    }
}

/// Checks the sizes and says what they are.
fn shape(layout: &Layout, layer: &AttentionLayer<'_>, q_len: usize, n_tokens: usize) -> Shape {
    let Layout { n_layers, n_kv_heads, head_dim, .. } = *layout;
    let n_heads = q_len / (n_tokens * head_dim);
    assert_eq!(q_len, n_tokens * n_heads * head_dim, "q is [tokens, n_heads, head_dim]");
    assert!(n_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} query heads share {n_kv_heads} KV heads");
    assert!(layer.layer < n_layers, "layer {} of {n_layers}", layer.layer);
    assert!(layer.window != Some(0), "a token sees at least itself");
    Shape { n_heads, n_kv_heads, head_dim, window: layer.window }
}

fn fit(works: &mut Vec<Mutex<Work>>, threads: usize, plan: &Plan, layout: &Layout) {
    if works.len() < threads {
        works.resize_with(threads, Mutex::default);
    }
    for work in works {
        let work = work.get_mut().unwrap_or_else(PoisonError::into_inner);
        work.fit(plan.most_rows, layout.head_dim, layout.value_dim());
    }
}

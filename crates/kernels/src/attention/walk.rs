//! One work item: a block of query rows walks over the tiles of its splits.

use std::ops::Range;

use crate::attention::bytes::Bytes;
use crate::attention::floats::{Floats, Half, Single};
use crate::attention::plan::{self, Block, Destination, Item, Plan, SPLIT, Shape, Stretch, partial_len};
use crate::attention::tile::{Store, Tile, see};
use crate::attention::work::{Softmax, Work};
use crate::attention::{AttentionLayer, GROUPS_PER_TILE, TILE};
use crate::exp::exp;
use crate::kv_pages::{GROUP_TOKENS, KvType};
use crate::lanes::{WIDE, Wide, WideKernel};
use crate::shared_slice::SharedSlice;

/// Where results go; every item writes to its own part.
pub(crate) struct Results<'a> {
    /// `[tokens, n_heads, head_dim]`.
    pub(crate) out: SharedSlice<'a, f32>,
    /// As [`Destination::Partial`] says.
    pub(crate) partials: SharedSlice<'a, f32>,
}

/// The computation of some [`Item`]s, one after the other.
pub(crate) struct Walk<'a> {
    pub(crate) layer: &'a AttentionLayer<'a>,
    pub(crate) plan: &'a Plan,
    /// `[tokens, n_heads, head_dim]`.
    pub(crate) q: &'a [f32],
    pub(crate) results: &'a Results<'a>,
    pub(crate) items: &'a [Item],
    pub(crate) work: &'a mut Work,
}

impl WideKernel for Walk<'_> {
    #[inline(always)]
    fn run<W: Wide>(self) {
        match self.layer.pages.kind() {
            KvType::F32 => self.walk::<W, Floats<Single>>(),
            KvType::F16 => self.walk::<W, Floats<Half>>(),
            KvType::Q8_0 => self.walk::<W, Bytes>(),
        }
    }
}

impl Walk<'_> {
    #[inline(always)]
    fn walk<W: Wide, S: Store>(self) {
        let Walk { layer, plan, q, results, items, work } = self;
        for (index, item) in items.iter().enumerate() {
            let rows = item.block.n_tokens * plan.shape.group();
            work.rows = rows;
            load_queries(&plan.shape, &item.block, item.head, q, work);
            S::prepare::<W>(work, rows);
            see_all::<W, S>(layer, plan, item, items.get(index + 1), work);
            match item.result {
                Destination::Out => {
                    let softmax = if item.splits.len() == 1 { &work.split } else { &work.total };
                    store_rows(&plan.shape, &item.block, item.head, softmax, work.value_dim, results)
                }
                // SAFETY: every item has its own partial result.
                Destination::Partial(at) => store_partial(&work.split, work.value_dim, unsafe {
                    results.partials.part(at, rows * partial_len(work.value_dim))
                }),
            }
        }
    }
}

/// Lets the block see its splits, and folds them if there are several.
#[inline(always)]
fn see_all<W: Wide, S: Store>(
    layer: &AttentionLayer<'_>,
    plan: &Plan,
    item: &Item,
    next: Option<&Item>,
    work: &mut Work,
) {
    let rows = work.rows;
    if item.splits.len() > 1 {
        work.total.clear(rows, work.value_dim);
    }
    for split in item.splits.clone() {
        work.split.clear(rows, work.value_dim);
        work.lane_sums[..rows * WIDE].fill(0.0);
        see_split::<W, S>(layer, plan, item, split, next, work);
        for row in 0..rows {
            // SAFETY: sixteen sums a row.
            work.split.sum[row] = unsafe { W::load(work.lane_sums[row * WIDE..].as_ptr()) }.sum();
        }
        if item.splits.len() > 1 {
            add_split::<W>(&mut work.total, &work.split, rows, work.value_dim);
        }
    }
}

/// Gathers the rows of a block's KV head, times `1 / sqrt(head_dim)`.
#[inline(always)]
fn load_queries(shape: &Shape, block: &Block, head: usize, q: &[f32], work: &mut Work) {
    let width = shape.group() * shape.head_dim;
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    for token in 0..block.n_tokens {
        let from = &q[((block.first_token + token) * shape.n_kv_heads + head) * width..][..width];
        let to = &mut work.q[token * width..][..width];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
    }
}

/// Lets the block see all tiles of a split, in order. What sequences share they see together, and what comes then each
/// alone: to a row that makes no difference.
#[inline(always)]
fn see_split<W: Wide, S: Store>(
    layer: &AttentionLayer<'_>,
    plan: &Plan,
    item: &Item,
    split: usize,
    next: Option<&Item>,
    work: &mut Work,
) {
    for index in 0..item.n_stretches() {
        let stretch = Stretch::of(plan, item, index);
        let after = match index + 1 < item.n_stretches() {
            true => Some(Stretch::of(plan, item, index + 1)),
            false => next.map(|next| Stretch::of(plan, next, 0)),
        };
        let within = stretch.positions.start.max(split * SPLIT)..stretch.positions.end.min((split + 1) * SPLIT);
        let mut this = Groups::find(layer, &stretch, within.start / TILE);
        for tile in within.start / TILE..within.end.div_ceil(TILE) {
            let ahead = match &after {
                _ if (tile + 1) * TILE < stretch.positions.end => Groups::find(layer, &stretch, tile + 1),
                Some(after) => Groups::find(layer, after, after.positions.start / TILE),
                None => Groups::default(),
            };
            let tile = Tile {
                keys: this.keys,
                values: this.values,
                groups: this.range,
                next_keys: ahead.keys,
                start: tile * TILE,
                first_position: stretch.first_position,
                group_rows: plan.shape.group(),
                window: plan.shape.window,
            };
            // The one place that calls it: it is compiled into here, and is large.
            see::<W, S>(work, tile.rows(stretch.tokens.clone()), &tile);
            this = ahead;
        }
    }
}

/// Groups of 16 tokens of a tile.
#[derive(Default)]
struct Groups<'a> {
    keys: [&'a [u8]; GROUPS_PER_TILE],
    values: [&'a [u8]; GROUPS_PER_TILE],
    /// Those that are there.
    range: Range<usize>,
}

impl<'a> Groups<'a> {
    /// Those groups of a tile that hold any positions of a stretch.
    fn find(layer: &AttentionLayer<'a>, stretch: &Stretch<'_>, tile: usize) -> Groups<'a> {
        let Stretch { table, head, ref positions, .. } = *stretch;
        let within = |position: usize| position.saturating_sub(tile * TILE).min(TILE);
        let range = within(positions.start) / GROUP_TOKENS..within(positions.end).div_ceil(GROUP_TOKENS);
        let mut found = Groups { range: range.clone(), ..Groups::default() };
        let groups_per_page = layer.pages.page_tokens() / GROUP_TOKENS;
        let first = tile * GROUPS_PER_TILE + range.start;
        let (mut page, mut slot) = (first / groups_per_page, first % groups_per_page);
        for group in range {
            (found.keys[group], found.values[group]) = layer.pages.group(layer.layer, head, table[page], slot);
            slot += 1;
            if slot == groups_per_page {
                (page, slot) = (page + 1, 0);
            }
        }
        found
    }
}

/// Folds a split into the splits before it: both sums are brought to the larger of the two largest scores.
#[inline(always)]
fn add_split<W: Wide>(total: &mut Softmax, split: &Softmax, rows: usize, value_dim: usize) {
    for row in 0..rows {
        let values = row * value_dim..(row + 1) * value_dim;
        let partial = (split.largest[row], split.sum[row], &split.values[values.clone()]);
        add_partial::<W>(&mut total.largest[row], &mut total.sum[row], &mut total.values[values], partial);
    }
}

/// The same for one row.
#[inline(always)]
fn add_partial<W: Wide>(
    largest: &mut f32,
    sum: &mut f32,
    values: &mut [f32],
    (split_largest, split_sum, split_values): (f32, f32, &[f32]),
) {
    if split_sum == 0.0 {
        return;
    }
    if *sum == 0.0 {
        (*largest, *sum) = (split_largest, split_sum);
        return values.copy_from_slice(split_values);
    }
    let now = if *largest > split_largest { *largest } else { split_largest };
    let [kept, added] = [*largest, split_largest].map(|m| exp(W::splat(m - now)));
    *largest = now;
    *sum = *sum * kept.largest() + split_sum * added.largest();
    for at in (0..values.len()).step_by(WIDE) {
        // SAFETY: both have `value_dim` elements, a multiple of sixteen.
        unsafe {
            let new = W::load(split_values.as_ptr().add(at)).mul(added);
            W::load(values.as_ptr().add(at)).fma(kept, new).store(values.as_mut_ptr().add(at));
        }
    }
}

/// Writes the finished rows of a block: `values / sum`.
#[inline(always)]
fn store_rows(shape: &Shape, block: &Block, head: usize, softmax: &Softmax, value_dim: usize, results: &Results<'_>) {
    let group = shape.group();
    for row in 0..block.n_tokens * group {
        let (token, head) = (block.first_token + row / group, head * group + row % group);
        // SAFETY: a head of a token belongs to one item.
        let out = unsafe { results.out.part((token * shape.n_heads + head) * shape.head_dim, shape.head_dim) };
        let inverse = 1.0 / softmax.sum[row];
        let values = &softmax.values[row * value_dim..][..value_dim];
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value * inverse);
    }
}

/// Writes the rows of a split: values, largest score, sum.
fn store_partial(softmax: &Softmax, value_dim: usize, to: &mut [f32]) {
    for (row, to) in to.chunks_exact_mut(partial_len(value_dim)).enumerate() {
        to[..value_dim].copy_from_slice(&softmax.values[row * value_dim..][..value_dim]);
        to[value_dim] = softmax.largest[row];
        to[value_dim + 1] = softmax.sum[row];
    }
}

/// The folding of splits that were computed side by side.
pub(crate) struct Fold<'a> {
    pub(crate) shape: Shape,
    pub(crate) value_dim: usize,
    pub(crate) results: &'a Results<'a>,
    pub(crate) fold: &'a plan::Fold,
    pub(crate) work: &'a mut Work,
}

impl WideKernel for Fold<'_> {
    #[inline(always)]
    fn run<W: Wide>(self) {
        let Fold { shape, value_dim, results, fold, work } = self;
        let rows = fold.block.n_tokens * shape.group();
        let length = partial_len(value_dim);
        work.total.clear(rows, value_dim);
        for split in 0..fold.n_splits {
            // SAFETY: the partial results of this block and head are this item's alone.
            let partials = unsafe { results.partials.part(fold.partials + split * rows * length, rows * length) };
            for (row, partial) in partials.chunks_exact(length).enumerate() {
                let (values, numbers) = partial.split_at(value_dim);
                let to = &mut work.total.values[row * value_dim..][..value_dim];
                let partial = (numbers[0], numbers[1], values);
                add_partial::<W>(&mut work.total.largest[row], &mut work.total.sum[row], to, partial);
            }
        }
        store_rows(&shape, &fold.block, fold.head, &work.total, value_dim, results);
    }
}

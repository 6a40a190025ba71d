//! Products of activations with packed matrices, split over threads.

use std::ops::Range;

use crate::activations::{ActivationView, Activations, TOKENS};
use crate::lanes::Instructions;
use crate::packed::PackedMatrix;
use crate::packed_layout::ROWS;
use crate::shared_slice::SharedSlice;
use crate::{ThreadPool, portable};

/// Panels that a kernel takes at once for few tokens: one core reads fastest on four streams.
pub(crate) const STREAMS: usize = 4;
/// Tokens that a kernel takes at once; their sums for a panel, 8 KiB, stay in the first cache.
pub(crate) const TOKEN_TILE: usize = 256;
/// Most rows of a work item: a preempted thread holds up little, and streams are long enough.
const CHUNK_ROWS: usize = 256;
/// Work items for each thread that are worth having, for balance.
const ITEMS_PER_THREAD: usize = 8;

/// Sums that a kernel fills: `[panel][token][row]`, panels times tokens at most `TOKEN_TILE`.
pub(crate) type Sums = [[f32; ROWS]; TOKEN_TILE];

/// `y [x.rows, w.rows] = x Wᵀ`: every row of `y` is `W` times a row of `x`.
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub w: &'a PackedMatrix,
    /// `[tokens, cols]`.
    pub x: &'a Activations,
    /// `[tokens, rows]`.
    pub y: &'a mut [f32],
}

/// Computes several products in one parallel region.
///
/// A number of `y` has the same bits whatever else is computed with it, however many rows `x` has, and on any number of
/// threads: its sum is always taken in the same order.
///
/// # Panics
/// If the shapes of a product do not agree.
pub fn matmul(pool: &ThreadPool, products: &mut [Product<'_>]) {
    matmul_with(Instructions::best(), pool, products);
}

pub(crate) fn matmul_with(instructions: Instructions, pool: &ThreadPool, products: &mut [Product<'_>]) {
    let mut n_panels = 0;
    for p in products.iter() {
        assert_eq!(p.w.cols(), p.x.cols(), "a matrix of {} columns times rows of {}", p.w.cols(), p.x.cols());
        assert_eq!(
            p.y.len(),
            p.x.rows() * p.w.rows(),
            "{} results for {} rows of {}",
            p.y.len(),
            p.x.rows(),
            p.w.rows()
        );
        n_panels += p.w.shape().panels();
    }
    // One product is the common case, and a list on the stack would need a limit: so one region a few products.
    for products in products.chunks_mut(MOST_PRODUCTS) {
        let chunk = chunk_panels(n_panels, pool.threads());
        let mut jobs: [Option<Job<'_>>; MOST_PRODUCTS] = [None; MOST_PRODUCTS];
        let mut n_items = 0;
        for (job, p) in jobs.iter_mut().zip(products) {
            *job = Some(Job { w: p.w, x: p.x.view(), y: SharedSlice::new(p.y), first_item: n_items });
            n_items += p.w.shape().panels().div_ceil(chunk);
        }
        pool.run(n_items, &|item, _| {
            let job =
                jobs.iter().flatten().rfind(|job| job.first_item <= item).expect("the first job begins with item 0");
            let first = (item - job.first_item) * chunk;
            job.run(instructions, first..(first + chunk).min(job.w.shape().panels()));
        });
    }
}

/// Products of one region: q, k, v; gate, up.
const MOST_PRODUCTS: usize = 8;

/// Panels of a work item: as many as fit `CHUNK_ROWS`, fewer where threads would stand idle; a multiple of the streams.
pub(crate) fn chunk_panels(n_panels: usize, threads: usize) -> usize {
    let fair = n_panels.div_ceil(threads * ITEMS_PER_THREAD).next_multiple_of(STREAMS);
    fair.clamp(STREAMS, CHUNK_ROWS / ROWS)
}

#[derive(Clone, Copy)]
struct Job<'a> {
    w: &'a PackedMatrix,
    x: ActivationView<'a>,
    y: SharedSlice<'a, f32>,
    first_item: usize,
}

impl Job<'_> {
    fn run(&self, instructions: Instructions, panels: Range<usize>) {
        let rows = self.w.rows();
        for_each_sum(instructions, self.w, panels, &self.x, 0..self.x.rows, |panel, token, sums| {
            let row = panel * ROWS;
            // SAFETY: a panel belongs to one item.
            let y = unsafe { self.y.part(token * rows + row, (rows - row).min(ROWS)) };
            y.copy_from_slice(&sums[..y.len()]);
        });
    }
}

/// Calls `each(panel, token, products of the panel's rows)` for all panels of `panels` and all `tokens` of `x`, of which the
/// first begins a group.
pub(crate) fn for_each_sum(
    instructions: Instructions,
    w: &PackedMatrix,
    panels: Range<usize>,
    x: &ActivationView<'_>,
    tokens: Range<usize>,
    mut each: impl FnMut(usize, usize, &[f32; ROWS]),
) {
    let mut sums: Sums = [[0.0; ROWS]; TOKEN_TILE];
    let at_once = if tokens.len() <= TOKENS { STREAMS } else { 1 };
    for first_token in tokens.clone().step_by(TOKEN_TILE) {
        let tokens = (tokens.end - first_token).min(TOKEN_TILE);
        for first in panels.clone().step_by(at_once) {
            let run = first..(first + at_once).min(panels.end);
            let sums = &mut sums[..run.len() * tokens];
            products(instructions, w, run.clone(), x, first_token / TOKENS, sums);
            for (panel, sums) in run.zip(sums.chunks_exact(tokens)) {
                for (token, sums) in sums.iter().enumerate() {
                    each(panel, first_token + token, sums);
                }
            }
        }
    }
}

/// `sums [panel][token][row]` = panels `panels` of `w` times tokens of `x` from group `first_group` on.
fn products(
    instructions: Instructions,
    w: &PackedMatrix,
    panels: Range<usize>,
    x: &ActivationView<'_>,
    first_group: usize,
    sums: &mut [[f32; ROWS]],
) {
    sums.fill([0.0; ROWS]);
    let (shape, bytes, tokens) = (w.shape(), w.panels(panels.clone()), sums.len() / panels.len());
    match instructions {
        _ if shape.tiles == 0 => {}
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 if crate::lanes_avx2::Avx2::is_available() => {
            // SAFETY: the machine has the instructions.
            unsafe { crate::avx2::panels(shape, bytes, x, first_group, sums) };
        }
        _ => {
            for (bytes, sums) in bytes.chunks_exact(shape.panel_bytes).zip(sums.chunks_exact_mut(tokens)) {
                portable::panel(shape, bytes, x, first_group, sums);
            }
        }
    }
}

//! Products of activations with packed matrices, split over threads.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use octet_checkpoint::ElementType;

#[cfg(target_arch = "x86_64")]
use crate::activations::Scaling;
use crate::activations::{ActivationView, Activations};
use crate::lanes::Instructions;
use crate::packed::{PackedMatrix, PackedShape};
use crate::packed_layout::ROWS;
use crate::portions::{Portions, UNIT, panels_of};
use crate::shared_slice::SharedSlice;
use crate::sums::Sums;
use crate::{ThreadPool, portable};

/// Panels that a kernel takes at once for few tokens: one core reads fastest on four streams.
pub(crate) const STREAMS: usize = 4;
/// Tokens that a kernel takes at once; their sums for a panel, 8 KiB, stay in the first cache.
pub(crate) const TOKEN_TILE: usize = 256;

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// Sums of AMX and VNNI, `[quad][token][32]`: 256 KiB for 256 rows and tokens.
    static SUMS: std::cell::RefCell<Vec<[f32; STREAMS * ROWS]>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Up to this many tokens a kernel is bound by memory, and takes several panels at once.
const FEW_TOKENS: usize = 8;
/// Their sums of those panels.
const FEW_SUMS: usize = STREAMS * FEW_TOKENS;

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
    }
    // One product is the common case, and a list on the stack would need a limit: so one region a few products.
    for products in products.chunks_mut(MOST_PRODUCTS) {
        let mut jobs: [Option<Job<'_>>; MOST_PRODUCTS] = [const { None }; MOST_PRODUCTS];
        let mut n_units = 0;
        for (job, p) in jobs.iter_mut().zip(products) {
            let units = n_units..n_units + p.w.shape().panels().div_ceil(UNIT);
            n_units = units.end;
            *job = Some(Job { w: p.w, x: p.x.view(), y: SharedSlice::new(p.y), units });
        }
        let portions = Portions::new(n_units, pool.threads());
        pool.run(portions.count(), &|item, _| {
            let units = portions.units(item);
            for job in jobs.iter().flatten() {
                let (first, end) = (units.start.max(job.units.start), units.end.min(job.units.end));
                if first < end {
                    let units = first - job.units.start..end - job.units.start;
                    job.run(instructions, panels_of(units, job.w.shape().panels()));
                }
            }
        });
    }
}

/// Products of one region: q, k, v; gate, up.
const MOST_PRODUCTS: usize = 8;

struct Job<'a> {
    w: &'a PackedMatrix,
    x: ActivationView<'a>,
    y: SharedSlice<'a, f32>,
    /// Its panels among those of all products, see [`Portions`].
    units: Range<usize>,
}

impl Job<'_> {
    fn run(&self, instructions: Instructions, panels: Range<usize>) {
        let rows = self.w.rows();
        for_each_sum(instructions, self.w, panels, &self.x, 0..self.x.rows, |sums| {
            // SAFETY: a row belongs to one item.
            sums.copy(instructions, |token| unsafe { self.y.part(token * rows + sums.first_row, sums.rows) });
        });
    }
}

/// Gives `each` the products of all rows of `panels` and all `tokens` of `x`, some at a time.
pub(crate) fn for_each_sum(
    instructions: Instructions,
    w: &PackedMatrix,
    panels: Range<usize>,
    x: &ActivationView<'_>,
    tokens: Range<usize>,
    mut each: impl FnMut(&Sums<'_>),
) {
    let way = Way::of(instructions, w, tokens.len());
    // Panels that are packed in passing stay in the first cache.
    let at_once = way.panels_at_once(panels.len(), tokens.len()).min(if w.is_packed() { usize::MAX } else { STREAMS });
    for first_token in tokens.clone().step_by(TOKEN_TILE) {
        let tokens = (tokens.end - first_token).min(TOKEN_TILE);
        for first in panels.clone().step_by(at_once) {
            let run = first..(first + at_once).min(panels.end);
            way.products(w, run, x, first_token..first_token + tokens, &mut each);
        }
    }
}

/// From how many tokens on AMX is used: below, unpacking its operands costs more than it saves. As measured.
#[cfg(target_arch = "x86_64")]
fn amx_from_tokens(kind: ElementType) -> usize {
    match Scaling::of(kind) {
        Scaling::Tiles => 5,
        Scaling::Groups => 9,
    }
}

/// The way in which panels and tokens are multiplied.
#[derive(Clone, Copy)]
enum Way {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Quads,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Way {
    #[cfg(target_arch = "x86_64")]
    fn of(instructions: Instructions, w: &PackedMatrix, tokens: usize) -> Way {
        let kind = w.element_type();
        match instructions {
            Instructions::Portable => Way::Portable,
            _ if !crate::lanes_avx2::Avx2::is_available() => Way::Portable,
            Instructions::Avx2 => Way::avx2(kind, tokens),
            _ if !crate::avx2::has_vnni() || !crate::avx512_integers::multiplies(kind) => Way::avx2(kind, tokens),
            Instructions::Amx if tokens >= amx_from_tokens(kind) && crate::amx::is_available() => Way::Amx,
            _ => Way::Avx512,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(kind: ElementType, tokens: usize) -> Way {
        match crate::avx2_quads::from_tokens(kind) {
            Some(from) if tokens >= from => Way::Avx2Quads,
            _ => Way::Avx2,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn of(instructions: Instructions, _: &PackedMatrix, _: usize) -> Way {
        match instructions {
            Instructions::Neon if crate::lanes_neon::Neon::is_available() => Way::Neon,
            _ => Way::Portable,
        }
    }

    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    fn of(_: Instructions, _: &PackedMatrix, _: usize) -> Way {
        Way::Portable
    }

    /// How many of `panels` panels to multiply at once by `tokens` tokens.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn panels_at_once(self, panels: usize, tokens: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Way::Amx | Way::Avx512 | Way::Avx2Quads => panels.max(1),
            _ if tokens <= FEW_TOKENS => STREAMS,
            _ => 1,
        }
    }

    /// Multiplies panels `panels`, as many as [`panels_at_once`](Way::panels_at_once) says, by at most [`TOKEN_TILE`] tokens.
    fn products(
        self,
        w: &PackedMatrix,
        panels: Range<usize>,
        x: &ActivationView<'_>,
        tokens: Range<usize>,
        each: &mut impl FnMut(&Sums<'_>),
    ) {
        let rows = panels.start * ROWS..(panels.end * ROWS).min(w.rows());
        w.with_panels(panels, |bytes| self.products_of(w.shape(), bytes, rows, x, tokens, each));
    }

    /// The same, of the bytes of the panels that hold rows `rows`.
    fn products_of(
        self,
        shape: &PackedShape,
        bytes: &[u8],
        rows: Range<usize>,
        x: &ActivationView<'_>,
        tokens: Range<usize>,
        each: &mut impl FnMut(&Sums<'_>),
    ) {
        let n_tokens = tokens.len();
        match self {
            #[cfg(target_arch = "x86_64")]
            Way::Amx | Way::Avx512 | Way::Avx2Quads if shape.tiles > 0 => {
                const { assert!(crate::quads::PANELS == STREAMS) };
                SUMS.with_borrow_mut(|sums| {
                    // What they hold from the last time is written over.
                    let len = rows.len().div_ceil(STREAMS * ROWS) * n_tokens;
                    sums.resize(len.max(sums.len()), [0.0; STREAMS * ROWS]);
                    let sums = &mut sums[..len];
                    // SAFETY: `Way::of` has seen that the machine has the instructions.
                    unsafe {
                        match self {
                            Way::Amx => crate::amx::panels(shape, bytes, x, tokens.clone(), sums),
                            Way::Avx2Quads => crate::avx2_quads::panels(shape, bytes, x, tokens.clone(), sums),
                            _ => crate::avx512_integers::panels(shape, bytes, x, tokens.clone(), sums),
                        }
                    }
                    give(rows, tokens, sums, each);
                });
            }
            // As few zeros as will do: beside a small matrix they are work.
            _ if rows.len().div_ceil(ROWS) * n_tokens <= FEW_SUMS => {
                self.give_panel_sums::<FEW_SUMS>(shape, bytes, rows, x, tokens, each);
            }
            _ => self.give_panel_sums::<TOKEN_TILE>(shape, bytes, rows, x, tokens, each),
        }
    }

    /// The same where sums are taken by panels: at most `N` of them.
    fn give_panel_sums<const N: usize>(
        self,
        shape: &PackedShape,
        bytes: &[u8],
        rows: Range<usize>,
        x: &ActivationView<'_>,
        tokens: Range<usize>,
        each: &mut impl FnMut(&Sums<'_>),
    ) {
        let mut sums = [[0.0; ROWS]; N];
        let sums = &mut sums[..rows.len().div_ceil(ROWS) * tokens.len()];
        self.panel_sums(shape, bytes, x, tokens.start, sums);
        give(rows, tokens, sums, each);
    }

    /// `sums [panel][token][row]` = the panels in `bytes` times tokens of `x` from `first` on.
    fn panel_sums(
        self,
        shape: &PackedShape,
        bytes: &[u8],
        x: &ActivationView<'_>,
        first: usize,
        sums: &mut [[f32; ROWS]],
    ) {
        match self {
            _ if shape.tiles == 0 => {}
            #[cfg(target_arch = "x86_64")]
            Way::Avx2 => {
                // SAFETY: `Way::of` has seen that the machine has the instructions.
                unsafe { crate::avx2::panels(shape, bytes, x, first, sums) };
            }
            #[cfg(target_arch = "aarch64")]
            Way::Neon => {
                // SAFETY: `Way::of` has seen that the machine has the instructions.
                unsafe { crate::neon::panels(shape, bytes, x, first, sums) };
            }
            _ => {
                let tokens = sums.len() / (bytes.len() / shape.panel_bytes);
                for (bytes, sums) in bytes.chunks_exact(shape.panel_bytes).zip(sums.chunks_exact_mut(tokens)) {
                    portable::panel(shape, bytes, x, first, sums);
                }
            }
        }
    }
}

/// Hands sums `[rows / N][token][N]` to `each`.
fn give<const N: usize>(rows: Range<usize>, tokens: Range<usize>, sums: &[[f32; N]], each: &mut impl FnMut(&Sums<'_>)) {
    for (first, sums) in rows.clone().step_by(N).zip(sums.chunks_exact(tokens.len())) {
        let (n, values) = ((rows.end - first).min(N), sums.as_flattened());
        each(&Sums { first_row: first, rows: n, tokens: tokens.clone(), width: N, values });
    }
}

//! The walk over the tiles of packed weights that AVX2 and NEON share: which kernel takes which tile and which tokens.
//!
//! The work on one tile of weights for up to eight tokens is one function, of which there is one for each type and number of
//! tokens ([`TileKernel`]); the walk over tiles, panels and tokens is the same for all.
//!
//! - Few tokens: the tiles of four panels are taken in turn, so that a core reads four streams, and the next tile of each is
//!   prefetched. Panels of few columns come one after the other: streams that begin anew every few KiB are slow. The codes are
//!   unpacked in registers.
//! - Many tokens (NEON; AVX2 has `avx2_quads.rs` for them): a tile is unpacked once into 8-bit codes in the first cache, and
//!   multiplied by all tokens.
//!
//! Both ways compute the same integers and do the same float operations, so they give the same bits.

use std::mem::MaybeUninit;

use crate::activations::{ActivationView, Scaling};
use crate::packed::PackedShape;
use crate::packed_layout::{ROWS, TILE};
use crate::portable;

/// Most tokens of a kernel.
pub(crate) const TOKENS: usize = 8;
/// Panels of up to so many tiles, times up to so many tokens, are read one after the other. As measured on Zen 3: with 576
/// columns a fifth faster, with 1536 a tenth to a quarter slower.
const TILES_IN_LINE: usize = 4;
const TOKENS_IN_LINE: usize = 4;
/// How far ahead memory is asked for then.
const TILES_AHEAD_IN_LINE: usize = 2;
/// From this many tokens on, unpacking a tile into memory pays.
const UNPACK_FROM_TOKENS: usize = 16;

/// The work on one tile of each of some panels, for up to eight tokens.
#[derive(Clone, Copy)]
pub(crate) struct TileWork {
    /// The tile of the first panel.
    pub(crate) tile: *const u8,
    /// From a panel to the next.
    pub(crate) panel_bytes: usize,
    pub(crate) panels: usize,
    /// Columns of the tile.
    pub(crate) cols: usize,
    /// From the tile to the one to prefetch; 0 for none.
    pub(crate) ahead: usize,
    /// The tile of the first token's activations, and behind it the others': words for integer kernels, floats for float kernels.
    pub(crate) x: *const u32,
    /// Sums of the first panel and the first token.
    pub(crate) sums: *mut [f32; ROWS],
    /// From the sums of a panel to those of the next.
    pub(crate) sums_stride: usize,
}

/// Adds the products of a tile to the sums.
///
/// # Safety
/// The machine must have the kernel's instructions; all that [`TileWork`] points to must be there: `panels` tiles of the kernel's
/// type and `cols` columns, a tile of activations of the kernel's number of tokens, and as many sums for every panel.
pub(crate) type TileKernel = unsafe fn(&TileWork);

/// Unpacks a tile of `cols` columns and prefetches the tile `ahead` bytes further.
///
/// # Safety
/// The machine must have the kernel's instructions; the tile must be there.
pub(crate) type UnpackKernel<U> = unsafe fn(tile: *const u8, cols: usize, ahead: usize, out: &mut MaybeUninit<U>);

/// The kernels of a type, which unpack its tiles into `U` where they do.
pub(crate) struct Kernels<U> {
    /// For 1, 2, 3, 4 and 8 tokens.
    pub(crate) few: [TileKernel; 5],
    /// Of types with integer codes.
    pub(crate) many: Option<Many<U>>,
}

/// The way over an unpacked tile.
pub(crate) struct Many<U> {
    pub(crate) unpack: UnpackKernel<U>,
    /// For eight tokens; takes a `U` as the tile.
    pub(crate) kernel: TileKernel,
}

/// The next tokens to take of `left`, and the index of their kernel.
fn next_tokens(left: usize) -> (usize, usize) {
    match left {
        TOKENS.. => (TOKENS, 4),
        4.. => (4, 3),
        _ => (left, left - 1),
    }
}

/// `sums [panel][token][8]` += the rows of the panels in `bytes` times the tokens from `first` on, as many as there is room
/// for. Behind `bytes` lies what is to be read next.
///
/// # Safety
/// The machine must have the instructions of `kernels`, which must be those of the matrix's type.
pub(crate) unsafe fn panels<U>(
    kernels: &Kernels<U>,
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    let n_panels = bytes.len() / shape.panel_bytes;
    let tokens = sums.len() / n_panels;
    assert!(bytes.len() == n_panels * shape.panel_bytes && sums.len() == n_panels * tokens);
    assert!(first + tokens <= x.rows, "tokens {first} + {tokens} of {}", x.rows);
    let walk = Walk { shape, kernels, x, first, tokens };
    if tokens <= TOKENS_IN_LINE && shape.tiles <= TILES_IN_LINE && !portable::is_multiplied_as_floats(shape.kind) {
        for (panel, sums) in sums.chunks_exact_mut(tokens).enumerate() {
            for tile in 0..shape.tiles {
                let at = panel * shape.panel_bytes + tile * shape.tile_bytes;
                // SAFETY: the machine has the instructions; the tile begins at `at`.
                unsafe { walk.tile(&bytes[at..], tile, TILES_AHEAD_IN_LINE * shape.tile_bytes, 1, sums) };
            }
        }
        return;
    }
    for tile in 0..shape.tiles {
        let at = tile * shape.tile_bytes;
        // The tile behind the last one is the first of the panels that come next.
        let ahead = if tile + 1 < shape.tiles { shape.tile_bytes } else { bytes.len() - at };
        // SAFETY: the machine has the instructions; tile `tile` of every panel begins at `at`.
        unsafe { walk.tile(&bytes[at..], tile, ahead, n_panels, sums) };
    }
}

/// What stays the same over the tiles of some panels.
struct Walk<'a, U> {
    shape: &'a PackedShape,
    kernels: &'a Kernels<U>,
    x: &'a ActivationView<'a>,
    first: usize,
    tokens: usize,
}

impl<U> Walk<'_, U> {
    /// # Safety
    /// The machine must have the instructions, and tile `tile` of `panels` panels begin at the start of `bytes`.
    unsafe fn tile(&self, bytes: &[u8], tile: usize, ahead: usize, panels: usize, sums: &mut [[f32; ROWS]]) {
        let (shape, cols) = (self.shape, self.shape.tile_cols(tile));
        let is_float = shape.kind.block_len() == 1;
        let work = TileWork {
            tile: bytes.as_ptr(),
            panel_bytes: shape.panel_bytes,
            panels,
            cols,
            ahead,
            x: std::ptr::null(),
            sums: sums.as_mut_ptr(),
            sums_stride: self.tokens,
        };
        match &self.kernels.many {
            Some(many) if self.tokens >= UNPACK_FROM_TOKENS => {
                let mut unpacked = MaybeUninit::<U>::uninit();
                for panel in 0..panels {
                    let bytes = &bytes[panel * shape.panel_bytes..];
                    // SAFETY: the caller's promise, of the panel's tile.
                    unsafe { (many.unpack)(bytes.as_ptr(), cols, ahead, &mut unpacked) };
                    let sums = sums[panel * self.tokens..][..self.tokens].as_mut_ptr();
                    let one = TileWork { tile: bytes.as_ptr(), panels: 1, ahead: 0, sums, ..work };
                    // SAFETY: as above.
                    unsafe { self.unpacked_groups(many, &unpacked, tile, one) };
                }
            }
            // SAFETY: the caller's promise.
            _ if !portable::is_multiplied_as_floats(shape.kind) => unsafe { self.groups(tile, work, false) },
            // SAFETY: the caller's promise.
            _ if is_float => unsafe { self.groups(tile, work, true) },
            _ => {
                let mut floats = [[0.0; ROWS]; TILE];
                for panel in 0..panels {
                    portable::decode_tile(shape.kind, &bytes[panel * shape.panel_bytes..], &mut floats[..cols]);
                    let sums = sums[panel * self.tokens..][..self.tokens].as_mut_ptr();
                    let one = TileWork { tile: floats.as_ptr().cast(), panels: 1, ahead: 0, sums, ..work };
                    // SAFETY: a whole tile of floats, which is what the kernels of this type take.
                    unsafe { self.groups(tile, one, true) };
                }
            }
        }
    }

    /// # Safety
    /// The machine must have the instructions, and `work` be right but for `x`.
    unsafe fn groups(&self, tile: usize, work: TileWork, as_floats: bool) {
        let mut first = 0;
        while first < self.tokens {
            let ((n, kernel), row) = (next_tokens(self.tokens - first), self.first + first);
            let x = match as_floats {
                true => self.x.floats(tile, row).as_ptr().cast(),
                false => self.x.ints(Scaling::of(self.shape.kind), tile, row).as_ptr().cast(),
            };
            // SAFETY: the sums and activations of as many tokens are there.
            unsafe { (self.kernels.few[kernel])(&TileWork { x, sums: work.sums.add(first), ..work }) };
            first += n;
        }
    }

    /// Eight tokens at a time by the unpacked tile, what remains by the packed one.
    ///
    /// # Safety
    /// As for [`groups`](Self::groups), and `unpacked` must hold the tile.
    unsafe fn unpacked_groups(&self, many: &Many<U>, unpacked: &MaybeUninit<U>, tile: usize, work: TileWork) {
        let mut first = 0;
        while first < self.tokens {
            let x = self.x.ints(Scaling::of(self.shape.kind), tile, self.first + first).as_ptr().cast();
            // SAFETY: the sums are there.
            let work = TileWork { x, sums: unsafe { work.sums.add(first) }, ..work };
            let whole = TileWork { tile: unpacked.as_ptr().cast(), ..work };
            let (n, kernel) = next_tokens(self.tokens - first);
            // SAFETY: the caller's promise.
            unsafe {
                match n {
                    TOKENS => (many.kernel)(&whole),
                    _ => (self.kernels.few[kernel])(&work),
                }
            }
            first += n;
        }
    }
}

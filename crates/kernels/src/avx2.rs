//! Products by AVX2: eight rows of weights side by side in the 32-bit lanes, four columns in the bytes of a lane.
//!
//! The work on one tile of weights for up to eight tokens is one function, of which there is one for each type and number of
//! tokens ([`TileKernel`]); the walk over tiles, panels and tokens is the same for all.
//!
//! Where the machine has VNNI beside, one of its instructions does the work of three; the walk is the same.
//!
//! - Few tokens: the tiles of four panels are taken in turn, so that a core reads four streams, and the next tile of each is
//!   prefetched. The codes are unpacked in registers.
//! - Many tokens: a tile is unpacked once into 8-bit codes in the first cache, and multiplied by all tokens.
//!
//! Both ways compute the same integers and do the same float operations, so they give the same bits.

use std::arch::x86_64::*;

use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, Scaling};
use crate::avx2_floats::{self as floats, float_tile};
use crate::avx2_integers::{Format, integer_tile, integer_tile_vnni};
use crate::avx2_unpacked::{Unpacked, UnpackedTile, unpack};
use crate::packed::PackedShape;
use crate::packed_layout::{ROWS, TILE};
use crate::{avx2_k_formats as k, avx2_small_formats as small, portable};

/// Most tokens of a kernel.
pub(crate) const TOKENS: usize = 8;
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
/// The machine must have AVX2, FMA and F16C; all that [`TileWork`] points to must be there: `panels` tiles of the kernel's
/// type and `cols` columns, a tile of activations of the kernel's number of tokens, and as many sums for every panel.
pub(crate) type TileKernel = unsafe fn(&TileWork);

/// Unpacks a tile of `cols` columns and prefetches the tile `ahead` bytes further.
///
/// # Safety
/// The machine must have AVX2 and F16C; the tile must be there.
pub(crate) type UnpackKernel = unsafe fn(tile: *const u8, cols: usize, ahead: usize, out: &mut UnpackedTile);

/// The kernels of a type.
struct Kernels {
    /// For 1, 2, 3, 4 and 8 tokens.
    few: [TileKernel; 5],
    many: Option<Many>,
}

/// The way over an unpacked tile.
struct Many {
    unpack: UnpackKernel,
    /// For eight tokens; takes an [`UnpackedTile`].
    kernel: TileKernel,
}

/// The kernels for 1, 2, 3, 4 and 8 tokens: more of them would cost minutes of compiling, and win little.
macro_rules! kernels_of_sizes {
    ($kernel:ident, $format:ty) => {
        [
            $kernel::<$format, 1>,
            $kernel::<$format, 2>,
            $kernel::<$format, 3>,
            $kernel::<$format, 4>,
            $kernel::<$format, TOKENS>,
        ]
    };
}

/// The next tokens to take of `left`, and the index of their kernel.
fn next_tokens(left: usize) -> (usize, usize) {
    match left {
        TOKENS.. => (TOKENS, 4),
        4.. => (4, 3),
        _ => (left, left - 1),
    }
}

/// Kernels of an integer type, with the kind of unpacked tile that has the same constants.
const fn integers<F: Format, U: Format>() -> Kernels {
    assert!(F::SIGNED == U::SIGNED && F::FLOAT_SCALES == U::FLOAT_SCALES && F::OFFSET_BITS == U::OFFSET_BITS);
    assert!(F::SUM_COLUMNS == U::SUM_COLUMNS && F::MINIMUM_COLUMNS == U::MINIMUM_COLUMNS);
    let few: [TileKernel; 5] = kernels_of_sizes!(integer_tile, F);
    Kernels { few, many: Some(Many { unpack: unpack::<F>, kernel: integer_tile::<U, 8> }) }
}

/// The same with VNNI.
const fn integers_vnni<F: Format, U: Format>() -> Kernels {
    let few: [TileKernel; 5] = kernels_of_sizes!(integer_tile_vnni, F);
    Kernels { few, many: Some(Many { unpack: unpack::<F>, kernel: integer_tile_vnni::<U, 8> }) }
}

fn kernels(kind: ElementType, vnni: Vnni) -> &'static Kernels {
    use ElementType::*;
    macro_rules! integers {
        ($format:ty, $unpacked:ty) => {
            match vnni {
                Vnni::Absent => const { &integers::<$format, $unpacked>() },
                Vnni::Present => const { &integers_vnni::<$format, $unpacked>() },
            }
        };
    }
    match kind {
        F32 => const { &Kernels { few: kernels_of_sizes!(float_tile, floats::F32), many: None } },
        F16 => const { &Kernels { few: kernels_of_sizes!(float_tile, floats::F16), many: None } },
        BF16 => const { &Kernels { few: kernels_of_sizes!(float_tile, floats::Bf16), many: None } },
        Q4_0 => integers!(small::Q4_0, Unpacked<false, 32, 3, 0, true>),
        Q4_1 => integers!(small::Q4_1, Unpacked<false, 32, 0, 32, true>),
        Q5_0 => integers!(small::Q5_0, Unpacked<false, 32, 4, 0, true>),
        Q5_1 => integers!(small::Q5_1, Unpacked<false, 32, 4, 32, true>),
        Q8_0 => integers!(small::Q8_0, Unpacked<true, 32, 0, 0, true>),
        IQ4_NL => integers!(small::Iq4Nl, Unpacked<true, 32, 0, 0, true>),
        Q2_K => integers!(k::Q2K, Unpacked<false, 16, 0, 16>),
        Q3_K => integers!(k::Q3K, Unpacked<false, 16, 2, 0>),
        Q4_K => integers!(k::Q4K, Unpacked<false, 32, 0, 32>),
        Q5_K => integers!(k::Q5K, Unpacked<false, 16, 0, 32>),
        Q6_K => integers!(k::Q6K, Unpacked<false, 16, 5, 0>),
        IQ4_XS => integers!(small::Iq4Xs, Unpacked<true, 32, 0, 0>),
        // They are decoded to floats first.
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => kernels(F32, vnni),
    }
}

/// Whether this machine has VNNI and what else of AVX-512 goes with it.
pub(crate) fn has_vnni() -> bool {
    crate::lanes_avx2::Avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether to use `vpdpbusd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vnni {
    Absent,
    /// In 256 bits, with the encoding of AVX-512.
    Present,
}

/// `sums [panel][token][8]` += the rows of the panels in `bytes` times the tokens from `first` on, as many as there is room
/// for. Behind `bytes` lies what is to be read next.
///
/// # Safety
/// The machine must have AVX2, FMA and F16C, and VNNI and VL of AVX-512 where they are to be used.
pub(crate) unsafe fn panels(
    vnni: Vnni,
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
    let walk = Walk { shape, kernels: kernels(shape.kind, vnni), x, first, tokens };
    for tile in 0..shape.tiles {
        let at = tile * shape.tile_bytes;
        // The tile behind the last one is the first of the panels that come next.
        let ahead = if tile + 1 < shape.tiles { shape.tile_bytes } else { bytes.len() - at };
        // SAFETY: the machine has the instructions; tile `tile` of every panel begins at `at`.
        unsafe { walk.tile(&bytes[at..], tile, ahead, n_panels, sums) };
    }
}

/// What stays the same over the tiles of some panels.
struct Walk<'a> {
    shape: &'a PackedShape,
    kernels: &'a Kernels,
    x: &'a ActivationView<'a>,
    first: usize,
    tokens: usize,
}

impl Walk<'_> {
    /// # Safety
    /// The machine must have AVX2, FMA and F16C, and tile `tile` of `panels` panels begin at the start of `bytes`.
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
                let mut unpacked = UnpackedTile::uninitialised();
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
            Some(_) => unsafe { self.groups(tile, work, false) },
            // SAFETY: the caller's promise.
            None if is_float => unsafe { self.groups(tile, work, true) },
            None => {
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
    /// The machine must have AVX2, FMA and F16C, and `work` be right but for `x`.
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
    unsafe fn unpacked_groups(&self, many: &Many, unpacked: &UnpackedTile, tile: usize, work: TileWork) {
        let mut first = 0;
        while first < self.tokens {
            let x = self.x.ints(Scaling::of(self.shape.kind), tile, self.first + first).as_ptr().cast();
            // SAFETY: the sums are there.
            let work = TileWork { x, sums: unsafe { work.sums.add(first) }, ..work };
            let whole = TileWork { tile: std::ptr::from_ref(unpacked).cast(), ..work };
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

/// Asks for the cache line `at`, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address does nothing that a program could see; every x86-64 machine has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

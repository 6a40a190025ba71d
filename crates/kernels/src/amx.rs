//! Products of many tokens by AMX: sixteen tokens times sixteen rows of weights, 64 columns deep, in one instruction.
//!
//! A tile product adds up as many columns as there are, but the weights' scales change every 16 or 32 of them. So a scale is
//! multiplied into its codes first. What that gives, `v = scale * code`, fits 16 bits in every type, and is split over two
//! matrices of 8 bits whose products are added up again: its bytes, or, where those are small enough, scale times the lower two
//! bits of the code and scale times the upper ones, which takes less work. That is exact, so the floats that follow are those
//! of every other way:
//!
//! ```text
//! Σ scale Σ code x = Σ v x = 256 Σ (v >> 8) x + Σ (v & 255) x
//!                          =   4 Σ scale (code >> 2) x + Σ scale (code & 3) x
//! ```
//!
//! Types with a float scale for 32 columns take tile products 32 columns deep instead, one for each scale.
//!
//! The weights of four packed panels (32 rows, a quad) and 256 columns are unpacked into the first cache, a plane of 4 KiB or two
//! for each 16 rows, and multiplied by all tokens; by the first sixteen while they are unpacked. The packed order, four columns
//! of a row in a dword and row after row, is the one that the instruction wants of its right-hand side.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use crate::activations::{ActivationView, Scaling, WORDS};
use crate::avx2::prefetch;
use crate::avx2_integers::WideFormat;
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, TILE, lines_of_group};
use crate::quads::{Pair, QuadSums, QuadWork, for_each_tile, of_format};

mod expand;
mod groups;
mod tiles;

use expand::Plane;

/// Tokens of a tile product. Blocks of activations may be read up to this many rows behind the last one, and are not used.
pub(crate) const TOKENS: usize = 16;
/// Rows of weights in one tile product: two panels.
const PAIR_ROWS: usize = 2 * ROWS;

/// Whether this machine has AMX with 8-bit integers, and the system lets us use it; asks for that at the first call.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && permission_is_given())
}

fn has_instructions() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    let leaf = __cpuid_count(7, 0);
    crate::avx2::has_vnni() && leaf.edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Linux hands out the registers (8 KiB a thread) only to processes that ask.
#[cfg(target_os = "linux")]
fn permission_is_given() -> bool {
    const ARCH_PRCTL: usize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let status: isize;
    // SAFETY: a system call without memory arguments; it clobbers rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => status, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    status == 0
}

#[cfg(not(target_os = "linux"))]
fn permission_is_given() -> bool {
    false
}

/// Multiplies a tile of four panels by tokens.
type Kernel = unsafe fn(&QuadWork, &mut Scratch);

/// What a kernel keeps in the first cache.
#[repr(C, align(64))]
struct Scratch {
    /// Of each pair of panels; see [`Planes`](expand::Planes).
    low: [Plane; 2],
    high: [Plane; 2],
    /// Tile products of two blocks of tokens: low and high of two pairs, or those of eight groups.
    products: [TileProduct; 16],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        let plane = [0; PAIR_ROWS * TILE];
        RefCell::new(Scratch { low: [plane; 2], high: [plane; 2], products: [[[0; PAIR_ROWS]; TOKENS]; 16] })
    };
}

/// `[token][row]`.
type TileProduct = [[i32; PAIR_ROWS]; TOKENS];

/// See [`for_each_tile`].
///
/// # Safety
/// [`is_available`] must be true.
pub(crate) unsafe fn panels(
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    tokens: Range<usize>,
    sums: &mut [QuadSums],
) {
    let kernel: Option<Kernel> = of_format!(shape.kind, multiply);
    let kernel = kernel.expect("the caller asked whether VNNI has one, and both have the same");
    // SAFETY: the machine has the instructions, and the system has given its permission.
    unsafe { configure(if Scaling::of(shape.kind) == Scaling::Groups { GROUP } else { 64 }, tokens.len().min(TOKENS)) };
    SCRATCH.with_borrow_mut(|scratch| {
        for_each_tile(shape, bytes, x, (tokens, TOKENS), sums, |work| {
            // SAFETY: tiles, activations and sums are there, and the tile registers are set up for the type.
            unsafe { kernel(work, scratch) };
        });
    });
    // SAFETY: the machine has the instruction.
    unsafe { asm!("tilerelease", options(nostack)) };
}

/// Sets up the tile registers: 0 to 3 (sums), 4 and 5 (activations) have sixteen rows, 6 and 7 (weights) one for every four columns.
///
/// # Safety
/// [`is_available`] must be true.
unsafe fn configure(depth: usize, tokens: usize) {
    let shape = |register: usize| match register {
        4 | 5 => (tokens, depth),
        6 | 7 => (depth / 4, 64),
        _ => (tokens, 64),
    };
    // SAFETY: the caller's promise; at most sixteen rows of 64 bytes.
    unsafe { configure_registers(std::array::from_fn(shape)) };
}

/// Gives each tile register its rows, at most sixteen, and their bytes, at most 64. The registers are zero then.
///
/// # Safety
/// [`is_available`] must be true, and the shapes must be within those limits.
pub(crate) unsafe fn configure_registers(shapes: [(usize, usize); 8]) {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    let mut configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (register, (rows, row_bytes)) in shapes.into_iter().enumerate() {
        (configuration.rows[register], configuration.row_bytes[register]) = (rows as u8, row_bytes as u16);
    }
    // SAFETY: a well-formed configuration; it zeroes the tile registers, whose users set them up before each use.
    unsafe { asm!("ldtilecfg [{at}]", at = in(reg) &raw const configuration, options(nostack, readonly)) };
}

/// A [`Kernel`].
///
/// The tile products of sixteen tokens are followed by their float ends, which wait for them. So the ends of one block are
/// done between the products of the next: the processor looks ahead far enough for that, and not for a whole block.
///
/// # Safety
/// The machine must have AMX; what [`QuadWork`] points to must be there; the tile registers must be set up.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { if F::FLOAT_SCALES { groups::by_groups::<F>(work, scratch) } else { tiles::by_tiles::<F>(work, scratch) } }
}

/// Sixteen tokens, or the last ones.
#[derive(Clone, Copy)]
struct Block {
    x: *const [u32; WORDS],
    sums: *mut QuadSums,
    /// See [`QuadWork`].
    goes_on: __mmask16,
}

impl QuadWork {
    /// Block `index`.
    #[inline(always)]
    unsafe fn block(&self, index: usize) -> Block {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe { Block { x: self.x.add(index * TOKENS), sums: self.sums.add(index * TOKENS), goes_on: self.goes_on } }
    }

    /// The tiles of panels `2 pair` and `2 pair + 1`.
    #[inline(always)]
    unsafe fn pair<F: WideFormat>(&self, pair: usize) -> Pair<F> {
        // SAFETY: as above.
        unsafe { Pair::new(self.tiles[2 * pair], self.tiles[2 * pair + 1], self.cols / GROUP) }
    }

    /// Asks for a part of the next tiles of pair `pair` while group `group` is unpacked.
    #[inline(always)]
    fn prefetch<F: WideFormat>(&self, pair: usize, group: usize) {
        for line in lines_of_group(F::BYTES, group) {
            self.next[2 * pair..2 * pair + 2].iter().for_each(|tile| prefetch(tile.wrapping_add(line * 64)));
        }
    }
}

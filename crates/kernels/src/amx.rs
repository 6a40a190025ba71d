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

use crate::activations::{ActivationView, Scaling, WORDS, section};
use crate::avx2::prefetch;
use crate::avx2_integers::{WideFormat, minimum_pairs};
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::{Pair, QuadSums, QuadWork, for_each_tile, of_format};

mod expand;

use expand::{Plane, Planes, expand};

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
    /// Of each pair of panels; see [`Planes`].
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

/// A step of `group_products`: tile `$sum` = sixteen tokens (tile `$at`) times group `$group` (tile `$plane`). Tile `$before` holds
/// the product of the group before.
macro_rules! group_step {
    (
        $group:tt,
        $sum:literal,
        $at:literal,
        $plane:literal,
        $before:literal,
        ($groups:expr, $x:expr, $codes:expr, $out:expr, $begin:ident, $end:ident)
    ) => {
        $begin!($group);
        if $group < $groups {
            asm!(
                concat!("tilezero ", $sum),
                concat!("tileloadd ", $at, ", [{x} + {x_stride}]"),
                concat!("tileloadd ", $plane, ", [{codes} + {stride}]"),
                concat!("tdpbssd ", $sum, ", ", $at, ", ", $plane),
                x = in(reg) $x.cast::<u8>().add(GROUP * $group),
                codes = in(reg) $codes.as_ptr().add(PAIR_ROWS * GROUP * $group),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                options(nostack, readonly),
            );
        }
        if (1..=$groups).contains(&$group) {
            store_group_product!($before, $out.as_mut_ptr().add($group).sub(1));
        }
        $end!($group);
    };
}

macro_rules! store_group_product {
    ($sum:literal, $to:expr) => {
        asm!(
            concat!("tilestored [{out} + {stride}], ", $sum),
            out = in(reg) $to,
            stride = in(reg) 64usize,
            options(nostack),
        )
    };
}

macro_rules! nothing {
    ($group:tt) => {};
}

/// `$out` = sixteen tokens at `$x` times each of `$groups` groups of 32 columns, at most eight, of a plane of signed codes. `$begin`
/// stands before the product of its group, `$end` behind it, both for all eight. A product is stored behind the next one, when
/// it is done: the processor would wait for it.
macro_rules! group_products {
    ($groups:expr, $x:expr, $codes:expr, $out:expr, $begin:ident, $end:ident) => {
        group_step!(0, "tmm0", "tmm4", "tmm6", "tmm3", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(1, "tmm1", "tmm5", "tmm7", "tmm0", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(2, "tmm2", "tmm4", "tmm6", "tmm1", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(3, "tmm3", "tmm5", "tmm7", "tmm2", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(4, "tmm0", "tmm4", "tmm6", "tmm3", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(5, "tmm1", "tmm5", "tmm7", "tmm0", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(6, "tmm2", "tmm4", "tmm6", "tmm1", ($groups, $x, $codes, $out, $begin, $end));
        group_step!(7, "tmm3", "tmm5", "tmm7", "tmm2", ($groups, $x, $codes, $out, $begin, $end));
        if $groups == TILE / GROUP {
            store_group_product!("tmm3", $out.as_mut_ptr().add(TILE / GROUP - 1));
        }
    };
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
    unsafe { if F::FLOAT_SCALES { by_groups::<F>(work, scratch) } else { by_tiles::<F>(work, scratch) } }
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
        let lines = F::BYTES.div_ceil(64);
        for line in group * lines / 8..(group + 1) * lines / 8 {
            self.next[2 * pair..2 * pair + 2].iter().for_each(|tile| prefetch(tile.wrapping_add(line * 64)));
        }
    }
}

/// Integer scales: low and high products of both pairs, a sum for each over all columns.
#[inline(always)]
unsafe fn by_tiles<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    // SAFETY: the caller's promise, see `multiply`; blocks of weights with integer scales fill a tile.
    unsafe {
        let pairs = [work.pair::<F>(0), work.pair::<F>(1)];
        let ends = [TileEnd::of(&pairs[0]), TileEnd::of(&pairs[1])];
        let Scratch { low, high, products } = scratch;
        let (mut now, mut then) = products.split_at_mut(8);
        let mut block = work.block(0);
        // Weights are unpacked a step before they are multiplied: they have reached the cache then.
        macro_rules! unpack {
            ($step:literal) => {
                for (pair, weights) in pairs.iter().enumerate() {
                    work.prefetch::<F>(pair, 2 * $step);
                    work.prefetch::<F>(pair, 2 * $step + 1);
                    expand::<F, { 2 * $step }, 2>(weights, &mut low[pair], &mut high[pair]);
                }
            };
        }
        unpack!(0);
        unpack!(1);
        add_products::<F>(0, block.x, low, high);
        unpack!(2);
        add_products::<F>(1, block.x, low, high);
        unpack!(3);
        add_products::<F>(2, block.x, low, high);
        add_products::<F>(3, block.x, low, high);
        store_products(now);
        let last = (work.tokens - 1) / TOKENS;
        for index in 1..=last {
            let before = std::mem::replace(&mut block, work.block(index));
            std::mem::swap(&mut now, &mut then);
            // Written out, so that nothing but these instructions stands between the products.
            macro_rules! step {
                ($step:literal: $($token:literal)*) => {
                    add_products::<F>($step, block.x, low, high);
                    $( end_tile::<F>(before, $token, &ends, then); )*
                };
            }
            step!(0: 0 1 2 3);
            step!(1: 4 5 6 7);
            step!(2: 8 9 10 11);
            step!(3: 12 13 14 15);
            store_products(now);
        }
        for token in 0..work.tokens - last * TOKENS {
            end_tile::<F>(block, token, &ends, now);
        }
    }
}

/// Float scales: a product for each group of 32 columns, one pair after the other.
#[inline(always)]
unsafe fn by_groups<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    const GROUPS: usize = TILE / GROUP;
    let groups = work.cols / GROUP;
    let Scratch { low: [codes, _], high: [unused, _], products } = scratch;
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        for pair in 0..2 {
            let weights = work.pair::<F>(pair);
            let (mut now, mut then) = products.split_at_mut(GROUPS);
            let mut block = work.block(0);
            // Weights are unpacked some groups before they are multiplied: they have reached the cache then.
            macro_rules! unpack {
                ($first:literal) => {
                    work.prefetch::<F>(pair, $first);
                    work.prefetch::<F>(pair, $first + 1);
                    if $first + 1 < groups {
                        expand::<F, $first, 2>(&weights, codes, unused);
                    } else if $first < groups {
                        expand::<F, $first, 1>(&weights, codes, unused);
                    }
                };
            }
            macro_rules! unpack_ahead {
                (0) => {
                    unpack!(2)
                };
                (2) => {
                    unpack!(4)
                };
                (4) => {
                    unpack!(6)
                };
                ($group:tt) => {};
            }
            unpack!(0);
            group_products!(groups, block.x, codes, now, unpack_ahead, nothing);
            // In registers, through all blocks.
            let scales = GroupEnd::of(&weights, groups);
            let last = (work.tokens - 1) / TOKENS;
            for index in 1..=last {
                let before = std::mem::replace(&mut block, work.block(index));
                std::mem::swap(&mut now, &mut then);
                macro_rules! end {
                    ($group:literal) => {
                        end_groups::<F>(groups, before, [2 * $group, 2 * $group + 1], pair, &scales, then)
                    };
                }
                group_products!(groups, block.x, codes, now, nothing, end);
            }
            let left = work.tokens - last * TOKENS;
            for token in (0..left).step_by(2) {
                end_groups::<F>(groups, block, [token, (token + 1).min(left - 1)], pair, &scales, now);
            }
        }
    }
}

/// Adds the products of columns `64 step ..+ 64` to tile registers 0 to 3: sixteen tokens times the low and the high plane of
/// both pairs. Step 0 begins at zero. The compiler uses no tile registers, so they keep what they hold between calls.
#[inline(always)]
unsafe fn add_products<F: WideFormat>(step: usize, x: *const [u32; WORDS], low: &[Plane; 2], high: &[Plane; 2]) {
    /// `$high_product` takes the high plane: with or without sign.
    macro_rules! products {
        ($high_product:literal) => {
            asm!(
                "tileloadd tmm4, [{x} + {x_stride}]",
                "tileloadd tmm6, [{low} + {stride}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {stride}]",
                concat!($high_product, " tmm1, tmm4, tmm7"),
                "tileloadd tmm6, [{low} + {stride} + {pair}]",
                "tdpbsud tmm2, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {stride} + {pair}]",
                concat!($high_product, " tmm3, tmm4, tmm7"),
                x = in(reg) x.cast::<u8>().add(64 * step),
                low = in(reg) low.as_ptr().cast::<u8>().add(1024 * step),
                high = in(reg) high.as_ptr().cast::<u8>().add(1024 * step),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                pair = const PAIR_ROWS * TILE,
                options(nostack, readonly),
            )
        };
    }
    // SAFETY: the planes have four tiles, the tokens' blocks four times 64 columns; the tile registers are set up for it.
    unsafe {
        if step == 0 {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        match const { Planes::of::<F>() } {
            Planes::Codes | Planes::Products => asm!(
                "tileloadd tmm4, [{x} + {x_stride}]",
                "tileloadd tmm6, [{low} + {stride}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{low} + {stride} + {pair}]",
                "tdpbsud tmm2, tmm4, tmm7",
                x = in(reg) x.cast::<u8>().add(64 * step),
                low = in(reg) low.as_ptr().cast::<u8>().add(1024 * step),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                pair = const PAIR_ROWS * TILE,
                options(nostack, readonly),
            ),
            Planes::Halves => products!("tdpbsud"),
            Planes::Bytes => products!("tdpbssd"),
        }
    }
}

/// Writes tile registers 0 to 3 to `out` 0 to 3.
#[inline(always)]
unsafe fn store_products(out: &mut [TileProduct]) {
    // SAFETY: there is room for four.
    unsafe {
        asm!(
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 1024], tmm1",
            "tilestored [{out} + {stride} + 2048], tmm2",
            "tilestored [{out} + {stride} + 3072], tmm3",
            out = in(reg) out[..4].as_mut_ptr(),
            stride = in(reg) 64usize,
            options(nostack),
        );
    }
}

/// What the float end of integer scales needs of the weights of a pair.
struct TileEnd {
    d: __m512,
    dmin: __m512,
    minimums: [__m512i; TILE / GROUP],
}

impl TileEnd {
    #[inline(always)]
    unsafe fn of<F: WideFormat>(pair: &Pair<F>) -> TileEnd {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe {
            let (zeros, mut minimums) = (_mm512_setzero_ps(), [_mm512_setzero_si512(); TILE / GROUP]);
            if F::MINIMUM_COLUMNS > 0 {
                for (p, minimums) in minimums.iter_mut().enumerate().take(minimum_pairs::<F>(TILE / GROUP)) {
                    *minimums = pair.minimums(p);
                }
            }
            TileEnd { d: pair.d(0), dmin: if F::MINIMUM_COLUMNS > 0 { pair.dmin(0) } else { zeros }, minimums }
        }
    }
}

/// What the float end of float scales needs of the weights of a pair.
struct GroupEnd {
    d: [__m512; TILE / GROUP],
    dmin: [__m512; TILE / GROUP],
}

impl GroupEnd {
    #[inline(always)]
    unsafe fn of<F: WideFormat>(pair: &Pair<F>, groups: usize) -> GroupEnd {
        // SAFETY: the caller's promise, see `multiply`.
        unsafe {
            let mut end = GroupEnd { d: [_mm512_setzero_ps(); 8], dmin: [_mm512_setzero_ps(); 8] };
            for group in 0..groups {
                end.d[group] = pair.d(group);
                if F::MINIMUM_COLUMNS > 0 {
                    end.dmin[group] = pair.dmin(group);
                }
            }
            end
        }
    }
}

/// The float end of integer scales, for a token and both pairs.
#[inline(always)]
unsafe fn end_tile<F: WideFormat>(block: Block, token: usize, ends: &[TileEnd; 2], products: &[TileProduct]) {
    let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let x = (*block.x.add(token)).as_ptr().cast::<i32>();
        let x_scale = _mm512_set1_ps(x.add(section::SCALE).cast::<f32>().read());
        let mut minimum = [_mm512_setzero_si512(); 2];
        if F::MINIMUM_COLUMNS > 0 {
            for p in 0..minimum_pairs::<F>(TILE / GROUP) {
                let pair_of_sums = _mm512_set1_epi32(x.add(first_word + p).read());
                for (sum, end) in minimum.iter_mut().zip(ends) {
                    *sum = _mm512_dpwssd_epi32(*sum, end.minimums[p], pair_of_sums);
                }
            }
        }
        for (pair, end) in ends.iter().enumerate() {
            let at = block.sums.add(token).cast::<f32>().add(pair * PAIR_ROWS);
            let low = _mm512_load_si512(products[2 * pair][token].as_ptr().cast());
            // Where there is no high plane, this is nothing that was computed, and is not used.
            let high = _mm512_load_si512(products[2 * pair + 1][token].as_ptr().cast());
            let sum = match const { Planes::of::<F>() } {
                Planes::Codes | Planes::Products => low,
                Planes::Halves => _mm512_add_epi32(low, _mm512_slli_epi32::<2>(high)),
                Planes::Bytes => _mm512_add_epi32(low, _mm512_slli_epi32::<8>(high)),
            };
            let d = _mm512_mul_ps(end.d, x_scale);
            let mut y = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(block.goes_on, at));
            if F::MINIMUM_COLUMNS > 0 {
                y = _mm512_fmadd_ps(_mm512_mul_ps(end.dmin, x_scale), _mm512_cvtepi32_ps(minimum[pair]), y);
            }
            _mm512_storeu_ps(at, y);
        }
    }
}

/// The float end of float scales, for a pair and two tokens, which may be the same.
#[inline(always)]
unsafe fn end_groups<F: WideFormat>(
    groups: usize,
    block: Block,
    tokens: [usize; 2],
    pair: usize,
    GroupEnd { d, dmin }: &GroupEnd,
    products: &[TileProduct],
) {
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let at = |t: usize| block.sums.add(tokens[t]).cast::<f32>().add(pair * PAIR_ROWS);
        let mut y = [_mm512_maskz_loadu_ps(block.goes_on, at(0)), _mm512_maskz_loadu_ps(block.goes_on, at(1))];
        // A macro, since a closure is called rather than inlined, and its scales stay in registers only if it is written out.
        macro_rules! add {
            ($($group:expr),*) => { $(
                for (t, y) in y.iter_mut().enumerate() {
                    let x = (*block.x.add(tokens[t])).as_ptr().cast::<f32>();
                    let sum = _mm512_load_si512(products[$group][tokens[t]].as_ptr().cast());
                    let x_scale = _mm512_set1_ps(x.add(section::GROUP_SCALES + $group).read());
                    *y = _mm512_fmadd_ps(_mm512_mul_ps(d[$group], x_scale), _mm512_cvtepi32_ps(sum), *y);
                    if F::MINIMUM_COLUMNS > 0 {
                        let x_sum = _mm512_set1_ps(x.add(section::GROUP_SUMS + $group).read());
                        *y = _mm512_fmadd_ps(dmin[$group], x_sum, *y);
                    }
                }
            )* };
        }
        if groups == TILE / GROUP {
            add!(0, 1, 2, 3, 4, 5, 6, 7);
        } else {
            for group in 0..groups {
                add!(group);
            }
        }
        _mm512_storeu_ps(at(0), y[0]);
        _mm512_storeu_ps(at(1), y[1]);
    }
}

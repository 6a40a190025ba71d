//! Products of many tokens by AMX: sixteen tokens times sixteen rows of weights, 64 columns deep, in one instruction.
//!
//! A tile product adds up as many columns as there are, but the weights' scales change every 16 or 32 of them. So a scale is
//! multiplied into its codes first: `v = scale * code` fits 16 bits in every type, and its two bytes are two matrices, of which
//! the integer result is `256 * high + low`. That is exact, so the floats that follow are those of every other way:
//!
//! ```text
//! Σ scale Σ code x = Σ v x = 256 Σ (v >> 8) x + Σ (v & 255) x
//! ```
//!
//! Types with a float scale for 32 columns take tile products 32 columns deep instead, one for each scale.
//!
//! The weights of four packed panels (32 rows, a quad) and 256 columns are expanded into the first cache, eight planes of 1 KiB
//! for each 16 rows, and multiplied by all tokens. The packed order, four columns of a row in a dword and row after row, is the one
//! that the instruction wants of its right-hand side.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use crate::activations::{ActivationView, Scaling, WORDS, section};
use crate::avx2_integers::{WideFormat, minimum_pairs};
use crate::packed::PackedShape;
use crate::packed_layout::{GROUP, ROWS, TILE};
use crate::quads::{QuadSums, QuadWork, for_each_tile, of_format};

mod expand;

use expand::expand;

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
    crate::avx2::has_vnni() && is_x86_feature_detected!("avx512vbmi") && leaf.edx & TILE_AND_INT8 == TILE_AND_INT8
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
    /// Of each pair of panels, 64 rows (of four columns each) of 16 dwords: codes, or the low bytes of codes times scales.
    low: [[u8; PAIR_ROWS * TILE]; 2],
    /// The high bytes.
    high: [[u8; PAIR_ROWS * TILE]; 2],
    minimums: [[__m512i; TILE / GROUP]; 2],
    d: [[__m512; TILE / GROUP]; 2],
    dmin: [[__m512; TILE / GROUP]; 2],
    /// Tile products of two blocks of tokens, eight each: low and high of two pairs, or those of eight groups.
    products: [TileProduct; 16],
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
    // SAFETY: zeros are a value of every field.
    let mut scratch: Scratch = unsafe { std::mem::zeroed() };
    // SAFETY: the machine has the instructions, and the system has given its permission.
    unsafe { configure(if Scaling::of(shape.kind) == Scaling::Groups { GROUP } else { 64 }) };
    for_each_tile(shape, bytes, x, (tokens, TOKENS), sums, |work| {
        // SAFETY: tiles, activations and sums are there, and the tile registers are set up for the type.
        unsafe { kernel(work, &mut scratch) };
    });
    // SAFETY: the machine has the instruction.
    unsafe { asm!("tilerelease", options(nostack)) };
}

/// Sets up the tile registers: 0 to 3 and 4 (activations) have sixteen rows, 6 and 7 (weights) one for every four columns.
///
/// # Safety
/// [`is_available`] must be true.
unsafe fn configure(depth: usize) {
    let shape = |register: usize| match register {
        4 => (TOKENS, depth),
        6 | 7 => (depth / 4, 64),
        _ => (TOKENS, 64),
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
    unsafe {
        for pair in 0..2 {
            expand::<F>(work, pair, scratch);
        }
        if F::FLOAT_SCALES { by_groups::<F>(work, scratch) } else { by_tiles::<F>(work, scratch) }
    }
}

/// Sixteen tokens, or the last ones.
#[derive(Clone, Copy)]
struct Block {
    x: *const [u32; WORDS],
    tokens: usize,
    sums: *mut QuadSums,
    /// See [`QuadWork`].
    goes_on: __mmask16,
}

impl QuadWork {
    /// Block `index`, if there is one.
    #[inline(always)]
    unsafe fn block(&self, index: usize) -> Option<Block> {
        let first = index * TOKENS;
        // SAFETY: the caller's promise, see `multiply`.
        (first < self.tokens).then(|| unsafe {
            let tokens = (self.tokens - first).min(TOKENS);
            Block { x: self.x.add(first), tokens, sums: self.sums.add(first), goes_on: self.goes_on }
        })
    }
}

/// Integer scales: low and high products of both pairs, a sum for each over all columns.
#[inline(always)]
unsafe fn by_tiles<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    const STEPS: usize = TILE / 64;
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        let ends = [TileEnd::load::<F>(scratch, 0), TileEnd::load::<F>(scratch, 1)];
        let mut before: Option<Block> = None;
        for index in 0..=work.tokens.div_ceil(TOKENS) {
            let block = work.block(index);
            let (now, then) = scratch.products.split_at_mut(8);
            let (now, then) = if index % 2 == 0 { (now, then) } else { (then, now) };
            for step in 0..STEPS {
                if let Some(block) = block {
                    add_products(step, block.x, &scratch.low, &scratch.high);
                }
                if let Some(before) = before {
                    for token in step * TOKENS / STEPS..((step + 1) * TOKENS / STEPS).min(before.tokens) {
                        end_tile::<F>(before, token, &ends, then);
                    }
                }
            }
            if block.is_some() {
                store_products(now);
            }
            before = block;
        }
    }
}

/// Float scales: a product for each group of 32 columns, one pair after the other.
#[inline(always)]
unsafe fn by_groups<F: WideFormat>(work: &QuadWork, scratch: &mut Scratch) {
    const GROUPS: usize = TILE / GROUP;
    // SAFETY: the caller's promise, see `multiply`.
    unsafe {
        for pair in 0..2 {
            // In registers, through all blocks.
            let (d, dmin) = (scratch.d[pair], scratch.dmin[pair]);
            let mut before: Option<Block> = None;
            for index in 0..=work.tokens.div_ceil(TOKENS) {
                let block = work.block(index);
                let (now, then) = scratch.products.split_at_mut(GROUPS);
                let (now, then) = if index % 2 == 0 { (now, then) } else { (then, now) };
                for (group, now) in now[..GROUPS].iter_mut().enumerate() {
                    if let Some(block) = block {
                        group_product(group, block.x, &scratch.low[pair], now);
                    }
                    if let Some(before) = before {
                        let two = group * TOKENS / GROUPS;
                        if two < before.tokens {
                            end_groups::<F>(work.cols / GROUP, before, two, pair, (&d, &dmin), then);
                        }
                    }
                }
                before = block;
            }
        }
    }
}

/// Adds the products of columns `64 step ..+ 64` to tile registers 0 to 3: sixteen tokens times the low and the high plane of
/// both pairs. Step 0 begins at zero. The compiler uses no tile registers, so they keep what they hold between calls.
#[inline(always)]
unsafe fn add_products(
    step: usize,
    x: *const [u32; WORDS],
    low: &[[u8; PAIR_ROWS * TILE]; 2],
    high: &[[u8; PAIR_ROWS * TILE]; 2],
) {
    // SAFETY: the planes have four tiles, the tokens' blocks four times 64 columns; the tile registers are set up for it.
    unsafe {
        if step == 0 {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        asm!(
            "tileloadd tmm4, [{x} + {x_stride}]",
            "tileloadd tmm6, [{low} + {stride}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{high} + {stride}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{low} + {stride} + {pair}]",
            "tdpbsud tmm2, tmm4, tmm6",
            "tileloadd tmm7, [{high} + {stride} + {pair}]",
            "tdpbssd tmm3, tmm4, tmm7",
            x = in(reg) x.cast::<u8>().add(64 * step),
            low = in(reg) low.as_ptr().cast::<u8>().add(1024 * step),
            high = in(reg) high.as_ptr().cast::<u8>().add(1024 * step),
            x_stride = in(reg) WORDS * 4,
            stride = in(reg) 64usize,
            pair = const PAIR_ROWS * TILE,
            options(nostack, readonly),
        );
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

/// `out` = sixteen tokens times group `group` of 32 columns of a plane of signed codes.
#[inline(always)]
unsafe fn group_product(group: usize, x: *const [u32; WORDS], codes: &[u8; PAIR_ROWS * TILE], out: &mut TileProduct) {
    macro_rules! product {
        ($sum:literal, $x:literal, $codes:literal) => {
            asm!(
                concat!("tilezero ", $sum),
                concat!("tileloadd ", $x, ", [{x} + {x_stride}]"),
                concat!("tileloadd ", $codes, ", [{codes} + {stride}]"),
                concat!("tdpbssd ", $sum, ", ", $x, ", ", $codes),
                concat!("tilestored [{out} + {stride}], ", $sum),
                x = in(reg) x.cast::<u8>().add(32 * group),
                codes = in(reg) codes.as_ptr().add(512 * group),
                out = in(reg) out.as_mut_ptr(),
                x_stride = in(reg) WORDS * 4,
                stride = in(reg) 64usize,
                options(nostack),
            )
        };
    }
    // SAFETY: the plane has eight tiles half as deep, the tokens' blocks eight times 32 columns.
    unsafe { product!("tmm0", "tmm4", "tmm6") }
}

/// What the float end of integer scales needs of the weights of a pair.
struct TileEnd {
    d: __m512,
    dmin: __m512,
    minimums: [__m512i; TILE / GROUP],
}

impl TileEnd {
    #[inline(always)]
    unsafe fn load<F: WideFormat>(scratch: &Scratch, pair: usize) -> TileEnd {
        TileEnd { d: scratch.d[pair][0], dmin: scratch.dmin[pair][0], minimums: scratch.minimums[pair] }
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
            let high = _mm512_load_si512(products[2 * pair + 1][token].as_ptr().cast());
            let sum = _mm512_add_epi32(low, _mm512_slli_epi32::<8>(high));
            let d = _mm512_mul_ps(end.d, x_scale);
            let mut y = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(block.goes_on, at));
            if F::MINIMUM_COLUMNS > 0 {
                y = _mm512_fmadd_ps(_mm512_mul_ps(end.dmin, x_scale), _mm512_cvtepi32_ps(minimum[pair]), y);
            }
            _mm512_storeu_ps(at, y);
        }
    }
}

/// The float end of float scales, for a pair and two tokens, of which the second may be none: it is not stored then.
#[inline(always)]
unsafe fn end_groups<F: WideFormat>(
    groups: usize,
    block: Block,
    first: usize,
    pair: usize,
    (d, dmin): (&[__m512; TILE / GROUP], &[__m512; TILE / GROUP]),
    products: &[TileProduct],
) {
    // SAFETY: the caller's promise, see `multiply`; behind the last token's activations lie as many as fill a block.
    unsafe {
        let at = |token: usize| block.sums.add(token).cast::<f32>().add(pair * PAIR_ROWS);
        let second = if first + 1 < block.tokens { first + 1 } else { first };
        let mut y = [first, second].map(|token| _mm512_maskz_loadu_ps(block.goes_on, at(token)));
        // A macro, since a closure is called rather than inlined, and its scales stay in registers only if it is written out.
        macro_rules! add {
            ($($group:expr),*) => { $(
                for (t, y) in y.iter_mut().enumerate() {
                    let x = (*block.x.add(first + t)).as_ptr().cast::<f32>();
                    let sum = _mm512_load_si512(products[$group][first + t].as_ptr().cast());
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
        if second != first {
            _mm512_storeu_ps(at(second), y[1]);
        }
        _mm512_storeu_ps(at(first), y[0]);
    }
}

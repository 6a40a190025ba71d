//! How NEON reads packed tiles of the integer types; what lies where, see `packed_layout.rs`.

use std::arch::aarch64::*;

use crate::blocks::IQ4_LEVELS;
use crate::dense_codes::{Piece, pieces};
use crate::lanes::Vector;
use crate::lanes_neon::Neon;
use crate::neon_integers::{Codes, Floats, Format, Ints, fma};

/// Four bytes of each of eight rows.
#[derive(Clone, Copy)]
struct Bytes([uint8x16_t; 2]);

impl Bytes {
    /// Bytes of section `section` that begins at `start`, dword `dword`.
    #[inline(always)]
    unsafe fn load(tile: *const u8, start: usize, dword: usize) -> Bytes {
        // SAFETY: the caller's promise: the tile has the dword.
        unsafe {
            let at = tile.add(start + 32 * dword);
            Bytes([vld1q_u8(at), vld1q_u8(at.add(16))])
        }
    }

    /// Vector `i` of the dense codes of `BITS` bits of group `group`, in a section that begins at `start`.
    #[inline(always)]
    unsafe fn dense<const BITS: usize>(tile: *const u8, start: usize, group: usize, i: usize) -> Bytes {
        // SAFETY: the caller's promise: the tile has the group.
        let load = |vector: usize| unsafe { Bytes::load(tile, start, BITS * group + vector) };
        let piece = |Piece { vector, mask, right }| load(vector).bits(right, mask >> right);
        let [a, b, c] = pieces::<BITS>(i).map(piece);
        a.with_high(b, 0).with_high(c, 0)
    }

    #[inline(always)]
    fn each(self, f: impl Fn(uint8x16_t) -> uint8x16_t) -> Bytes {
        Bytes(self.0.map(f))
    }

    /// `(byte >> from) & mask`.
    #[inline(always)]
    fn bits(self, from: usize, mask: u8) -> Bytes {
        // SAFETY: every 64-bit ARM processor has NEON.
        self.each(|v| unsafe { vandq_u8(vshlq_u8(v, vdupq_n_s8(-(from as i8))), vdupq_n_u8(mask)) })
    }

    /// `self | high << by`.
    #[inline(always)]
    fn with_high(self, high: Bytes, by: usize) -> Bytes {
        // SAFETY: every 64-bit ARM processor has NEON.
        let half = |i: usize| unsafe { vorrq_u8(self.0[i], vshlq_u8(high.0[i], vdupq_n_s8(by as i8))) };
        Bytes([half(0), half(1)])
    }

    /// Signed codes: the bytes minus `offset`.
    #[inline(always)]
    fn minus(self, offset: u8) -> Codes {
        // SAFETY: every 64-bit ARM processor has NEON.
        self.0.map(|v| unsafe { vreinterpretq_s8_u8(vsubq_u8(v, vdupq_n_u8(offset))) })
    }

    /// The levels that nibbles stand for.
    #[inline(always)]
    fn levels(self) -> Codes {
        // SAFETY: there are sixteen levels, and every 64-bit ARM processor has NEON.
        self.0.map(|v| unsafe { vqtbl1q_s8(vld1q_s8(IQ4_LEVELS.as_ptr()), v) })
    }

    /// Byte `index` of every row, unsigned.
    #[inline(always)]
    fn unsigned(self, index: usize) -> Ints {
        // SAFETY: every 64-bit ARM processor has NEON.
        self.0.map(|v| unsafe {
            let moved = vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-8 * (index as i32)));
            vreinterpretq_s32_u32(vandq_u32(moved, vdupq_n_u32(255)))
        })
    }

    /// Byte `index` of every row, signed.
    #[inline(always)]
    fn signed(self, index: usize) -> Ints {
        // SAFETY: every 64-bit ARM processor has NEON.
        self.0.map(|v| unsafe {
            vshrq_n_s32::<24>(vshlq_s32(vreinterpretq_s32_u8(v), vdupq_n_s32(24 - 8 * index as i32)))
        })
    }
}

/// `n - offset`.
#[inline(always)]
fn minus(n: Ints, offset: i32) -> Ints {
    // SAFETY: every 64-bit ARM processor has NEON.
    n.map(|n| unsafe { vsubq_s32(n, vdupq_n_s32(offset)) })
}

/// Float16 number `index` of every row, of a section that begins at `start`.
#[inline(always)]
unsafe fn halves(tile: *const u8, start: usize, index: usize) -> Floats {
    // SAFETY: the caller's promise: the tile has them.
    unsafe { Neon::load_f16(tile.add(start + 16 * index).cast()).halves() }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: float scales of 32 columns, perhaps minimums, perhaps codes of five bits.
pub(crate) struct SmallBlocks<const OFFSET: u8, const MINIMUM: bool, const FIFTH: bool> {
    tile: *const u8,
    groups: usize,
}

pub(crate) type Q4_0 = SmallBlocks<8, false, false>;
pub(crate) type Q4_1 = SmallBlocks<0, true, false>;
pub(crate) type Q5_0 = SmallBlocks<16, false, true>;
pub(crate) type Q5_1 = SmallBlocks<16, true, true>;

impl<const O: u8, const M: bool, const F: bool> Format for SmallBlocks<O, M, F> {
    const FLOAT_SCALES: bool = true;
    const MINIMUM_COLUMNS: usize = if M { 32 } else { 0 };
    const BYTES: usize = 1152 + if M { 128 } else { 0 } + if F { 256 } else { 0 };

    #[inline(always)]
    unsafe fn new(tile: *const u8, groups: usize) -> Self {
        SmallBlocks { tile, groups }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        let codes = self.groups * if M { 32 } else { 16 };
        // SAFETY: the caller's promise: the tile is there; so everywhere in this file.
        unsafe {
            match F {
                true => Bytes::dense::<5>(self.tile, codes, group, i).minus(O),
                false => Bytes::load(self.tile, codes, group * 4 + i % 4).bits(i / 4 * 4, 15).minus(O),
            }
        }
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.tile, 0, group) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, group: usize) -> Floats {
        // SAFETY: as above.
        let minimum = unsafe { halves(self.tile, 16 * self.groups, group) };
        // Codes of five bits stand for `code - 16`.
        // SAFETY: as above.
        if F { fma(minimum, unsafe { self.d(group) }, 16.0) } else { minimum }
    }
}

/// Q8_0 and, with levels, IQ4_NL: float scales of 32 columns.
pub(crate) struct ScaledBlocks<const LEVELS: bool> {
    tile: *const u8,
    groups: usize,
}

pub(crate) type Q8_0 = ScaledBlocks<false>;
pub(crate) type Iq4Nl = ScaledBlocks<true>;

impl<const LEVELS: bool> Format for ScaledBlocks<LEVELS> {
    const FLOAT_SCALES: bool = true;
    const BYTES: usize = if LEVELS { 1152 } else { 2176 };

    #[inline(always)]
    unsafe fn new(tile: *const u8, groups: usize) -> Self {
        ScaledBlocks { tile, groups }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        let codes = 16 * self.groups;
        // SAFETY: as above.
        unsafe {
            match LEVELS {
                true => Bytes::load(self.tile, codes, group * 4 + i % 4).bits(i / 4 * 4, 15).levels(),
                false => Bytes::load(self.tile, codes, group * 8 + i).minus(0),
            }
        }
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.tile, 0, group) }
    }
}

/// IQ4_XS: levels, and scales of 6 bits minus 32.
pub(crate) struct Iq4Xs(*const u8);

impl Format for Iq4Xs {
    const BYTES: usize = 1088;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Iq4Xs(tile)
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        // SAFETY: as above.
        unsafe { Bytes::load(self.0, 64, group * 4 + i % 4).bits(i / 4 * 4, 15).levels() }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        let group = run / 2;
        // SAFETY: as above.
        unsafe {
            let low = Bytes::load(self.0, 32, 0).bits(group % 2 * 4, 15).unsigned(group / 2);
            let high = vld1q_u16(self.0.add(16).cast());
            let high = vandq_u16(vshlq_u16(high, vdupq_n_s16(-2 * (group as i16))), vdupq_n_u16(3));
            let high = [vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)];
            let scale = |i: usize| vorrq_s32(low[i], vreinterpretq_s32_u32(vshlq_n_u32::<4>(high[i])));
            minus([scale(0), scale(1)], 32)
        }
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.0, 0, 0) }
    }
}

/// Q4_K and, with fifth bits, Q5_K: scales and minimums of 6 bits, four groups in each dword.
pub(crate) struct Q45K<const FIFTH: bool> {
    tile: *const u8,
    scales: [Bytes; 2],
    minimums: [Bytes; 2],
}

pub(crate) type Q4K = Q45K<false>;
pub(crate) type Q5K = Q45K<true>;

impl<const FIFTH: bool> Format for Q45K<FIFTH> {
    const MINIMUM_COLUMNS: usize = 32;
    const BYTES: usize = if FIFTH { 1408 } else { 1152 };

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        // SAFETY: as above.
        let [a, b, c] = std::array::from_fn(|i| unsafe { Bytes::load(tile, 32, i) });
        let scales = [a.bits(0, 63), c.bits(0, 15).with_high(a.bits(6, 3), 4)];
        let minimums = [b.bits(0, 63), c.bits(4, 15).with_high(b.bits(6, 3), 4)];
        Q45K { tile, scales, minimums }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        // SAFETY: as above.
        unsafe {
            match FIFTH {
                true => Bytes::dense::<5>(self.tile, 128, group, i).minus(0),
                false => Bytes::load(self.tile, 128, group / 2 * 8 + i).bits(group % 2 * 4, 15).minus(0),
            }
        }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        self.scales[run / 8].unsigned(run % 8 / 2)
    }
    #[inline(always)]
    unsafe fn minimum(&self, index: usize) -> Ints {
        self.minimums[index / 4].unsigned(index % 4)
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.tile, 0, 0) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.tile, 0, 1).map(|v| vnegq_f32(v)) }
    }
}

pub(crate) struct Q6K(*const u8);

impl Format for Q6K {
    const SCALE_COLUMNS: usize = 16;
    const BYTES: usize = 1680;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Q6K(tile)
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        // SAFETY: as above.
        unsafe { Bytes::dense::<6>(self.0, 128, group, i).minus(32) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        // SAFETY: as above.
        unsafe { Bytes::load(self.0, 0, run / 4) }.signed(run % 4)
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.0, 1664, 0) }
    }
}

pub(crate) struct Q3K {
    tile: *const u8,
    /// Four runs in each dword, plus 32.
    scales: [Bytes; 4],
}

impl Format for Q3K {
    const SCALE_COLUMNS: usize = 16;
    const BYTES: usize = 880;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        // SAFETY: as above.
        let [a, b, top] = std::array::from_fn(|i| unsafe { Bytes::load(tile, 0, i) });
        let low = |i: usize| if i.is_multiple_of(2) { a } else { b }.bits(i / 2 * 4, 15);
        Q3K { tile, scales: std::array::from_fn(|i| low(i).with_high(top.bits(2 * i, 3), 4)) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        // SAFETY: as above.
        unsafe { Bytes::dense::<3>(self.tile, 96, group, i).minus(4) }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        minus(self.scales[run / 4].unsigned(run % 4), 32)
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.tile, 864, 0) }
    }
}

pub(crate) struct Q2K(*const u8);

impl Format for Q2K {
    const SCALE_COLUMNS: usize = 16;
    const MINIMUM_COLUMNS: usize = 16;
    const BYTES: usize = 672;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Q2K(tile)
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, i: usize) -> Codes {
        // SAFETY: as above.
        unsafe { Bytes::load(self.0, 160, group / 4 * 8 + i) }.bits(group % 4 * 2, 3).minus(0)
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        // SAFETY: as above.
        unsafe { Bytes::load(self.0, 32, run / 4) }.bits(0, 15).unsigned(run % 4)
    }
    #[inline(always)]
    unsafe fn minimum(&self, index: usize) -> Ints {
        // SAFETY: as above.
        unsafe { Bytes::load(self.0, 32, index / 4) }.bits(4, 15).unsigned(index % 4)
    }
    #[inline(always)]
    unsafe fn d(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.0, 0, 0) }
    }
    #[inline(always)]
    unsafe fn dmin(&self, _: usize) -> Floats {
        // SAFETY: as above.
        unsafe { halves(self.0, 0, 1).map(|v| vnegq_f32(v)) }
    }
}

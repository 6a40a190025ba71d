//! The one inner loop of all integer types by NEON's dot products.
//!
//! Codes become signed bytes, whatever they are stored as: `code - offset` of every type fits. A dot product adds four
//! products of a row to a sum in 32 bits, and takes the activations from a quarter of a register, so 16 columns of a token
//! are one load. Nothing wraps, and the sums are exact: the floats that follow are those of `portable_tiles.rs`.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::activations::{WORDS, section};
use crate::lanes_neon::prefetch;
use crate::packed_layout::{GROUP, TILE, lines_of_group};
use crate::tile_walk::TileWork;

/// A number for each of eight rows.
pub(crate) type Ints = [int32x4_t; 2];
/// A float for each of eight rows.
pub(crate) type Floats = [float32x4_t; 2];
/// Four signed codes of each of eight rows.
pub(crate) type Codes = [int8x16_t; 2];

/// How the tiles of a type are read. A value is what is read once for a tile.
pub(crate) trait Format: Sized {
    /// Whether a float scale belongs to 32 columns, of weights and of activations; else an integer belongs to
    /// `SCALE_COLUMNS`, and a float to the tile.
    const FLOAT_SCALES: bool = false;
    /// Columns that share an integer scale, 16 or 32.
    const SCALE_COLUMNS: usize = 32;
    /// Columns that share a minimum, 16 or 32; 0 if there are none.
    const MINIMUM_COLUMNS: usize = 0;
    /// Bytes of a whole tile, for the prefetch.
    const BYTES: usize;

    /// Begins to read a tile of `groups` groups of 32 columns.
    ///
    /// # Safety
    /// The tile must be there; so for the others.
    unsafe fn new(tile: *const u8, groups: usize) -> Self;
    /// The codes of columns `4 vector ..+ 4` of a group, `vector < 8`.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn codes(&self, group: usize, vector: usize) -> Codes;
    /// The integer scales of columns `16 run ..+ 16`; not asked of formats with float scales.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn scale(&self, _run: usize) -> Ints {
        unreachable!("scales are floats")
    }
    /// The integer minimums of columns `MINIMUM_COLUMNS index ..+ MINIMUM_COLUMNS`; asked only where there are such.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn minimum(&self, _index: usize) -> Ints {
        unreachable!("there are no integer minimums")
    }
    /// The float scale of the tile, or of group `group`.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn d(&self, group: usize) -> Floats;
    /// The float scale of the minimums of the tile, or the minimum of group `group`; asked only where there are such.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn dmin(&self, _group: usize) -> Floats {
        unreachable!("there are no minimums")
    }
}

/// A [`TileKernel`](crate::tile_walk::TileKernel) for `CALLS` times `T` tokens.
///
/// # Safety
/// See there.
pub(crate) unsafe fn integer_tile<F: Format, const T: usize, const CALLS: usize>(work: &TileWork) {
    for panel in 0..work.panels {
        // SAFETY: the caller's promise: the panel's tile, the activations, and the panel's sums are there.
        unsafe {
            let tile = work.tile.add(panel * work.panel_bytes);
            let groups = work.cols / GROUP;
            let format = F::new(tile, groups);
            for call in 0..CALLS {
                let x = Tokens(work.x.add(call * T * WORDS));
                let sums = work.sums.add(panel * work.sums_stride + call * T).cast::<f32>();
                let ahead = (work.ahead > 0 && call == 0).then(|| tile.wrapping_add(work.ahead));
                add_products::<F, T>(&format, groups, ahead, x, sums);
            }
        }
    }
}

/// The words of a tile of activations of `T` tokens.
#[derive(Clone, Copy)]
struct Tokens<const T: usize>(*const u32);

impl<const T: usize> Tokens<T> {
    /// The codes of words `word..word + 4`, 16 columns.
    #[inline(always)]
    unsafe fn codes(self, word: usize, token: usize) -> int8x16_t {
        // SAFETY: the tile has the words.
        unsafe { vld1q_s8(self.0.add(token * WORDS + word).cast()) }
    }

    /// A scale, or a sum times it.
    #[inline(always)]
    unsafe fn float(self, word: usize, token: usize) -> f32 {
        // SAFETY: the tile has the word.
        unsafe { f32::from_bits(self.0.add(token * WORDS + word).read()) }
    }

    /// Number `index` of a section of numbers of 16 bits.
    #[inline(always)]
    unsafe fn short(self, word: usize, index: usize, token: usize) -> i32 {
        // SAFETY: the tile has the number.
        unsafe { i32::from(self.0.add(token * WORDS + word).cast::<i16>().add(index).read()) }
    }
}

/// `acc +` the dot products of every row's four codes with the activations in quarter `QUARTER` of `x`.
#[inline(always)]
fn dot<const QUARTER: usize>(acc: Ints, codes: Codes, x: int8x16_t) -> Ints {
    let [mut low, mut high] = acc;
    // SAFETY: only the named registers are touched. The caller's machine has the instructions: kernels run under
    // `neon::panels` only, which asks for that.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {low:v}.4s, {a:v}.16b, {x:v}.4b[{quarter}]",
            "sdot {high:v}.4s, {b:v}.16b, {x:v}.4b[{quarter}]",
            low = inout(vreg) low, high = inout(vreg) high,
            a = in(vreg) codes[0], b = in(vreg) codes[1], x = in(vreg) x, quarter = const QUARTER,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// `a + b * c`, rounded once.
#[inline(always)]
pub(crate) fn fma(a: Floats, b: Floats, c: f32) -> Floats {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { [vfmaq_n_f32(a[0], b[0], c), vfmaq_n_f32(a[1], b[1], c)] }
}

/// `y + (d * scale) * sum`.
#[inline(always)]
fn add_scaled(y: Floats, d: Floats, scale: f32, sum: Ints) -> Floats {
    // SAFETY: every 64-bit ARM processor has NEON.
    let half = |i: usize| unsafe { vfmaq_f32(y[i], vmulq_n_f32(d[i], scale), vcvtq_f32_s32(sum[i])) };
    [half(0), half(1)]
}

#[inline(always)]
fn zero() -> Ints {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { [vdupq_n_s32(0); 2] }
}

#[inline(always)]
unsafe fn add_products<F: Format, const T: usize>(
    format: &F,
    groups: usize,
    ahead: Option<*const u8>,
    x: Tokens<T>,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let mut y: [Floats; T] = std::array::from_fn(|t| [vld1q_f32(sums.add(8 * t)), vld1q_f32(sums.add(8 * t + 4))]);
        let mut ints = [zero(); T];
        for group in 0..groups {
            if let Some(ahead) = ahead {
                lines_of_group(F::BYTES, group).for_each(|line| prefetch(ahead.wrapping_add(line * 64)));
            }
            if F::FLOAT_SCALES {
                let products = run::<F, T>(format, group, 0..2, x);
                scale_group::<F, T>(format, group, x, &products, &mut y);
            } else {
                for first in (0..2).step_by(F::SCALE_COLUMNS / 16) {
                    let products = run::<F, T>(format, group, first..first + F::SCALE_COLUMNS / 16, x);
                    let scale = format.scale(2 * group + first);
                    for (sum, products) in ints.iter_mut().zip(products) {
                        *sum = std::array::from_fn(|i| vmlaq_s32(sum[i], products[i], scale[i]));
                    }
                }
            }
        }
        if !F::FLOAT_SCALES {
            finish::<F, T>(format, groups, x, &ints, &mut y);
        }
        for (t, y) in y.iter().enumerate() {
            vst1q_f32(sums.add(8 * t), y[0]);
            vst1q_f32(sums.add(8 * t + 4), y[1]);
        }
    }
}

/// The products of a group's columns `16 quads`.
#[inline(always)]
unsafe fn run<F: Format, const T: usize>(
    format: &F,
    group: usize,
    quads: std::ops::Range<usize>,
    x: Tokens<T>,
) -> [Ints; T] {
    let mut sums = [zero(); T];
    for quad in quads {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe {
            let codes: [Codes; 4] = std::array::from_fn(|i| format.codes(group, 4 * quad + i));
            for (t, sum) in sums.iter_mut().enumerate() {
                let x = x.codes(8 * group + 4 * quad, t);
                *sum = dot::<0>(*sum, codes[0], x);
                *sum = dot::<1>(*sum, codes[1], x);
                *sum = dot::<2>(*sum, codes[2], x);
                *sum = dot::<3>(*sum, codes[3], x);
            }
        }
    }
    sums
}

/// The float end of a group with a scale of its own.
#[inline(always)]
unsafe fn scale_group<F: Format, const T: usize>(
    format: &F,
    group: usize,
    x: Tokens<T>,
    products: &[Ints; T],
    y: &mut [Floats; T],
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let d = format.d(group);
        for (t, y) in y.iter_mut().enumerate() {
            *y = add_scaled(*y, d, x.float(section::GROUP_SCALES + group, t), products[t]);
            if F::MINIMUM_COLUMNS > 0 {
                *y = fma(*y, format.dmin(group), x.float(section::GROUP_SUMS + group, t));
            }
        }
    }
}

/// The float end of a tile with integer scales.
#[inline(always)]
unsafe fn finish<F: Format, const T: usize>(
    format: &F,
    groups: usize,
    x: Tokens<T>,
    ints: &[Ints; T],
    y: &mut [Floats; T],
) {
    let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let mut minimums = [zero(); T];
        for index in 0..minimums_of::<F>(groups) {
            let minimum = format.minimum(index);
            for (t, sum) in minimums.iter_mut().enumerate() {
                let x = x.short(first_word, index, t);
                *sum = [vmlaq_n_s32(sum[0], minimum[0], x), vmlaq_n_s32(sum[1], minimum[1], x)];
            }
        }
        for (t, y) in y.iter_mut().enumerate() {
            let scale = x.float(section::SCALE, t);
            *y = add_scaled(*y, format.d(0), scale, ints[t]);
            if F::MINIMUM_COLUMNS > 0 {
                *y = add_scaled(*y, format.dmin(0), scale, minimums[t]);
            }
        }
    }
}

/// Integer minimums of a row of a tile.
fn minimums_of<F: Format>(groups: usize) -> usize {
    if F::MINIMUM_COLUMNS > 0 && !F::FLOAT_SCALES { groups * GROUP / F::MINIMUM_COLUMNS } else { 0 }
}

/// A tile of eight rows, unpacked into the first cache. What a type does not use is not initialised.
#[repr(C, align(64))]
pub(crate) struct UnpackedTile {
    codes: [MaybeUninit<Codes>; TILE / 4],
    scales: [MaybeUninit<Ints>; TILE / 16],
    minimums: [MaybeUninit<Ints>; TILE / 16],
    d: [MaybeUninit<Floats>; TILE / GROUP],
    dmin: [MaybeUninit<Floats>; TILE / GROUP],
}

/// An [`UnpackKernel`](crate::tile_walk::UnpackKernel).
///
/// # Safety
/// See there.
pub(crate) unsafe fn unpack<F: Format>(
    tile: *const u8,
    cols: usize,
    ahead: usize,
    out: &mut MaybeUninit<UnpackedTile>,
) {
    let groups = cols / GROUP;
    // SAFETY: its parts may be uninitialised themselves; for the rest the caller's promise.
    unsafe {
        let (out, format) = (out.assume_init_mut(), F::new(tile, groups));
        (0..F::BYTES.div_ceil(64)).for_each(|line| prefetch(tile.wrapping_add(ahead + line * 64)));
        for group in 0..groups {
            for vector in 0..8 {
                out.codes[8 * group + vector].write(format.codes(group, vector));
            }
        }
        if !F::FLOAT_SCALES {
            (0..2 * groups).for_each(|run| _ = out.scales[run].write(format.scale(run)));
            (0..minimums_of::<F>(groups)).for_each(|i| _ = out.minimums[i].write(format.minimum(i)));
        }
        for group in 0..if F::FLOAT_SCALES { groups } else { 1 } {
            out.d[group].write(format.d(group));
            if F::MINIMUM_COLUMNS > 0 {
                out.dmin[group].write(format.dmin(group));
            }
        }
    }
}

/// Reads an [`UnpackedTile`] that was made of a tile of format `F`.
pub(crate) struct Unpacked<F>(*const UnpackedTile, PhantomData<F>);

impl<F: Format> Format for Unpacked<F> {
    const FLOAT_SCALES: bool = F::FLOAT_SCALES;
    const SCALE_COLUMNS: usize = F::SCALE_COLUMNS;
    const MINIMUM_COLUMNS: usize = F::MINIMUM_COLUMNS;
    const BYTES: usize = 0;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Unpacked(tile.cast(), PhantomData)
    }
    #[inline(always)]
    unsafe fn codes(&self, group: usize, vector: usize) -> Codes {
        // SAFETY: the caller's promise: `unpack` has written what the type uses; so below.
        unsafe { (&(*self.0).codes)[8 * group + vector].assume_init() }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> Ints {
        // SAFETY: as above.
        unsafe { (&(*self.0).scales)[run].assume_init() }
    }
    #[inline(always)]
    unsafe fn minimum(&self, index: usize) -> Ints {
        // SAFETY: as above.
        unsafe { (&(*self.0).minimums)[index].assume_init() }
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> Floats {
        // SAFETY: as above.
        unsafe { (&(*self.0).d)[group].assume_init() }
    }
    #[inline(always)]
    unsafe fn dmin(&self, group: usize) -> Floats {
        // SAFETY: as above.
        unsafe { (&(*self.0).dmin)[group].assume_init() }
    }
}

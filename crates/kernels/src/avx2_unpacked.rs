//! Tiles unpacked into the first cache: codes of 8 bits, and scales as the inner loop wants them.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::avx2::prefetch;
use crate::avx2_integers::{Format, minimum_pairs};
use crate::packed_layout::{GROUP, TILE, lines_of_group};

/// A tile of eight rows, of any integer type. What a type does not use is not initialised.
#[repr(C, align(64))]
pub(crate) struct UnpackedTile {
    codes: MaybeUninit<[__m256i; TILE / 4]>,
    scales: MaybeUninit<[__m256i; TILE / 16]>,
    minimums: MaybeUninit<[__m256i; TILE / GROUP]>,
    d: MaybeUninit<[__m256; TILE / GROUP]>,
    dmin: MaybeUninit<[__m256; TILE / GROUP]>,
}

/// An [`UnpackKernel`](crate::tile_walk::UnpackKernel).
///
/// # Safety
/// See there.
#[target_feature(enable = "avx2,f16c")]
pub(crate) unsafe fn unpack<F: Format>(
    tile: *const u8,
    cols: usize,
    ahead: usize,
    out: &mut MaybeUninit<UnpackedTile>,
) {
    let groups = cols / GROUP;
    let ahead = tile.wrapping_add(ahead);
    // SAFETY: its parts may be uninitialised themselves.
    let out = unsafe { out.assume_init_mut() };
    // SAFETY: the caller's promise.
    unsafe {
        let format = F::new(tile, groups);
        (0..groups).for_each(|index| group(&format, index, ahead, out));
        if F::FLOAT_SCALES {
            return;
        }
        out.d.as_mut_ptr().cast::<__m256>().write(format.d(0));
        if F::MINIMUM_COLUMNS > 0 {
            for pair in 0..minimum_pairs::<F>(groups) {
                out.minimums.as_mut_ptr().cast::<__m256i>().add(pair).write(format.minimums(pair));
            }
            out.dmin.as_mut_ptr().cast::<__m256>().write(format.dmin(0));
        }
    }
}

/// 32 columns.
#[inline(always)]
unsafe fn group<F: Format>(format: &F, group: usize, ahead: *const u8, out: &mut UnpackedTile) {
    lines_of_group(F::BYTES, group).for_each(|line| prefetch(ahead.wrapping_add(line * 64)));
    // SAFETY: the caller's promise, see `unpack`.
    unsafe {
        let codes = format.group(group);
        let to = out.codes.as_mut_ptr().cast::<__m256i>().add(8 * group);
        for vector in 0..8 {
            to.add(vector).write(format.codes(&codes, vector));
        }
        if F::FLOAT_SCALES {
            out.d.as_mut_ptr().cast::<__m256>().add(group).write(format.d(group));
            if F::MINIMUM_COLUMNS > 0 {
                out.dmin.as_mut_ptr().cast::<__m256>().add(group).write(format.dmin(group));
            }
        } else {
            let to = out.scales.as_mut_ptr().cast::<__m256i>().add(2 * group);
            to.write(format.scale(2 * group));
            to.add(1).write(format.scale(2 * group + 1));
        }
    }
}

/// Reads an [`UnpackedTile`] of types with these constants of [`Format`].
pub(crate) struct Unpacked<
    const SIGNED: bool,
    const SUM_COLUMNS: usize,
    const OFFSET_BITS: i32,
    const MINIMUM_COLUMNS: usize,
    const FLOAT_SCALES: bool = false,
>(*const UnpackedTile);

impl<const S: bool, const C: usize, const O: i32, const M: usize, const F: bool> Format for Unpacked<S, C, O, M, F> {
    const SIGNED: bool = S;
    const FLOAT_SCALES: bool = F;
    const SUM_COLUMNS: usize = C;
    const OFFSET_BITS: i32 = O;
    const MINIMUM_COLUMNS: usize = M;
    const BYTES: usize = 0;
    type Group = *const __m256i;

    #[inline(always)]
    unsafe fn new(tile: *const u8, _: usize) -> Self {
        Unpacked(tile.cast())
    }
    #[inline(always)]
    unsafe fn group(&self, group: usize) -> *const __m256i {
        // SAFETY: the caller's promise: `unpack` has written what the type uses.
        unsafe { (&raw const (*self.0).codes).cast::<__m256i>().add(8 * group) }
    }
    #[inline(always)]
    unsafe fn codes(&self, group: &*const __m256i, vector: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { group.add(vector).read() }
    }
    #[inline(always)]
    unsafe fn scale(&self, run: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).scales).cast::<__m256i>().add(run).read() }
    }
    #[inline(always)]
    unsafe fn minimums(&self, pair: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).minimums).cast::<__m256i>().add(pair).read() }
    }
    #[inline(always)]
    unsafe fn d(&self, group: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).d).cast::<__m256>().add(group).read() }
    }
    #[inline(always)]
    unsafe fn dmin(&self, group: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).dmin).cast::<__m256>().add(group).read() }
    }
}

//! Products by NEON: the kernels of every type, on the layout and the walk that AVX2 has (`tile_walk.rs`).
//!
//! Written for 32 registers: at most four tokens at a time, two registers of eight rows each. Run under qemu only so far
//! (`tools/test_neon`): the bits are tested, the speed is not known.

use std::arch::aarch64::*;

use octet_checkpoint::ElementType;

use crate::activations::ActivationView;
use crate::lanes::Vector;
use crate::lanes_neon::{Neon, prefetch};
use crate::neon_formats as formats;
use crate::neon_integers::{Format, Unpacked, UnpackedTile, integer_tile, unpack};
use crate::packed::PackedShape;
use crate::packed_layout::{ROWS, TILE};
use crate::tile_walk::{self, Kernels, Many, TileWork};

/// Kernels of an integer type.
const fn integers<F: Format>() -> Kernels<UnpackedTile> {
    Kernels {
        few: [
            integer_tile::<F, 1, 1>,
            integer_tile::<F, 2, 1>,
            integer_tile::<F, 3, 1>,
            integer_tile::<F, 4, 1>,
            integer_tile::<F, 4, 2>,
        ],
        many: Some(Many { unpack: unpack::<F>, kernel: integer_tile::<Unpacked<F>, 4, 2> }),
    }
}

/// Kernels of a float type.
const fn floats<F: FloatFormat>() -> Kernels<UnpackedTile> {
    Kernels {
        few: [
            float_tile::<F, 1, 1>,
            float_tile::<F, 2, 1>,
            float_tile::<F, 3, 1>,
            float_tile::<F, 4, 1>,
            float_tile::<F, 4, 2>,
        ],
        many: None,
    }
}

fn kernels(kind: ElementType) -> &'static Kernels<UnpackedTile> {
    use ElementType::*;
    match kind {
        F32 => const { &floats::<Float32>() },
        F16 => const { &floats::<Float16>() },
        BF16 => const { &floats::<Bfloat16>() },
        Q4_0 => const { &integers::<formats::Q4_0>() },
        Q4_1 => const { &integers::<formats::Q4_1>() },
        Q5_0 => const { &integers::<formats::Q5_0>() },
        Q5_1 => const { &integers::<formats::Q5_1>() },
        Q8_0 => const { &integers::<formats::Q8_0>() },
        IQ4_NL => const { &integers::<formats::Iq4Nl>() },
        Q2_K => const { &integers::<formats::Q2K>() },
        Q3_K => const { &integers::<formats::Q3K>() },
        Q4_K => const { &integers::<formats::Q4K>() },
        Q5_K => const { &integers::<formats::Q5K>() },
        Q6_K => const { &integers::<formats::Q6K>() },
        IQ4_XS => const { &integers::<formats::Iq4Xs>() },
        // They are decoded to floats first.
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => kernels(F32),
    }
}

/// The products of some panels; see [`tile_walk::panels`].
///
/// # Safety
/// The machine must have dot products.
pub(crate) unsafe fn panels(
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    // SAFETY: the caller's promise.
    unsafe { tile_walk::panels(kernels(shape.kind), shape, bytes, x, first, sums) }
}

/// A float type as packed tiles hold it, `[column][8 rows]`.
trait FloatFormat {
    /// Bytes of a column.
    const COLUMN_BYTES: usize;

    /// The eight weights of a column.
    ///
    /// # Safety
    /// The column must be there.
    unsafe fn load(column: *const u8) -> Neon;
}

struct Float32;
struct Float16;
struct Bfloat16;

impl FloatFormat for Float32 {
    const COLUMN_BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> Neon {
        // SAFETY: the caller's promise; NEON loads what is not aligned.
        unsafe { Neon::load(column.cast()) }
    }
}

impl FloatFormat for Float16 {
    const COLUMN_BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> Neon {
        // SAFETY: the caller's promise.
        unsafe { Neon::load_f16(column.cast()) }
    }
}

impl FloatFormat for Bfloat16 {
    const COLUMN_BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(column: *const u8) -> Neon {
        // SAFETY: the caller's promise. A bf16 is the upper half of a float.
        unsafe {
            let upper = vld1q_u16(column.cast());
            let floats = [vshll_n_u16::<16>(vget_low_u16(upper)), vshll_high_n_u16::<16>(upper)];
            Neon::of(floats.map(|v| vreinterpretq_f32_u32(v)))
        }
    }
}

/// A [`TileKernel`](crate::tile_walk::TileKernel) for `CALLS` times `T` tokens: one chain of fused multiply-adds for each
/// row and token, column after column.
///
/// # Safety
/// See there.
unsafe fn float_tile<F: FloatFormat, const T: usize, const CALLS: usize>(work: &TileWork) {
    for panel in 0..work.panels {
        // SAFETY: the caller's promise: the panel's tile, the activations, and the panel's sums are there.
        unsafe {
            let tile = work.tile.add(panel * work.panel_bytes);
            for call in 0..CALLS {
                let x = work.x.cast::<f32>().add(call * T * TILE);
                let mut sums = [Neon::splat(0.0); T];
                for column in 0..work.cols {
                    let at = tile.add(column * F::COLUMN_BYTES);
                    if work.ahead > 0 && call == 0 {
                        prefetch(at.wrapping_add(work.ahead));
                    }
                    let w = F::load(at);
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = w.fma(Neon::splat(*x.add(t * TILE + column)), *sum);
                    }
                }
                for (t, sum) in sums.into_iter().enumerate() {
                    let y = work.sums.add(panel * work.sums_stride + call * T + t).cast::<f32>();
                    Neon::load(y).add(sum).store(y);
                }
            }
        }
    }
}

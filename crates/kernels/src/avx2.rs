//! Products by AVX2: eight rows of weights side by side in the 32-bit lanes, four columns in the bytes of a lane.
//!
//! Many tokens times quantized weights are left to `avx2_quads.rs`, and where the machine has VNNI beside, all products of
//! quantized weights to `avx512_integers.rs` and `amx.rs`.

use std::arch::x86_64::*;

use octet_checkpoint::ElementType;

use crate::activations::ActivationView;
use crate::avx2_floats::{self as floats, float_tile};
use crate::avx2_integers::integer_tile;
use crate::packed::PackedShape;
use crate::packed_layout::ROWS;
use crate::tile_walk::{self, Kernels, TOKENS};
use crate::{avx2_k_formats as k, avx2_small_formats as small};

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

fn kernels(kind: ElementType) -> &'static Kernels<()> {
    use ElementType::*;
    macro_rules! integers {
        ($format:ty) => {
            const { &Kernels { few: kernels_of_sizes!(integer_tile, $format), many: None } }
        };
    }
    macro_rules! floats {
        ($format:ty) => {
            const { &Kernels { few: kernels_of_sizes!(float_tile, $format), many: None } }
        };
    }
    match kind {
        F32 => floats!(floats::F32),
        F16 => floats!(floats::F16),
        BF16 => floats!(floats::Bf16),
        Q4_0 => integers!(small::Q4_0),
        Q4_1 => integers!(small::Q4_1),
        Q5_0 => integers!(small::Q5_0),
        Q5_1 => integers!(small::Q5_1),
        Q8_0 => integers!(small::Q8_0),
        IQ4_NL => integers!(small::Iq4Nl),
        Q2_K => integers!(k::Q2K),
        Q3_K => integers!(k::Q3K),
        Q4_K => integers!(k::Q4K),
        Q5_K => integers!(k::Q5K),
        Q6_K => integers!(k::Q6K),
        IQ4_XS => integers!(small::Iq4Xs),
        // They are decoded to floats first.
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => kernels(F32),
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

/// The products of some panels; see [`tile_walk::panels`].
///
/// # Safety
/// The machine must have AVX2, FMA and F16C.
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

/// Asks for the cache line `at`, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address does nothing that a program could see; every x86-64 machine has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// The same, at this place in the order of all loads: the compiler would move requests together, and then the first cache has
/// no room to take note of them all, and what is read next waits (a third of the speed from memory, on Zen 3).
#[inline(always)]
pub(crate) fn prefetch_here(at: *const u8) {
    // SAFETY: as above.
    unsafe { std::arch::asm!("prefetcht0 [{at}]", at = in(reg) at, options(nostack, preserves_flags)) }
}

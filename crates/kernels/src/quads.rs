//! What AVX2 (many tokens), VNNI and AMX share: four panels (32 rows, a quad) at a time times some tokens, tile by tile.
//!
//! With many tokens, the same columns of other quads come next: the tokens' activations are then read from the second cache, and
//! from further away only once for all rows. Fewer stay in the second cache anyway, and panels that are read through one after
//! the other are read faster.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activations::{ActivationView, Scaling, WORDS};
use crate::avx2_integers::WideFormat;
use crate::packed::PackedShape;
use crate::packed_layout::ROWS;

/// Panels that are multiplied at once.
pub(crate) const PANELS: usize = 4;
/// With more tokens than this, the same columns of other quads come next.
const MANY_TOKENS: usize = 32;

/// Of a token.
pub(crate) type QuadSums = [f32; PANELS * ROWS];

/// A tile of four panels times tokens.
pub(crate) struct QuadWork {
    /// The tile of each panel.
    pub(crate) tiles: [*const u8; PANELS],
    pub(crate) cols: usize,
    /// The tiles to prefetch.
    pub(crate) next: [*const u8; PANELS],
    /// Columns of those.
    pub(crate) next_cols: usize,
    /// The tokens' blocks of activations, and behind them as many again as fill the kernel's last ones.
    pub(crate) x: *const [u32; WORDS],
    /// At least one.
    pub(crate) tokens: usize,
    /// `[token]`.
    pub(crate) sums: *mut QuadSums,
    /// All lanes where the sums go on, none where they begin.
    pub(crate) goes_on: __mmask16,
}

/// Calls `each` for all tiles of the panels in `bytes`, so that `sums [quad][token]` become their products with `tokens`: a quad
/// for every four panels, the last of which may lack some. A kernel takes `at_once` tokens, so their activations are padded to a
/// multiple of that. Behind `bytes` lies what is to be read next.
pub(crate) fn for_each_tile(
    shape: &PackedShape,
    bytes: &[u8],
    x: &ActivationView<'_>,
    (tokens, at_once): (Range<usize>, usize),
    sums: &mut [QuadSums],
    mut each: impl FnMut(&QuadWork),
) {
    let n_panels = bytes.len() / shape.panel_bytes;
    let quads = n_panels.div_ceil(PANELS);
    assert!(bytes.len() == n_panels * shape.panel_bytes && sums.len() == quads * tokens.len());
    assert!(tokens.end <= x.rows, "tokens {tokens:?} of {}", x.rows);
    // One that lacks is another one's, and its sums are not used.
    let quad_tile = |quad: usize, tile: usize| -> [*const u8; PANELS] {
        std::array::from_fn(|p| {
            let panel = (quad * PANELS + p).min(n_panels - 1);
            bytes.as_ptr().wrapping_add(panel * shape.panel_bytes + tile * shape.tile_bytes)
        })
    };
    let padded = tokens.len().next_multiple_of(at_once);
    let by_tiles = tokens.len() > MANY_TOKENS;
    for step in 0..quads * shape.tiles {
        let place = |step: usize| match by_tiles {
            true => (step % quads, step / quads),
            false => (step / shape.tiles, step % shape.tiles),
        };
        let (quad, tile) = place(step);
        let (next, next_cols) = if step + 1 < quads * shape.tiles {
            let (quad, tile) = place(step + 1);
            (quad_tile(quad, tile), shape.tile_cols(tile))
        } else {
            (quad_tile(0, 0).map(|panel| panel.wrapping_add(bytes.len())), shape.tile_cols(0))
        };
        each(&QuadWork {
            tiles: quad_tile(quad, tile),
            cols: shape.tile_cols(tile),
            next,
            next_cols,
            x: x.padded_ints(Scaling::of(shape.kind), tile, tokens.start, padded).as_ptr(),
            tokens: tokens.len(),
            sums: sums[quad * tokens.len()..][..tokens.len()].as_mut_ptr(),
            goes_on: if tile == 0 { 0 } else { !0 },
        });
    }
}

/// `$function` for the format of an element type, or `None` where there is none of integers.
macro_rules! of_format {
    ($kind:expr, $function:ident) => {{
        use octet_checkpoint::ElementType::*;

        use crate::{avx2_k_formats as k, avx2_small_formats as small};
        match $kind {
            Q4_0 => Some($function::<small::Q4_0>),
            Q4_1 => Some($function::<small::Q4_1>),
            Q5_0 => Some($function::<small::Q5_0>),
            Q5_1 => Some($function::<small::Q5_1>),
            Q8_0 => Some($function::<small::Q8_0>),
            IQ4_NL => Some($function::<small::Iq4Nl>),
            Q2_K => Some($function::<k::Q2K>),
            Q3_K => Some($function::<k::Q3K>),
            Q4_K => Some($function::<k::Q4K>),
            Q5_K => Some($function::<k::Q5K>),
            Q6_K => Some($function::<k::Q6K>),
            IQ4_XS => Some($function::<small::Iq4Xs>),
            _ => None,
        }
    }};
}
pub(crate) use of_format;

/// The tiles of two panels, side by side in the lanes.
pub(crate) struct Pair<F>(F, F);

// SAFETY of every block in this implementation: the promise of the functions' callers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<F: WideFormat> Pair<F> {
    /// Reads the scales of two tiles of `groups` groups of 32 columns.
    ///
    /// # Safety
    /// The tiles must be there, and the machine must have F, BW and VL of AVX-512; so for the others.
    #[inline(always)]
    pub(crate) unsafe fn new(a: *const u8, b: *const u8, groups: usize) -> Pair<F> {
        unsafe { Pair(F::new(a, groups), F::new(b, groups)) }
    }

    /// Columns `4 vector ..+ 4` of a group.
    ///
    /// # Safety
    /// See `new`.
    #[inline(always)]
    pub(crate) unsafe fn codes(&self, group: usize, vector: usize) -> __m512i {
        unsafe { F::pair_codes([&self.0.group(group), &self.1.group(group)], vector) }
    }

    /// See [`Format::scale`](crate::avx2_integers::Format::scale); so for the others.
    ///
    /// # Safety
    /// See `new`.
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, run: usize) -> __m512i {
        unsafe { side_by_side(self.0.scale(run), self.1.scale(run)) }
    }

    /// # Safety
    /// See `new`.
    #[inline(always)]
    pub(crate) unsafe fn minimums(&self, index: usize) -> __m512i {
        unsafe { side_by_side(self.0.minimums(index), self.1.minimums(index)) }
    }

    /// # Safety
    /// See `new`.
    #[inline(always)]
    pub(crate) unsafe fn d(&self, group: usize) -> __m512 {
        unsafe { floats_side_by_side(self.0.d(group), self.1.d(group)) }
    }

    /// # Safety
    /// See `new`.
    #[inline(always)]
    pub(crate) unsafe fn dmin(&self, group: usize) -> __m512 {
        unsafe { floats_side_by_side(self.0.dmin(group), self.1.dmin(group)) }
    }
}

/// Two halves of a vector.
#[inline(always)]
pub(crate) unsafe fn side_by_side(a: __m256i, b: __m256i) -> __m512i {
    // SAFETY: the caller's machine has AVX-512.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b) }
}

#[inline(always)]
unsafe fn floats_side_by_side(a: __m256, b: __m256) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_castsi512_ps(side_by_side(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
}

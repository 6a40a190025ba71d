//! The one inner loop of all integer types.
//!
//! Legend: `q` codes of weights, `x` codes of activations, `T` tokens, a run is 16 columns (four vectors of codes).
//!
//! Unsigned codes: `maddubs(q, x)` gives sums of two products in 16 bits, which are added up over 16 or 32 columns and only
//! then multiplied by the scale (`madd`, which also adds the two halves of a lane), and floats come once for 256 columns.
//! Codes that stand for `q - offset` need no correction afterwards: the 16-bit sum starts at `-offset Σx`, may wrap on its
//! way, and ends at the true value, which fits (32 * 8 * 127 for Q6_K). Signed codes of 8 bits leave no room for sums in 16
//! bits: there `maddubs(|q|, sign(x, q))` is widened at once (and many tokens are multiplied otherwise, see `avx2_quads`).
//!
//! The innermost steps of several tokens are in `avx2_steps.rs`.

use std::arch::x86_64::*;

use crate::activations::section;
use crate::avx2::prefetch_here;
use crate::avx2_steps::{self as steps, Tokens, each_vector};
use crate::packed_layout::{GROUP, TILE};
use crate::tile_walk::TileWork;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Groups of a whole tile.
const GROUPS: usize = TILE / GROUP;

/// How the tiles of a type are read. A value is what is read once for a tile: its scales.
pub(crate) trait Format: Copy {
    /// Whether codes are signed 8-bit numbers.
    const SIGNED: bool = false;
    /// Whether a float scale belongs to 32 columns, of weights and of activations; else an integer belongs to `SUM_COLUMNS`, and a
    /// float to the tile.
    const FLOAT_SCALES: bool = false;
    /// Columns that are summed in 16 bits, 16 or 32.
    const SUM_COLUMNS: usize;
    /// Columns that share an integer scale, 16 or 32; not fewer than are summed in 16 bits.
    const SCALE_COLUMNS: usize = Self::SUM_COLUMNS;
    /// Whether the sum of a scale's columns always fits a signed number of 16 bits.
    const SMALL_SUMS: bool = false;
    /// An unsigned code stands for `code - 2^OFFSET_BITS`; 0 for the code itself.
    const OFFSET_BITS: i32 = 0;
    /// Columns that share a minimum, 16 or 32; 0 if there are none.
    const MINIMUM_COLUMNS: usize = 0;
    /// Bytes of a whole tile, for the prefetch.
    const BYTES: usize;
    /// How many groups ahead several panels' memory is asked for. Near is better, as measured on Zen 3: where bytes are read in
    /// order, they come from memory to the second cache unasked.
    const AHEAD: usize = GROUPS / 2;

    /// Where the codes of a group of 32 columns lie.
    type Group;

    /// Reads the scales of a tile of `groups` groups of 32 columns.
    ///
    /// # Safety
    /// As for a [`TileKernel`](crate::tile_walk::TileKernel); so for the others.
    unsafe fn new(tile: *const u8, groups: usize) -> Self;
    /// Finds a group's codes.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn group(&self, group: usize) -> Self::Group;
    /// The codes of the group's columns `4 vector ..+ 4`, `vector < 8`, of all rows.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn codes(&self, group: &Self::Group, vector: usize) -> __m256i;
    /// The scale of the sum that run `run` belongs to: an integer, twice in 16 bits.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn scale(&self, run: usize) -> __m256i;
    /// Two neighbouring minimums in 16 bits; asked of formats with minimums only.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn minimums(&self, _pair: usize) -> __m256i {
        unreachable!("MINIMUM_COLUMNS is 0")
    }
    /// The float scale of the tile, or of group `group`.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn d(&self, group: usize) -> __m256;
    /// The float scale of the minimums of the tile, or the minimum of group `group`; asked of formats with minimums only.
    ///
    /// # Safety
    /// See `new`.
    unsafe fn dmin(&self, _group: usize) -> __m256 {
        unreachable!("MINIMUM_COLUMNS is 0")
    }
}

/// How VNNI and AMX read packed tiles: two panels side by side.
pub(crate) trait WideFormat: Format {
    /// Bits of codes and of integer scales, where both are unsigned and stand for themselves.
    const UNSIGNED_BITS: Option<(u32, u32)> = None;

    /// [`codes`](Format::codes) of a group of two tiles.
    ///
    /// # Safety
    /// See [`new`](Format::new), and the machine must have F, BW and VL of AVX-512.
    unsafe fn pair_codes(groups: [&Self::Group; 2], vector: usize) -> __m512i;
}

/// A [`TileKernel`](crate::tile_walk::TileKernel).
///
/// # Safety
/// See there.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn integer_tile<F: Format, const T: usize>(work: &TileWork) {
    // SAFETY: the caller's promise.
    unsafe { tiles::<F, T>(work) }
}

#[inline(always)]
unsafe fn tiles<F: Format, const T: usize>(work: &TileWork) {
    // SAFETY: the caller's promise: the panels' tiles, the activations, and the panels' sums are there.
    unsafe {
        // As measured from memory: a core reads several streams faster than one, even where that makes more sums than there are
        // registers (three and four tokens of Q4_K 1.1 to 1.2 times).
        let mut panel = match (T, F::FLOAT_SCALES) {
            (1, _) | (2, true) => side_by_side::<F, T, 4>(work),
            (2..=4, _) => side_by_side::<F, T, 2>(work),
            _ => 0,
        };
        while panel < work.panels {
            add_products::<F, T, 1>(work, panel);
            panel += 1;
        }
    }
}

/// Takes `P` panels at a time and gives the number of those that it took.
#[inline(always)]
unsafe fn side_by_side<F: Format, const T: usize, const P: usize>(work: &TileWork) -> usize {
    let mut panel = 0;
    while panel + P <= work.panels {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe { add_products::<F, T, P>(work, panel) };
        panel += P;
    }
    panel
}

/// The sums of the tiles of `P` panels so far, for `T` tokens.
struct Sums<const T: usize, const P: usize> {
    /// Of all groups (integer scales) or of this group (float scales).
    ints: [[__m256i; T]; P],
    /// With float scales: the results of this and all tiles before.
    floats: [[__m256; T]; P],
}

/// The products of the tiles of `P` panels, from panel `first` on, with `T` tokens. Side by side they share what is read of the
/// tokens, and a core reads several streams.
#[inline(always)]
unsafe fn add_products<F: Format, const T: usize, const P: usize>(work: &TileWork, first: usize) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let groups = work.cols / GROUP;
        let x = Tokens::<T>(work.x);
        let tile = |panel: usize| work.tile.add((first + panel) * work.panel_bytes);
        let sums = |panel: usize| work.sums.add((first + panel) * work.sums_stride).cast::<f32>();
        // Loops: a closure would be a function of its own, and so would be every instruction in it.
        let mut formats = [F::new(tile(0), groups); P];
        let mut s = Sums { ints: [[_mm256_setzero_si256(); T]; P], floats: [[_mm256_setzero_ps(); T]; P] };
        for (panel, format) in formats.iter_mut().enumerate() {
            *format = F::new(tile(panel), groups);
            for (t, y) in s.floats[panel].iter_mut().enumerate() {
                *y = _mm256_loadu_ps(sums(panel).add(8 * t));
            }
        }
        let mut index = 0;
        while P > 1 && groups == GROUPS && index < groups {
            // Written out: what four groups share is found once, and it is known where in their bytes their codes lie.
            ask::<F, P>(work, first, index + F::AHEAD);
            group::<F, T, P>(&formats, index, x, &mut s);
            ask::<F, P>(work, first, index + F::AHEAD + 1);
            group::<F, T, P>(&formats, index + 1, x, &mut s);
            ask::<F, P>(work, first, index + F::AHEAD + 2);
            group::<F, T, P>(&formats, index + 2, x, &mut s);
            ask::<F, P>(work, first, index + F::AHEAD + 3);
            group::<F, T, P>(&formats, index + 3, x, &mut s);
            index += 4;
        }
        // A short tile is the last of its panel, and asks for a whole one.
        let share = GROUPS.checked_div(groups).unwrap_or(1);
        while index < groups {
            for ahead in index * share..(index + 1) * share {
                ask::<F, P>(work, first, GROUPS + ahead);
            }
            group::<F, T, P>(&formats, index, x, &mut s);
            index += 1;
        }
        for (panel, format) in formats.iter().enumerate() {
            finish::<F, T>(format, groups, x, &s.ints[panel], &s.floats[panel], sums(panel));
        }
    }
}

/// Asks for an eighth of the tiles of `P` panels, in the place of group `group`; from group 8 on, of the tiles that come next.
/// As `lines_of_group`, but by halves: so their number is known where four groups are written out.
#[inline(always)]
fn ask<F: Format, const P: usize>(work: &TileWork, first: usize, group: usize) {
    if work.ahead == 0 {
        return;
    }
    let (tile, group) =
        if group < GROUPS { (work.tile, group) } else { (work.tile.wrapping_add(work.ahead), group - GROUPS) };
    let half = const { F::BYTES.div_ceil(2 * LINE) };
    for line in group % 4 * half / 4..(group % 4 + 1) * half / 4 {
        let at = (group / 4 * half + line) * LINE;
        for panel in first..first + P {
            prefetch_here(tile.wrapping_add(panel * work.panel_bytes + at));
        }
    }
}

/// The products of 32 columns.
#[inline(always)]
unsafe fn group<F: Format, const T: usize, const P: usize>(
    formats: &[F; P],
    group: usize,
    x: Tokens<T>,
    s: &mut Sums<T, P>,
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        if F::SIGNED {
            signed_group::<F, T, P>(formats, group, x, s);
        } else if F::SUM_COLUMNS == 16 {
            let mut short = [[_mm256_setzero_si256(); T]; P];
            short_sums::<F, T, P, 0>(formats, group, x, &mut short);
            add_start::<F, T, P>(section::OFFSET_16 + 2 * group, x, &mut short);
            scale::<F, T, P>(formats, 2 * group, &short, s);
            short_sums::<F, T, P, 4>(formats, group, x, &mut short);
            add_start::<F, T, P>(section::OFFSET_16 + 2 * group + 1, x, &mut short);
            scale::<F, T, P>(formats, 2 * group + 1, &short, s);
        } else {
            let mut short = [[_mm256_setzero_si256(); T]; P];
            short_sums::<F, T, P, 0>(formats, group, x, &mut short);
            add_start::<F, T, P>(section::OFFSET_32 + group, x, &mut short);
            scale::<F, T, P>(formats, 2 * group, &short, s);
        }
        if F::FLOAT_SCALES {
            scale_group::<F, T, P>(formats, group, x, s);
        }
    }
}

/// Where sums in 16 bits start: `-offset Σx`, of which word `minus_sum` holds `-Σx`.
///
/// # Safety
/// The activations must be there, and the machine have AVX2.
#[inline(always)]
pub(crate) unsafe fn start<F: Format, const T: usize>(minus_sum: usize, x: Tokens<T>) -> [__m256i; T] {
    // SAFETY: the caller's promise, see `integer_tile`.
    std::array::from_fn(|t| unsafe {
        match F::OFFSET_BITS {
            0 => _mm256_setzero_si256(),
            bits => _mm256_sll_epi16(x.word(minus_sum, t), _mm_cvtsi32_si128(bits)),
        }
    })
}

/// Adds [`start`] to sums of products.
#[inline(always)]
unsafe fn add_start<F: Format, const T: usize, const P: usize>(
    minus_sum: usize,
    x: Tokens<T>,
    short: &mut [[__m256i; T]; P],
) {
    if F::OFFSET_BITS > 0 {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe {
            let start = start::<F, T>(minus_sum, x);
            for sum in short.iter_mut() {
                for (sum, start) in sum.iter_mut().zip(start) {
                    *sum = _mm256_add_epi16(*sum, start);
                }
            }
        }
    }
}

/// The products of the columns that are summed in 16 bits, from vector `FIRST` of a group on.
#[inline(always)]
unsafe fn short_sums<F: Format, const T: usize, const P: usize, const FIRST: usize>(
    formats: &[F; P],
    group: usize,
    x: Tokens<T>,
    short: &mut [[__m256i; T]; P],
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        if FIRST == 0 {
            each_vector!(V in 0 1 2 3 { add_vector::<F, T, P, V>(formats, group, x, short, V == 0) });
        }
        if FIRST == 4 || F::SUM_COLUMNS == 32 {
            let begins = F::SUM_COLUMNS == 16;
            each_vector!(V in 4 5 6 7 { add_vector::<F, T, P, V>(formats, group, x, short, begins && V == 4) });
        }
    }
}

/// The products of four columns, which are added to the sums or begin them.
#[inline(always)]
unsafe fn add_vector<F: Format, const T: usize, const P: usize, const V: usize>(
    formats: &[F; P],
    group: usize,
    x: Tokens<T>,
    short: &mut [[__m256i; T]; P],
    begins: bool,
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let q = codes(formats, group, V);
        // As measured: with fewer sums the compiler does well, and reads bytes once that two groups share.
        if T > 2 || T == 2 && F::FLOAT_SCALES {
            steps::add_products::<P, T, V>(short, q, x.0.add(8 * group), begins);
            return;
        }
        for (q, short) in q.into_iter().zip(short) {
            for (t, short) in short.iter_mut().enumerate() {
                let products = _mm256_maddubs_epi16(q, x.word(8 * group + V, t));
                *short = if begins { products } else { _mm256_add_epi16(*short, products) };
            }
        }
    }
}

/// The codes of four columns of every panel.
#[inline(always)]
unsafe fn codes<F: Format, const P: usize>(formats: &[F; P], group: usize, vector: usize) -> [__m256i; P] {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); P];
        for (codes, format) in codes.iter_mut().zip(formats) {
            *codes = format.codes(&format.group(group), vector);
        }
        codes
    }
}

#[inline(always)]
unsafe fn scale<F: Format, const T: usize, const P: usize>(
    formats: &[F; P],
    run: usize,
    short: &[[__m256i; T]; P],
    s: &mut Sums<T, P>,
) {
    for panel in 0..P {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe {
            let scale = if F::FLOAT_SCALES { _mm256_set1_epi16(1) } else { formats[panel].scale(run) };
            for (sum, short) in s.ints[panel].iter_mut().zip(&short[panel]) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*short, scale));
            }
        }
    }
}

#[inline(always)]
unsafe fn signed_group<F: Format, const T: usize, const P: usize>(
    formats: &[F; P],
    group: usize,
    x: Tokens<T>,
    s: &mut Sums<T, P>,
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let mut scales = [_mm256_set1_epi16(1); P];
        if !F::FLOAT_SCALES {
            for panel in 0..P {
                scales[panel] = formats[panel].scale(2 * group);
            }
        }
        // As measured: the compiler's loop is faster with fewer sums.
        if T > 2 {
            let x = x.0.add(8 * group);
            each_vector!(V in 0 1 2 3 4 5 6 7 {
                steps::add_signed_products::<P, T, V>(&mut s.ints, codes(formats, group, V), scales, x);
            });
            return;
        }
        for vector in 0..8 {
            for panel in 0..P {
                let q = formats[panel].codes(&formats[panel].group(group), vector);
                let magnitude = _mm256_abs_epi8(q);
                for (t, sum) in s.ints[panel].iter_mut().enumerate() {
                    let signed = _mm256_sign_epi8(x.word(8 * group + vector, t), q);
                    let products = _mm256_maddubs_epi16(magnitude, signed);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, scales[panel]));
                }
            }
        }
    }
}

/// The float end of a group with a scale of its own.
#[inline(always)]
unsafe fn scale_group<F: Format, const T: usize, const P: usize>(
    formats: &[F; P],
    group: usize,
    x: Tokens<T>,
    s: &mut Sums<T, P>,
) {
    for (panel, format) in formats.iter().enumerate() {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe {
            let d = format.d(group);
            for (t, (sum, y)) in s.ints[panel].iter_mut().zip(&mut s.floats[panel]).enumerate() {
                let scale = _mm256_mul_ps(d, x.float(section::GROUP_SCALES + group, t));
                *y = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(*sum), *y);
                *sum = _mm256_setzero_si256();
            }
            if F::MINIMUM_COLUMNS > 0 {
                let minimum = format.dmin(group);
                for (t, y) in s.floats[panel].iter_mut().enumerate() {
                    *y = _mm256_fmadd_ps(minimum, x.float(section::GROUP_SUMS + group, t), *y);
                }
            }
        }
    }
}

/// The float end of a tile.
#[inline(always)]
unsafe fn finish<F: Format, const T: usize>(
    format: &F,
    groups: usize,
    x: Tokens<T>,
    ints: &[__m256i; T],
    floats: &[__m256; T],
    sums: *mut f32,
) {
    // SAFETY: the caller's promise, see `integer_tile`.
    unsafe {
        let minimums = minimum_sums::<F, T>(format, groups, x);
        for (t, minimum) in minimums.into_iter().enumerate() {
            let mut y = floats[t];
            if !F::FLOAT_SCALES {
                let x_scale = x.float(section::SCALE, t);
                y = _mm256_fmadd_ps(_mm256_mul_ps(format.d(0), x_scale), _mm256_cvtepi32_ps(ints[t]), y);
                if F::MINIMUM_COLUMNS > 0 {
                    y = _mm256_fmadd_ps(_mm256_mul_ps(format.dmin(0), x_scale), _mm256_cvtepi32_ps(minimum), y);
                }
            }
            _mm256_storeu_ps(sums.add(8 * t), y);
        }
    }
}

/// Pairs of minimums in a tile of integer scales.
pub(crate) fn minimum_pairs<F: Format>(groups: usize) -> usize {
    if F::MINIMUM_COLUMNS == 16 { TILE / 32 } else { groups.div_ceil(2) }
}

/// `Σ minimum Σx` over the tile.
#[inline(always)]
unsafe fn minimum_sums<F: Format, const T: usize>(format: &F, groups: usize, x: Tokens<T>) -> [__m256i; T] {
    // SAFETY: as below.
    let mut sums = unsafe { [_mm256_setzero_si256(); T] };
    if F::MINIMUM_COLUMNS == 0 || F::FLOAT_SCALES {
        return sums;
    }
    let first_word = if F::MINIMUM_COLUMNS == 16 { section::SUMS_16 } else { section::SUMS_32 };
    for pair in 0..minimum_pairs::<F>(groups) {
        // SAFETY: the caller's promise, see `integer_tile`.
        unsafe {
            let minimums = format.minimums(pair);
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(minimums, x.word(first_word + pair, t)));
            }
        }
    }
    sums
}

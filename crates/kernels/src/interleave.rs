//! Elements of eight rows put in turn: row 0's first, row 1's first, … row 7's first, row 0's second, …
//!
//! A 4 x 8 transpose of 32-bit elements at a time, by four-lane shuffles where the processor has them for certain. Bytes from
//! a file come row after row in short runs, too short for the processor to foresee them: they are asked for ahead.

use crate::packed_layout::ROWS;

/// Eight rows, or the parts of them from some byte on: row `r` begins at byte `r * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    bytes: &'a [u8],
    stride: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(bytes: &'a [u8], stride: usize) -> Rows<'a> {
        Rows { bytes, stride }
    }

    /// Their bytes from `at` on.
    pub(crate) fn from(self, at: usize) -> Rows<'a> {
        Rows { bytes: &self.bytes[at..], stride: self.stride }
    }

    /// The first `len` bytes of a row.
    pub(crate) fn row(self, row: usize, len: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..len]
    }
}

/// Puts 32-bit elements of the rows in turn into `out`, as many as it holds.
pub(crate) fn words(rows: Rows<'_>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        assert!(rows.bytes.len() >= (ROWS - 1) * rows.stride + out.len() / ROWS, "rows are shorter than is asked for");
        // SAFETY: the processor has AVX2, and the last row has the bytes, and so have the others.
        return unsafe { words_avx2(rows, out) };
    }
    by_fours(rows, out, |at, out| four_words(std::array::from_fn(|row| chunk(rows, row, at)), out));
}

/// Sixteen bytes of a row.
fn chunk<'a>(rows: Rows<'a>, row: usize, at: usize) -> &'a [u8; 16] {
    rows.from(at).row(row, 16).try_into().expect("sixteen bytes")
}

/// Puts four elements of every row at a time: `four` those at a byte. Where their number is no multiple of four, the last four
/// are put once more: the elements come where they are already.
#[inline(always)]
fn by_fours(rows: Rows<'_>, out: &mut [u8], four: impl Fn(usize, &mut [u8; 16 * ROWS])) {
    let len = out.len() / ROWS;
    for (at, block) in out.as_chunks_mut().0.iter_mut().enumerate() {
        four(16 * at, block);
    }
    match out.last_chunk_mut() {
        _ if len.is_multiple_of(16) => {}
        Some(block) => four(len - 16, block),
        None => one_by_one::<4>(rows, out),
    }
}

/// Puts elements of `SIZE` bytes in turn.
pub(crate) fn one_by_one<const SIZE: usize>(rows: Rows<'_>, out: &mut [u8]) {
    let len = out.len() / ROWS;
    for row in 0..ROWS {
        let places = out.as_chunks_mut::<SIZE>().0.iter_mut().skip(row).step_by(ROWS);
        places.zip(rows.row(row, len).as_chunks::<SIZE>().0).for_each(|(place, element)| *place = *element);
    }
}

/// Puts `COUNT` 16-bit elements of every row in turn.
pub(crate) fn halves<const COUNT: usize>(rows: Rows<'_>, out: &mut [u8]) {
    let (out, _) = out.as_chunks_mut::<2>();
    let (out, _) = out.as_chunks_mut::<ROWS>();
    let out: &mut [[[u8; 2]; ROWS]; COUNT] = out.try_into().expect("as long as the rows together");
    for row in 0..ROWS {
        for (place, element) in out.iter_mut().zip(rows.row(row, 2 * COUNT).as_chunks().0) {
            place[row] = *element;
        }
    }
}

/// Four elements of every row.
#[cfg(target_arch = "x86_64")]
fn four_words(rows: [&[u8; 16]; ROWS], out: &mut [u8; 16 * ROWS]) {
    use std::arch::x86_64::*;
    // SAFETY: SSE2 is part of x86-64, each load reads the sixteen bytes of a row, and each store writes sixteen of `out`'s.
    unsafe {
        let quads = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
        for half in 0..2 {
            let [a, b, c, d] = [quads[4 * half], quads[4 * half + 1], quads[4 * half + 2], quads[4 * half + 3]];
            let [ab, cd] = [_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d)];
            let [ab_late, cd_late] = [_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d)];
            let columns = [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab_late, cd_late),
                _mm_unpackhi_epi64(ab_late, cd_late),
            ];
            for (place, column) in out.as_chunks_mut::<16>().0[half..].iter_mut().step_by(2).zip(columns) {
                _mm_storeu_si128(place.as_mut_ptr().cast(), column);
            }
        }
    }
}

/// # Safety
/// The rows must have an eighth of `out` each, and the processor AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn words_avx2(rows: Rows<'_>, out: &mut [u8]) {
    // SAFETY: the caller's promise: `by_fours` asks for bytes that the rows have.
    by_fours(rows, out, |at, out| unsafe { four_words_avx2(rows, at, out) });
}

/// The same with both halves at once: row `r` in the low lane, row `r + 4` in the high one.
///
/// # Safety
/// The rows must have sixteen bytes at `at`, and the processor AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn four_words_avx2(rows: Rows<'_>, at: usize, out: &mut [u8; 16 * ROWS]) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise, and each store writes 32 of `out`'s bytes.
    unsafe {
        let first = rows.bytes.as_ptr().add(at);
        let quad = |row: usize| {
            let [low, high] = [row, row + 4].map(|row| _mm_loadu_si128(first.add(row * rows.stride).cast()));
            _mm256_set_m128i(high, low)
        };
        let [a, b, c, d] = [quad(0), quad(1), quad(2), quad(3)];
        let [ab, cd] = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
        let [ab_late, cd_late] = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
        let columns = [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_late, cd_late),
            _mm256_unpackhi_epi64(ab_late, cd_late),
        ];
        for (place, column) in out.as_chunks_mut::<32>().0.iter_mut().zip(columns) {
            _mm256_storeu_si256(place.as_mut_ptr().cast(), column);
        }
    }
}

/// Four elements of every row.
#[cfg(not(target_arch = "x86_64"))]
fn four_words(rows: [&[u8; 16]; ROWS], out: &mut [u8; 16 * ROWS]) {
    for (index, place) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        place.copy_from_slice(&rows[index % ROWS][index / ROWS * 4..][..4]);
    }
}

/// Asks for the cache lines of `bytes`, which will be read soon.
#[inline]
pub(crate) fn soon(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    bytes.chunks(64).for_each(|line| crate::avx2::prefetch(line.as_ptr()));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_give_what_single_copies_give() {
        for count in [0, 1, 3, 4, 5, 7, 16, 35, 48] {
            let data: Vec<u8> = (0..ROWS * count * 4).map(|i| (i * 151 % 256) as u8).collect();
            let rows = Rows::new(&data, count * 4);
            let mut out = [vec![0; data.len()], vec![0; data.len()], vec![0; data.len()]];
            words(rows, &mut out[0]);
            one_by_one::<4>(rows, &mut out[1]);
            by_fours(rows, &mut out[2], |at, out| four_words(std::array::from_fn(|row| chunk(rows, row, at)), out));
            assert_eq!(out[0], out[1], "{count} elements a row");
            assert_eq!(out[2], out[1], "{count} elements a row, by the processor's oldest shuffles");
            for (place, element) in out[0].chunks(4).enumerate() {
                assert_eq!(
                    element,
                    rows.from(place / ROWS * 4).row(place % ROWS, 4),
                    "element {place} of {count} a row"
                );
            }
        }
    }

    #[test]
    fn halves_give_what_single_copies_give() {
        let data: Vec<u8> = (0..ROWS as u8 * 4).collect();
        let mut out = [[0; 32], [0; 32]];
        let rows = Rows::new(&data, 4);
        halves::<2>(rows, &mut out[0]);
        one_by_one::<2>(rows, &mut out[1]);
        assert_eq!(out[0], out[1]);
        halves::<1>(rows, &mut out[0][..16]);
        one_by_one::<2>(rows, &mut out[1][..16]);
        assert_eq!(out[0], out[1]);
    }
}

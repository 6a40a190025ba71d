//! Elements of eight rows put in turn: row 0's first, row 1's first, … row 7's first, row 0's second, …
//!
//! A 4 x 8 transpose of 32-bit elements at a time, by four-lane shuffles where the processor has them for certain. Bytes from
//! a file come row after row in short runs, too short for the processor to foresee them: they are asked for ahead.

use crate::packed_layout::ROWS;

/// Puts the 32-bit elements of `rows`, all of one length, in turn into `out`.
pub(crate) fn words(rows: [&[u8]; ROWS], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { words_avx2(rows, out) };
    }
    by_fours(rows, out, four_words);
}

/// Puts four elements of every row at a time. Where their number is no multiple of four, the last four are put once more: the
/// elements come where they are already.
#[inline(always)]
fn by_fours(rows: [&[u8]; ROWS], out: &mut [u8], four: impl Fn([&[u8; 16]; ROWS], &mut [u8; 16 * ROWS])) {
    let quads = rows.map(|row| row.as_chunks::<16>().0);
    for (at, block) in out.as_chunks_mut::<{ 16 * ROWS }>().0.iter_mut().enumerate() {
        four(quads.map(|quads| &quads[at]), block);
    }
    let is_whole = out.len().is_multiple_of(16 * ROWS);
    match (rows[0].last_chunk::<16>(), out.last_chunk_mut()) {
        (Some(_), Some(block)) if !is_whole => four(rows.map(|row| row.last_chunk().expect("of one length")), block),
        _ if is_whole => {}
        _ => one_by_one::<4>(rows, out),
    }
}

/// Puts elements of `SIZE` bytes in turn.
pub(crate) fn one_by_one<const SIZE: usize>(rows: [&[u8]; ROWS], out: &mut [u8]) {
    for (row, elements) in rows.iter().enumerate() {
        let places = out.as_chunks_mut::<SIZE>().0.iter_mut().skip(row).step_by(ROWS);
        places.zip(elements.as_chunks::<SIZE>().0).for_each(|(place, element)| *place = *element);
    }
}

/// Puts `COUNT` 16-bit elements of every row in turn.
pub(crate) fn halves<const COUNT: usize>(rows: [&[u8]; ROWS], out: &mut [u8]) {
    let (out, _) = out.as_chunks_mut::<2>();
    let (out, _) = out.as_chunks_mut::<ROWS>();
    let out: &mut [[[u8; 2]; ROWS]; COUNT] = out.try_into().expect("as long as the rows together");
    for (row, elements) in rows.iter().enumerate() {
        let elements: &[[u8; 2]; COUNT] = elements.as_chunks().0.try_into().expect("so many elements");
        for (place, element) in out.iter_mut().zip(elements) {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn words_avx2(rows: [&[u8]; ROWS], out: &mut [u8]) {
    by_fours(rows, out, |rows, out| four_words_avx2(rows, out));
}

/// The same with both halves at once: row `r` in the low lane, row `r + 4` in the high one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn four_words_avx2(rows: [&[u8; 16]; ROWS], out: &mut [u8; 16 * ROWS]) {
    use std::arch::x86_64::*;
    // SAFETY: each load reads the sixteen bytes of a row, and each store writes 32 of `out`'s.
    unsafe {
        let quad = |row: usize| {
            let [low, high] = [row, row + 4].map(|row| _mm_loadu_si128(rows[row].as_ptr().cast()));
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
    one_by_one::<4>(rows.map(|row| row.as_slice()), out);
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
            let rows = std::array::from_fn(|row| &data[row * count * 4..][..count * 4]);
            let mut out = [vec![0; data.len()], vec![0; data.len()], vec![0; data.len()]];
            words(rows, &mut out[0]);
            one_by_one::<4>(rows, &mut out[1]);
            by_fours(rows, &mut out[2], four_words);
            assert_eq!(out[0], out[1], "{count} elements a row");
            assert_eq!(out[2], out[1], "{count} elements a row, by the processor's oldest shuffles");
            for (place, element) in out[0].chunks(4).enumerate() {
                assert_eq!(element, &rows[place % ROWS][place / ROWS * 4..][..4], "element {place} of {count} a row");
            }
        }
    }

    #[test]
    fn halves_give_what_single_copies_give() {
        let data: Vec<u8> = (0..ROWS as u8 * 4).collect();
        let mut out = [[0; 32], [0; 32]];
        let rows: [&[u8]; ROWS] = std::array::from_fn(|row| &data[row * 4..][..4]);
        halves::<2>(rows, &mut out[0]);
        one_by_one::<2>(rows, &mut out[1]);
        assert_eq!(out[0], out[1]);
        halves::<1>(rows.map(|row| &row[..2]), &mut out[0][..16]);
        one_by_one::<2>(rows.map(|row| &row[..2]), &mut out[1][..16]);
        assert_eq!(out[0], out[1]);
    }
}

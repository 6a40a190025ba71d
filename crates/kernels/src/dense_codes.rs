//! Codes of 3, 5 and 6 bits in bytes without a gap, so that few steps take them apart.
//!
//! The 32 codes that a row has of a group are eight vectors of four codes, a byte each. They are stored in as many vectors as a
//! code has bits. Most codes stand in one stored byte; those of the last vectors are laid, in pieces, into the bits that the
//! others leave at the top. So five of eight vectors of five-bit codes cost one step (a mask) and the others five or eight,
//! where low and high bits that are kept apart (as GGUF keeps them) cost five for each.
//!
//! ```text
//! bit      7 6 5 4 3 2 1 0        7 6 5 4 3 2 1 0        7 6 5 4 3 2 1 0
//! byte 0   g g f f f a a a        f f f a a a a a        d d a a a a a a
//!      1   h h f f f b b b        f f h b b b b b        d d b b b b b b
//!      2   h g f f f c c c        g g g c c c c c        d d c c c c c c
//!      3                          g g h d d d d d        and so again
//!      4                          h h h e e e e e
//! ```

use crate::packed_layout::{GROUP, ROWS};

/// Vectors of four codes in a group.
const VECTORS: usize = GROUP / 4;

/// Some bits of a code, in a byte of a stored vector: `(byte & mask) >> right` is where they stand in the code.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) vector: usize,
    pub(crate) mask: u8,
    pub(crate) right: usize,
}

const fn piece(vector: usize, mask: u8, right: usize) -> Piece {
    Piece { vector, mask, right }
}

/// No bits.
const NONE: Piece = piece(0, 0, 0);

const fn whole(vector: usize, mask: u8) -> [Piece; 3] {
    [piece(vector, mask, 0), NONE, NONE]
}

const fn raised(vector: usize) -> [Piece; 3] {
    [piece(vector, 0x38, 3), NONE, NONE]
}

const fn spread(first: usize) -> [Piece; 3] {
    [piece(first, 0xc0, 2), piece(first + 1, 0xc0, 4), piece(first + 2, 0xc0, 6)]
}

type Places = [[Piece; 3]; VECTORS];

const THREE: Places = [
    whole(0, 7),
    whole(1, 7),
    whole(2, 7),
    raised(0),
    raised(1),
    raised(2),
    [piece(0, 0xc0, 6), piece(2, 0x40, 4), NONE],
    [piece(1, 0xc0, 6), piece(2, 0x80, 5), NONE],
];

const FIVE: Places = [
    whole(0, 31),
    whole(1, 31),
    whole(2, 31),
    whole(3, 31),
    whole(4, 31),
    [piece(0, 0xe0, 3), piece(1, 0xc0, 6), NONE],
    [piece(2, 0xe0, 3), piece(3, 0xc0, 6), NONE],
    [piece(4, 0xe0, 3), piece(1, 0x20, 4), piece(3, 0x20, 5)],
];

const SIX: Places =
    [whole(0, 63), whole(1, 63), whole(2, 63), spread(0), whole(3, 63), whole(4, 63), whole(5, 63), spread(3)];

/// Where the codes of `BITS` bits of vector `vector` stand: their pieces, of which some may be of no bits.
#[inline(always)]
pub(crate) const fn pieces<const BITS: usize>(vector: usize) -> [Piece; 3] {
    const {
        assert!(
            BITS == 3 || BITS == 5 || BITS == 6,
            "codes of other numbers of bits leave no gaps, or were not needed"
        );
    }
    match BITS {
        3 => THREE[vector],
        5 => FIVE[vector],
        _ => SIX[vector],
    }
}

/// A dword of each of eight rows.
pub(crate) type Dwords = [u32; ROWS];
/// The same as bytes.
pub(crate) type DwordBytes = [u8; 4 * ROWS];

/// Codes of `BITS` bits as they are before: in `WORDS` dwords of every row.
pub(crate) trait Source<const BITS: usize, const WORDS: usize> {
    /// The four codes of every row that are vector `vector` of group `group`. To be inlined always, so that the vector is known.
    fn codes(words: &[DwordBytes; WORDS], group: usize, vector: usize) -> Dwords;
}

/// Puts the codes of groups one after the other into `out`, as `S` reads them from `words`.
pub(crate) fn put_groups<S: Source<BITS, WORDS>, const BITS: usize, const WORDS: usize>(
    words: &[DwordBytes; WORDS],
    out: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { put_groups_avx2::<S, BITS, WORDS>(words, out) };
    }
    put_each::<S, BITS, WORDS>(words, out);
}

/// The same by vectors of eight rows.
///
/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn put_groups_avx2<S: Source<BITS, WORDS>, const BITS: usize, const WORDS: usize>(
    words: &[DwordBytes; WORDS],
    out: &mut [u8],
) {
    put_each::<S, BITS, WORDS>(words, out);
}

#[inline(always)]
fn put_each<S: Source<BITS, WORDS>, const BITS: usize, const WORDS: usize>(
    words: &[DwordBytes; WORDS],
    out: &mut [u8],
) {
    for (group, out) in out.chunks_exact_mut(GROUP * BITS).enumerate() {
        put::<S, BITS, WORDS>(words, group, out);
    }
}

/// Puts the codes of a group into the `GROUP * BITS` bytes of `out`, which become those of the stored vectors.
#[inline(always)]
fn put<S: Source<BITS, WORDS>, const BITS: usize, const WORDS: usize>(
    words: &[DwordBytes; WORDS],
    group: usize,
    out: &mut [u8],
) {
    let mut stored = [[0; ROWS]; BITS];
    // Written out: in a loop it would be found out at run time where codes lie, and a model opens in 1.2 times the time.
    lay::<BITS>(0, S::codes(words, group, 0), &mut stored);
    lay::<BITS>(1, S::codes(words, group, 1), &mut stored);
    lay::<BITS>(2, S::codes(words, group, 2), &mut stored);
    lay::<BITS>(3, S::codes(words, group, 3), &mut stored);
    lay::<BITS>(4, S::codes(words, group, 4), &mut stored);
    lay::<BITS>(5, S::codes(words, group, 5), &mut stored);
    lay::<BITS>(6, S::codes(words, group, 6), &mut stored);
    lay::<BITS>(7, S::codes(words, group, 7), &mut stored);
    for (out, word) in out.as_chunks_mut().0.iter_mut().zip(stored.as_flattened()) {
        *out = word.to_le_bytes();
    }
}

/// Lays the codes of a vector where they are stored.
#[inline(always)]
fn lay<const BITS: usize>(vector: usize, codes: Dwords, stored: &mut [Dwords; BITS]) {
    for Piece { vector, mask, right } in pieces::<BITS>(vector) {
        // What is shifted over a byte's end does not come where the next one's mask is.
        let mask = u32::from_le_bytes([mask; 4]);
        for (place, codes) in stored[vector].iter_mut().zip(codes) {
            *place |= codes << right & mask;
        }
    }
}

/// The code of column `column` of a group, of which `byte(vector, i)` is byte `i` of stored vector `vector`.
pub(crate) fn code<const BITS: usize>(column: usize, byte: impl Fn(usize, usize) -> u8) -> u8 {
    let bits = |p: Piece| (byte(p.vector, column % 4) & p.mask) >> p.right;
    pieces::<BITS>(column / 4).into_iter().map(bits).fold(0, |code, bits| code | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made;

    fn code_of<const BITS: usize>(row: usize, column: usize) -> u8 {
        ((row * 131 + column * 37 + row * column) % (1 << BITS)) as u8
    }

    impl<const BITS: usize> Source<BITS, 0> for Made {
        fn codes(_: &[DwordBytes; 0], _: usize, vector: usize) -> Dwords {
            std::array::from_fn(|row| u32::from_le_bytes(std::array::from_fn(|i| code_of::<BITS>(row, 4 * vector + i))))
        }
    }

    fn codes_come_back<const BITS: usize>() {
        let mut out = vec![0xff; GROUP * BITS];
        put_groups::<Made, BITS, 0>(&[], &mut out);
        let mut plain = vec![0xff; GROUP * BITS];
        put_each::<Made, BITS, 0>(&[], &mut plain);
        assert_eq!(out, plain, "with the processor's vectors and without");
        for row in 0..ROWS {
            for column in 0..GROUP {
                let code = code::<BITS>(column, |vector, i| out[(vector * ROWS + row) * 4 + i]);
                assert_eq!(code, code_of::<BITS>(row, column), "row {row}, column {column}, {BITS} bits");
            }
        }
    }

    #[test]
    fn what_is_put_is_found() {
        codes_come_back::<3>();
        codes_come_back::<5>();
        codes_come_back::<6>();
    }

    /// Every bit of the stored bytes has one owner, so that no memory is lost and no code disturbs another.
    #[test]
    fn every_bit_is_one_codes() {
        fn check<const BITS: usize>() {
            let mut owners = [[0; 8]; BITS];
            for piece in (0..VECTORS).flat_map(pieces::<BITS>) {
                (0..8).for_each(|bit| owners[piece.vector][bit] += piece.mask >> bit & 1);
            }
            assert_eq!(owners, [[1; 8]; BITS], "{BITS} bits");
        }
        check::<3>();
        check::<5>();
        check::<6>();
    }
}

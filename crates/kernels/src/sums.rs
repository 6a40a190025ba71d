//! Products as kernels leave them, and the way to where they belong.

use std::ops::Range;

use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};

/// Products of some rows of a matrix with some tokens.
pub(crate) struct Sums<'a> {
    pub(crate) first_row: usize,
    /// At most `width`.
    pub(crate) rows: usize,
    pub(crate) tokens: Range<usize>,
    pub(crate) width: usize,
    /// `[token][width]`.
    pub(crate) values: &'a [f32],
}

/// Where products of a token go.
pub(crate) struct Place<'a> {
    /// One for each row.
    pub(crate) y: &'a mut [f32],
    pub(crate) weight: f32,
    /// Whether they are written, `y = weight · products`, or added, `y += weight · products`.
    pub(crate) begins: bool,
}

impl Sums<'_> {
    /// Puts every token's products where `place` says.
    pub(crate) fn put<'y>(&self, instructions: Instructions, place: impl FnMut(usize) -> Place<'y>) {
        instructions.run(Put { sums: self, place });
    }

    /// Puts every token's products to `place`, as they are.
    pub(crate) fn copy<'y>(&self, instructions: Instructions, mut place: impl FnMut(usize) -> &'y mut [f32]) {
        self.put(instructions, |token| Place { y: place(token), weight: 1.0, begins: true });
    }
}

struct Put<'a, P> {
    sums: &'a Sums<'a>,
    place: P,
}

impl<'y, P: FnMut(usize) -> Place<'y>> Kernel for Put<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(mut self) {
        let Sums { rows, width, values, .. } = *self.sums;
        for (token, sums) in self.sums.tokens.clone().zip(values.chunks_exact(width)) {
            let Place { y, weight, begins } = (self.place)(token);
            let (weight, sums) = (V::splat(weight), &sums[..rows]);
            assert_eq!(y.len(), rows, "a place for each row");
            match begins {
                true => y.chunks_mut(LANES).zip(sums.chunks(LANES)).for_each(|(y, sums)| {
                    store_some(weight.mul(load_some(sums, 0.0)), y);
                }),
                false => y.chunks_mut(LANES).zip(sums.chunks(LANES)).for_each(|(y, sums)| {
                    store_some(weight.fma(load_some(sums, 0.0), load_some(y, 0.0)), y);
                }),
            }
        }
    }
}

//! How rows of matrices are handed out to threads: large portions first and small ones at the end, so that no thread waits long
//! for the last.

use std::ops::Range;

use crate::matmul::STREAMS;
use crate::packed_layout::ROWS;

/// Panels of a unit: those that a kernel takes at once.
pub(crate) const UNIT: usize = STREAMS;
/// Units of the largest portion, 256 rows: a preempted thread holds up little, and streams are long enough.
const MOST: usize = 256 / (UNIT * ROWS);

/// Units in portions, each of which is half of a thread's share of what is left, within limits (guided self-scheduling,
/// Polychronopoulos and Kuck 1987).
#[derive(Clone, Copy)]
pub(crate) struct Portions {
    units: usize,
    /// A portion is one `of`-th of what is left.
    of: usize,
    /// Portions of the largest size; smaller ones follow.
    largest: usize,
    count: usize,
}

impl Portions {
    pub(crate) fn new(units: usize, threads: usize) -> Portions {
        let of = 2 * threads;
        let largest = units.saturating_sub(of * (MOST - 1)).div_ceil(MOST);
        let portions = Portions { units, of, largest, count: 0 };
        Portions { count: largest + portions.smaller().count(), ..portions }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The units of portion `index`.
    pub(crate) fn units(&self, index: usize) -> Range<usize> {
        match index.checked_sub(self.largest) {
            None => index * MOST..(index + 1) * MOST,
            Some(smaller) => self.smaller().nth(smaller).expect("there are so many portions"),
        }
    }

    /// The portions behind the largest.
    fn smaller(&self) -> impl Iterator<Item = Range<usize>> {
        let Portions { units, of, largest, .. } = *self;
        let mut start = largest * MOST;
        std::iter::from_fn(move || {
            let taken = units.saturating_sub(start).div_ceil(of).min(MOST);
            start += taken;
            (taken > 0).then(|| start - taken..start)
        })
    }
}

/// The panels in `units`, of `panels` in all.
pub(crate) fn panels_of(units: Range<usize>, panels: usize) -> Range<usize> {
    units.start * UNIT..(units.end * UNIT).min(panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_cover_all_units_and_shrink() {
        for threads in [1, 2, 3, 16] {
            for units in (0..300).chain([1000, 4001]) {
                let portions = Portions::new(units, threads);
                let all: Vec<_> = (0..portions.count()).map(|i| portions.units(i)).collect();
                let end = all.iter().fold(0, |end, portion| {
                    assert!(portion.start == end && !portion.is_empty(), "{portion:?} of {units} for {threads}");
                    portion.end
                });
                assert_eq!(end, units);
                assert!(all.is_sorted_by_key(|portion| std::cmp::Reverse(portion.len())), "{all:?}");
                assert!(all.first().is_none_or(|first| first.len() <= MOST));
                assert!(all.last().is_none_or(|last| last.len() == 1), "{all:?}");
            }
        }
    }
}

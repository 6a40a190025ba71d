//! How many rows, and how many groups or strips, a step takes: as many as the registers can hold sums for. Each of these
//! numbers is compiled by itself.

use crate::lanes::{Wide, WideKernel};

/// Numbers of rows that there are steps for.
const ROWS: [usize; 8] = [16, 12, 8, 6, 4, 3, 2, 1];

/// Rows of the next step, of `rows` that are left, with room for `room` sums.
#[inline(always)]
pub(crate) fn rows_of_step(rows: usize, room: usize) -> usize {
    ROWS.into_iter().find(|&n| n <= rows.min(room)).unwrap_or(1)
}

/// What a step does, for any number of rows.
pub(crate) trait Step {
    /// Computes `R` rows; to be `#[inline(always)]`.
    /// # Safety
    /// All that the step points to must be there, for `R` rows.
    unsafe fn run<W: Wide, const R: usize>(&self);
}

/// A step of `R` rows.
struct Rows<'a, S, const R: usize>(&'a S);

impl<S: Step, const R: usize> WideKernel for Rows<'_, S, R> {
    #[inline(always)]
    fn run<W: Wide>(self) {
        // SAFETY: `take` has the caller's promise.
        unsafe { self.0.run::<W, R>() }
    }
}

/// Runs a step for `rows` rows, one of [`ROWS`].
/// # Safety
/// As of [`Step::run`].
pub(crate) unsafe fn take<W: Wide, S: Step>(rows: usize, step: &S) {
    match rows {
        1 => W::apart(Rows::<S, 1>(step)),
        2 => W::apart(Rows::<S, 2>(step)),
        3 => W::apart(Rows::<S, 3>(step)),
        4 => W::apart(Rows::<S, 4>(step)),
        6 => W::apart(Rows::<S, 6>(step)),
        8 => W::apart(Rows::<S, 8>(step)),
        12 => W::apart(Rows::<S, 12>(step)),
        16 => W::apart(Rows::<S, 16>(step)),
        rows => unreachable!("no step has {rows} rows"),
    }
}

/// Calls `$step::<…, R, G>($argument, at)` for all numbers `at` of a range, `G` of them at a time, as many as there is
/// room for sums of `R` rows.
macro_rules! side_by_side {
    ($room:expr, $range:expr, $step:ident::<$($W:ty),*; $R:ident>($argument:expr)) => {
        let (mut at, end) = ($range.start, $range.end);
        while const { 4 * $R <= $room } && at + 4 <= end {
            $step::<$($W),*, $R, 4>($argument, at);
            at += 4;
        }
        while const { 2 * $R <= $room } && at + 2 <= end {
            $step::<$($W),*, $R, 2>($argument, at);
            at += 2;
        }
        while const { $R <= $room } && at < end {
            $step::<$($W),*, $R, 1>($argument, at);
            at += 1;
        }
    };
}
pub(crate) use side_by_side;

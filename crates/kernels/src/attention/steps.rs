//! How many rows, and how many groups or strips, a step takes: as many as the registers can hold sums for. Each of these
//! numbers is compiled by itself.

/// Numbers of rows that there are steps for.
const ROWS: [usize; 8] = [16, 12, 8, 6, 4, 3, 2, 1];

/// Rows of the next step, of `rows` that are left, with room for `room` sums.
#[inline(always)]
pub(crate) fn rows_of_step(rows: usize, room: usize) -> usize {
    ROWS.into_iter().find(|&n| n <= rows.min(room)).unwrap_or(1)
}

/// Calls `$step::<…, R>($argument)` for `R` rows, one of [`ROWS`].
macro_rules! with_rows {
    ($rows:expr, $step:ident::<$($W:ty),*>($argument:expr)) => {
        match $rows {
            1 => $step::<$($W),*, 1>($argument),
            2 => $step::<$($W),*, 2>($argument),
            3 => $step::<$($W),*, 3>($argument),
            4 => $step::<$($W),*, 4>($argument),
            6 => $step::<$($W),*, 6>($argument),
            8 => $step::<$($W),*, 8>($argument),
            12 => $step::<$($W),*, 12>($argument),
            16 => $step::<$($W),*, 16>($argument),
            rows => unreachable!("no step has {rows} rows"),
        }
    };
}
pub(crate) use with_rows;

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

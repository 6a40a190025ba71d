//! Today's date for templates that print it, in the notation of C's `strftime`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The present time in UTC, written as `format` says. Unknown directives stay as they are.
pub(crate) fn now(format: &str) -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, since_epoch.as_secs())
}

/// The time `seconds` after the start of 1970, in UTC.
fn strftime(format: &str, seconds: u64) -> String {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(character) = chars.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = chars.next().unwrap_or('%');
        let pads = directive != '-';
        if !pads {
            directive = chars.next().unwrap_or('-');
        }
        write_directive(directive, Padding::of(pads), &Moment::at(seconds), &mut text);
    }
    text
}

/// Whether numbers get leading zeros; `%-d` asks for none.
#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    None,
}

impl Padding {
    fn of(pads: bool) -> Self {
        if pads { Padding::Zeros } else { Padding::None }
    }
}

fn write_directive(directive: char, padding: Padding, moment: &Moment, text: &mut String) {
    let mut number = |value: u64, width: usize| {
        let width = if padding == Padding::Zeros { width } else { 1 };
        write!(text, "{value:0width$}").expect("a String takes all text");
    };
    match directive {
        'Y' => number(moment.year, 4),
        'y' => number(moment.year % 100, 2),
        'm' => number(moment.month, 2),
        'd' => number(moment.day, 2),
        'j' => number(moment.day_of_year, 3),
        'H' => number(moment.second_of_day / 3600, 2),
        'I' => number((moment.second_of_day / 3600 + 11) % 12 + 1, 2),
        'M' => number(moment.second_of_day / 60 % 60, 2),
        'S' => number(moment.second_of_day % 60, 2),
        'p' => text.push_str(if moment.second_of_day < 43200 { "AM" } else { "PM" }),
        'A' => text.push_str(DAYS[moment.weekday]),
        'a' => text.push_str(&DAYS[moment.weekday][..3]),
        'B' => text.push_str(MONTHS[moment.month as usize - 1]),
        'b' => text.push_str(&MONTHS[moment.month as usize - 1][..3]),
        '%' => text.push('%'),
        other => text.extend(['%', other]),
    }
}

/// A point in time as calendars tell it.
struct Moment {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// 0 is Monday.
    weekday: usize,
    second_of_day: u64,
}

impl Moment {
    fn at(seconds: u64) -> Self {
        let days_since_epoch = seconds / 86400;
        let (mut year, mut day) = (1970, days_since_epoch);
        // 400 years have 146097 days, so a clock that is far ahead costs no more than 400 steps.
        year += 400 * (day / 146_097);
        day %= 146_097;
        while day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        let day_of_year = day + 1;
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        // 1 January 1970 was a Thursday.
        let weekday = ((days_since_epoch + 3) % 7) as usize;
        Self { year, month, day: day + 1, day_of_year, weekday, second_of_day: seconds % 86400 }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_writes_it() {
        // datetime.datetime.fromtimestamp(t, datetime.timezone.utc).strftime(f) of Python 3.11.
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (1_709_164_799, "%d %b %Y, %I:%M %p", "28 Feb 2024, 11:59 PM"),
            (1_709_164_800, "%-d %B %y %a %%", "29 February 24 Thu %"),
            (4_102_444_799, "%Y-%m-%d %j", "2099-12-31 365"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(format, seconds), expected);
        }
    }
}

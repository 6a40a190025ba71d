//! Numbers as people read them: three significant digits, with their unit.

use std::time::Duration;

/// Bytes in binary units: `3.46 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{} {}", three_digits(value), UNITS[unit]) }
}

/// A time: `1.24 s`, `87.0 ms`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 1.0 { format!("{} s", three_digits(seconds)) } else { format!("{} ms", three_digits(seconds * 1e3)) }
}

/// A rate: `87.8 tok/s`.
pub fn rate(tokens_per_second: f64) -> String {
    format!("{} tok/s", three_digits(tokens_per_second))
}

/// A whole number in groups of three: `46,702,792,704`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let groups = [&digits[..first]]
        .into_iter()
        .chain(digits.as_bytes()[first..].chunks(3).map(|group| std::str::from_utf8(group).expect("digits are ASCII")));
    groups.filter(|group| !group.is_empty()).collect::<Vec<_>>().join(",")
}

/// Three significant digits, never in exponents: `0.0123`, `1.23`, `12.3`, `123`, `1234`.
pub fn three_digits(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (2 - magnitude).clamp(0, 12) as usize;
    format!("{value:.decimals$}")
}

/// Bytes as hexadecimal digits, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_significant_digits() {
        let cases =
            [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.0, "1234"), (0.0, "0")];
        for (value, text) in cases {
            assert_eq!(three_digits(value), text);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(46_702_792_704), "46,702,792,704");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(3_715_000_000), "3.46 GiB");
        assert_eq!(duration(Duration::from_millis(1240)), "1.24 s");
        assert_eq!(rate(87.84), "87.8 tok/s");
    }
}

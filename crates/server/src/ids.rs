//! Names for requests, answers and calls that nobody can guess or repeat.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// 64 bits that differ at every call: a counter through a hash whose key the system draws.
pub fn bits() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(COUNTER.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}

/// So many letters and digits.
pub fn short(n: usize) -> String {
    let mut rest = 0;
    let letter = |index: usize| {
        if index.is_multiple_of(8) {
            rest = bits();
        }
        let letter = LETTERS[(rest % 62) as usize];
        rest /= 62;
        letter as char
    };
    (0..n).map(letter).collect()
}

/// `prefix` and 24 letters and digits.
pub fn long(prefix: &str) -> String {
    format!("{prefix}{}", short(24))
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// A time as `2026-11-26T02:10:00Z`.
pub fn rfc3339(unix_s: u64) -> String {
    let (days, second) = ((unix_s / 86_400) as i64, unix_s % 86_400);
    // Days from civil, turned around: years of 365.2425 days that begin in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_standard_says() {
        // date -u -d @SECONDS +%FT%TZ
        for (seconds, text) in [(0, "1970-01-01T00:00:00Z"), (1_709_210_096, "2024-02-29T12:34:56Z")] {
            assert_eq!(rfc3339(seconds), text);
        }
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn ids_have_their_length_and_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| short(9)).collect();
        assert!(ids.len() == 1000 && ids.iter().all(|id| id.len() == 9));
    }
}

//! How much of the server one key may use: requests and tokens a minute, and answers at the same time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::refusal::Refusal;

/// What a key may use; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests at the same time.
    pub concurrent: Option<u32>,
}

/// What a key has used.
#[derive(Debug)]
pub struct Meter {
    allowance: Allowance,
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
    running: AtomicU32,
    /// Since the key was read.
    used_requests: AtomicU64,
    used_tokens: AtomicU64,
}

/// A bucket that fills up in a minute. Tokens are counted after an answer, so it may be overdrawn.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(capacity: Option<u32>) -> Mutex<Bucket> {
        let capacity = capacity.map_or(f64::INFINITY, f64::from);
        Mutex::new(Bucket { capacity, level: capacity, filled: Instant::now() })
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * self.capacity / 60.0;
        self.level = (self.level + gained).min(self.capacity);
        self.filled = now;
    }

    /// Seconds until the level is at least `wanted`.
    fn wait_s(&self, wanted: f64) -> f64 {
        if self.level >= wanted { 0.0 } else { (wanted - self.level) * 60.0 / self.capacity }
    }
}

/// Where a key stands, for `x-ratelimit-*`.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Of a minute.
    pub limit: u32,
    /// Left now.
    pub remaining: u32,
    /// Seconds until nothing is used.
    pub reset_s: f64,
}

impl Meter {
    /// Nothing used yet.
    pub fn new(allowance: Allowance) -> Meter {
        let (requests, tokens) = (Bucket::new(allowance.requests_per_minute), Bucket::new(allowance.tokens_per_minute));
        Meter {
            allowance,
            requests,
            tokens,
            running: AtomicU32::new(0),
            used_requests: AtomicU64::new(0),
            used_tokens: AtomicU64::new(0),
        }
    }

    /// What may be used.
    pub fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Counts a request, if the allowance has room for it.
    ///
    /// # Errors
    /// 429 with the time after which there will be room.
    pub fn take_request(&self) -> Result<(), Refusal> {
        let mut tokens = lock(&self.tokens);
        tokens.fill();
        // One token in hand is enough to begin: nobody knows yet how many an answer takes.
        let wait_s = tokens.wait_s(1.0);
        if wait_s > 0.0 {
            let message = format!("this key's tokens per minute ({}) are used up", tokens.capacity);
            return Err(Refusal::too_many(message, wait_s.ceil() as u64));
        }
        let mut requests = lock(&self.requests);
        requests.fill();
        let wait_s = requests.wait_s(1.0);
        if wait_s > 0.0 {
            let message = format!("this key's requests per minute ({}) are used up", requests.capacity);
            return Err(Refusal::too_many(message, wait_s.ceil() as u64));
        }
        requests.level -= 1.0;
        self.used_requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counts tokens that were read or written.
    pub fn take_tokens(&self, n: usize) {
        let mut tokens = lock(&self.tokens);
        tokens.fill();
        tokens.level -= n as f64;
        self.used_tokens.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Requests and tokens that are left.
    pub fn standing(&self) -> [Option<Standing>; 2] {
        [&self.requests, &self.tokens].map(|bucket| {
            let mut bucket = lock(bucket);
            bucket.fill();
            bucket.capacity.is_finite().then(|| Standing {
                limit: bucket.capacity as u32,
                remaining: bucket.level.max(0.0) as u32,
                reset_s: bucket.wait_s(bucket.capacity),
            })
        })
    }

    /// Requests and tokens since the key was read.
    pub fn used(&self) -> [u64; 2] {
        [&self.used_requests, &self.used_tokens].map(|count| count.load(Ordering::Relaxed))
    }

    /// Requests that run now.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }
}

/// A place among a key's running requests; given back when dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<crate::keys::Key>>);

impl Place {
    /// Takes a place.
    ///
    /// # Errors
    /// 429 if all are taken.
    pub fn take(key: Option<&Arc<crate::keys::Key>>) -> Result<Place, Refusal> {
        let Some(key) = key else { return Ok(Place(None)) };
        let running = key.meter.running.fetch_add(1, Ordering::Relaxed);
        let place = Place(Some(key.clone()));
        match key.meter.allowance.concurrent {
            Some(limit) if running >= limit => {
                Err(Refusal::too_many(format!("this key may run {limit} requests at the same time"), 1))
            }
            _ => Ok(place),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(key) = &self.0 {
            key.meter.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_used_up_and_says_when_to_come_back() {
        let meter = Meter::new(Allowance { requests_per_minute: Some(2), ..Default::default() });
        assert!(meter.take_request().is_ok() && meter.take_request().is_ok());
        let refusal = meter.take_request().unwrap_err();
        assert!((29..=30).contains(&refusal.retry_after_s.unwrap()), "{refusal:?}");
        let [requests, tokens] = meter.standing();
        assert!(requests.unwrap().limit == 2 && requests.unwrap().remaining == 0 && tokens.is_none());
    }

    #[test]
    fn tokens_are_counted_after_the_answer() {
        let meter = Meter::new(Allowance { tokens_per_minute: Some(60), ..Default::default() });
        meter.take_request().unwrap();
        meter.take_tokens(89);
        assert_eq!(meter.used(), [1, 89]);
        assert_eq!(meter.take_request().unwrap_err().retry_after_s, Some(30));
    }
}

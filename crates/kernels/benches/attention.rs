//! Attention of one Mixtral layer (32 heads over 8, of 128) beside what the machine can do.
//!
//! `cargo bench -p octet-kernels --bench attention -- [THREADS] [PAGE_TOKENS]`
//!
//! Prints the best of many calls, since a machine is rarely idle; with one thread the mean, but of the time that the
//! thread had a core. "GB/s" counts keys and values read once; "GMAC/s"
//! counts the multiply-adds of queries that see a key, 2 · head_dim for each, beside the f32 peak measured in the same
//! minute.

use std::time::{Duration, Instant};

use octet_kernels::{AttentionLayer, AttentionScratch, KvPages, KvType, Queries, ThreadPool, attention, limits};

const N_HEADS: usize = 32;
const N_KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// Layers of the cache: as many as needed for more memory than cache, at the smallest depth measured.
const N_LAYERS: usize = 4;
/// Earlier tokens and new tokens. The first of either kind stay in cache, and last less than a scheduler's time slice: on a
/// busy machine they alone tell something.
const CASES: [(usize, usize); 8] =
    [(256, 1), (4096, 1), (16384, 1), (32768, 1), (32, 16), (0, 512), (4096, 512), (16384, 64)];
const TIME_FOR_EACH: Duration = Duration::from_millis(1500);

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let threads = numbers.next().unwrap_or(2);
    let page_tokens = numbers.next().unwrap_or(64);
    let pool = ThreadPool::new(threads);
    println!("{threads} threads, pages of {page_tokens} tokens; microseconds per layer");
    for kind in [KvType::F16, KvType::Q8_0, KvType::F32] {
        for (depth, n_tokens) in CASES {
            measure(&pool, kind, page_tokens, depth, n_tokens);
        }
    }
}

/// Times `n_tokens` new tokens after `depth` earlier ones.
fn measure(pool: &ThreadPool, kind: KvType, page_tokens: usize, depth: usize, n_tokens: usize) {
    let n_pages = (depth + n_tokens).div_ceil(page_tokens);
    let mut kv = KvPages::new(kind, N_LAYERS, N_KV_HEADS, HEAD_DIM, page_tokens, n_pages).expect("memory");
    let pages: Vec<u32> = (0..n_pages as u32).collect();
    fill(&mut kv, &pages, depth + n_tokens);
    let q: Vec<f32> = (0..n_tokens * N_HEADS * HEAD_DIM).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
    let bandwidth = limits::read_bandwidth(pool, 3);
    let peak = limits::multiply_add_peak(pool, 50);
    let mut best = Duration::MAX;
    let begin = Instant::now();
    let begin_on_core = time_on_core();
    for call in 0usize.. {
        let layer = AttentionLayer { pages: &kv, layer: call % N_LAYERS, window: None };
        let query = Queries { pages: &pages, first_position: depth, n_tokens };
        let start = Instant::now();
        attention(pool, &q, &layer, [query].into_iter(), &mut scratch, &mut out);
        best = best.min(start.elapsed());
        if begin.elapsed() > TIME_FOR_EACH {
            if let (1, Some(begin), Some(now)) = (pool.threads(), begin_on_core, time_on_core()) {
                best = (now - begin) / (call + 1) as u32;
            }
            break;
        }
    }
    let seen: usize = (depth + 1..=depth + n_tokens).sum();
    let macs = (seen * N_HEADS * HEAD_DIM * 2) as f64 / best.as_secs_f64();
    let bytes = ((depth + n_tokens) * kv.bytes_per_token() / N_LAYERS) as f64 / best.as_secs_f64();
    println!(
        "{:>5} depth {depth:>5} + {n_tokens:>3}: {:>9.0} us  {:>5.1} GB/s ({:>3.0}% of {:.1})  {:>5.1} GMAC/s ({:>3.0}% of {:.0})",
        kind.name(),
        best.as_secs_f64() * 1e6,
        bytes / 1e9,
        bytes / bandwidth * 100.0,
        bandwidth / 1e9,
        macs / 1e9,
        macs / peak * 100.0,
        peak / 1e9
    );
}

/// How long this thread has had a core, where the system says so.
fn time_on_core() -> Option<Duration> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(statistics.split(' ').next()?.parse().ok()?))
}

/// Writes keys and values of every layer.
fn fill(kv: &mut KvPages, pages: &[u32], n_tokens: usize) {
    let row: Vec<f32> =
        (0..2 * N_KV_HEADS * HEAD_DIM + 997).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    for layer in 0..N_LAYERS {
        for position in 0..n_tokens {
            let (k, v) = row[position % 997..].split_at(N_KV_HEADS * HEAD_DIM);
            let (page, slot) = (pages[position / kv.page_tokens()], position % kv.page_tokens());
            kv.append(layer, page, slot, k, &v[..N_KV_HEADS * HEAD_DIM]);
        }
    }
}

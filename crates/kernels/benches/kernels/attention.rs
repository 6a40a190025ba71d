//! Attention of a Mixtral layer: 32 heads over 8, of 128.

use std::cell::LazyCell;

use criterion::Criterion;
use octet_kernels::{AttentionLayer, AttentionScratch, KvPages, KvType, Queries, ThreadPool};

use crate::roofline::{Numbers, Roofline, Work};
use crate::{floats, walk_bytes};

const N_HEADS: usize = 32;
const N_KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const PAGE_TOKENS: usize = 64;
/// Earlier tokens and new tokens.
const CASES: [(usize, usize); 5] = [(256, 1), (4096, 1), (16384, 1), (0, 512), (4096, 64)];

/// `attention/TYPE/EARLIER+NEW`: every call takes another layer.
pub fn attention(criterion: &mut Criterion, pool: &ThreadPool, roofline: &Roofline<'_>) {
    for kind in [KvType::F16, KvType::Q8_0] {
        let group_name = format!("attention/{}", kind.name());
        let mut group = criterion.benchmark_group(&group_name);
        for (depth, n_tokens) in CASES {
            let n_pages = (depth + n_tokens).div_ceil(PAGE_TOKENS);
            let pages: Vec<u32> = (0..n_pages as u32).collect();
            let page_bytes =
                KvPages::new(kind, 1, N_KV_HEADS, HEAD_DIM, PAGE_TOKENS, 1).expect("memory").bytes_per_token();
            let bytes = (depth + n_tokens) * page_bytes;
            let n_layers = (walk_bytes() / 4).div_ceil(bytes);
            let kv = LazyCell::new(|| filled(kind, n_layers, &pages, depth + n_tokens));
            let q = floats(n_tokens * N_HEADS * HEAD_DIM);
            let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
            let seen: usize = (depth + 1..=depth + n_tokens).sum();
            // Scores and sums of values are of f32, whatever the cache holds.
            let multiply_adds = seen * N_HEADS * HEAD_DIM * 2;
            let work = Work { bytes, multiply_adds, numbers: Numbers::Floats };
            roofline.measure(&mut group, &group_name, &format!("{depth}+{n_tokens}"), work, |call| {
                let layer = AttentionLayer { pages: &kv, layer: call % n_layers, window: None };
                let query = Queries { pages: &pages, first_position: depth, n_tokens };
                octet_kernels::attention(pool, &q, &layer, [query].into_iter(), &mut scratch, &mut out);
            });
        }
    }
}

/// A cache with keys and values of every layer.
fn filled(kind: KvType, n_layers: usize, pages: &[u32], n_tokens: usize) -> KvPages {
    let mut kv = KvPages::new(kind, n_layers, N_KV_HEADS, HEAD_DIM, PAGE_TOKENS, pages.len()).expect("memory");
    let row = floats(2 * N_KV_HEADS * HEAD_DIM + 997);
    for layer in 0..n_layers {
        for position in 0..n_tokens {
            let (k, v) = row[position % 997..].split_at(N_KV_HEADS * HEAD_DIM);
            let (page, slot) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
            kv.append(layer, page, slot, k, &v[..N_KV_HEADS * HEAD_DIM]);
        }
    }
    kv
}

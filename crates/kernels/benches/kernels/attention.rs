//! Attention of a layer of Mixtral, 32 heads over 8 of 128, and of SmolLM2, 9 heads over 3 of 64.

use std::cell::LazyCell;

use criterion::Criterion;
use octet_kernels::{AttentionLayer, AttentionScratch, KvPages, KvType, Queries, ThreadPool};

use crate::roofline::{Numbers, Roofline, Work};
use crate::{floats, walk_bytes};

const PAGE_TOKENS: usize = 64;

/// A model's heads, and what is measured of it.
struct Shape {
    group_name: &'static str,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    cases: &'static [Case],
}

/// Sequences side by side, each with earlier and new tokens.
struct Case {
    n_sequences: usize,
    depth: usize,
    n_tokens: usize,
}

const fn case(n_sequences: usize, depth: usize, n_tokens: usize) -> Case {
    Case { n_sequences, depth, n_tokens }
}

const SHAPES: [Shape; 2] = [
    Shape {
        group_name: "attention",
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        cases: &[
            case(1, 256, 1),
            case(1, 4096, 1),
            case(1, 16384, 1),
            case(1, 0, 128),
            case(1, 0, 512),
            case(1, 4096, 64),
            case(1, 4096, 128),
        ],
    },
    Shape {
        group_name: "attention-small",
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        cases: &[case(32, 100, 1), case(1, 0, 128), case(1, 0, 512)],
    },
];

/// `attention/TYPE/EARLIER+NEW`, or `SEQUENCESxEARLIER+NEW`: every call takes another layer.
pub fn attention(criterion: &mut Criterion, pool: &ThreadPool, roofline: &Roofline<'_>) {
    for shape in SHAPES {
        for kind in [KvType::F16, KvType::Q8_0] {
            let group_name = format!("{}/{}", shape.group_name, kind.name());
            let mut group = criterion.benchmark_group(&group_name);
            for case in shape.cases {
                measure(&shape, kind, case, pool, |name, work, call| {
                    roofline.measure(&mut group, &group_name, name, work, call)
                });
            }
        }
    }
}

fn measure(
    shape: &Shape,
    kind: KvType,
    case: &Case,
    pool: &ThreadPool,
    measure: impl FnOnce(&str, Work, &mut dyn FnMut(usize)),
) {
    let Case { n_sequences, depth, n_tokens } = *case;
    let tables = tables(n_sequences, (depth + n_tokens).div_ceil(PAGE_TOKENS));
    let page_bytes =
        KvPages::new(kind, 1, shape.n_kv_heads, shape.head_dim, PAGE_TOKENS, 1).expect("memory").bytes_per_token();
    let bytes = n_sequences * (depth + n_tokens) * page_bytes;
    let n_layers = (walk_bytes() / 4).div_ceil(bytes);
    let kv = LazyCell::new(|| filled(shape, kind, n_layers, &tables, depth + n_tokens));
    let q = floats(n_sequences * n_tokens * shape.n_heads * shape.head_dim);
    let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
    let seen: usize = (depth + 1..=depth + n_tokens).sum();
    // Scores and sums of values are of f32, whatever the cache holds.
    let multiply_adds = n_sequences * seen * shape.n_heads * shape.head_dim * 2;
    let work = Work { bytes, multiply_adds, numbers: Numbers::Floats };
    let name = match n_sequences {
        1 => format!("{depth}+{n_tokens}"),
        _ => format!("{n_sequences}x{depth}+{n_tokens}"),
    };
    measure(&name, work, &mut |call| {
        let layer = AttentionLayer { pages: &kv, layer: call % n_layers, window: None };
        let queries = tables.iter().map(|pages| Queries { pages, first_position: depth, n_tokens });
        octet_kernels::attention(pool, &q, &layer, queries, &mut scratch, &mut out);
    });
}

/// The page tables of some sequences, their pages dealt out in turn.
fn tables(n_sequences: usize, n_pages: usize) -> Vec<Vec<u32>> {
    let table = |sequence| (0..n_pages).map(|page| (page * n_sequences + sequence) as u32).collect();
    (0..n_sequences).map(table).collect()
}

/// A cache with keys and values of every layer.
fn filled(shape: &Shape, kind: KvType, n_layers: usize, tables: &[Vec<u32>], n_tokens: usize) -> KvPages {
    let &Shape { n_kv_heads, head_dim, .. } = shape;
    let n_pages = tables.iter().map(Vec::len).sum();
    let mut kv = KvPages::new(kind, n_layers, n_kv_heads, head_dim, PAGE_TOKENS, n_pages).expect("memory");
    let row = floats(2 * n_kv_heads * head_dim + 997);
    for layer in 0..n_layers {
        for (pages, position) in tables.iter().flat_map(|pages| (0..n_tokens).map(move |position| (pages, position))) {
            let (k, v) = row[position % 997..].split_at(n_kv_heads * head_dim);
            let (page, slot) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
            kv.append(layer, page, slot, k, &v[..n_kv_heads * head_dim]);
        }
    }
    kv
}

use super::*;
use crate::kv_pages::KvType;

/// One sequence: its queries, keys and values, and the page table it got.
struct Sequence {
    /// `[tokens, n_heads, head_dim]`.
    q: Vec<f32>,
    /// `[tokens, n_kv_heads, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: KvType,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    page_tokens: usize,
    window: Option<usize>,
}

const PLAIN: Case = Case { kind: KvType::F32, n_heads: 8, n_kv_heads: 2, head_dim: 64, page_tokens: 64, window: None };

/// Pseudo-random numbers, roughly normal.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (uniform() + uniform() + uniform()) * 2.0).collect()
}

/// A cache that holds sequences of the given lengths, their pages dealt out in turn, and every unused slot full of NaN.
fn cache(case: Case, lengths: &[usize]) -> (KvPages, Vec<Sequence>) {
    let n_pages: usize = lengths.iter().map(|n| n.div_ceil(case.page_tokens)).sum();
    let Case { kind, n_kv_heads, head_dim, page_tokens, .. } = case;
    let mut kv = KvPages::new(kind, 2, n_kv_heads, head_dim, page_tokens, n_pages).unwrap();
    for page in 0..n_pages as u32 {
        kv.write_page(page, &vec![0xff; kv.page(0).len()]);
    }
    let mut sequences: Vec<Sequence> = (lengths.iter().enumerate())
        .map(|(i, n)| Sequence {
            q: numbers(n * case.n_heads * head_dim, 3 * i as u64 + 1),
            k: numbers(n * n_kv_heads * head_dim, 3 * i as u64 + 2),
            v: numbers(n * n_kv_heads * head_dim, 3 * i as u64 + 3),
            pages: Vec::new(),
        })
        .collect();
    let mut page = 0;
    while let Some(next) = (0..lengths.len())
        .filter(|&i| sequences[i].pages.len() * page_tokens < lengths[i])
        .min_by_key(|&i| sequences[i].pages.len())
    {
        sequences[next].pages.push(page);
        page += 1;
    }
    (kv, sequences)
}

/// Writes tokens `positions` of a sequence to layer 1.
fn append(kv: &mut KvPages, case: Case, sequence: &Sequence, positions: std::ops::Range<usize>) {
    let width = case.n_kv_heads * case.head_dim;
    for p in positions {
        let (page, slot) = (sequence.pages[p / case.page_tokens], p % case.page_tokens);
        kv.append(1, page, slot, &sequence.k[p * width..][..width], &sequence.v[p * width..][..width]);
    }
}

struct Run<'a> {
    sequence: &'a Sequence,
    first: usize,
    n: usize,
}

/// Attends for runs of several sequences at once; the keys must be there.
fn attend(case: Case, kv: &KvPages, threads: usize, instructions: Instructions, runs: &[Run<'_>]) -> Vec<Vec<f32>> {
    let width = case.n_heads * case.head_dim;
    let q: Vec<f32> = runs.iter().flat_map(|r| &r.sequence.q[r.first * width..][..r.n * width]).copied().collect();
    let queries = runs.iter().map(|r| Queries { pages: &r.sequence.pages, first_position: r.first, n_tokens: r.n });
    let mut out = vec![f32::NAN; q.len()];
    let layer = AttentionLayer { pages: kv, layer: 1, window: case.window };
    let mut scratch = AttentionScratch::default();
    attention_with(instructions, &ThreadPool::new(threads), &q, &layer, queries, &mut scratch, &mut out);
    let mut rest = &out[..];
    runs.iter()
        .map(|r| {
            let (mine, others) = rest.split_at(r.n * width);
            rest = others;
            mine.to_vec()
        })
        .collect()
}

/// Attention of one token in f64, over keys and values as they were before they were stored.
fn reference(case: Case, sequence: &Sequence, position: usize) -> Vec<f64> {
    let Case { n_heads, n_kv_heads, head_dim, .. } = case;
    let first = case.window.map_or(0, |w| (position + 1).saturating_sub(w));
    let mut out = Vec::new();
    for head in 0..n_heads {
        let kv_head = head / (n_heads / n_kv_heads);
        let row = |x: &[f32], width: usize, p: usize, h: usize| -> Vec<f64> {
            x[p * width + h * head_dim..][..head_dim].iter().map(|&x| x as f64).collect()
        };
        let q = row(&sequence.q, n_heads * head_dim, position, head);
        let dot = |k: Vec<f64>| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (head_dim as f64).sqrt();
        let width = n_kv_heads * head_dim;
        let weights: Vec<f64> = (first..=position).map(|p| dot(row(&sequence.k, width, p, kv_head)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut o = vec![0.0; head_dim];
        for (p, weight) in (first..=position).zip(&weights) {
            o.iter_mut().zip(row(&sequence.v, width, p, kv_head)).for_each(|(o, v)| *o += weight / sum * v);
        }
        out.extend(o);
    }
    out
}

/// Largest error allowed, where values are about 1 in size and at most 3.
///
/// f32: some hundred roundings of 6e-8. f16: values and scores err by 5e-4 of their size, and errors of many keys partly
/// cancel. Q8_0: half a step of the largest value of 32, 3 / 254, and errors of some percent in weights.
fn tolerance(kind: KvType) -> f64 {
    match kind {
        KvType::F32 => 5e-6,
        KvType::F16 => 2e-3,
        KvType::Q8_0 => 3e-2,
    }
}

fn check_rows(case: Case, sequence: &Sequence, first: usize, got: &[f32]) {
    let width = case.n_heads * case.head_dim;
    for (i, got) in got.chunks(width).enumerate() {
        let want = reference(case, sequence, first + i);
        let worst = want.iter().zip(got).map(|(w, g)| (w - *g as f64).abs()).fold(0.0, f64::max);
        assert!(got.iter().all(|g| g.is_finite()), "{case:?}: position {} holds {got:?}", first + i);
        assert!(worst <= tolerance(case.kind), "{case:?}: position {} errs by {worst}", first + i);
    }
}

const KINDS: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

#[test]
fn agrees_with_f64_for_all_shapes() {
    for kind in KINDS {
        for head_dim in [12, 16, 64, 128] {
            for group in [1, 2, 3, 4, 8] {
                for page_tokens in [16, 64, 128] {
                    let case = Case { kind, n_heads: 2 * group, n_kv_heads: 2, head_dim, page_tokens, window: None };
                    let (mut kv, sequences) = cache(case, &[150]);
                    append(&mut kv, case, &sequences[0], 0..150);
                    for (first, n) in [(0, 1), (63, 2), (149, 1), (100, 50)] {
                        let run = Run { sequence: &sequences[0], first, n };
                        let out = attend(case, &kv, 2, Instructions::best(), &[run]);
                        check_rows(case, &sequences[0], first, &out[0]);
                    }
                }
            }
        }
    }
}

#[test]
fn agrees_with_f64_across_splits_and_windows() {
    for kind in KINDS {
        for window in [None, Some(1), Some(37), Some(64), Some(1000), Some(1100), Some(usize::MAX)] {
            let case = Case { kind, window, ..PLAIN };
            let (mut kv, sequences) = cache(case, &[2100]);
            append(&mut kv, case, &sequences[0], 0..2100);
            for (first, n) in [(1023, 1), (1024, 1), (1020, 8), (2099, 1), (2040, 60)] {
                let run = Run { sequence: &sequences[0], first, n };
                let out = attend(case, &kv, 2, Instructions::best(), &[run]);
                check_rows(case, &sequences[0], first, &out[0]);
            }
        }
    }
}

/// The promise: whatever else is computed, in whatever order and by however many threads, a row has the same bits.
#[test]
fn bits_do_not_depend_on_batch_chunks_or_threads() {
    for kind in KINDS {
        for (group, window) in [(4, None), (1, Some(70)), (3, Some(1030)), (8, None)] {
            let case = Case { kind, n_heads: 2 * group, head_dim: 16, page_tokens: 16, window, ..PLAIN };
            let lengths = [1100, 130, 40];
            // One token at a time, as in generation: later slots still hold NaN.
            let (mut kv, sequences) = cache(case, &lengths);
            let mut alone: Vec<Vec<f32>> = Vec::new();
            for (sequence, &length) in sequences.iter().zip(&lengths) {
                let mut rows = Vec::new();
                for position in 0..length {
                    append(&mut kv, case, sequence, position..position + 1);
                    let run = Run { sequence, first: position, n: 1 };
                    rows.extend(attend(case, &kv, 1, Instructions::best(), &[run]).remove(0));
                }
                alone.push(rows);
            }
            let width = case.n_heads * case.head_dim;
            // In chunks, all sequences in one batch.
            for (threads, chunk) in [(1, 1100), (2, 512), (3, 77), (2, 5)] {
                let (mut kv, sequences) = cache(case, &lengths);
                for start in (0..1100).step_by(chunk) {
                    let parts = |(sequence, &length): (_, &usize)| {
                        (start < length).then(|| Run { sequence, first: start, n: chunk.min(length - start) })
                    };
                    let runs: Vec<Run<'_>> = sequences.iter().zip(&lengths).filter_map(parts).collect();
                    for run in &runs {
                        append(&mut kv, case, run.sequence, run.first..run.first + run.n);
                    }
                    let out = attend(case, &kv, threads, Instructions::best(), &runs);
                    for ((run, out), alone) in runs.iter().zip(out).zip(&alone) {
                        let same = out == alone[run.first * width..][..run.n * width];
                        assert!(same, "{case:?}: {threads} threads, chunks of {chunk} from {start}");
                    }
                }
            }
        }
    }
}

/// Sequences whose tables begin with the same pages, as those of a prefix cache do: bits are those of each alone.
#[test]
fn a_common_beginning_is_read_together_and_changes_no_bit() {
    for kind in KINDS {
        for (group, page_tokens) in [(4, 64), (3, 16), (1, 128)] {
            let case = Case { kind, n_heads: 2 * group, head_dim: 16, page_tokens, ..PLAIN };
            // Of each sequence its length, and how much of it is the first one's beginning.
            let lengths = [700, 640, 513, 512, 560, 1000, 1100, 300, 40];
            let common = [0, 512, 512, 512, 384, 512, 512, 128, 0];
            let (mut kv, mut sequences) = cache(case, &lengths);
            let width = case.n_kv_heads * case.head_dim;
            let (first, others) = sequences.split_at_mut(1);
            for (sequence, &common) in others.iter_mut().zip(&common[1..]) {
                sequence.k[..common * width].copy_from_slice(&first[0].k[..common * width]);
                sequence.v[..common * width].copy_from_slice(&first[0].v[..common * width]);
                let pages = common / page_tokens;
                sequence.pages[..pages].copy_from_slice(&first[0].pages[..pages]);
            }
            for (sequence, &length) in sequences.iter().zip(&lengths) {
                append(&mut kv, case, sequence, 0..length);
            }
            let one = |i: usize| Run { sequence: &sequences[i], first: lengths[i] - 1, n: 1 };
            let prompt = Run { sequence: &sequences[8], first: 10, n: 30 };
            let runs = [one(0), one(1), one(2), one(3), prompt, one(4), one(5), one(6), one(0), one(7), one(8), one(2)];
            let is_joint = {
                let queries =
                    runs.iter().map(|r| Queries { pages: &r.sequence.pages, first_position: r.first, n_tokens: r.n });
                let shape =
                    Shape { n_heads: case.n_heads, n_kv_heads: 2, head_dim: case.head_dim, window: case.window };
                let mut plan = Plan::default();
                plan.make(shape, (case.head_dim, page_tokens), 1, queries);
                plan.items.iter().any(|item| item.block.joint.is_some())
            };
            assert!(is_joint, "{case:?}");
            let alone: Vec<Vec<f32>> = (runs.iter())
                .map(|run| attend(case, &kv, 1, Instructions::best(), &[Run { ..*run }]).remove(0))
                .collect();
            for (run, alone) in runs.iter().zip(&alone) {
                check_rows(case, run.sequence, run.first, alone);
            }
            for threads in [1, 2, 3] {
                assert!(
                    attend(case, &kv, threads, Instructions::best(), &runs) == alone,
                    "{case:?}: {threads} threads"
                );
            }
        }
    }
}

#[test]
fn all_instructions_give_the_same_bits() {
    for kind in KINDS {
        for (group, head_dim, window) in [(4, 64, None), (3, 12, Some(100)), (1, 128, None), (8, 80, Some(70))] {
            let case = Case { kind, n_heads: group, n_kv_heads: 1, head_dim, window, ..PLAIN };
            let (mut kv, sequences) = cache(case, &[1050]);
            append(&mut kv, case, &sequences[0], 0..1050);
            for (first, n) in [(1049, 1), (1010, 40)] {
                let run = || [Run { sequence: &sequences[0], first, n }];
                let portable = attend(case, &kv, 1, Instructions::Portable, &run());
                for instructions in Instructions::all() {
                    let fast = attend(case, &kv, 1, instructions, &run());
                    assert_eq!(fast, portable, "{case:?}: {instructions:?}");
                }
            }
        }
    }
}

/// With keys that point to one token, attention is a look-up of its value.
#[test]
fn a_strong_key_finds_its_value() {
    let case = Case { n_heads: 1, n_kv_heads: 1, head_dim: 16, ..PLAIN };
    let (mut kv, mut sequences) = cache(case, &[1200]);
    let needle = 700;
    sequences[0].k.fill(0.0);
    sequences[0].k[needle * 16..][..16].fill(100.0);
    sequences[0].q.fill(1.0);
    append(&mut kv, case, &sequences[0], 0..1200);
    let run = Run { sequence: &sequences[0], first: 1199, n: 1 };
    let out = attend(case, &kv, 2, Instructions::best(), &[run]);
    assert_eq!(out[0], sequences[0].v[needle * 16..][..16]);
}

/// Pages that lie wholly before the window may have been given to others.
#[test]
fn pages_before_the_window_are_not_looked_at() {
    let case = Case { window: Some(100), page_tokens: 16, ..PLAIN };
    let (mut kv, mut sequences) = cache(case, &[1500]);
    append(&mut kv, case, &sequences[0], 0..1500);
    let first = 1400;
    let before = attend(case, &kv, 2, Instructions::best(), &[Run { sequence: &sequences[0], first, n: 100 }]);
    sequences[0].pages[..(first - 99) / 16].fill(u32::MAX);
    let after = attend(case, &kv, 2, Instructions::best(), &[Run { sequence: &sequences[0], first, n: 100 }]);
    assert_eq!(before, after);
}

#[test]
fn hostile_numbers_do_not_panic_and_do_not_reach_other_rows() {
    for kind in KINDS {
        let case = Case { kind, ..PLAIN };
        let (mut kv, mut sequences) = cache(case, &[90, 90]);
        for (i, hard) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e-45].into_iter().enumerate() {
            let sequence = &mut sequences[1];
            sequence.q[i * 1000] = hard;
            sequence.k[i * 1001] = hard;
            sequence.v[i * 1002] = hard;
        }
        append(&mut kv, case, &sequences[0], 0..90);
        append(&mut kv, case, &sequences[1], 0..90);
        let runs = [0, 1].map(|i| Run { sequence: &sequences[i], first: 0, n: 90 });
        let out = attend(case, &kv, 2, Instructions::best(), &runs);
        check_rows(case, &sequences[0], 0, &out[0]);
    }
}

#[test]
fn no_tokens_are_no_work() {
    let (kv, sequences) = cache(PLAIN, &[10]);
    assert!(attend(PLAIN, &kv, 2, Instructions::best(), &[]).is_empty());
    let run = Run { sequence: &sequences[0], first: 5, n: 0 };
    assert_eq!(attend(PLAIN, &kv, 2, Instructions::best(), &[run]), vec![Vec::<f32>::new()]);
}

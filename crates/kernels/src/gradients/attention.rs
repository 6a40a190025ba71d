//! Causal attention over whole samples that lie one after the other, forward and backward.
//!
//! With `s = scale q·k` for the keys that a query sees, `p = e^(s - l)` where `l = log Σ e^s`, and `o = Σ p v`:
//!
//! ```text
//! d_v = Σ_q p d_o        d_p = d_o·v        d_s = p (d_p - d_o·o)
//! d_q = scale Σ_k d_s k                     d_k = scale Σ_q d_s q
//! ```
//! Probabilities are never kept: `l` is, one number a query and head, and a block of them is made anew where it is needed.

use std::ops::Range;

use crate::ThreadPool;
use crate::exp::exp;
use crate::float_matmul::{FloatMatrix, FloatMatrixMut, Target, float_matmul_here};
use crate::gradients::dot;
use crate::gradients::rows::largest;
use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};
use crate::shared_slice::SharedSlice;

/// Queries of a block: their scores against 2048 keys are 1 MiB.
const QUERIES: usize = 128;

/// The heads, and who sees whom.
#[derive(Clone, Copy, Debug)]
pub struct SampleShape {
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A query sees this many keys, its own included; `None`: all before it.
    pub window: Option<usize>,
}

/// Samples of the lengths `samples`, one after the other: a token sees earlier tokens of its own sample alone.
pub struct SampleAttention<'a> {
    /// The heads.
    pub shape: SampleShape,
    /// Tokens of each sample.
    pub samples: &'a [usize],
    /// Queries `[tokens, n_heads, head_dim]`, turned by their positions.
    pub q: &'a [f32],
    /// Keys `[tokens, n_kv_heads, head_dim]`, turned by their positions.
    pub k: &'a [f32],
    /// Values `[tokens, n_kv_heads, head_dim]`.
    pub v: &'a [f32],
}

/// A sample and a head of keys and values: what one thread works on at a time.
struct Item {
    /// Tokens of the sample.
    tokens: Range<usize>,
    kv_head: usize,
}

impl SampleAttention<'_> {
    /// `out [tokens, n_heads, head_dim]` and `log_sums [tokens, n_heads]`.
    ///
    /// # Panics
    /// If a length does not fit the shape.
    pub fn forward(&self, pool: &ThreadPool, out: &mut [f32], log_sums: &mut [f32]) {
        self.check(out, log_sums);
        let (out, log_sums) = (SharedSlice::new(out), SharedSlice::new(log_sums));
        let items = self.items();
        pool.run(items.len(), &|item, _| {
            let item = &items[item];
            let mut scores = Vec::new();
            for head in self.heads_of(item) {
                for block in blocks(item.tokens.len()) {
                    self.forward_block(item, head, block, &mut scores, out, log_sums);
                }
            }
        });
    }

    /// Fills `d_q`, `d_k` and `d_v`, shaped as `q`, `k` and `v`; `out` and `log_sums` are what [`forward`](Self::forward) gave.
    ///
    /// # Panics
    /// If a length does not fit the shape.
    pub fn backward(&self, pool: &ThreadPool, [out, log_sums, d_out]: [&[f32]; 3], [d_q, d_k, d_v]: [&mut [f32]; 3]) {
        self.check(out, log_sums);
        assert!(d_out.len() == out.len() && d_q.len() == self.q.len(), "gradients are as long as what they are of");
        assert!(d_k.len() == self.k.len() && d_v.len() == self.v.len(), "gradients are as long as what they are of");
        let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(SharedSlice::new);
        let items = self.items();
        pool.run(items.len(), &|item, _| {
            let item = &items[item];
            let d = self.shape.head_dim;
            let mut scratch = Backward {
                d_k: vec![0.0; item.tokens.len() * d],
                d_v: vec![0.0; item.tokens.len() * d],
                ..Default::default()
            };
            for head in self.heads_of(item) {
                for block in blocks(item.tokens.len()) {
                    self.backward_block(item, head, block, [out, log_sums, d_out], &mut scratch);
                    let rows = scratch.d_q.chunks_exact(d).enumerate();
                    for (i, row) in rows {
                        let token = item.tokens.start + scratch.queries.start + i;
                        // SAFETY: a head of a token belongs to one item.
                        unsafe { d_q.part((token * self.shape.n_heads + head) * d, d) }.copy_from_slice(row);
                    }
                }
            }
            for (i, token) in item.tokens.clone().enumerate() {
                let at = (token * self.shape.n_kv_heads + item.kv_head) * d;
                // SAFETY: a key head of a token belongs to one item.
                let (to_k, to_v) = unsafe { (d_k.part(at, d), d_v.part(at, d)) };
                to_k.copy_from_slice(&scratch.d_k[i * d..][..d]);
                to_v.copy_from_slice(&scratch.d_v[i * d..][..d]);
            }
        });
    }

    fn check(&self, out: &[f32], log_sums: &[f32]) {
        let SampleShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let tokens: usize = self.samples.iter().sum();
        assert!(n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads over {n_kv_heads}");
        assert!(self.q.len() == tokens * n_heads * head_dim && out.len() == self.q.len(), "[tokens, heads, head_dim]");
        assert!(self.k.len() == tokens * n_kv_heads * head_dim && self.v.len() == self.k.len(), "keys and values");
        assert_eq!(log_sums.len(), tokens * n_heads, "[tokens, heads]");
    }

    /// Long samples first, so that threads end together.
    fn items(&self) -> Vec<Item> {
        let mut start = 0;
        let mut items = Vec::new();
        for &len in self.samples {
            items.extend((0..self.shape.n_kv_heads).map(|kv_head| Item { tokens: start..start + len, kv_head }));
            start += len;
        }
        items.sort_by_key(|item| std::cmp::Reverse(item.tokens.len()));
        items
    }

    fn heads_of(&self, item: &Item) -> Range<usize> {
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        item.kv_head * group..(item.kv_head + 1) * group
    }

    /// The keys, by their place in the sample, that some query of a block sees.
    fn keys(&self, queries: &Range<usize>) -> Range<usize> {
        self.first_key(queries.start)..queries.end
    }

    fn first_key(&self, query: usize) -> usize {
        self.shape.window.map_or(0, |window| (query + 1).saturating_sub(window))
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }

    /// Rows of one head of `x [tokens, heads, head_dim]`.
    fn head<'x>(&self, x: &'x [f32], heads: usize, head: usize, tokens: Range<usize>) -> FloatMatrix<'x> {
        let d = self.shape.head_dim;
        FloatMatrix::strided(&x[(tokens.start * heads + head) * d..], tokens.len(), d, heads * d)
    }

    /// `scores [queries, keys]` = scale q·k, minus infinity where a query does not see a key.
    fn scores(&self, item: &Item, head: usize, queries: &Range<usize>, scores: &mut Vec<f32>) -> Range<usize> {
        let keys = self.keys(queries);
        let shift = |r: &Range<usize>| item.tokens.start + r.start..item.tokens.start + r.end;
        scores.resize(queries.len() * keys.len(), 0.0);
        let q = self.head(self.q, self.shape.n_heads, head, shift(queries));
        let k = self.head(self.k, self.shape.n_kv_heads, item.kv_head, shift(&keys));
        let out = FloatMatrixMut::new(scores, keys.len());
        float_matmul_here(q, k.transposed(), self.scale(), Target::Fresh, out);
        for (query, row) in queries.clone().zip(scores.chunks_exact_mut(keys.len())) {
            row[query + 1 - keys.start..].fill(f32::NEG_INFINITY);
            row[..self.first_key(query) - keys.start].fill(f32::NEG_INFINITY);
        }
        shift(&keys)
    }

    fn forward_block(
        &self,
        item: &Item,
        head: usize,
        queries: Range<usize>,
        scores: &mut Vec<f32>,
        out: SharedSlice<'_, f32>,
        log_sums: SharedSlice<'_, f32>,
    ) {
        let (n_heads, d) = (self.shape.n_heads, self.shape.head_dim);
        let keys = self.scores(item, head, &queries, scores);
        let mut answers = vec![0.0; queries.len() * d];
        let mut sums = Vec::with_capacity(queries.len());
        for row in scores.chunks_exact_mut(keys.len()) {
            sums.push(Instructions::best().run(Exponentials { row, minus: None }));
        }
        let p = FloatMatrix::new(scores, keys.len());
        let v = self.head(self.v, self.shape.n_kv_heads, item.kv_head, keys);
        float_matmul_here(p, v, 1.0, Target::Fresh, FloatMatrixMut::new(&mut answers, d));
        for ((query, answer), (largest, sum)) in queries.zip(answers.chunks_exact(d)).zip(sums) {
            let at = (item.tokens.start + query) * n_heads + head;
            // SAFETY: a head of a token belongs to one item.
            let (out, log_sum) = unsafe { (out.part(at * d, d), log_sums.part(at, 1)) };
            out.iter_mut().zip(answer).for_each(|(o, a)| *o = a / sum);
            log_sum[0] = largest + sum.ln();
        }
    }

    fn backward_block(
        &self,
        item: &Item,
        head: usize,
        queries: Range<usize>,
        [out, log_sums, d_out]: [&[f32]; 3],
        scratch: &mut Backward,
    ) {
        let (n_heads, d) = (self.shape.n_heads, self.shape.head_dim);
        let keys = self.scores(item, head, &queries, &mut scratch.p);
        let n_keys = keys.len();
        let tokens = item.tokens.start + queries.start..item.tokens.start + queries.end;
        for (token, row) in tokens.clone().zip(scratch.p.chunks_exact_mut(n_keys)) {
            Instructions::best().run(Exponentials { row, minus: Some(log_sums[token * n_heads + head]) });
        }
        let d_o = self.head(d_out, n_heads, head, tokens.clone());
        let v = self.head(self.v, self.shape.n_kv_heads, item.kv_head, keys.clone());
        scratch.d_s.resize(scratch.p.len(), 0.0);
        float_matmul_here(d_o, v.transposed(), 1.0, Target::Fresh, FloatMatrixMut::new(&mut scratch.d_s, n_keys));
        for (i, token) in tokens.clone().enumerate() {
            let at = (token * n_heads + head) * d;
            let along = dot(&out[at..at + d], &d_out[at..at + d]);
            let (p, d_s) = (&scratch.p[i * n_keys..][..n_keys], &mut scratch.d_s[i * n_keys..][..n_keys]);
            Instructions::best().run(ScoreGradient { p, d_s, along, scale: self.scale() });
        }
        let p = FloatMatrix::new(&scratch.p, n_keys);
        let d_s = FloatMatrix::new(&scratch.d_s, n_keys);
        let first = keys.start - item.tokens.start;
        let places = first * d..(first + n_keys) * d;
        let to = FloatMatrixMut::new(&mut scratch.d_v[places.clone()], d);
        float_matmul_here(p.transposed(), d_o, 1.0, Target::Sum, to);
        let q = self.head(self.q, n_heads, head, tokens.clone());
        let to = FloatMatrixMut::new(&mut scratch.d_k[places], d);
        float_matmul_here(d_s.transposed(), q, 1.0, Target::Sum, to);
        let k = self.head(self.k, self.shape.n_kv_heads, item.kv_head, keys);
        scratch.d_q.resize(tokens.len() * d, 0.0);
        float_matmul_here(d_s, k, 1.0, Target::Fresh, FloatMatrixMut::new(&mut scratch.d_q, d));
        scratch.queries = queries;
    }
}

/// Buffers of a thread's work on one item.
#[derive(Default)]
struct Backward {
    p: Vec<f32>,
    d_s: Vec<f32>,
    /// Of the block at work, `[queries, head_dim]`.
    d_q: Vec<f32>,
    queries: Range<usize>,
    /// Of the whole sample, `[tokens, head_dim]`.
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(QUERIES).map(move |start| start..(start + QUERIES).min(len))
}

/// `row ← e^(row - minus)`, where `minus` is the largest element if it is not given; gives it and the sum.
struct Exponentials<'a> {
    row: &'a mut [f32],
    minus: Option<f32>,
}

impl Kernel for Exponentials<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn run<V: Lanes>(self) -> (f32, f32) {
        let minus = match self.minus {
            Some(minus) => minus,
            None => largest::<V>(self.row),
        };
        let mut sums = V::splat(0.0);
        for chunk in self.row.chunks_mut(LANES) {
            let e = exp(load_some::<V>(chunk, f32::NEG_INFINITY).sub(V::splat(minus)));
            sums = sums.add(e);
            store_some(e, chunk);
        }
        (minus, sums.sum())
    }
}

/// `d_s ← scale p (d_s - along)`.
struct ScoreGradient<'a> {
    p: &'a [f32],
    d_s: &'a mut [f32],
    along: f32,
    scale: f32,
}

impl Kernel for ScoreGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let ScoreGradient { p, d_s, along, scale } = self;
        d_s.iter_mut().zip(p).for_each(|(d_s, p)| *d_s = scale * p * (*d_s - along));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// The loss `Σ d_out ⊙ out` by plain f64 sums.
    fn loss(shape: SampleShape, samples: &[usize], [q, k, v, d_out]: [&[f64]; 4]) -> f64 {
        let (d, mut start, mut total) = (shape.head_dim, 0, 0.0);
        for &len in samples {
            for (head, query) in (0..shape.n_heads).flat_map(|head| (0..len).map(move |query| (head, query))) {
                let kv_head = head / (shape.n_heads / shape.n_kv_heads);
                let of = |x: &[f64], heads: usize, head: usize, token: usize| -> Vec<f64> {
                    x[((start + token) * heads + head) * d..][..d].to_vec()
                };
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let own = of(q, shape.n_heads, head, query);
                let first = shape.window.map_or(0, |w| (query + 1).saturating_sub(w));
                let e = |key| (dot(&own, &of(k, shape.n_kv_heads, kv_head, key)) / (d as f64).sqrt()).exp();
                let sum: f64 = (first..=query).map(e).sum();
                let want = of(d_out, shape.n_heads, head, query);
                total += (first..=query)
                    .map(|key| e(key) / sum * dot(&want, &of(v, shape.n_kv_heads, kv_head, key)))
                    .sum::<f64>();
            }
            start += len;
        }
        total
    }

    /// Gradients against differences of the f64 definition, for samples shorter and longer than a block.
    #[test]
    fn gradients_agree_with_differences() {
        for (samples, window) in [(vec![5, 1, 9], None), (vec![7, 130], Some(4))] {
            let shape = SampleShape { n_heads: 4, n_kv_heads: 2, head_dim: 6, window };
            let tokens: usize = samples.iter().sum();
            let (q_len, kv_len) = (tokens * 24, tokens * 12);
            let [q, k, v, d_out] = [(q_len, 1), (kv_len, 2), (kv_len, 3), (q_len, 4)].map(|(n, s)| numbers(n, s));
            let attention = SampleAttention { shape, samples: &samples, q: &q, k: &k, v: &v };
            let pool = ThreadPool::new(2);
            let (mut out, mut log_sums) = (vec![0.0; q_len], vec![0.0; tokens * 4]);
            attention.forward(&pool, &mut out, &mut log_sums);
            let [mut d_q, mut d_k, mut d_v] = [vec![9.0; q_len], vec![9.0; kv_len], vec![9.0; kv_len]];
            attention.backward(&pool, [&out, &log_sums, &d_out], [&mut d_q, &mut d_k, &mut d_v]);
            let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<f64>>();
            let inputs = [wide(&q), wide(&k), wide(&v)];
            let d_out = wide(&d_out);
            let forward: f64 = wide(&out).iter().zip(&d_out).map(|(o, d)| o * d).sum();
            assert!((forward - loss(shape, &samples, [&inputs[0], &inputs[1], &inputs[2], &d_out])).abs() < 1e-4);
            for (which, got) in [&d_q, &d_k, &d_v].into_iter().enumerate() {
                for at in (0..got.len()).step_by(if tokens > 20 { 211 } else { 17 }) {
                    let shifted = |by: f64| {
                        let mut x = inputs.clone();
                        x[which][at] += by;
                        loss(shape, &samples, [&x[0], &x[1], &x[2], &d_out])
                    };
                    let want = (shifted(1e-4) - shifted(-1e-4)) / 2e-4;
                    assert!((got[at] as f64 - want).abs() < 1e-5, "{which} {at}: {} {want}", got[at]);
                }
            }
        }
    }
}

//! The fused experts against plain products, and against themselves in other batches.

use octet_checkpoint::ElementType;

use crate::experts::experts_with;
use crate::lanes::Instructions;
use crate::matmul_tests::{Matrix, Random, product, same_bits, tame};
use crate::{
    Activations, Expert, ExpertChange, ExpertScratch, ExpertsChange, LowRank, PackedMatrix, Reads, Routes, ThreadPool,
    swiglu,
};

struct Layer {
    /// w1, w2, w3 of every expert.
    experts: Vec<[PackedMatrix; 3]>,
    dim: usize,
}

impl Layer {
    fn new(kinds: [ElementType; 3], n_experts: usize, dim: usize, hidden_dim: usize, random: &mut Random) -> Layer {
        let pool = ThreadPool::new(2);
        let [w1, w2, w3] = kinds;
        let shapes = [(w1, hidden_dim, dim), (w2, dim, hidden_dim), (w3, hidden_dim, dim)];
        let mut expert = || shapes.map(|(kind, rows, cols)| Matrix::new(kind, rows, cols, random, tame).pack(&pool));
        Layer { experts: (0..n_experts).map(|_| expert()).collect(), dim }
    }

    fn run(
        &self,
        instructions: Instructions,
        pool: &ThreadPool,
        scratch: &mut ExpertScratch,
        x: &[f32],
        routes: &Routes<'_>,
    ) -> Vec<f32> {
        let mut activations = Activations::new();
        let changes = routes.changes.iter().flat_map(|change| change.experts);
        let changes = changes.flat_map(|change| [&change.w1, &change.w3].into_iter().flatten()).map(LowRank::a);
        let weights = self.experts.iter().flat_map(|[w1, _, w3]| [w1, w3]);
        activations.set(pool, x, self.dim, Reads::of(weights.chain(changes)));
        let mut y = vec![f32::NAN; x.len()];
        let experts = self.experts.iter().map(|[w1, w2, w3]| Expert { w1, w2, w3 });
        experts_with(instructions, pool, experts, &activations, routes, scratch, &mut y);
        y
    }

    /// Token by token and expert by expert, experts in the order of their indices.
    fn composed(&self, pool: &ThreadPool, x: &[f32], routes: &Routes<'_>) -> Vec<f32> {
        let k = routes.per_token;
        let mut y = Vec::new();
        for (token, x) in x.chunks(self.dim).enumerate() {
            let mut chosen: Vec<usize> = (token * k..(token + 1) * k).collect();
            chosen.sort_by_key(|&at| routes.experts[at]);
            let mut sum = vec![0.0f32; self.dim];
            for at in chosen {
                let [w1, w2, w3] = &self.experts[routes.experts[at] as usize];
                let [gate, up] = [w1, w3].map(|w| product(Instructions::best(), pool, w, x));
                let mut hidden = vec![0.0; gate.len()];
                swiglu(&gate, &up, &mut hidden);
                let down = product(Instructions::best(), pool, w2, &hidden);
                sum.iter_mut().zip(down).for_each(|(sum, down)| *sum = routes.weights[at].mul_add(down, *sum));
            }
            y.extend(sum);
        }
        y
    }
}

/// `per_token` different experts for each token, unevenly many for each expert.
fn choose(tokens: usize, n_experts: usize, per_token: usize, random: &mut Random) -> (Vec<u32>, Vec<f32>) {
    let mut chosen = Vec::new();
    for _ in 0..tokens {
        let first = random.next() as usize % n_experts * (random.next() % 2) as usize;
        chosen.extend((0..per_token).map(|k| ((first + k) % n_experts) as u32));
    }
    let weights = chosen.iter().map(|_| random.float().abs()).collect();
    (chosen, weights)
}

#[test]
fn equals_plain_products_whatever_the_batch() {
    use ElementType::*;
    let pools: Vec<ThreadPool> = (1..=3).map(ThreadPool::new).collect();
    let mut random = Random(11);
    let mut scratch = ExpertScratch::default();
    // The widths of a whole tile and less, of several tiles and a rest, of rows that fill no panel.
    let cases = [
        ([Q4_K, Q6_K, Q4_K], 256, 512, 8, 2),
        ([Q8_0, Q4_1, Q5_0], 96, 544, 4, 3),
        ([F32, F16, BF16], 20, 300, 3, 1),
        ([Q4_0, F32, Q2_K], 256, 270, 1, 1),
    ];
    for (kinds, dim, hidden_dim, n_experts, per_token) in cases {
        let layer = Layer::new(kinds, n_experts, dim, hidden_dim, &mut random);
        for tokens in [1, 2, 5, 9, 33, 150] {
            let x = random.floats(tokens * dim);
            let (chosen, weights) = choose(tokens, n_experts, per_token, &mut random);
            let routes = Routes { experts: &chosen, weights: &weights, per_token, changes: &[] };
            let want = layer.composed(&pools[0], &x, &routes);
            for pool in &pools {
                let y = layer.run(Instructions::best(), pool, &mut scratch, &x, &routes);
                assert!(same_bits(&y, &want), "{kinds:?}, {tokens} tokens, {} threads", pool.threads());
            }
            if tokens <= 9 {
                let y = layer.run(Instructions::Portable, &pools[1], &mut scratch, &x, &routes);
                assert!(same_bits(&y, &want), "{kinds:?}, {tokens} tokens, portable");
            }
        }
    }
}

/// Numbers of a low-rank change `[rank, cols]`, `[rows, rank]`.
struct Numbers(usize, Vec<f32>, Vec<f32>);

impl Numbers {
    fn new(rows: usize, cols: usize, random: &mut Random) -> Numbers {
        let rank = 1 + random.next() as usize % 11;
        Numbers(rank, random.floats(rank * cols), random.floats(rows * rank))
    }

    fn pack(&self) -> LowRank {
        LowRank::new(&ThreadPool::new(1), self.0, 0.25, &self.1, &self.2)
    }

    /// The weights of an f32 matrix with the change in them.
    fn merged(&self, w: &[f32]) -> Vec<f32> {
        let Numbers(rank, a, b) = self;
        let cols = a.len() / rank;
        let change = |i: usize| (0..*rank).map(|r| b[i / cols * rank + r] * a[r * cols + i % cols]).sum::<f32>();
        w.iter().enumerate().map(|(i, w)| w + 0.25 * change(i)).collect()
    }
}

fn float_matrix(values: &[f32], cols: usize) -> PackedMatrix {
    let read = |rows: std::ops::Range<usize>, out: &mut [u8]| {
        let values = &values[rows.start * cols..rows.end * cols];
        out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
    };
    PackedMatrix::pack(&ThreadPool::new(1), ElementType::F32, values.len() / cols, cols, &read)
}

/// Against weights with the change in them: some hundred roundings of 6e-8 of numbers below 30.
#[test]
fn low_rank_changes_act_like_merged_weights_on_their_tokens_alone() {
    let (mut random, mut scratch) = (Random(21), ExpertScratch::default());
    let (dim, hidden_dim, n_experts, per_token) = (40, 300, 4, 2);
    let weights: Vec<Vec<f32>> = (0..3 * n_experts).map(|_| random.floats(dim * hidden_dim)).collect();
    let cols = |i: usize| if i % 3 == 1 { hidden_dim } else { dim };
    let plain: Vec<PackedMatrix> = weights.iter().enumerate().map(|(i, w)| float_matrix(w, cols(i))).collect();
    let layer_of = |all: Vec<PackedMatrix>| {
        let mut all = all.into_iter();
        let mut expert = || [(); 3].map(|()| all.next().unwrap());
        Layer { experts: (0..n_experts).map(|_| expert()).collect(), dim }
    };
    let base = layer_of(plain);
    // The first change leaves out w2 of every expert, the second w1 and w3 of the last.
    let numbers: Vec<Vec<Option<Numbers>>> = (0..2)
        .map(|c| {
            let is_in = |i: usize| if c == 0 { i % 3 != 1 } else { i < 10 };
            let rows = |i: usize| dim + hidden_dim - cols(i);
            (0..3 * n_experts).map(|i| is_in(i).then(|| Numbers::new(rows(i), cols(i), &mut random))).collect()
        })
        .collect();
    let packed = |of: &Vec<Option<Numbers>>| -> Vec<ExpertChange> {
        let change = |n: &Option<Numbers>| n.as_ref().map(Numbers::pack);
        let expert = |n: &[Option<Numbers>]| ExpertChange { w1: change(&n[0]), w2: change(&n[1]), w3: change(&n[2]) };
        of.chunks(3).map(expert).collect()
    };
    let changes: Vec<Vec<ExpertChange>> = numbers.iter().map(packed).collect();
    let merged = |of: &Vec<Option<Numbers>>| {
        let matrix = |(i, w): (usize, &Vec<f32>)| {
            float_matrix(&of[i].as_ref().map_or_else(|| w.clone(), |n| n.merged(w)), cols(i))
        };
        layer_of(weights.iter().enumerate().map(matrix).collect())
    };
    let merged: Vec<Layer> = numbers.iter().map(merged).collect();

    let tokens = 150;
    let x = random.floats(tokens * dim);
    let (chosen, weights) = choose(tokens, n_experts, per_token, &mut random);
    let changes = [
        ExpertsChange { tokens: 3..60, experts: &changes[0] },
        ExpertsChange { tokens: 60..149, experts: &changes[1] },
    ];
    let pool = ThreadPool::new(2);
    let routes = Routes { experts: &chosen, weights: &weights, per_token, changes: &changes };
    let y = base.run(Instructions::best(), &pool, &mut scratch, &x, &routes);
    assert!(same_bits(&y, &base.run(Instructions::best(), &ThreadPool::new(1), &mut scratch, &x, &routes)), "threads");
    for token in 0..tokens {
        let (x, y) = (&x[token * dim..][..dim], &y[token * dim..][..dim]);
        let of = changes.iter().position(|change| change.tokens.contains(&token));
        let (experts, weights) =
            (&chosen[token * per_token..][..per_token], &weights[token * per_token..][..per_token]);
        let own: Vec<ExpertsChange<'_>> =
            of.iter().map(|&c| ExpertsChange { tokens: 0..1, ..changes[c].clone() }).collect();
        let mut run = |layer: &Layer, changes: &[ExpertsChange<'_>]| {
            let routes = Routes { experts, weights, per_token, changes };
            layer.run(Instructions::best(), &pool, &mut scratch, x, &routes)
        };
        assert!(same_bits(y, &run(&base, &own)), "token {token} alone");
        let want = run(of.map_or(&base, |c| &merged[c]), &[]);
        let largest = want.iter().fold(0.0f32, |m, y| m.max(y.abs()));
        let error = y.iter().zip(&want).fold(0.0f32, |m, (y, want)| m.max((y - want).abs()));
        assert!(error <= 1e-5 * largest, "token {token}: {error} of {largest}");
    }
}

#[test]
fn no_tokens_and_unused_experts() {
    let (pool, mut random) = (ThreadPool::new(2), Random(12));
    let layer = Layer::new([ElementType::Q8_0; 3], 3, 64, 96, &mut random);
    let none = Routes { experts: &[], weights: &[], per_token: 2, changes: &[] };
    let mut scratch = ExpertScratch::default();
    assert!(layer.run(Instructions::best(), &pool, &mut scratch, &[], &none).is_empty());
    let x = random.floats(64);
    let twice = Routes { experts: &[2, 2], weights: &[0.5, 0.5], per_token: 2, changes: &[] };
    let y = layer.run(Instructions::best(), &pool, &mut scratch, &x, &twice);
    assert!(same_bits(&y, &layer.composed(&pool, &x, &twice)));
}

#[test]
#[should_panic(expected = "expert 3 of 3")]
fn indices_are_checked() {
    let layer = Layer::new([ElementType::Q8_0; 3], 3, 32, 32, &mut Random(13));
    let routes = Routes { experts: &[3], weights: &[1.0], per_token: 1, changes: &[] };
    layer.run(Instructions::best(), &ThreadPool::new(1), &mut ExpertScratch::default(), &[0.0; 32], &routes);
}

#[test]
#[should_panic(expected = "changes of 1..3 after those before 2")]
fn changes_of_the_same_tokens_are_refused() {
    let layer = Layer::new([ElementType::Q8_0; 3], 3, 32, 32, &mut Random(13));
    let none: Vec<ExpertChange> = (0..3).map(|_| ExpertChange::default()).collect();
    let changes = [0..2, 1..3].map(|tokens| ExpertsChange { tokens, experts: &none });
    let routes = Routes { experts: &[0; 3], weights: &[1.0; 3], per_token: 1, changes: &changes };
    layer.run(Instructions::best(), &ThreadPool::new(1), &mut ExpertScratch::default(), &[0.0; 3 * 32], &routes);
}

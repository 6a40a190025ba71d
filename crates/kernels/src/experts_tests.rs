//! The fused experts against plain products, and against themselves in other batches.

use octet_checkpoint::ElementType;

use crate::experts::experts_with;
use crate::lanes::Instructions;
use crate::matmul_tests::{Matrix, Random, product, same_bits, tame};
use crate::{Activations, Expert, ExpertScratch, PackedMatrix, Reads, Routes, ThreadPool, swiglu};

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
        activations.set(pool, x, self.dim, Reads::of(self.experts.iter().flat_map(|[w1, _, w3]| [w1, w3])));
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
            let routes = Routes { experts: &chosen, weights: &weights, per_token };
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

#[test]
fn no_tokens_and_unused_experts() {
    let (pool, mut random) = (ThreadPool::new(2), Random(12));
    let layer = Layer::new([ElementType::Q8_0; 3], 3, 64, 96, &mut random);
    let none = Routes { experts: &[], weights: &[], per_token: 2 };
    let mut scratch = ExpertScratch::default();
    assert!(layer.run(Instructions::best(), &pool, &mut scratch, &[], &none).is_empty());
    let x = random.floats(64);
    let twice = Routes { experts: &[2, 2], weights: &[0.5, 0.5], per_token: 2 };
    let y = layer.run(Instructions::best(), &pool, &mut scratch, &x, &twice);
    assert!(same_bits(&y, &layer.composed(&pool, &x, &twice)));
}

#[test]
#[should_panic(expected = "expert 3 of 3")]
fn indices_are_checked() {
    let layer = Layer::new([ElementType::Q8_0; 3], 3, 32, 32, &mut Random(13));
    let routes = Routes { experts: &[3], weights: &[1.0], per_token: 1 };
    layer.run(Instructions::best(), &ThreadPool::new(1), &mut ExpertScratch::default(), &[0.0; 32], &routes);
}

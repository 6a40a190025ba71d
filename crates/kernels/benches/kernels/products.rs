//! Products with weights of every type, alone and as the experts of a layer.

use std::cell::LazyCell;

use criterion::Criterion;
use octet_checkpoint::ElementType;
use octet_kernels::{Activations, Expert, ExpertScratch, PackedMatrix, Product, Reads, Routes, ThreadPool};

use crate::roofline::{Numbers, Roofline, Work};
use crate::{floats, walk_bytes};

/// Rows and columns of a matrix: those of Mixtral's attention.
const DIM: usize = 4096;
/// A quarter of Mixtral's, so that eight experts take little memory.
const HIDDEN_DIM: usize = 3584;
const N_EXPERTS: usize = 8;
const EXPERTS_PER_TOKEN: usize = 2;
const TOKENS: [usize; 5] = [1, 4, 8, 16, 128];

/// `matmul/TYPE/TOKENS`: every call takes another matrix.
pub fn matmul(criterion: &mut Criterion, pool: &ThreadPool, roofline: &Roofline<'_>) {
    for kind in ElementType::all() {
        let matrices = LazyCell::new(|| {
            let first = random_matrix(pool, kind, DIM, DIM);
            let more = walk_bytes() / first.bytes();
            let more = (0..more).map(|_| random_matrix(pool, kind, DIM, DIM));
            std::iter::once(first).chain(more).collect::<Vec<_>>()
        });
        let group_name = format!("matmul/{}", kind.name());
        let mut group = criterion.benchmark_group(&group_name);
        for tokens in TOKENS {
            let bytes = DIM * kind.row_bytes(DIM).expect("whole blocks");
            let work = Work { bytes, multiply_adds: tokens * DIM * DIM, numbers: numbers(kind) };
            let x = LazyCell::new(|| activations(pool, tokens, &matrices[0]));
            let mut y = vec![0.0; tokens * DIM];
            roofline.measure(&mut group, &group_name, &tokens.to_string(), work, |call| {
                let w = &matrices[call % matrices.len()];
                octet_kernels::matmul(pool, &mut [Product { w, x: &x, y: &mut y }]);
            });
        }
    }
}

/// `experts/TYPE/TOKENS`.
pub fn experts(criterion: &mut Criterion, pool: &ThreadPool, roofline: &Roofline<'_>) {
    for kind in [ElementType::Q4_K, ElementType::Q8_0] {
        let matrices = LazyCell::new(|| -> Vec<[PackedMatrix; 3]> {
            let shapes = [(HIDDEN_DIM, DIM), (DIM, HIDDEN_DIM), (HIDDEN_DIM, DIM)];
            let expert = |_| shapes.map(|(rows, cols)| random_matrix(pool, kind, rows, cols));
            (0..N_EXPERTS).map(expert).collect()
        });
        let group_name = format!("experts/{}", kind.name());
        let mut group = criterion.benchmark_group(&group_name);
        for tokens in TOKENS {
            let slots = tokens * EXPERTS_PER_TOKEN;
            let bytes_of_one = 3 * HIDDEN_DIM * kind.row_bytes(DIM).expect("whole blocks");
            let bytes = slots.min(N_EXPERTS) * bytes_of_one;
            let work = Work { bytes, multiply_adds: slots * 3 * HIDDEN_DIM * DIM, numbers: numbers(kind) };
            let x = LazyCell::new(|| activations(pool, tokens, &matrices[0][0]));
            let (mut y, mut scratch) = (vec![0.0; tokens * DIM], ExpertScratch::default());
            let weights = vec![0.5; slots];
            roofline.measure(&mut group, &group_name, &tokens.to_string(), work, |call| {
                // Each call begins with other experts, so that one token does not find its weights in a cache.
                let chosen: Vec<u32> = (0..slots).map(|slot| ((call * 2 + slot) % N_EXPERTS) as u32).collect();
                let per_token = EXPERTS_PER_TOKEN;
                let routes = Routes { experts: &chosen, weights: &weights, per_token, changes: &[] };
                let experts = matrices.iter().map(|[w1, w2, w3]| Expert { w1, w2, w3 });
                octet_kernels::experts(pool, experts, &x, &routes, &mut scratch, &mut y);
            });
        }
    }
}

/// What products with this type multiply.
fn numbers(kind: ElementType) -> Numbers {
    use ElementType::*;
    match kind {
        F32 | F16 | BF16 | IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => Numbers::Floats,
        _ => Numbers::Integers,
    }
}

fn random_matrix(pool: &ThreadPool, kind: ElementType, rows: usize, cols: usize) -> PackedMatrix {
    PackedMatrix::pack(pool, kind, rows, cols, &|rows: std::ops::Range<usize>, out: &mut [u8]| {
        let mut state = rows.start as u32 + 1;
        for byte in out.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Small exponents wherever a float may be read.
            *byte = (state >> 24) as u8 & 0x3f;
        }
    })
}

fn activations(pool: &ThreadPool, tokens: usize, w: &PackedMatrix) -> Activations {
    let mut x = Activations::new();
    x.set(pool, &floats(tokens * w.cols()), w.cols(), Reads::of([w]));
    x
}

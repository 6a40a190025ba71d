//! Products of every type against sums in f64 over decoded weights, and against themselves in other surroundings.

use std::sync::atomic::AtomicBool;

use half::{bf16, f16};
use octet_checkpoint::ElementType;

use crate::blocks::dequantize_row;
use crate::lanes::Instructions;
use crate::matmul::matmul_with;
use crate::{Activations, PackedMatrix, Product, Reads, RowSource, ThreadPool};

/// A small generator of numbers: the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Where a block's float16 scales stand.
fn scale_places(kind: ElementType) -> &'static [usize] {
    use ElementType::*;
    match kind {
        F32 | F16 | BF16 => &[],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        _ => &[0],
    }
}

/// A matrix of random bits, whose scales are `scale(random)`.
pub(crate) struct Matrix {
    pub(crate) kind: ElementType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Matrix {
    pub(crate) fn new(
        kind: ElementType,
        rows: usize,
        cols: usize,
        random: &mut Random,
        scale: fn(f32) -> f32,
    ) -> Matrix {
        let row_bytes = kind.row_bytes(cols).expect("whole blocks");
        let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.next() as u8).collect();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            match kind {
                ElementType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
                ElementType::F16 => block.copy_from_slice(&f16::from_f32(random.float()).to_le_bytes()),
                ElementType::BF16 => block.copy_from_slice(&bf16::from_f32(random.float()).to_le_bytes()),
                _ => {}
            }
            for &at in scale_places(kind) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(scale(random.float())).to_le_bytes());
            }
        }
        Matrix { kind, rows, cols, bytes }
    }

    pub(crate) fn pack(&self, pool: &ThreadPool) -> PackedMatrix {
        PackedMatrix::pack(pool, self.kind, self.rows, self.cols, self)
    }

    /// A matrix that is not packed yet.
    fn later(self) -> PackedMatrix {
        PackedMatrix::later(self.kind, self.rows, self.cols, Box::new(self))
    }

    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let row_bytes = self.kind.row_bytes(self.cols).expect("whole blocks");
        let mut values = vec![0.0; self.cols];
        dequantize_row(self.kind, &self.bytes[row * row_bytes..(row + 1) * row_bytes], &mut values);
        values
    }
}

impl RowSource for Matrix {
    fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [u8]) {
        let row_bytes = self.kind.row_bytes(self.cols).expect("whole blocks");
        out.copy_from_slice(&self.bytes[rows.start * row_bytes..rows.end * row_bytes]);
    }
}

/// Scales of either sign whose sizes differ by less than two.
pub(crate) fn tame(random: f32) -> f32 {
    (0.006 + 0.005 * random.abs()) * random.signum()
}

/// Scales whose sizes differ by up to a thousand.
fn wild(random: f32) -> f32 {
    0.01 * (10.0 * (random * 3.0).fract() - 5.0).exp2() * random.signum()
}

pub(crate) fn product(instructions: Instructions, pool: &ThreadPool, w: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let mut activations = Activations::new();
    activations.set(pool, x, w.cols(), Reads::of([w]));
    let mut y = vec![f32::NAN; activations.rows() * w.rows()];
    matmul_with(instructions, pool, &mut [Product { w, x: &activations, y: &mut y }]);
    y
}

/// What the integer types make of a row of activations: codes of 8 bits with a scale for as many columns as weights' blocks have.
fn rounded(x: &[f32], columns: usize) -> Vec<f64> {
    let tile = |x: &[f32]| {
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let code = |v: f32| if largest > 0.0 { (v * (127.0 / largest)).round_ties_even() } else { 0.0 };
        x.iter().map(|&v| f64::from(code(v)) * f64::from(largest / 127.0)).collect::<Vec<_>>()
    };
    x.chunks(columns).flat_map(tile).collect()
}

/// Whether products with this type take activations as integers.
fn is_integer(kind: ElementType) -> bool {
    use ElementType::*;
    !matches!(kind, F32 | F16 | BF16 | IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S)
}

/// Sums in f64 and, for the tolerance, sums of absolute values.
fn reference(matrix: &Matrix, x: &[f32]) -> Vec<(f64, f64)> {
    let rows: Vec<Vec<f32>> = (0..matrix.rows).map(|row| matrix.row(row)).collect();
    let mut out = Vec::new();
    for x in x.chunks_exact(matrix.cols) {
        let x = if is_integer(matrix.kind) {
            rounded(x, matrix.kind.block_len())
        } else {
            x.iter().map(|v| f64::from(*v)).collect()
        };
        for w in &rows {
            let products = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
            out.push(products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs())));
        }
    }
    out
}

fn widths(kind: ElementType) -> &'static [usize] {
    match kind.block_len() {
        1 => &[1, 31, 256, 300, 1024],
        32 => &[32, 96, 256, 576, 1024],
        _ => &[256, 768, 1024],
    }
}

/// Float sums round by 6e-8 of the absolute sum for each of their terms (a tile, and its minimums, are one each); the
/// minimums of the K types nearly cancel the rest, which weighs up to some 30 times the difference.
const ROUNDING: f64 = 1e-5;

#[test]
fn agrees_with_sums_in_f64() {
    let (pool, mut random) = (ThreadPool::new(2), Random(1));
    for kind in ElementType::all() {
        for (i, &cols) in widths(kind).iter().enumerate() {
            let matrix = Matrix::new(kind, [1, 7, 8, 33, 50][i], cols, &mut random, tame);
            let packed = matrix.pack(&pool);
            for tokens in [1, 2, 3, 8, 11] {
                let x = random.floats(tokens * cols);
                let y = product(Instructions::best(), &pool, &packed, &x);
                for (i, (y, (sum, size))) in y.iter().zip(reference(&matrix, &x)).enumerate() {
                    let error = (f64::from(*y) - sum).abs();
                    assert!(error <= ROUNDING * size, "{kind} {}x{cols} {tokens}: {i} is {y}, not {sum}", matrix.rows);
                }
            }
        }
    }
}

#[test]
fn scales_of_very_different_size() {
    let (pool, mut random) = (ThreadPool::new(1), Random(2));
    for kind in ElementType::all().filter(|kind| kind.is_quantized()) {
        let matrix = Matrix::new(kind, 16, 1024, &mut random, wild);
        let x = random.floats(2 * 1024);
        let y = product(Instructions::best(), &pool, &matrix.pack(&pool), &x);
        for (y, (sum, size)) in y.iter().zip(reference(&matrix, &x)) {
            let error = (f64::from(*y) - sum).abs();
            assert!(error <= ROUNDING * size, "{kind}: {y}, not {sum}");
        }
    }
}

#[test]
fn matrices_that_are_not_packed_yet_give_the_same_bits() {
    let pool = ThreadPool::new(2);
    for kind in ElementType::all() {
        let cols = *widths(kind).last().expect("there are widths") - kind.block_len();
        let make = || Matrix::new(kind, 75, cols, &mut Random(5), tame);
        let (packed, later) = (make().pack(&pool), make().later());
        let x = Random(6).floats(40 * cols);
        let agree = |when: &str| {
            for tokens in [1, 3, 17, 40] {
                let [a, b] = [&packed, &later].map(|w| product(Instructions::best(), &pool, w, &x[..tokens * cols]));
                assert!(a == b, "{kind}, {tokens} tokens, {when}");
            }
        };
        agree("before");
        let unsettled = later.unsettled().expect("it is not packed");
        unsettled.settle(&AtomicBool::new(true));
        assert!(later.unsettled().is_some(), "{kind}: packing was stopped");
        unsettled.settle(&AtomicBool::new(false));
        assert!(later.unsettled().is_none(), "{kind}: it is packed");
        agree("after");
    }
}

/// Tiles of every number of groups, which AMX and VNNI multiply one by one.
#[test]
fn short_tiles_have_the_bits_of_every_other_way() {
    let (pool, mut random) = (ThreadPool::new(1), Random(7));
    for kind in ElementType::all().filter(|kind| kind.block_len() == 32) {
        for groups in 1..=8 {
            let cols = 256 + 32 * groups;
            let packed = Matrix::new(kind, 50, cols, &mut random, tame).pack(&pool);
            for tokens in [1, 9, 17, 33] {
                let x = random.floats(tokens * cols);
                let [plain, best] =
                    [Instructions::Portable, Instructions::best()].map(|i| product(i, &pool, &packed, &x));
                assert!(plain == best, "{kind}, {cols} columns, {tokens} tokens");
            }
        }
    }
}

/// The promise: a token's result depends neither on its neighbours nor on the threads nor on the instructions.
#[test]
fn bits_depend_on_nothing_else() {
    let pools: Vec<ThreadPool> = (1..=3).map(ThreadPool::new).collect();
    let mut random = Random(3);
    for kind in ElementType::all() {
        let cols = *widths(kind).last().expect("there are widths") - kind.block_len();
        let matrix = Matrix::new(kind, 75, cols, &mut random, tame);
        let packed = matrix.pack(&pools[2]);
        let tokens = 33;
        let x = random.floats(tokens * cols);
        let alone: Vec<f32> =
            x.chunks(cols).flat_map(|x| product(Instructions::Portable, &pools[0], &packed, x)).collect();
        let many = random.floats(300 * cols);
        let all = product(Instructions::Portable, &pools[2], &packed, &many);
        for instructions in Instructions::all() {
            for n in 1..=tokens {
                let pool = &pools[n % 3];
                let y = product(instructions, pool, &packed, &x[..n * cols]);
                let what = format!("{kind}, {n} tokens, {} threads, {instructions:?}", pool.threads());
                assert!(same_bits(&y, &alone[..n * 75]), "{what}");
            }
            let y = product(instructions, &pools[1], &packed, &many);
            assert!(same_bits(&y, &all), "{kind}, 300 tokens, {instructions:?}");
        }
    }
}

pub(crate) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn several_products_in_one_region() {
    let (pool, mut random) = (ThreadPool::new(2), Random(4));
    let shapes = [(ElementType::Q4_K, 64), (ElementType::Q8_0, 9), (ElementType::F32, 300), (ElementType::Q6_K, 1)];
    let packed = shapes.map(|(kind, rows)| Matrix::new(kind, rows, 512, &mut random, tame).pack(&pool));
    let x = random.floats(5 * 512);
    let mut activations = Activations::new();
    activations.set(&pool, &x, 512, Reads::of(&packed));
    let mut ys = shapes.map(|(_, rows)| vec![0.0; 5 * rows]);
    let products = packed.iter().zip(&mut ys).map(|(w, y)| Product { w, x: &activations, y });
    matmul_with(Instructions::best(), &pool, &mut products.collect::<Vec<_>>());
    for (w, y) in packed.iter().zip(&ys) {
        assert!(same_bits(y, &product(Instructions::best(), &pool, w, &x)));
    }
}

#[test]
fn hostile_numbers_stay_where_they_are() {
    let (pool, mut random) = (ThreadPool::new(1), Random(5));
    for kind in ElementType::all() {
        let packed = Matrix::new(kind, 9, 512, &mut random, tame).pack(&pool);
        let mut x = random.floats(4 * 512);
        x[5] = f32::NAN;
        x[512 + 300] = f32::INFINITY;
        x[1024..1536].fill(0.0);
        let x = [x.clone(), x].concat();
        for instructions in Instructions::all() {
            let y = product(instructions, &pool, &packed, &x);
            assert!(same_bits(&y[27..36], &y[63..]), "{kind}");
            assert!(y[..18].iter().all(|y| !y.is_finite()), "{kind}");
            assert!(y[18..27].iter().all(|y| *y == 0.0), "{kind}");
            assert!(y[27..36].iter().all(|y| y.is_finite()), "{kind}");
            let huge = product(instructions, &pool, &packed, &[f32::MAX; 512]);
            assert_eq!(huge.len(), 9);
        }
    }
}

#[test]
fn hostile_weights_neither_panic_nor_spread() {
    let (pool, mut random) = (ThreadPool::new(1), Random(6));
    for kind in ElementType::all().filter(|kind| kind.is_quantized()) {
        for scale in [|_| f32::NAN, |_| f32::INFINITY, |_| 65504.0, |_| 6e-8, |_| 0.0] as [fn(f32) -> f32; 5] {
            let mut matrix = Matrix::new(kind, 9, 512, &mut random, tame);
            let hostile = Matrix::new(kind, 1, 512, &mut random, scale);
            matrix.bytes[..hostile.bytes.len()].copy_from_slice(&hostile.bytes);
            let x = random.floats(6 * 512);
            let y = product(Instructions::best(), &pool, &matrix.pack(&pool), &x);
            let portable = product(Instructions::Portable, &pool, &matrix.pack(&pool), &x);
            for (i, (y, portable)) in y.iter().zip(&portable).enumerate() {
                assert!(y.to_bits() == portable.to_bits() || y.is_nan() && portable.is_nan(), "{kind}");
                assert!(i % 9 == 0 || y.is_finite(), "{kind}");
                assert!(i % 9 > 0 || y.is_finite() == scale(1.0).is_finite(), "{kind}: {y} of {}", scale(1.0));
            }
        }
    }
}

#[test]
fn nothing_times_anything_is_nothing() {
    let pool = ThreadPool::new(2);
    let empty = Matrix { kind: ElementType::Q8_0, rows: 0, cols: 32, bytes: Vec::new() }.pack(&pool);
    assert!(product(Instructions::best(), &pool, &empty, &[1.0; 64]).is_empty());
    let matrix = Matrix::new(ElementType::Q8_0, 3, 32, &mut Random(7), tame).pack(&pool);
    assert!(product(Instructions::best(), &pool, &matrix, &[]).is_empty());
    assert_eq!((matrix.rows(), matrix.cols(), matrix.element_type()), (3, 32, ElementType::Q8_0));
    matmul_with(Instructions::best(), &pool, &mut []);
}

#[test]
#[should_panic(expected = "a matrix of 32 columns times rows of 64")]
fn shapes_are_checked() {
    let pool = ThreadPool::new(1);
    let w = Matrix::new(ElementType::Q8_0, 3, 32, &mut Random(8), tame).pack(&pool);
    let mut x = Activations::new();
    x.set(&pool, &[0.0; 64], 64, Reads::of([&w]));
    matmul_with(Instructions::best(), &pool, &mut [Product { w: &w, x: &x, y: &mut [0.0; 3] }]);
}

//! What encoding loses, against the reference encoders and against the steps of each format.

use octet_checkpoint::ElementType::{self, *};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::quantize::quantize_row;
use proptest::prelude::*;
use safetensors::SafeTensors;

const BLOCK_TYPES: [ElementType; 12] = [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS];

/// Root mean square errors of ggml's own encoders (`ggml_quantize_chunk` of llama-cpp-python 0.3.36, no importance) on the
/// rows of `Q4_0.source`, with the mean taken in f64.
const GGML_ERRORS: [(ElementType, f64); 12] = [
    (Q8_0, 0.000_106_201),
    (Q4_0, 0.001_695_360),
    (Q4_1, 0.001_551_532),
    (Q5_0, 0.000_842_402),
    (Q5_1, 0.000_754_310),
    (IQ4_NL, 0.001_506_470),
    (IQ4_XS, 0.001_517_439),
    (Q2_K, 0.005_872_920),
    (Q3_K, 0.003_009_390),
    (Q4_K, 0.001_398_105),
    (Q5_K, 0.000_714_533),
    (Q6_K, 0.000_351_065),
];

/// The `gguf` package's own encoders: name of the rows, and of their error.
const WITH_SOURCE: [ElementType; 5] = [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1];

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

fn fixture() -> Vec<u8> {
    fixture_of(&std::env::var("OCTET_FIXTURES").unwrap_or_else(|_| COMMITTED.to_owned()))
}

fn fixture_of(folder: &str) -> Vec<u8> {
    std::fs::read(format!("{folder}/quantized-blocks.safetensors")).expect("the reference blocks")
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("a tensor of the fixture");
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn round_trip(kind: ElementType, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0xAA; kind.row_bytes(x.len()).expect("whole blocks")];
    quantize_row(kind, x, importance, &mut bytes);
    let mut back = vec![f32::NAN; x.len()];
    dequantize_row(kind, &bytes, &mut back);
    back
}

fn rms_error(kind: ElementType, rows: &[f32], cols: usize, importance: Option<&[f32]>, counted: &[f32]) -> f64 {
    let squares = rows.chunks_exact(cols).flat_map(|x| {
        let back = round_trip(kind, x, importance);
        let errors = x.iter().zip(back).map(|(x, back)| f64::from(back - x).powi(2));
        errors.zip(counted).map(|(square, count)| square * f64::from(*count)).collect::<Vec<_>>()
    });
    (squares.sum::<f64>() / rows.len() as f64).sqrt()
}

#[test]
fn nothing_loses_more_than_the_reference_encoders() {
    let file = fixture();
    let file = SafeTensors::deserialize(&file).expect("a safetensors file");
    let (cols, once) = (1024, vec![1.0; 1024]);
    for kind in WITH_SOURCE {
        let (source, limit) =
            (floats(&file, &format!("{kind}.source")), floats(&file, &format!("{kind}.source_error"))[0]);
        let error = rms_error(kind, &source, cols, None, &once);
        assert!(error <= f64::from(limit), "{kind}: {error:.9}, and gguf's encoder {limit:.9}");
    }
    // What ggml's encoders lose is known of the committed numbers alone.
    let committed = fixture_of(COMMITTED);
    let source = floats(&SafeTensors::deserialize(&committed).expect("a safetensors file"), "Q4_0.source");
    for (kind, limit) in GGML_ERRORS {
        let error = rms_error(kind, &source, cols, None, &once);
        assert!(error <= limit, "{kind}: {error:.9}, and ggml's encoder {limit:.9}");
    }
}

#[test]
fn importance_moves_the_error_to_where_it_counts_less() {
    let file = fixture();
    let source = floats(&SafeTensors::deserialize(&file).expect("a safetensors file"), "Q4_0.source");
    let importance: Vec<f32> = (0..1024).map(|i| [0.1, 0.3, 1.0, 5.0, 0.1, 0.3, 2.0][i % 7]).collect();
    for kind in BLOCK_TYPES {
        let informed = rms_error(kind, &source, 1024, Some(&importance), &importance);
        let blind = rms_error(kind, &source, 1024, None, &importance);
        assert!(informed < 0.99 * blind, "{kind}: {informed:.6} with, {blind:.6} without");
    }
}

#[test]
fn proportions_of_importance_matter_and_nothing_else() {
    let file = fixture();
    let source = floats(&SafeTensors::deserialize(&file).expect("a safetensors file"), "Q4_0.source");
    let importance: Vec<f32> = (0..1024).map(|i| 1.0 + (i % 5) as f32).collect();
    for kind in BLOCK_TYPES {
        let larger: Vec<f32> = importance.iter().map(|w| w * 2f32.powi(-40)).collect();
        assert_eq!(
            round_trip(kind, &source[..1024], Some(&importance)),
            round_trip(kind, &source[..1024], Some(&larger))
        );
        let none = [vec![0.0; 1024], vec![f32::NAN; 1024], vec![-1.0; 1024], vec![f32::INFINITY; 1024]];
        for useless in none {
            assert_eq!(round_trip(kind, &source[..1024], Some(&useless)), round_trip(kind, &source[..1024], None));
        }
    }
}

/// What a block held is found again. Blocks of 32 lose next to nothing; in blocks of 256 another choice of `d` may round some
/// scales of groups differently.
#[test]
fn encoding_what_was_decoded_loses_little_more() {
    let file = fixture();
    let source = floats(&SafeTensors::deserialize(&file).expect("a safetensors file"), "Q4_0.source");
    for kind in BLOCK_TYPES {
        let once: Vec<f32> = source.chunks_exact(1024).flat_map(|x| round_trip(kind, x, None)).collect();
        let first = rms_error(kind, &source, 1024, None, &[1.0; 1024]);
        let second = rms_error(kind, &once, 1024, None, &[1.0; 1024]);
        let limit = if kind.block_len() == 32 { 0.02 } else { 0.25 };
        assert!(second < limit * first, "{kind}: {second:.7} after {first:.7}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for kind in BLOCK_TYPES {
        assert!(round_trip(kind, &[0.0; 512], None).iter().all(|x| *x == 0.0), "{kind}");
        assert!(round_trip(kind, &[f32::MIN_POSITIVE / 8.0; 512], None).iter().all(|x| x.abs() < 1e-30), "{kind}");
    }
}

#[test]
fn numbers_that_no_block_holds_leave_the_others_alone() {
    for kind in BLOCK_TYPES {
        for (bad, sign) in [(f32::NAN, 0.0), (f32::INFINITY, 1.0), (f32::NEG_INFINITY, -1.0), (-f32::MAX, -1.0f32)] {
            let mut x = [0.5; 512];
            x[200] = bad;
            let back = round_trip(kind, &x, None);
            assert!(back.iter().all(|x| x.abs() <= 70_000.0), "{kind} {bad}");
            assert!(back[256..].iter().all(|x| (x - 0.5).abs() < 0.01), "{kind} {bad}");
            assert!((back[200] - sign * 65_504.0).abs() < 0.15 * 65_504.0 + 0.2, "{kind} {bad}: {}", back[200]);
        }
    }
}

#[test]
fn plain_floats_round_to_nearest_even() {
    let mut bytes = [0; 12];
    let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65_519.0, 1e-8, f32::NEG_INFINITY, f32::NAN];
    quantize_row(F16, &x, None, &mut bytes);
    let halves = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>();
    assert_eq!(halves[..5], [0x3c00, 0x3c02, 0xfbff, 0, 0xfc00]);
    assert!(halves[5] & 0x7fff > 0x7c00);
    quantize_row(F16, &[65_520.0], None, &mut bytes[..2]);
    assert_eq!(bytes[..2], 0x7c00u16.to_le_bytes());
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.0e38];
    quantize_row(BF16, &x, None, &mut bytes[..6]);
    assert_eq!(bytes[..6], [0x80, 0x3f, 0x82, 0x3f, 0x62, 0x7f]);
    quantize_row(F32, &[f32::MAX, -0.0, 1e-42], None, &mut bytes);
    assert_eq!(bytes[..4], f32::MAX.to_le_bytes());
}

/// Steps from the lowest to the highest code of a type, counted from zero where it has no minimum of its own.
fn steps(kind: ElementType) -> f32 {
    match kind {
        Q8_0 => 127.0,
        Q6_K => 31.0,
        Q5_0 | Q5_1 | Q5_K => 15.0,
        Q4_0 | Q4_1 | Q4_K => 7.0,
        // The levels of IQ4 are unevenly apart: at most 24 of 113.
        IQ4_NL | IQ4_XS => 113.0 / 24.0,
        Q3_K => 3.0,
        _ => 1.0,
    }
}

/// Weights of any size that the formats hold; neighbours are alike, and some stand out.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let weight = prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => -30.0f32..30.0];
    let size = prop_oneof![4 => Just(0.02f32), 1 => (-40i32..=11).prop_map(|e| 2f32.powi(e))];
    (prop::collection::vec(weight, 512), prop::collection::vec(size, 16))
        .prop_map(|(x, size)| x.iter().enumerate().map(|(i, x)| x * size[i / 32]).collect())
}

proptest! {
    /// Simply scaling the largest weight of a block to the end of the codes would be off by less than one step at each
    /// weight. A search that is worth its time loses no more than that in the mean square. Steps of float16 scales end at
    /// 2^-24, which the codes multiply.
    #[test]
    fn a_block_is_off_by_less_than_a_step(x in any_row(), kind in prop::sample::select(BLOCK_TYPES.to_vec())) {
        let back = round_trip(kind, &x, None);
        let block = kind.block_len();
        for (x, back) in x.chunks_exact(block).zip(back.chunks_exact(block)) {
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let mean_square = x.iter().zip(back).map(|(x, back)| (x - back).powi(2)).sum::<f32>() / block as f32;
            let limit = largest / steps(kind) + 2f32.powi(-24) * 127.0;
            prop_assert!(mean_square.sqrt() <= limit, "{kind}: off by {}, step {limit}", mean_square.sqrt());
        }
    }
}

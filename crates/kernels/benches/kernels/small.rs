//! The functions of one row, and making activations ready, each over rows that no cache holds.
//!
//! They run on one thread here, as they do in a work item; so of two threads' bandwidth they reach half at best.

use criterion::Criterion;
use octet_checkpoint::ElementType;
use octet_kernels::{Activations, PackedMatrix, Reads, Rope, RopeAngles, ThreadPool, rms_norm, softmax, swiglu};

use crate::floats;
use crate::roofline::{Roofline, Work};

/// Mixtral's.
const DIM: usize = 4096;
const HEAD_DIM: usize = 128;
/// 64 MiB of f32.
const ROWS: usize = 4096;
/// Bytes of an f32.
const FLOAT: usize = 4;

/// `rms_norm`, `softmax`, `swiglu`, `rope` and `activations`, a row a call but for the last.
pub fn small(criterion: &mut Criterion, pool: &ThreadPool, roofline: &Roofline<'_>) {
    let mut group = criterion.benchmark_group("small");
    let (mut rows, mut out) = (floats(ROWS * DIM), vec![0.0; DIM]);
    let at = |call: usize| call % ROWS * DIM..(call % ROWS + 1) * DIM;
    let weight = floats(DIM);
    let read_row = Work::of_bytes(DIM * FLOAT);
    roofline.measure(&mut group, "small", "rms_norm", read_row, |call| {
        rms_norm(&rows[at(call)], &weight, 1e-5, &mut out);
    });
    roofline.measure(&mut group, "small", "swiglu", Work::of_bytes(2 * DIM * FLOAT), |call| {
        swiglu(&rows[at(2 * call)], &rows[at(2 * call + 1)], &mut out);
    });
    let mut angles = RopeAngles::default();
    Rope::new(HEAD_DIM, 1e6).angles(&[1234], &mut angles);
    let change_row = Work::of_bytes(2 * DIM * FLOAT);
    roofline.measure(&mut group, "small", "rope", change_row, |call| angles.apply_to_token(0, &mut rows[at(call)]));
    roofline.measure(&mut group, "small", "softmax", change_row, |call| softmax(&mut rows[at(call)]));
    for (name, kind) in [("activations_of_q4_k", ElementType::Q4_K), ("activations_of_q8_0", ElementType::Q8_0)] {
        let reads = Reads::of([&PackedMatrix::pack(pool, kind, 0, DIM, &|_: std::ops::Range<usize>, _: &mut [u8]| {})]);
        let mut activations = Activations::new();
        roofline.measure(&mut group, "small", name, Work::of_bytes(ROWS * DIM * FLOAT), |_| {
            activations.set(pool, &rows, DIM, reads);
        });
    }
}

//! Two checkpoints of one model held against each other: how far weights of each role moved.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Tensor, TensorName};
use octet_kernels::ThreadPool;
use octet_model::floats;

use crate::format;
use crate::progress::Progress;
use crate::stdout;

/// Bytes of the source that a thread reads at a time.
const READ_BYTES: usize = 1 << 20;

/// How far the weights of some tensors moved.
#[derive(Clone, Copy, Debug, Default)]
struct Distance {
    /// Sum of squares of the source's weights.
    squares: f64,
    /// Sum of squares of what they moved by.
    errors: f64,
    /// The largest that any moved.
    largest: f64,
    weights: u64,
}

impl Distance {
    fn add(&mut self, other: Distance) {
        self.squares += other.squares;
        self.errors += other.errors;
        self.largest = self.largest.max(other.largest);
        self.weights += other.weights;
    }

    /// Root of the mean square of the errors, in parts of the weights' own.
    fn relative(&self) -> f64 {
        if self.squares > 0.0 { (self.errors / self.squares).sqrt() } else { 0.0 }
    }
}

/// Prints, for each role and type, how far the weights of `result` are from those of `source`.
pub fn print(source: &Checkpoint, result: &Checkpoint, threads: usize) -> anyhow::Result<()> {
    let names: Vec<TensorName> = source.params().tensors().collect();
    let pairs = names.iter().map(|&name| Ok((source.tensor(name)?, result.tensor(name)?)));
    let pairs = pairs.collect::<Result<Vec<_>, octet_checkpoint::Error>>()?;
    let bytes = |tensor: &Tensor<'_>| (tensor.rows() * tensor.row_bytes()) as u64;
    let total = pairs.iter().map(|(from, to)| bytes(from) + bytes(to)).sum();
    let (progress, done) = (Progress::new("comparing"), AtomicU64::new(0));
    let roles = Mutex::new(BTreeMap::<(usize, ElementType), Distance>::new());
    ThreadPool::new(threads).run(pairs.len(), &|i, _| {
        let (from, to) = &pairs[i];
        let distance = distance(from, to);
        let mut roles = roles.lock().expect("no holder of this lock panics");
        roles.entry((role(from.name()), to.element_type())).or_default().add(distance);
        drop(roles);
        let bytes = bytes(from) + bytes(to);
        progress.at(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    });
    progress.finish();
    let mut table =
        format!("{:<14} {:>6} {:>18} {:>15} {:>14}\n", "role", "type", "weights", "relative error", "largest error");
    for ((number, element_type), distance) in roles.into_inner().expect("no holder of this lock panics") {
        let (role, name, weights) = (ROLES[number], element_type.name(), format::count(distance.weights));
        let percent = format!("{} %", format::three_digits(100.0 * distance.relative()));
        let largest = format::three_digits(distance.largest);
        table += &format!("{role:<14} {name:>6} {weights:>18} {percent:>15} {largest:>14}\n");
    }
    stdout::print(&table)
}

/// Roles in the order in which a token meets them.
const ROLES: [&str; 11] = [
    "embedding",
    "norms",
    "attention q",
    "attention k",
    "attention v",
    "attention out",
    "router",
    "experts gate",
    "experts up",
    "experts down",
    "output",
];

/// A tensor's role: its number in [`ROLES`].
fn role(name: TensorName) -> usize {
    match name {
        TensorName::TokenEmbedding => 0,
        TensorName::OutputNorm => 1,
        TensorName::Output => 10,
        TensorName::Layer(_, tensor) => match tensor {
            LayerTensor::AttentionNorm | LayerTensor::FfnNorm => 1,
            LayerTensor::Wq => 2,
            LayerTensor::Wk => 3,
            LayerTensor::Wv => 4,
            LayerTensor::Wo => 5,
            LayerTensor::Router => 6,
            LayerTensor::Expert(_, ExpertMatrix::W1) => 7,
            LayerTensor::Expert(_, ExpertMatrix::W3) => 8,
            LayerTensor::Expert(_, ExpertMatrix::W2) => 9,
        },
    }
}

fn distance(from: &Tensor<'_>, to: &Tensor<'_>) -> Distance {
    let mut distance = Distance { weights: (from.rows() * from.cols()) as u64, ..Distance::default() };
    // Many rows at a time: a transposed matrix is read fast only so.
    let step = (READ_BYTES / from.row_bytes()).max(1);
    for start in (0..from.rows()).step_by(step) {
        let rows = start..from.rows().min(start + step);
        for (x, y) in floats(from, rows.clone()).into_iter().zip(floats(to, rows)) {
            let (x, error) = (f64::from(x), (f64::from(x) - f64::from(y)).abs());
            distance.squares += x * x;
            distance.errors += error * error;
            distance.largest = distance.largest.max(error);
        }
    }
    from.forget_pages();
    to.forget_pages();
    distance
}

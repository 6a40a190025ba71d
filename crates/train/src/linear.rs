//! `y = x Wᵀ + scale · (x Aᵀ) Bᵀ` and its gradients, whatever `W` is: trained in f32, or left as it lies in its file.
//!
//! ```text
//! d_x = d_y W + scale · (d_y B) A      d_W = d_yᵀ x      d_B = scale · d_yᵀ (x Aᵀ)      d_A = scale · (d_y B)ᵀ x
//! ```
//! A frozen matrix has no `d_W`. It is turned into floats a tile of rows at a time, for both directions, unless it is bf16 and
//! the machine multiplies that as it lies.

use std::borrow::Cow;
use std::ops::Range;

use octet_checkpoint::{Checkpoint, ElementType, TensorName};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::gradients::for_each_rows;
use octet_kernels::{FloatMatrix, FloatMatrixMut, Target, ThreadPool, float_matmul, multiplies_bf16};

use crate::buffers::Buffers;
use crate::lora::Dropout;
use crate::{Error, Gradients, Parameters};

/// Most numbers of a tile: 16 MiB of floats, which holds an expert's matrix of small models whole.
const TILE_VALUES: usize = 4 << 20;
/// Rows that a thread turns into floats at a time.
const ROWS_AT_ONCE: usize = 32;

/// What the products of a step share.
pub(crate) struct Pass<'m> {
    pub(crate) pool: &'m ThreadPool,
    /// Where frozen tensors lie that were not copied.
    pub(crate) checkpoint: Option<&'m Checkpoint>,
    pub(crate) parameters: &'m Parameters,
    pub(crate) buffers: Buffers,
    /// False where the model is asked for without its adapter.
    pub(crate) adapter: bool,
    /// Seed of the step's dropout; `None` outside of training.
    pub(crate) dropout_seed: Option<u64>,
    /// Whether routers learn of every expert; see `dense_router.rs`.
    pub(crate) dense_router: bool,
}

/// A matrix `[rows, cols]`.
pub(crate) struct Linear {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) weight: Weight,
    pub(crate) lora: Option<LoraPlace>,
}

/// Where a tensor's numbers are.
pub(crate) enum Weight {
    /// In the parameters, at this index.
    Trained(usize),
    Frozen(Frozen),
}

/// A tensor that is not trained.
pub(crate) struct Frozen {
    name: TensorName,
    element_type: ElementType,
    /// Its rows in canonical order; `None` where they lie so in the file.
    copied: Option<Vec<u8>>,
}

/// Where a matrix's change is.
#[derive(Clone, Copy)]
pub(crate) struct LoraPlace {
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    pub(crate) dropout: f32,
}

impl Frozen {
    pub(crate) fn new(checkpoint: &Checkpoint, name: TensorName) -> Result<Frozen, Error> {
        let tensor = checkpoint.tensor(name)?;
        let copied = tensor.borrow().is_none().then(|| {
            let mut bytes = vec![0; tensor.rows() * tensor.row_bytes()];
            tensor.read_rows(0..tensor.rows(), &mut bytes);
            tensor.forget_pages();
            bytes
        });
        Ok(Frozen { name, element_type: tensor.element_type(), copied })
    }

    /// A tensor whose rows are these bytes, in canonical order.
    pub(crate) fn of_bytes(name: TensorName, element_type: ElementType, bytes: Vec<u8>) -> Frozen {
        Frozen { name, element_type, copied: Some(bytes) }
    }

    fn bytes<'a>(&'a self, checkpoint: Option<&'a Checkpoint>) -> &'a [u8] {
        self.copied.as_deref().unwrap_or_else(|| {
            let tensor = checkpoint.and_then(|checkpoint| checkpoint.find(self.name));
            let tensor = tensor.expect("it was there when the model was opened");
            tensor.borrow().expect("tensors that do not lie in canonical form have been copied")
        })
    }
}

impl Weight {
    /// Rows of the tensor as floats.
    pub(crate) fn read<'a>(&'a self, pass: &Pass<'a>, rows: Range<usize>, cols: usize) -> Cow<'a, [f32]> {
        match self {
            Weight::Trained(index) => {
                Cow::Borrowed(&pass.parameters.0[*index].values[rows.start * cols..rows.end * cols])
            }
            Weight::Frozen(frozen) => {
                let mut values = vec![0.0; rows.len() * cols];
                frozen.read(pass, rows, cols, &mut values);
                Cow::Owned(values)
            }
        }
    }

    /// Where its gradient goes, if it has one.
    pub(crate) fn gradient<'g>(&self, gradients: &'g mut Gradients) -> Option<&'g mut [f32]> {
        match self {
            Weight::Trained(index) => Some(&mut gradients.0[*index]),
            Weight::Frozen(_) => None,
        }
    }

    pub(crate) fn is_trained(&self) -> bool {
        matches!(self, Weight::Trained(_))
    }
}

impl Frozen {
    /// `out [rows, cols]` = these rows as floats.
    fn read(&self, pass: &Pass<'_>, rows: Range<usize>, cols: usize, out: &mut [f32]) {
        let row_bytes = self.element_type.row_bytes(cols).expect("checked when the checkpoint was opened");
        let bytes = &self.bytes(pass.checkpoint)[rows.start * row_bytes..rows.end * row_bytes];
        for_each_rows(pass.pool, out, cols, ROWS_AT_ONCE, |first, out| {
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                dequantize_row(self.element_type, &bytes[(first + i) * row_bytes..][..row_bytes], out);
            }
        });
    }
}

impl Linear {
    /// `y [n, rows]` from `x [n, cols]`.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, x: &[f32], y: &mut [f32]) {
        let (n, rows, cols) = (x.len() / self.cols, self.rows, self.cols);
        self.for_each_tile(pass, |pool, tile, w| {
            let to = FloatMatrixMut::strided(&mut y[tile.start.min(n * rows)..], n, tile.len(), rows);
            float_matmul(pool, FloatMatrix::new(x, cols), w.transposed(), 1.0, Target::Fresh, to);
        });
        let Some((lora, [_, b])) = self.lora(pass) else { return };
        let inner = self.inner(pass, &lora, x);
        let (t, b) = (FloatMatrix::new(&inner, lora.rank), FloatMatrix::new(b, lora.rank));
        float_matmul(pass.pool, t, b.transposed(), lora.scale, Target::Sum, FloatMatrixMut::new(y, rows));
        pass.buffers.give(inner);
    }

    /// `d_x [n, cols]` from `d_y [n, rows]`.
    pub(crate) fn input_gradient(&self, pass: &mut Pass<'_>, d_y: &[f32], target: Target, d_x: &mut [f32]) {
        self.weight_input_gradient(pass, d_y, target, d_x);
        let Some((lora, [a, b])) = self.lora(pass) else { return };
        let d_inner = self.inner_gradient(pass, &lora, b, d_y);
        self.change_input_gradient(pass, &lora, a, &d_inner, d_x);
        pass.buffers.give(d_inner);
    }

    /// Adds to the gradients of `W`, or of `A` and `B`, what `x [n, cols]` and `d_y [n, rows]` say.
    pub(crate) fn weight_gradient(&self, pass: &mut Pass<'_>, x: &[f32], d_y: &[f32], gradients: &mut Gradients) {
        self.own_gradient(pass, x, d_y, gradients);
        let Some((lora, [_, b])) = self.lora(pass) else { return };
        let d_inner = self.inner_gradient(pass, &lora, b, d_y);
        self.change_gradient(pass, &lora, (x, d_y, &d_inner), gradients);
        pass.buffers.give(d_inner);
    }

    /// Both, which share a product.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        (x, d_y): (&[f32], &[f32]),
        target: Target,
        d_x: &mut [f32],
        gradients: &mut Gradients,
    ) {
        self.weight_input_gradient(pass, d_y, target, d_x);
        self.own_gradient(pass, x, d_y, gradients);
        let Some((lora, [a, b])) = self.lora(pass) else { return };
        let d_inner = self.inner_gradient(pass, &lora, b, d_y);
        self.change_input_gradient(pass, &lora, a, &d_inner, d_x);
        self.change_gradient(pass, &lora, (x, d_y, &d_inner), gradients);
        pass.buffers.give(d_inner);
    }

    /// `d_y W`.
    fn weight_input_gradient(&self, pass: &mut Pass<'_>, d_y: &[f32], target: Target, d_x: &mut [f32]) {
        let (n, rows, cols) = (d_y.len() / self.rows, self.rows, self.cols);
        self.for_each_tile(pass, |pool, tile, w| {
            let target = if tile.start == 0 { target } else { Target::Sum };
            let d_y = FloatMatrix::strided(&d_y[tile.start.min(n * rows)..], n, tile.len(), rows);
            float_matmul(pool, d_y, w, 1.0, target, FloatMatrixMut::new(d_x, cols));
        });
    }

    /// Adds `d_inner A`.
    fn change_input_gradient(
        &self,
        pass: &mut Pass<'_>,
        lora: &LoraPlace,
        a: &[f32],
        d_inner: &[f32],
        d_x: &mut [f32],
    ) {
        let (d_t, a) = (FloatMatrix::new(d_inner, lora.rank), FloatMatrix::new(a, self.cols));
        match self.dropout(pass, lora) {
            None => float_matmul(pass.pool, d_t, a, 1.0, Target::Sum, FloatMatrixMut::new(d_x, self.cols)),
            Some(dropout) => {
                let mut through = pass.buffers.take(d_x.len());
                float_matmul(pass.pool, d_t, a, 1.0, Target::Fresh, FloatMatrixMut::new(&mut through, self.cols));
                dropout.apply(&mut through);
                octet_kernels::add_assign(d_x, &through);
                pass.buffers.give(through);
            }
        }
    }

    /// Adds `d_yᵀ x` to the gradient of `W`, if it is trained.
    fn own_gradient(&self, pass: &mut Pass<'_>, x: &[f32], d_y: &[f32], gradients: &mut Gradients) {
        let Some(d_w) = self.weight.gradient(gradients) else { return };
        let (d_y, x) = (FloatMatrix::new(d_y, self.rows), FloatMatrix::new(x, self.cols));
        float_matmul(pass.pool, d_y.transposed(), x, 1.0, Target::Sum, FloatMatrixMut::new(d_w, self.cols));
    }

    /// Adds to the gradients of `A` and `B`.
    fn change_gradient(
        &self,
        pass: &mut Pass<'_>,
        lora: &LoraPlace,
        (x, d_y, d_inner): (&[f32], &[f32], &[f32]),
        gradients: &mut Gradients,
    ) {
        let inner = self.inner(pass, lora, x);
        let to = FloatMatrixMut::new(&mut gradients.0[lora.b], lora.rank);
        let (d_y, t) = (FloatMatrix::new(d_y, self.rows), FloatMatrix::new(&inner, lora.rank));
        float_matmul(pass.pool, d_y.transposed(), t, lora.scale, Target::Sum, to);
        pass.buffers.give(inner);
        let dropped = self.dropped(pass, lora, x);
        let (d_t, x) =
            (FloatMatrix::new(d_inner, lora.rank), FloatMatrix::new(dropped.as_deref().unwrap_or(x), self.cols));
        let to = FloatMatrixMut::new(&mut gradients.0[lora.a], self.cols);
        float_matmul(pass.pool, d_t.transposed(), x, 1.0, Target::Sum, to);
        dropped.into_iter().for_each(|x| pass.buffers.give(x));
    }

    /// Whether anything of it is trained.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight.is_trained() || self.lora.is_some()
    }

    /// The change, and its matrices, where there is one and it is asked for.
    fn lora<'m>(&self, pass: &Pass<'m>) -> Option<(LoraPlace, [&'m [f32]; 2])> {
        let lora = self.lora.filter(|_| pass.adapter)?;
        Some((lora, [lora.a, lora.b].map(|index| pass.parameters.0[index].values.as_slice())))
    }

    /// `x Aᵀ [n, rank]`.
    fn inner(&self, pass: &mut Pass<'_>, lora: &LoraPlace, x: &[f32]) -> Vec<f32> {
        let a = pass.parameters.0[lora.a].values.as_slice();
        let dropped = self.dropped(pass, lora, x);
        let mut inner = pass.buffers.take(x.len() / self.cols * lora.rank);
        let x = FloatMatrix::new(dropped.as_deref().unwrap_or(x), self.cols);
        let to = FloatMatrixMut::new(&mut inner, lora.rank);
        float_matmul(pass.pool, x, FloatMatrix::new(a, self.cols).transposed(), 1.0, Target::Fresh, to);
        dropped.into_iter().for_each(|x| pass.buffers.give(x));
        inner
    }

    /// `scale · d_y B [n, rank]`.
    fn inner_gradient(&self, pass: &mut Pass<'_>, lora: &LoraPlace, b: &[f32], d_y: &[f32]) -> Vec<f32> {
        let mut d_inner = pass.buffers.take(d_y.len() / self.rows * lora.rank);
        let (d_y, b) = (FloatMatrix::new(d_y, self.rows), FloatMatrix::new(b, lora.rank));
        float_matmul(pass.pool, d_y, b, lora.scale, Target::Fresh, FloatMatrixMut::new(&mut d_inner, lora.rank));
        d_inner
    }

    fn dropout(&self, pass: &Pass<'_>, lora: &LoraPlace) -> Option<Dropout> {
        let seed = pass.dropout_seed.filter(|_| lora.dropout > 0.0)?;
        Some(Dropout { share: lora.dropout, seed, stream: lora.a as u64 })
    }

    /// The inputs that count in this step, where some do not.
    fn dropped(&self, pass: &mut Pass<'_>, lora: &LoraPlace, x: &[f32]) -> Option<Vec<f32>> {
        let dropout = self.dropout(pass, lora)?;
        let mut dropped = pass.buffers.take(x.len());
        dropped.copy_from_slice(x);
        dropout.apply(&mut dropped);
        Some(dropped)
    }

    /// Calls `each(pool, rows, those rows of W as floats)` until all rows have been.
    fn for_each_tile(&self, pass: &mut Pass<'_>, mut each: impl FnMut(&ThreadPool, Range<usize>, FloatMatrix<'_>)) {
        match &self.weight {
            Weight::Trained(index) => {
                each(pass.pool, 0..self.rows, FloatMatrix::new(&pass.parameters.0[*index].values, self.cols));
            }
            Weight::Frozen(frozen) if frozen.element_type == ElementType::BF16 && multiplies_bf16() => {
                each(pass.pool, 0..self.rows, FloatMatrix::bf16(frozen.bytes(pass.checkpoint), self.cols));
            }
            Weight::Frozen(frozen) => {
                let at_once = (TILE_VALUES / self.cols).clamp(1, self.rows);
                let mut tile = pass.buffers.take(at_once * self.cols);
                for start in (0..self.rows).step_by(at_once) {
                    let rows = start..(start + at_once).min(self.rows);
                    let values = &mut tile[..rows.len() * self.cols];
                    frozen.read(pass, rows.clone(), self.cols, values);
                    each(pass.pool, rows, FloatMatrix::new(values, self.cols));
                }
                pass.buffers.give(tile);
            }
        }
    }
}

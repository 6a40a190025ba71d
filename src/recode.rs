//! Rows of one type made into rows of another, on their way from a checkpoint to a new file.

use std::ops::Range;

use octet_checkpoint::write::{RowOrder, Rows};
use octet_checkpoint::{ElementType, Error, Tensor};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::quantize::quantize_row;

/// Source bytes that are read at a time, so that they are still in the cache when they are encoded.
const READ_BYTES: usize = 1 << 20;

/// The rows of a new tensor, made from those of one or several tensors of a checkpoint.
pub struct Recoded<'a> {
    parts: Vec<Part<'a>>,
    order: RowOrder,
    element_type: ElementType,
}

/// One of the tensors that a new one is made of.
struct Part<'a> {
    tensor: Tensor<'a>,
    /// How much each column matters `[cols]`, where that is known.
    importance: Option<Vec<f32>>,
}

impl<'a> Recoded<'a> {
    /// The rows of these tensors, one after the other, in this order and type. All must have the same shape.
    pub fn new(tensors: Vec<Tensor<'a>>, order: RowOrder, element_type: ElementType) -> Recoded<'a> {
        let parts = tensors.into_iter().map(|tensor| Part { tensor, importance: None }).collect();
        Recoded { parts, order, element_type }
    }

    /// The same with what is known of how much each column matters: of each part `[cols]`, or nothing.
    pub fn with_importance(mut self, importance: Vec<Option<Vec<f32>>>) -> Recoded<'a> {
        assert_eq!(importance.len(), self.parts.len(), "one for each part");
        self.parts.iter_mut().zip(importance).for_each(|(part, importance)| part.importance = importance);
        self
    }

    /// Reads canonical or reordered rows of one part, in the part's own type.
    fn read_part(&self, tensor: &Tensor<'_>, rows: Range<usize>, out: &mut [u8]) {
        if self.order == RowOrder::Canonical {
            return tensor.read_rows(rows, out);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(tensor.row_bytes())) {
            let row = self.order.canonical(row);
            tensor.read_rows(row..row + 1, out);
        }
    }

    fn recode_part(&self, part: &Part<'_>, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let tensor = &part.tensor;
        if tensor.element_type() == self.element_type {
            self.read_part(tensor, rows, out);
            return Ok(());
        }
        let (from_bytes, to_bytes) = (tensor.row_bytes(), out.len() / rows.len());
        let step = (READ_BYTES / from_bytes).max(1);
        let (mut stored, mut row_values) = (Vec::new(), vec![0.0; tensor.cols()]);
        for (start, out) in rows.clone().step_by(step).zip(out.chunks_mut(step * to_bytes)) {
            let some = start..rows.end.min(start + step);
            stored.resize(some.len() * from_bytes, 0);
            self.read_part(tensor, some.clone(), &mut stored);
            for ((row, stored), out) in some.zip(stored.chunks_exact(from_bytes)).zip(out.chunks_exact_mut(to_bytes)) {
                dequantize_row(tensor.element_type(), stored, &mut row_values);
                check_values(tensor, row, &row_values, self.element_type)?;
                quantize_row(self.element_type, &row_values, part.importance.as_deref(), out);
            }
        }
        Ok(())
    }
}

impl Rows for Recoded<'_> {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let rows_of_part = self.parts[0].tensor.rows();
        let row_bytes = out.len() / rows.len();
        let mut start = rows.start;
        while start < rows.end {
            let (index, first) = (start / rows_of_part, start % rows_of_part);
            let n = (rows_of_part - first).min(rows.end - start);
            let part = &self.parts[index];
            let at = (start - rows.start) * row_bytes;
            self.recode_part(part, first..first + n, &mut out[at..at + n * row_bytes])?;
            if first + n == rows_of_part {
                // Mapped pages count as our memory until we let go of them.
                part.tensor.forget_pages();
            }
            start += n;
        }
        Ok(())
    }
}

/// Refuses numbers that have no place in the new type, rather than write nonsense.
fn check_values(tensor: &Tensor<'_>, row: usize, values: &[f32], to: ElementType) -> Result<(), Error> {
    // F16 ends at 65504; what rounds to more becomes infinite.
    let limit = if to == ElementType::F16 { 65520.0 } else { f32::INFINITY };
    // NaN is not below anything, so it fails this too.
    if values.iter().all(|x| x.abs() < limit) {
        return Ok(());
    }
    let value = values.iter().find(|x| x.is_nan() || x.abs() >= limit).copied().unwrap_or(f32::NAN);
    let remedy = if value.is_finite() {
        "is too large for F16; use --type bf16"
    } else {
        "is no weight; `octet verify` lists such tensors"
    };
    let problem = format!("tensor {}: {value} in row {row} {remedy}", tensor.stored_name());
    Err(Error::Malformed { path: tensor.path().to_owned(), problem })
}

/// True if every number of a small tensor is the same in the type `to`.
pub fn is_exact(tensor: &Tensor<'_>, to: ElementType) -> bool {
    let mut stored = vec![0; tensor.row_bytes()];
    let (mut before, mut after) = (vec![0.0; tensor.cols()], vec![0.0; tensor.cols()]);
    let mut narrowed = vec![0; to.row_bytes(tensor.cols()).expect("floats fill any row")];
    (0..tensor.rows()).all(|row| {
        tensor.read_rows(row..row + 1, &mut stored);
        dequantize_row(tensor.element_type(), &stored, &mut before);
        quantize_row(to, &before, None, &mut narrowed);
        dequantize_row(to, &narrowed, &mut after);
        before == after
    })
}

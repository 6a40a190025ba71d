//! The definition of every product, in plain code: what the fast kernels must equal, bit for bit.
//!
//! A tile of weights is unpacked to small integers and the scales that belong to them; integer sums are exact, so their
//! order does not matter; and of floats there are the same operations in the same order as in the fast kernels:
//!
//! ```text
//! float weights:  part = fma(w, x, part) over the columns of a tile; y = y + part
//! blocks of 32:   y = fma(d * scale of x, Σ q x, y) for each; with minimums then y = fma(m, scale of x * Σ x, y)
//! blocks of 256:  y = fma(d * scale of x, Σ s Σ q x, y); with minimums then y = fma(dmin * scale of x, Σ m Σ x, y)
//! ```

use half::{bf16, f16};
use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, Scaling};
use crate::packed::PackedShape;
use crate::packed_layout::{ROWS, TILE};
use crate::portable_tiles::Codes;

/// `sums [token][8]` += the rows of one panel times the tokens from `first` on, as many as there is room for.
pub(crate) fn panel(shape: &PackedShape, panel: &[u8], x: &ActivationView<'_>, first: usize, sums: &mut [[f32; ROWS]]) {
    for tile in 0..shape.tiles {
        let (bytes, cols) = (&panel[tile * shape.tile_bytes..], shape.tile_cols(tile));
        if is_multiplied_as_floats(shape.kind) {
            let mut weights = [[0.0; ROWS]; TILE];
            decode_tile(shape.kind, bytes, &mut weights[..cols]);
            for (x, y) in x.floats(tile, first).iter().zip(sums.iter_mut()) {
                add_float_products(&weights[..cols], x, y);
            }
        } else {
            let weights = Codes::unpack(shape.kind, bytes, cols);
            for (x, y) in x.ints(Scaling::of(shape.kind), tile, first).iter().zip(sums.iter_mut()) {
                y.iter_mut().enumerate().for_each(|(row, y)| *y = weights.row_product(row, x, *y));
            }
        }
    }
}

/// Whether products with this type take activations as floats.
pub(crate) fn is_multiplied_as_floats(kind: ElementType) -> bool {
    use ElementType::*;
    matches!(kind, F32 | F16 | BF16 | IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S)
}

fn add_float_products(weights: &[[f32; ROWS]], x: &[f32; TILE], y: &mut [f32; ROWS]) {
    for (row, y) in y.iter_mut().enumerate() {
        *y += weights.iter().zip(x).fold(0.0, |part, (w, x)| w[row].mul_add(*x, part));
    }
}

/// A tile of a type that is multiplied as floats, as floats `[column][row]`.
pub(crate) fn decode_tile(kind: ElementType, bytes: &[u8], out: &mut [[f32; ROWS]]) {
    use ElementType::*;
    let two = |at: usize| [bytes[at], bytes[at + 1]];
    for (column, out) in out.iter_mut().enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            let index = column * ROWS + row;
            match kind {
                F32 => *out = f32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().expect("four bytes")),
                F16 => *out = f16::from_le_bytes(two(2 * index)).to_f32(),
                BF16 => *out = bf16::from_le_bytes(two(2 * index)).to_f32(),
                _ => {}
            }
        }
    }
    if kind.is_quantized() {
        let mut values = [0.0; TILE];
        for (row, block) in bytes.chunks_exact(kind.block_bytes()).take(ROWS).enumerate() {
            crate::blocks::dequantize_row(kind, block, &mut values);
            out.iter_mut().zip(values).for_each(|(column, value)| column[row] = value);
        }
    }
}

//! The definition of every product, in plain code: what the fast kernels must equal, bit for bit.
//!
//! A tile of weights is unpacked to small integers and the scales that belong to them; integer sums are exact, so their
//! order does not matter; and of floats there are the same operations in the same order as in the fast kernels:
//!
//! ```text
//! float weights:    part = fma(w, x, part) over the columns of a tile; y = y + part
//! 8-bit weights:    part = fma(d, Σ_32 q x, part) over its groups;     y = fma(scale of x, part, y)
//! other weights:    y = fma(d * scale of x, Σ s Σ q x, y); with minimums then y = fma(dmin * scale of x, Σ m Σ x, y)
//! ```

use half::{bf16, f16};
use octet_checkpoint::ElementType;

use crate::activations::{ActivationView, TOKENS, section};
use crate::packed::PackedShape;
use crate::packed_layout::{ROWS, TILE};
use crate::portable_tiles::{Codes, unpack};

/// `out [tokens][8]` += the rows of one panel times the tokens of groups `first_group..`, as many as `out` has room for.
pub(crate) fn panel(
    shape: &PackedShape,
    panel: &[u8],
    x: &ActivationView<'_>,
    first_group: usize,
    out: &mut [[f32; ROWS]],
) {
    for tile in 0..shape.tiles {
        let bytes = &panel[tile * shape.tile_bytes..];
        let weights = TileWeights::new(shape.kind, bytes, shape.tile_cols(tile));
        for (group, out) in out.chunks_mut(TOKENS).enumerate() {
            for (token, y) in out.iter_mut().enumerate() {
                weights.add_product(x, tile, first_group + group, token, y);
            }
        }
    }
}

/// A tile of eight rows, unpacked.
enum TileWeights {
    /// `[column][row]`.
    Floats(Vec<[f32; ROWS]>),
    Codes(Box<Codes>),
}

impl TileWeights {
    fn new(kind: ElementType, bytes: &[u8], cols: usize) -> TileWeights {
        match float_tile(kind, bytes, cols) {
            Some(floats) => TileWeights::Floats(floats),
            None => TileWeights::Codes(unpack(kind, bytes, cols)),
        }
    }

    /// `y += w x` for one token.
    fn add_product(&self, x: &ActivationView<'_>, tile: usize, group: usize, token: usize, y: &mut [f32; ROWS]) {
        let tokens = x.tokens(group);
        match self {
            TileWeights::Floats(weights) => {
                let x = x.floats(tile, group)[token..].iter().step_by(tokens);
                for (row, y) in y.iter_mut().enumerate() {
                    *y += weights.iter().zip(x.clone()).fold(0.0, |part, (w, x)| w[row].mul_add(*x, part));
                }
            }
            TileWeights::Codes(weights) => {
                let ints = x.ints(tile, group);
                let x: [i32; TILE] =
                    std::array::from_fn(|k| i32::from(ints[(k / 4 * tokens + token) * 4 + k % 4] as i8));
                let scale = section::SCALE * tokens + token * 4;
                let scale = f32::from_ne_bytes(ints[scale..scale + 4].try_into().expect("four bytes"));
                for (row, y) in y.iter_mut().enumerate() {
                    *y = weights.row_product(row, &x, scale, *y);
                }
            }
        }
    }
}

/// The tile as floats `[column][row]`, if that is how products with this type are done.
pub(crate) fn float_tile(kind: ElementType, bytes: &[u8], cols: usize) -> Option<Vec<[f32; ROWS]>> {
    use ElementType::*;
    let two = |b: &[u8], row: usize| [b[2 * row], b[2 * row + 1]];
    let each = |size: usize, value: &dyn Fn(&[u8], usize) -> f32| {
        let columns = bytes[..cols * ROWS * size].chunks_exact(ROWS * size);
        Some(columns.map(|column| std::array::from_fn(|row| value(column, row))).collect())
    };
    match kind {
        F32 => each(4, &|b, row| f32::from_le_bytes(b[4 * row..4 * row + 4].try_into().expect("four bytes"))),
        F16 => each(2, &|b, row| f16::from_le_bytes(two(b, row)).to_f32()),
        BF16 => each(2, &|b, row| bf16::from_le_bytes(two(b, row)).to_f32()),
        IQ3_XXS | IQ3_S | IQ2_XXS | IQ2_XS | IQ2_S => {
            let mut floats = vec![[0.0; ROWS]; cols];
            let mut values = vec![0.0; cols];
            for (row, block) in bytes.chunks_exact(kind.block_bytes()).take(ROWS).enumerate() {
                crate::blocks::dequantize_row(kind, block, &mut values);
                floats.iter_mut().zip(&values).for_each(|(column, value)| column[row] = *value);
            }
            Some(floats)
        }
        _ => None,
    }
}

//! A weight matrix in the layout that the kernels read.

use std::ops::Range;

use octet_checkpoint::ElementType;

use crate::ThreadPool;
use crate::aligned::WeightBytes;
use crate::packed_layout::{ROWS, TILE, pack_tile, tile_bytes};
use crate::shared_slice::SharedSlice;

/// Panels that a thread packs at a time.
const PANELS_AT_ONCE: usize = 4;

/// Weights `[rows, cols]` of one type, packed (see `packed_layout.rs`). As large as the tensor that it was made from.
pub struct PackedMatrix {
    shape: PackedShape,
    bytes: WeightBytes,
}

/// What a kernel has to know about the matrix beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedShape {
    pub(crate) kind: ElementType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Tiles of 256 columns in a panel, the last one perhaps shorter.
    pub(crate) tiles: usize,
    /// Columns of the last tile.
    pub(crate) last_cols: usize,
    /// Bytes of a whole tile.
    pub(crate) tile_bytes: usize,
    /// Bytes of a panel.
    pub(crate) panel_bytes: usize,
}

impl PackedShape {
    fn new(kind: ElementType, rows: usize, cols: usize) -> PackedShape {
        assert!(cols.is_multiple_of(kind.block_len()), "{cols} columns are no whole number of blocks of {kind}");
        let tiles = cols.div_ceil(TILE);
        let last_cols = cols - tiles.saturating_sub(1) * TILE;
        let whole = tile_bytes(kind, TILE);
        let panel_bytes = match tiles {
            0 => 0,
            n => (n - 1) * whole + tile_bytes(kind, last_cols),
        };
        PackedShape { kind, rows, cols, tiles, last_cols, tile_bytes: whole, panel_bytes }
    }

    /// Panels of eight rows, the last one padded with zeros.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Columns of tile `tile`.
    pub(crate) fn tile_cols(&self, tile: usize) -> usize {
        if tile + 1 == self.tiles { self.last_cols } else { TILE }
    }
}

impl PackedMatrix {
    /// Packs a matrix whose rows `read_rows` gives: asked for rows `a..b`, it fills its second argument, which is exactly as
    /// long as these rows, with their bytes in GGUF's format (plain little-endian numbers for float types). It is called
    /// from several threads, for a few rows at a time.
    ///
    /// # Panics
    /// If `cols` is no whole number of blocks, or the matrix is larger than memory.
    pub fn pack(
        pool: &ThreadPool,
        kind: ElementType,
        rows: usize,
        cols: usize,
        read_rows: &(dyn Fn(Range<usize>, &mut [u8]) + Sync),
    ) -> PackedMatrix {
        let shape = PackedShape::new(kind, rows, cols);
        let n_bytes = shape.panels().checked_mul(shape.panel_bytes).expect("a matrix fits the address space");
        let mut bytes = WeightBytes::zeroed(n_bytes);
        if n_bytes > 0 {
            let row_bytes = kind.row_bytes(cols).expect("checked above");
            let chunks = shape.panels().div_ceil(PANELS_AT_ONCE);
            let out = SharedSlice::new(bytes.as_mut_slice());
            pool.run(chunks, &|chunk, _| {
                let panels = chunk * PANELS_AT_ONCE..((chunk + 1) * PANELS_AT_ONCE).min(shape.panels());
                let first_row = panels.start * ROWS;
                let present = (panels.end * ROWS).min(rows) - first_row;
                // Rows that pad the last panel are zero bytes, which are zeros in every type.
                let mut source = vec![0; panels.len() * ROWS * row_bytes];
                read_rows(first_row..first_row + present, &mut source[..present * row_bytes]);
                // SAFETY: every panel belongs to one chunk.
                let out = unsafe { out.part(panels.start * shape.panel_bytes, panels.len() * shape.panel_bytes) };
                let rows_of_panels = source.chunks_exact(ROWS * row_bytes);
                for (source, panel) in rows_of_panels.zip(out.chunks_exact_mut(shape.panel_bytes)) {
                    pack_panel(&shape, source, row_bytes, panel);
                }
            });
        }
        PackedMatrix { shape, bytes }
    }

    /// Rows: the length of what a product gives.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns: the length of what a product takes.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// The type of the weights.
    pub fn element_type(&self) -> ElementType {
        self.shape.kind
    }

    pub(crate) fn shape(&self) -> &PackedShape {
        &self.shape
    }

    /// Panels `panels`, one after the other.
    pub(crate) fn panels(&self, panels: Range<usize>) -> &[u8] {
        &self.bytes.as_slice()[panels.start * self.shape.panel_bytes..panels.end * self.shape.panel_bytes]
    }
}

fn pack_panel(shape: &PackedShape, source: &[u8], row_bytes: usize, panel: &mut [u8]) {
    let source_tile_bytes = TILE / shape.kind.block_len() * shape.kind.block_bytes();
    for (tile, out) in panel.chunks_mut(shape.tile_bytes).enumerate() {
        pack_tile(shape.kind, source, row_bytes, tile * source_tile_bytes, shape.tile_cols(tile), out);
    }
}

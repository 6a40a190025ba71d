//! A weight matrix in the layout that the kernels read.
//!
//! Packing takes memory that the system has to clear first, which for a large model takes longer than reading it. So a matrix
//! may be [put off](PackedMatrix::later): until it [is packed](Unsettled::settle), each product packs the few rows that it
//! is at, out of the file and into a cache, and throws them away. The bits are those of packed weights, since the kernels see
//! the same bytes.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use octet_checkpoint::ElementType;

use crate::ThreadPool;
use crate::aligned::{AlignedVec, WeightBytes};
use crate::packed_layout::{ROWS, TILE, pack_tile, tile_bytes};
use crate::shared_slice::SharedSlice;

/// Panels that a thread packs at a time.
const PANELS_AT_ONCE: usize = 4;

/// Weights `[rows, cols]` of one type, packed (see `packed_layout.rs`). As large as the tensor that it was made from.
pub struct PackedMatrix {
    shape: PackedShape,
    store: Arc<Store>,
}

/// Where the rows of a matrix come from for as long as it is not packed; a function that reads rows is one. It is asked from
/// several threads, for a few rows at a time.
pub trait RowSource: Send + Sync {
    /// Fills `out`, which is exactly as long as these rows, with their bytes in GGUF's format (plain little-endian numbers
    /// for float types).
    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]);
    /// The same bytes where they lie, if they lie there in one piece.
    fn borrow_rows(&self, _rows: Range<usize>) -> Option<&[u8]> {
        None
    }
    /// Called once a matrix that was [put off](PackedMatrix::later) is packed: nothing will be read any more.
    fn forget(&self) {}
}

impl<F: Fn(Range<usize>, &mut [u8]) + Send + Sync> RowSource for F {
    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) {
        self(rows, out);
    }
}

struct Store {
    packed: OnceLock<WeightBytes>,
    /// Of a matrix that was put off.
    source: Option<Box<dyn RowSource>>,
}

/// A matrix that is still to be packed; it may be packed on any thread while others multiply with it.
pub struct Unsettled {
    shape: PackedShape,
    store: Arc<Store>,
}

impl Unsettled {
    /// Packs the matrix on the calling thread, unless it is packed already or `stop` becomes true.
    ///
    /// # Panics
    /// If there is not enough memory.
    pub fn settle(&self, stop: &AtomicBool) {
        let (shape, Some(source)) = (&self.shape, &self.store.source) else { return };
        if self.store.packed.get().is_some() || stop.load(Ordering::Relaxed) {
            return;
        }
        let mut bytes = WeightBytes::zeroed(shape.bytes());
        let chunk_bytes = (PANELS_AT_ONCE * shape.panel_bytes).max(1);
        for (chunk, out) in bytes.as_mut_slice().chunks_mut(chunk_bytes).enumerate() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            shape.pack_panels(&**source, chunk * PANELS_AT_ONCE, out);
        }
        // Somebody else may have been faster; theirs is as good.
        let _ = self.store.packed.set(bytes);
        source.forget();
    }
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

    /// Bytes of all panels.
    fn bytes(&self) -> usize {
        self.panels().checked_mul(self.panel_bytes).expect("a matrix fits the address space")
    }

    /// Packs panels from `first` on, as many as `out` holds, without a copy where it can be.
    fn pack_panels(&self, source: &dyn RowSource, first: usize, out: &mut [u8]) {
        let rows = first * ROWS..(first + out.len() / self.panel_bytes) * ROWS;
        if let Some(rows) = (rows.end <= self.rows).then(|| source.borrow_rows(rows.clone())).flatten() {
            return self.pack_rows(rows, out);
        }
        let row_bytes = self.kind.row_bytes(self.cols).expect("checked when the shape was made");
        // Rows that pad the last panel are zero bytes, which are zeros in every type.
        let mut copy = vec![0; rows.len() * row_bytes];
        let present = rows.start..rows.end.min(self.rows);
        source.read_rows(present.clone(), &mut copy[..present.len() * row_bytes]);
        self.pack_rows(&copy, out);
    }

    /// Packs whole panels of rows that lie one after the other.
    fn pack_rows(&self, rows: &[u8], out: &mut [u8]) {
        let row_bytes = self.kind.row_bytes(self.cols).expect("checked when the shape was made");
        for (rows, panel) in rows.chunks_exact(ROWS * row_bytes).zip(out.chunks_exact_mut(self.panel_bytes)) {
            pack_panel(self, rows, row_bytes, panel);
        }
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
    /// Packs a matrix whose rows `source` gives.
    ///
    /// # Panics
    /// If `cols` is no whole number of blocks, or the matrix is larger than memory.
    pub fn pack(
        pool: &ThreadPool,
        kind: ElementType,
        rows: usize,
        cols: usize,
        source: &dyn RowSource,
    ) -> PackedMatrix {
        let shape = PackedShape::new(kind, rows, cols);
        let mut bytes = WeightBytes::zeroed(shape.bytes());
        if shape.bytes() > 0 {
            let out = SharedSlice::new(bytes.as_mut_slice());
            pool.run(shape.panels().div_ceil(PANELS_AT_ONCE), &|chunk, _| {
                let panels = chunk * PANELS_AT_ONCE..((chunk + 1) * PANELS_AT_ONCE).min(shape.panels());
                // SAFETY: every panel belongs to one chunk.
                let out = unsafe { out.part(panels.start * shape.panel_bytes, panels.len() * shape.panel_bytes) };
                shape.pack_panels(source, panels.start, out);
            });
        }
        PackedMatrix { shape, store: Arc::new(Store { packed: OnceLock::from(bytes), source: None }) }
    }

    /// A matrix that can be used at once and is to be packed [later](PackedMatrix::unsettled).
    ///
    /// # Panics
    /// If `cols` is no whole number of blocks.
    pub fn later(kind: ElementType, rows: usize, cols: usize, source: Box<dyn RowSource>) -> PackedMatrix {
        let shape = PackedShape::new(kind, rows, cols);
        PackedMatrix { shape, store: Arc::new(Store { packed: OnceLock::new(), source: Some(source) }) }
    }

    /// What is to be done so that the matrix is packed; `None` if it is.
    pub fn unsettled(&self) -> Option<Unsettled> {
        let is_packed = self.store.packed.get().is_some();
        (!is_packed).then(|| Unsettled { shape: self.shape, store: Arc::clone(&self.store) })
    }

    /// Rows: the length of what a product gives.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns: the length of what a product takes.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Bytes of memory that the weights take, or will.
    pub fn bytes(&self) -> usize {
        self.shape.bytes()
    }

    /// The type of the weights.
    pub fn element_type(&self) -> ElementType {
        self.shape.kind
    }

    pub(crate) fn shape(&self) -> &PackedShape {
        &self.shape
    }

    /// Whether its panels lie in memory, or are packed each time that they are wanted.
    pub(crate) fn is_packed(&self) -> bool {
        self.store.packed.get().is_some()
    }

    /// Calls `work` with the bytes of panels `panels`, one after the other.
    pub(crate) fn with_panels<R>(&self, panels: Range<usize>, work: impl FnOnce(&[u8]) -> R) -> R {
        let bytes = |panels: usize| panels * self.shape.panel_bytes;
        match (self.store.packed.get(), &self.store.source) {
            (Some(packed), _) => work(&packed.as_slice()[bytes(panels.start)..bytes(panels.end)]),
            (None, Some(source)) => PASSING.with_borrow_mut(|passing| {
                passing.resize(bytes(panels.len()));
                let out = passing.as_mut_slice();
                self.shape.pack_panels(&**source, panels.start, out);
                work(out)
            }),
            (None, None) => unreachable!("a matrix without source is packed when it is made"),
        }
    }
}

thread_local! {
    /// Panels of matrices that are not packed yet.
    static PASSING: RefCell<AlignedVec<u8>> = RefCell::default();
}

fn pack_panel(shape: &PackedShape, source: &[u8], row_bytes: usize, panel: &mut [u8]) {
    let source_tile_bytes = TILE / shape.kind.block_len() * shape.kind.block_bytes();
    for (tile, out) in panel.chunks_mut(shape.tile_bytes).enumerate() {
        pack_tile(shape.kind, source, row_bytes, tile * source_tile_bytes, shape.tile_cols(tile), out);
    }
}

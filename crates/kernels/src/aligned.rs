//! Memory that begins on a cache line, in huge pages where there is much of it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::{MmapMut, MmapRaw};

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory for weights is asked of the system in pieces of this size, or larger ones, in huge pages: the address of a small
/// page is looked up anew every 4 KiB, which in a virtual machine costs a fifth of the speed, or half for small matrices.
const CHUNK_BYTES: usize = 32 << 20;

/// Numbers for which all bit patterns are values.
pub(crate) trait Number: Copy + Default + Send + Sync + 'static {}
impl Number for u8 {}
impl Number for u32 {}
impl Number for f32 {}

/// A growing buffer that begins on a cache line. It never shrinks, so that in steady state nothing is allocated.
#[derive(Default)]
pub(crate) struct AlignedVec<T> {
    lines: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

impl<T: Number> AlignedVec<T> {
    /// Makes it `len` long. What it holds then is unspecified, but initialised.
    pub(crate) fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            // What it held is not wanted: no copy.
            self.lines.clear();
            self.lines.resize(lines, Line([0; 64]));
        }
        self.len = len;
    }

    /// Its numbers.
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the lines hold at least `len` initialised numbers, of a type for which every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// Its numbers.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Zeroed bytes of a fixed length, for weights: a part of a chunk that nobody else has.
pub(crate) struct WeightBytes {
    chunk: Arc<Chunk>,
    at: usize,
    len: usize,
}

/// Mapped memory, which is let go of when its last part is.
struct Chunk(MmapRaw);

/// The chunk that small parts are cut from, and how much of it is taken.
static CURRENT: Mutex<(Weak<Chunk>, usize)> = Mutex::new((Weak::new(), 0));

impl Chunk {
    fn new(bytes: usize) -> Arc<Chunk> {
        let map = MmapMut::map_anon(bytes).unwrap_or_else(|e| panic!("no memory for {bytes} bytes of weights: {e}"));
        // Advice: where it is not taken, pages stay small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Arc::new(Chunk(map.into()))
    }
}

impl WeightBytes {
    /// `len` zeros that begin on a cache line.
    ///
    /// # Panics
    /// If there is not that much memory.
    pub(crate) fn zeroed(len: usize) -> WeightBytes {
        let taken = len.next_multiple_of(64);
        if taken > CHUNK_BYTES / 2 {
            return WeightBytes { chunk: Chunk::new(taken), at: 0, len };
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, at) = match current.0.upgrade() {
            Some(chunk) if current.1 + taken <= CHUNK_BYTES => (chunk, current.1),
            _ => (Chunk::new(CHUNK_BYTES), 0),
        };
        *current = (Arc::downgrade(&chunk), at + taken);
        WeightBytes { chunk, at, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the part lies in the chunk, which lives as long as `self`, and is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.chunk.0.as_ptr().add(self.at), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively; no other `WeightBytes` was given a byte of this part.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.0.as_mut_ptr().add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_line_and_keeps_its_place() {
        let mut floats = AlignedVec::<f32>::default();
        floats.resize(1000);
        let at = floats.as_slice().as_ptr();
        assert_eq!(at as usize % 64, 0);
        floats.as_mut_slice()[999] = 3.0;
        floats.resize(10);
        floats.resize(1000);
        assert_eq!((floats.as_slice().as_ptr(), floats.as_slice()[999]), (at, 3.0));
        floats.resize(0);
        assert!(floats.as_slice().is_empty());
    }

    #[test]
    fn weights_are_zero_small_or_large() {
        let mut kept = Vec::new();
        for len in [0, 1, 4096, CHUNK_BYTES / 2, CHUNK_BYTES / 2 - 64, CHUNK_BYTES / 2 + 1, 3] {
            let mut bytes = WeightBytes::zeroed(len);
            assert_eq!(bytes.as_slice().len(), len);
            assert!(bytes.as_mut_slice().iter().all(|b| *b == 0), "{len}: nobody else's");
            assert_eq!(bytes.as_slice().as_ptr() as usize % 64, 0);
            bytes.as_mut_slice().fill(1);
            kept.push(bytes);
        }
    }
}

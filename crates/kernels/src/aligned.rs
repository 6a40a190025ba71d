//! Memory that begins on a cache line, in huge pages where there is much of it.

use memmap2::MmapMut;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// From here on bytes are mapped in whole pages of their own, which the system is asked to make huge.
const MAPPED_FROM_BYTES: usize = 1 << 20;

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

/// Zeroed bytes of a fixed length, for weights.
pub(crate) enum WeightBytes {
    /// Few bytes, from the heap.
    Small(AlignedVec<u8>),
    /// Many bytes, in pages of their own.
    Mapped(MmapMut),
}

impl WeightBytes {
    /// `len` zeros.
    ///
    /// # Panics
    /// If there is not that much memory.
    pub(crate) fn zeroed(len: usize) -> WeightBytes {
        if len < MAPPED_FROM_BYTES {
            let mut bytes = AlignedVec::default();
            bytes.resize(len);
            return WeightBytes::Small(bytes);
        }
        let map = MmapMut::map_anon(len).unwrap_or_else(|e| panic!("no memory for {len} bytes of weights: {e}"));
        // Advice: where it is not taken, pages stay small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        WeightBytes::Mapped(map)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            WeightBytes::Small(bytes) => bytes.as_slice(),
            WeightBytes::Mapped(map) => map,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            WeightBytes::Small(bytes) => bytes.as_mut_slice(),
            WeightBytes::Mapped(map) => map,
        }
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
        for len in [0, 1, 4096, MAPPED_FROM_BYTES + 1] {
            let mut bytes = WeightBytes::zeroed(len);
            assert_eq!(bytes.as_slice().len(), len);
            assert!(bytes.as_mut_slice().iter().all(|b| *b == 0));
            assert_eq!(bytes.as_slice().as_ptr() as usize % 64, 0);
        }
    }
}

//! Large arrays that are used again: fresh ones cost the system a page fault for every 4 KiB.

/// Arrays that nobody uses at the moment.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// An array of `len` numbers, of any value.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |v: &&(usize, usize)| v.1 >= len && v.1 <= len.saturating_mul(2);
        let sizes: Vec<(usize, usize)> = self.free.iter().map(Vec::capacity).enumerate().collect();
        let mut values = match sizes.iter().filter(fits).min_by_key(|(_, size)| *size) {
            Some(&(index, _)) => self.free.swap_remove(index),
            None => Vec::with_capacity(len),
        };
        values.resize(len, 0.0);
        values
    }

    /// Gives an array back.
    pub(crate) fn give(&mut self, values: Vec<f32>) {
        if values.capacity() > 0 {
            self.free.push(values);
        }
    }

    /// Lets the memory of unused arrays go.
    pub(crate) fn clear(&mut self) {
        self.free.clear();
    }
}

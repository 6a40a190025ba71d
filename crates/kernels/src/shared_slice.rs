//! A slice of which several threads write disjoint parts.

use std::marker::PhantomData;

use crate::lanes::Lanes;

/// A mutable slice that the threads of a region share.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out as exclusive borrows of disjoint ranges, by `part`'s contract.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}
// SAFETY: as for `&mut [T]`.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Shares `slice` until the result is dropped.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        SharedSlice { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// Asks for the cache line of an element.
    #[inline(always)]
    pub(crate) fn prefetch<V: Lanes>(&self, at: usize) {
        V::prefetch(self.start.wrapping_add(at).cast());
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it is used.
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: in bounds by the check above, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

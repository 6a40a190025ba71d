//! Large arrays that are used again: fresh ones cost the system a page fault for every 4 KiB.
//!
//! Passes are of different lengths, and most arrays have so many numbers for each token. Such an array gets room for the
//! largest pass so far, so that the next pass finds it, whether it is shorter or longer; room that is never written to takes
//! no memory.

/// Arrays that nobody uses at the moment.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<f32>>,
    /// Tokens of the pass.
    tokens: usize,
    /// Tokens that there is room for.
    largest: usize,
    /// Tokens of the longest pass so far.
    longest: usize,
}

impl Buffers {
    /// Begins a pass of `tokens` tokens.
    pub(crate) fn begin(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.longest = self.longest.max(tokens);
        if tokens > self.largest {
            // A little more, so that a slightly longer pass does not begin anew.
            self.largest = tokens + tokens / 8;
            self.free.clear();
        }
    }

    /// Tokens of the longest pass so far. What a shorter one may keep is reckoned by it: arrays have been written to that
    /// far, so a short pass that kept more of them would take more memory than the longest.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// An array of `len` numbers, of any value.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let room = self.room(len);
        let fits = |v: &&(usize, usize)| v.1 >= len && v.1 <= room.saturating_mul(2);
        let sizes: Vec<(usize, usize)> = self.free.iter().map(Vec::capacity).enumerate().collect();
        let mut values = match sizes.iter().filter(fits).min_by_key(|(_, size)| size.abs_diff(room)) {
            Some(&(index, _)) => self.free.swap_remove(index),
            None => Vec::with_capacity(room),
        };
        values.resize(len, 0.0);
        values
    }

    /// What an array of `len` numbers needs in the largest pass, if it goes with the tokens.
    fn room(&self, len: usize) -> usize {
        match len.checked_rem(self.tokens) {
            Some(0) => len / self.tokens * self.largest,
            _ => len,
        }
    }

    /// Gives an array back.
    pub(crate) fn give(&mut self, values: Vec<f32>) {
        if values.capacity() > 0 {
            self.free.push(values);
        }
    }

    /// Lets the memory of unused arrays go.
    pub(crate) fn clear(&mut self) {
        *self = Buffers::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_of_all_lengths_share_the_same_arrays() {
        let mut buffers = Buffers::default();
        for tokens in [90, 100, 7, 64, 101] {
            buffers.begin(tokens);
            let arrays = [8 * tokens, 3 * tokens, 8 * tokens, 50].map(|len| buffers.take(len));
            assert_eq!(arrays.each_ref().map(Vec::len), [8 * tokens, 3 * tokens, 8 * tokens, 50]);
            arrays.into_iter().for_each(|array| buffers.give(array));
            assert_eq!(buffers.free.len(), 4, "{tokens} tokens");
        }
        buffers.begin(200);
        assert!(buffers.free.is_empty(), "none is large enough now");
    }
}

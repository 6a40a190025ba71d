//! Byte-pair merging: of all neighbouring symbols that may be joined, join the best pair, again and again.
//!
//! "Best" is the lowest rank, and among equal ranks the leftmost pair. SentencePiece ranks a pair by the score of
//! the piece that it gives, byte-level BPE by its line in the merge list; both become one table here:
//!
//! ```text
//! symbols  l o w e r      table  (l,o) -> rank 0, "lo"     lo w e r  ->  low e r  ->  low er
//!                                (lo,w) -> rank 1, "low"
//!                                (e,r) -> rank 2, "er"
//! ```
//!
//! A symbol is a token id, or, above [`OUTSIDE`], a character that is no token of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Set in symbols that are characters without a token; the rest of the bits is the code point.
pub(crate) const OUTSIDE: u32 = 1 << 31;

/// Up to here a scan over all pairs beats a heap (measured on English, French and code: words of 1 to 12 symbols).
const SCAN_LIMIT: usize = 48;

/// What joining a pair gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Merge {
    rank: u32,
    joined: u32,
}

/// All pairs that may be joined.
#[derive(Debug, Default)]
pub(crate) struct MergeTable {
    pairs: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
}

/// Buffers that [`MergeTable::merge`] uses again from word to word.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    merges: Vec<Option<Merge>>,
    heap: BinaryHeap<Reverse<u64>>,
    links: Vec<Link>,
}

impl MergeTable {
    /// An empty table with room for about so many pairs.
    pub(crate) fn with_capacity(pairs: usize) -> MergeTable {
        MergeTable { pairs: HashMap::with_capacity_and_hasher(pairs, BuildHasherDefault::default()) }
    }

    /// Allows `left` and `right` to be joined; the first rank given to a pair stays.
    pub(crate) fn insert(&mut self, left: u32, right: u32, rank: u32, joined: u32) {
        self.pairs.entry(key(left, right)).or_insert(Merge { rank, joined });
    }

    /// Joins `symbols` in place until no pair of the table is left.
    pub(crate) fn merge(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        match symbols.len() {
            0 | 1 => {}
            n if n <= SCAN_LIMIT => self.merge_by_scan(symbols, &mut scratch.merges),
            _ => self.merge_by_heap(symbols, scratch),
        }
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.pairs.get(&key(left, right)).copied()
    }

    /// For words: looks at every pair for the best one, n² but in one cache line.
    fn merge_by_scan(&self, symbols: &mut Vec<u32>, merges: &mut Vec<Option<Merge>>) {
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| self.get(pair[0], pair[1])));
        while let Some((at, merge)) = best(merges) {
            symbols[at] = merge.joined;
            symbols.remove(at + 1);
            merges.remove(at);
            if at > 0 {
                merges[at - 1] = self.get(symbols[at - 1], symbols[at]);
            }
            if at < merges.len() {
                merges[at] = self.get(symbols[at], symbols[at + 1]);
            }
        }
    }

    /// For long runs without a place to cut: a linked list of symbols and a heap of candidates, n log n.
    fn merge_by_heap(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let length = u32::try_from(symbols.len()).expect("a run of text has less than 4 Gi characters");
        let Scratch { heap, links, .. } = scratch;
        links.clear();
        links.extend((0..length).map(|i| Link { previous: i.wrapping_sub(1), next: i + 1 }));
        let mut candidates = std::mem::take(heap).into_vec();
        candidates.clear();
        let pairs = (0u32..).zip(symbols.windows(2));
        candidates.extend(pairs.filter_map(|(left, pair)| Some(candidate(self.get(pair[0], pair[1])?.rank, left))));
        *heap = BinaryHeap::from(candidates);
        while let Some(Reverse(best)) = heap.pop() {
            let (rank, left) = ((best >> 32) as u32, best as u32);
            let next = links[left as usize].next;
            // A candidate is stale if its symbols were joined with others since; then this place has no such pair.
            let is_pair = next != GONE && next < length;
            let merge = is_pair.then(|| self.get(symbols[left as usize], symbols[next as usize])).flatten();
            let Some(merge) = merge.filter(|merge| merge.rank == rank) else { continue };
            symbols[left as usize] = merge.joined;
            let after = links[next as usize].next;
            links[next as usize].next = GONE;
            links[left as usize].next = after;
            if after < length {
                links[after as usize].previous = left;
                self.propose(symbols, left, after, heap);
            }
            let previous = links[left as usize].previous;
            if previous < length {
                self.propose(symbols, previous, left, heap);
            }
        }
        let mut links = links.iter();
        symbols.retain(|_| links.next().expect("one link a symbol").next != GONE);
    }

    fn propose(&self, symbols: &[u32], left: u32, right: u32, heap: &mut BinaryHeap<Reverse<u64>>) {
        if let Some(merge) = self.get(symbols[left as usize], symbols[right as usize]) {
            heap.push(candidate(merge.rank, left));
        }
    }
}

/// A pair that could be joined when it was seen, by its rank and the place of its left symbol: ordered by rank, then
/// from left to right. Eight bytes, because in long runs the heap does not fit in any cache.
fn candidate(rank: u32, left: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(left))
}

/// The pair of the lowest rank, the leftmost of equals.
fn best(merges: &[Option<Merge>]) -> Option<(usize, Merge)> {
    let mut best: Option<(usize, Merge)> = None;
    for (at, merge) in merges.iter().enumerate() {
        if let Some(merge) = merge
            && best.is_none_or(|(_, so_far)| merge.rank < so_far.rank)
        {
            best = Some((at, *merge));
        }
    }
    best
}

/// A symbol's place in the list; indices past the end mean none.
#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    /// [`GONE`] once the symbol was joined to the one before it.
    next: u32,
}

const GONE: u32 = u32::MAX;

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Hashes one `u64` with a multiplication; the default hasher costs a third of the encoding time.
#[derive(Debug, Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write_u64(&mut self, value: u64) {
        // The golden ratio's bits spread neighbouring ids; the rotation brings the mixed high bits down to where
        // the map takes its bucket from.
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 << 8 ^ u64::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: join the best pair until there is none.
    fn merge_plainly(table: &MergeTable, symbols: &mut Vec<u32>) {
        loop {
            let merges: Vec<_> = symbols.windows(2).map(|pair| table.get(pair[0], pair[1])).collect();
            let Some((at, merge)) = best(&merges) else { return };
            symbols.splice(at..at + 2, [merge.joined]);
        }
    }

    proptest! {
        #[test]
        fn heap_and_scan_follow_the_definition(
            pairs in prop::collection::vec((0u32..12, 0u32..12, 0u32..6, 0u32..12), 0..60),
            symbols in prop::collection::vec(0u32..8, 0..120),
        ) {
            let mut table = MergeTable::default();
            for (left, right, rank, joined) in pairs {
                table.insert(left, right, rank, joined);
            }
            let mut expected = symbols.clone();
            merge_plainly(&table, &mut expected);
            let mut by_heap = symbols.clone();
            let mut scratch = Scratch::default();
            if by_heap.len() > 1 {
                table.merge_by_heap(&mut by_heap, &mut scratch);
            }
            prop_assert_eq!(&by_heap, &expected);
            let mut by_scan = symbols;
            table.merge_by_scan(&mut by_scan, &mut scratch.merges);
            prop_assert_eq!(by_scan, expected);
        }
    }
}

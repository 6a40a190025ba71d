//! Pages that several sequences share, and pages that outlive theirs.
//!
//! A page has as many holders as there are sequences with it in their list, and one more for each [`KvCache::retain`];
//! the last [`KvCache::release`] frees it. A sequence copies a page before it writes to one that others hold.

use super::{KvCache, SequenceId};

impl KvCache {
    /// Pages in all.
    pub fn n_pages(&self) -> usize {
        self.holders.len()
    }

    /// Pages that nobody holds.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// The pages of a sequence, in order; the last one may be partly filled.
    pub fn pages_of(&self, id: SequenceId) -> &[u32] {
        &self.sequences[id.0].pages
    }

    /// How many hold a page.
    pub fn holders(&self, page: u32) -> u32 {
        self.holders[page as usize]
    }

    /// Holds a page that is held already.
    ///
    /// # Panics
    /// If nobody holds it: its content may be gone.
    pub fn retain(&mut self, page: u32) {
        assert!(self.holders(page) > 0, "page {page} is free");
        self.holders[page as usize] += 1;
    }

    /// Ends one hold of a page.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders = holders.checked_sub(1).expect("a page is released by who holds it");
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Takes a free page, held once; `None` if there is none. Its content is whatever was there.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Continues a sequence by a full page that is held already: its tokens need not be computed again.
    ///
    /// # Panics
    /// If the sequence does not end with a full page.
    pub fn adopt(&mut self, id: SequenceId, page: u32) {
        self.retain(page);
        let sequence = &mut self.sequences[id.0];
        assert!(sequence.len == sequence.pages.len() * self.page_tokens, "a page is adopted after full pages");
        sequence.pages.push(page);
        sequence.len += self.page_tokens;
    }

    /// Continues a sequence by the first `n_tokens` of a page, which is copied when the sequence goes on.
    ///
    /// # Panics
    /// If the sequence does not end with a full page, or `n_tokens` is more than a page holds.
    pub fn adopt_part(&mut self, id: SequenceId, page: u32, n_tokens: usize) {
        assert!(n_tokens <= self.page_tokens, "{n_tokens} tokens of a page of {}", self.page_tokens);
        self.adopt(id, page);
        self.sequences[id.0].len -= self.page_tokens - n_tokens;
    }

    /// Puts an equal page in the place of a sequence's own, so that both share one.
    ///
    /// # Panics
    /// If the sequence has no page `index`.
    pub fn replace(&mut self, id: SequenceId, index: usize, page: u32) {
        self.retain(page);
        let own = std::mem::replace(&mut self.sequences[id.0].pages[index], page);
        self.release(own);
    }

    /// A new sequence that goes on from where `id` is; all pages are shared.
    pub fn fork(&mut self, id: SequenceId) -> SequenceId {
        let copy = self.add_sequence();
        let pages = self.sequences[id.0].pages.clone();
        pages.iter().for_each(|&page| self.retain(page));
        self.sequences[copy.0].len = self.sequences[id.0].len;
        self.sequences[copy.0].pages = pages;
        copy
    }

    /// The bytes of a page, all layers; [`KvCache::format`] names their meaning.
    pub fn page(&self, page: u32) -> &[u8] {
        self.pages.page(page)
    }

    /// Fills a page by bytes that [`KvCache::page`] gave.
    ///
    /// # Panics
    /// If the length is not that of a page.
    pub fn write_page(&mut self, page: u32, bytes: &[u8]) {
        self.pages.write_page(page, bytes);
    }

    /// Names the meaning of a page's bytes.
    pub fn format(&self) -> String {
        self.pages.format()
    }
}

#[cfg(test)]
mod tests {
    use octet_checkpoint::Params;
    use octet_kernels::KvType;

    use super::*;
    use crate::Config;

    fn cache(pages: usize) -> KvCache {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/mixtral-8x2");
        let config = Config::new(&Params::read(fixtures.as_ref()).unwrap()).unwrap();
        KvCache::new(&config, KvType::F32, pages * KvCache::PAGE_TOKENS).unwrap()
    }

    #[test]
    fn a_fork_shares_until_one_of_both_writes() {
        let mut cache = cache(4);
        let a = cache.add_sequence();
        cache.extend(a, 70).unwrap();
        let last = cache.pages_of(a)[1];
        cache.write_page(last, &vec![7; cache.page(last).len()]);
        let b = cache.fork(a);
        assert_eq!((cache.n_free(), cache.holders(last)), (2, 2));
        assert_eq!(cache.pages_needed(b, 1), 1);
        cache.extend(b, 1).unwrap();
        assert_eq!((cache.n_free(), cache.holders(last)), (1, 1));
        assert_ne!(cache.pages_of(b)[1], last);
        assert!(cache.page(cache.pages_of(b)[1]).iter().all(|&byte| byte == 7));
        assert_eq!(cache.pages_needed(a, 58), 0);
        cache.remove_sequence(a);
        cache.remove_sequence(b);
        assert_eq!(cache.n_free(), 4);
    }

    #[test]
    fn a_page_outlives_its_sequence_and_is_adopted_by_another() {
        let mut cache = cache(3);
        let a = cache.add_sequence();
        cache.extend(a, 64).unwrap();
        let page = cache.pages_of(a)[0];
        cache.retain(page);
        cache.remove_sequence(a);
        assert_eq!((cache.n_free(), cache.holders(page)), (2, 1));
        let b = cache.add_sequence();
        cache.adopt_part(b, page, 10);
        assert_eq!((cache.len(b), cache.room(b)), (10, 64 + 64 - 10));
        cache.extend(b, 1).unwrap();
        assert_ne!(cache.pages_of(b)[0], page);
        cache.release(page);
        assert_eq!(cache.n_free(), 2);
    }

    #[test]
    fn no_room_changes_nothing() {
        let mut cache = cache(1);
        let a = cache.add_sequence();
        cache.extend(a, 10).unwrap();
        let b = cache.fork(a);
        assert!(cache.extend(b, 1).is_err());
        assert_eq!((cache.len(a), cache.len(b), cache.room(a)), (10, 10, 0));
    }
}

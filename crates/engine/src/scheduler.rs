//! Who runs in the next step, and with how many tokens.
//!
//! Answers that are being written go first, one token each; then prompts, in chunks that fit the step's time, the shortest
//! of the first few before the others, so that short ones do not wait behind long ones. Order is by priority, then by arrival. Pages come from the free
//! ones, then from the prefix cache, then from sequences that come later in this order, which wait and are computed
//! again. A prompt whose next page somebody else is about to compute waits for that page.

use std::collections::BTreeSet;
use std::time::Instant;

use octet_model::{KvCache, Logits};

use crate::core::Core;
use crate::prefix_cache::common_prefix;
use crate::sequence::Sequence;
use crate::stats::add;
use crate::{Event, Pooling};

/// Prompts among which the shortest goes first; the oldest has one such part of every step.
const PROMPTS_AT_ONCE: usize = 4;
/// Fewer common tokens are computed again rather than waited for, or copied.
const WORTH_SHARING: usize = 8;
/// Logits of all of a prompt's tokens are large, so such prompts are read in smaller chunks.
const SCORED_CHUNK: usize = 64;

/// The part of a sequence in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    pub(crate) n_tokens: usize,
    pub(crate) logits: Logits,
    /// It reads more than the token drawn last.
    pub(crate) reads: bool,
    /// Others wait for this prompt to be read.
    pub(crate) awaited: bool,
    /// Those of the tokens, at the end, that are guesses.
    pub(crate) guesses: usize,
}

impl Core {
    /// Lets waiting sequences run as long as there are places and pages.
    pub(crate) fn admit(&mut self) {
        while let Some(next) = self.best_waiting() {
            let running: usize = self.sequences.iter().filter(|s| s.place.is_some()).map(Sequence::answers).sum();
            let fits = running + self.sequences[next].answers() <= self.shared.max_running;
            if fits && self.place(next) {
                continue;
            }
            let priority = self.sequences[next].job.request.priority;
            let weaker = |s: &Sequence| s.job.request.priority < priority;
            let Some(victim) = self.worst_running(weaker) else { return };
            self.preempt(victim);
        }
    }

    fn best_waiting(&self) -> Option<usize> {
        let waiting = (0..self.sequences.len()).filter(|&i| self.sequences[i].place.is_none());
        waiting.min_by_key(|&i| self.rank(i))
    }

    fn worst_running(&self, may: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let idle = |i: &usize| self.slots.iter().all(|slot| slot.sequence != *i);
        let running = (0..self.sequences.len()).filter(|&i| self.sequences[i].place.is_some());
        running.filter(idle).filter(|&i| may(&self.sequences[i])).max_by_key(|&i| self.rank(i))
    }

    /// Smaller goes first.
    fn rank(&self, index: usize) -> (i32, u64, usize) {
        let Sequence { job, choice, .. } = &self.sequences[index];
        let (priority, arrival) = job.rank();
        (priority, arrival, *choice)
    }

    /// Gives a waiting sequence a place if the pages that it and all others still need are there. A sequence alone has
    /// them by the limits on requests.
    fn place(&mut self, index: usize) -> bool {
        let place = self.new_place(index);
        let others = self.pages_needed();
        self.sequences[index].place = Some(place);
        let before = self.sequences[index].cached_tokens;
        self.adopt_one(index);
        let own = self.pages_needed_by(&self.sequences[index]);
        let alone = self.sequences.iter().filter(|s| s.place.is_some()).count() == 1;
        if alone || own + others <= self.cache.n_free() + self.prefixes.evictable(&self.cache) {
            return true;
        }
        let sequence = &mut self.sequences[index];
        (sequence.place, sequence.cached_tokens) = (None, before);
        self.cache.remove_sequence(place.kv);
        false
    }

    fn pages_needed(&self) -> usize {
        self.sequences.iter().map(|sequence| self.pages_needed_by(sequence)).sum()
    }

    /// Free pages until a sequence has drawn its next token.
    fn pages_needed_by(&self, sequence: &Sequence) -> usize {
        let Some(place) = sequence.place else { return 0 };
        let pending = sequence.tokens.len() - self.cache.len(place.kv);
        self.cache.pages_needed(place.kv, pending + 1)
    }

    /// Takes a sequence's pages; it goes on later.
    fn preempt(&mut self, index: usize) {
        add(&self.shared.counters.preemptions, 1);
        self.vacate(index);
    }

    /// Lets prompts go on by pages that are known by now.
    pub(crate) fn adopt(&mut self) {
        for index in 0..self.sequences.len() {
            self.adopt_one(index);
        }
    }

    fn adopt_one(&mut self, index: usize) {
        let Some(mut place) = self.sequences[index].place else { return };
        let sequence = &mut self.sequences[index];
        if sequence.needs_every_token() {
            return;
        }
        let before = self.cache.len(place.kv);
        sequence.loading = false;
        loop {
            let done = self.cache.len(place.kv);
            // The last token is always computed: its logits are wanted.
            let rest = &sequence.tokens[done..sequence.tokens.len() - 1];
            if done != place.n_indexed * KvCache::PAGE_TOKENS || rest.is_empty() {
                break;
            }
            let mut found = self.prefixes.next(place.node, rest);
            let page =
                rest.get(..KvCache::PAGE_TOKENS).filter(|_| found.is_none_or(|f| f.n_tokens < KvCache::PAGE_TOKENS));
            if let Some(page) = page.filter(|page| self.prefixes.is_on_disk(place.node, page)) {
                if Instant::now() > self.load_until {
                    sequence.loading = true;
                    break;
                }
                if let Some(restored) = self.prefixes.restore(&mut self.cache, place.node, page) {
                    add(&self.shared.counters.disk_tokens, KvCache::PAGE_TOKENS);
                    found = Some(restored);
                }
            }
            let Some(found) = found else { break };
            if found.n_tokens < KvCache::PAGE_TOKENS {
                if found.n_tokens >= WORTH_SHARING {
                    self.cache.adopt_part(place.kv, found.page, found.n_tokens);
                }
                break;
            }
            self.cache.adopt(place.kv, found.page);
            (place.node, place.n_indexed) = (found.node, place.n_indexed + 1);
        }
        sequence.place = Some(place);
        let adopted = self.cache.len(place.kv) - before;
        if sequence.n_drawn() == 0 && adopted > 0 {
            if sequence.started {
                add(&self.shared.counters.cached_tokens, adopted);
            }
            *sequence.cached_tokens.get_or_insert(0) += adopted;
        }
    }

    /// Fills the slots of the next step.
    pub(crate) fn schedule(&mut self) {
        self.slots.clear();
        self.reserved = 0;
        let Some(experts_per_token) = self.next_experts_per_token() else { return };
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..self.sequences.len()).filter(|&i| self.runs_with(i, experts_per_token)));
        order.sort_unstable_by_key(|&i| self.rank(i));
        for &index in &order {
            if self.pending(index) == 1 {
                self.give(index, 1);
            }
        }
        self.guess();
        let streams = self.slots.iter().filter(|slot| !slot.reads).count();
        order.retain(|&i| self.pending(i) > 1 && !self.sequences[i].loading);
        if !order.is_empty() {
            self.schedule_prompts(&order, streams);
        }
        self.order = order;
    }

    fn runs_with(&self, index: usize, experts_per_token: usize) -> bool {
        self.sequences[index].place.is_some_and(|place| place.variant.experts_per_token == experts_per_token)
    }

    /// Adds guesses to answers that are being written, if no prompt is being read beside them, where that pays.
    fn guess(&mut self) {
        if !self.options.speculation || self.slots.len() != self.sequences.len() {
            return;
        }
        for i in 0..self.slots.len() {
            let tokens = self.slots.iter().map(|slot| slot.n_tokens).sum();
            let Core { pace, sequences, shared, .. } = self;
            let index = self.slots[i].sequence;
            let sequence = &mut sequences[index];
            let mut guess = std::mem::take(&mut sequence.guess);
            // The first token of an answer may be drawn for several of them.
            let most = if sequence.n_drawn() == 0 { 0 } else { sequence.room(shared.info.context).saturating_sub(1) };
            let pays = |n: usize, hit_rate: f64| pace.pays(tokens, n, hit_rate);
            sequence.lookup.guess(&sequence.tokens, most, pays, &mut guess);
            if !guess.is_empty() && self.reserve(index, 1 + guess.len()) {
                let slot = &mut self.slots[i];
                (slot.n_tokens, slot.guesses, slot.logits) = (1 + guess.len(), guess.len(), Logits::All);
                add(&self.shared.counters.drafted_tokens, guess.len());
            }
            self.sequences[index].guess = guess;
        }
    }

    /// Tokens of a sequence that are to be computed; 0 without a place.
    fn pending(&self, index: usize) -> usize {
        let sequence = &self.sequences[index];
        sequence.place.map_or(0, |place| sequence.tokens.len() - self.cache.len(place.kv))
    }

    /// A pass has one number of experts for all its tokens; where sequences differ in it, they take turns.
    fn next_experts_per_token(&mut self) -> Option<usize> {
        self.turn = self.turn.wrapping_add(1);
        let numbers = || self.sequences.iter().filter_map(|s| s.place).map(|place| place.variant.experts_per_token);
        let first = numbers().next()?;
        if numbers().all(|number| number == first) {
            return Some(first);
        }
        let all: BTreeSet<usize> = numbers().collect();
        all.iter().nth(self.turn % all.len()).copied()
    }

    fn schedule_prompts(&mut self, order: &[usize], streams: usize) {
        let mut readers: Vec<usize> = Vec::new();
        let mut awaited: Vec<usize> = Vec::new();
        for &index in order {
            match readers.iter().find(|&&earlier| self.computes_for(earlier, index)) {
                Some(&earlier) => awaited.push(earlier),
                None => readers.push(index),
            }
        }
        let wishes: Vec<Wish> =
            readers.iter().map(|&i| Wish { priority: self.rank(i).0, tokens: self.chunk(i) }).collect();
        let longest = readers.iter().map(|&i| self.sequences[i].uncached_tokens()).max().unwrap_or(0);
        let given = shares(&wishes, self.pace.prompt_tokens(streams, readers.len(), longest));
        for (&index, n_tokens) in readers.iter().zip(given) {
            if n_tokens > 0 && self.sequences[index].place.is_some() && self.give(index, n_tokens) {
                let slot = self.slots.last_mut().expect("it was just given");
                slot.awaited = awaited.contains(&index);
            }
        }
    }

    /// Most tokens that a sequence can use in one step.
    fn chunk(&self, index: usize) -> usize {
        let scored = self.sequences[index].is_scored();
        self.pending(index).min(if scored { SCORED_CHUNK } else { usize::MAX })
    }

    /// Whether `earlier` is about to compute the page that `later` needs next.
    fn computes_for(&self, earlier: usize, later: usize) -> bool {
        let (a, b) = (&self.sequences[earlier], &self.sequences[later]);
        let (Some(at), Some(here)) = (a.place, b.place) else { return false };
        let start = here.n_indexed * KvCache::PAGE_TOKENS;
        let waits = self.cache.len(here.kv) == start && !b.needs_every_token();
        let a = a.tokens.get(start..).unwrap_or_default();
        let b = &b.tokens[start..b.tokens.len().min(start + KvCache::PAGE_TOKENS)];
        waits && at.node == here.node && common_prefix(a, b) >= WORTH_SHARING
    }

    /// Gives a sequence a slot if there are pages for it.
    fn give(&mut self, index: usize, n_tokens: usize) -> bool {
        if !self.reserve(index, n_tokens) {
            return false;
        }
        let pending = self.pending(index);
        let sequence = &mut self.sequences[index];
        if !sequence.started {
            sequence.started = true;
            let (prompt_tokens, cached_tokens) = (sequence.prompt_tokens, sequence.usage().cached_tokens);
            self.shared.counters.waiting.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            add(&self.shared.counters.prompt_tokens, prompt_tokens);
            add(&self.shared.counters.cached_tokens, cached_tokens);
            sequence.job.send(Event::Started { prompt_tokens, cached_tokens });
        }
        let logits = match (sequence.is_scored(), n_tokens == pending) {
            (true, _) => Logits::All,
            (false, true) => Logits::Last,
            (false, false) => Logits::None,
        };
        let reads = sequence.n_drawn() == 0 || pending > 1;
        self.slots.push(Slot { sequence: index, n_tokens, logits, reads, awaited: false, guesses: 0 });
        true
    }

    /// Makes sure of free pages for a sequence's next tokens.
    fn reserve(&mut self, index: usize, n_tokens: usize) -> bool {
        let Some(place) = self.sequences[index].place else { return false };
        loop {
            let needed = self.cache.pages_needed(place.kv, n_tokens);
            if self.reserved + needed <= self.cache.n_free() {
                self.reserved += needed;
                return true;
            }
            if self.prefixes.evict(&mut self.cache) {
                continue;
            }
            let rank = self.rank(index);
            match self.worst_running(|_| true).filter(|&worst| self.rank(worst) > rank) {
                Some(victim) => self.preempt(victim),
                None if self.forget_last_page(index) => {}
                None => return false,
            }
        }
    }

    /// Makes the prefix cache give up the page that a sequence is about to go on in, which then need not be copied.
    fn forget_last_page(&mut self, index: usize) -> bool {
        let place = self.sequences[index].place.expect("it reserves pages");
        let pages = self.cache.pages_of(place.kv);
        // A full page is where the sequence stands in the tree, and nothing is written to it any more.
        let last = pages.last().copied().filter(|_| pages.len() > place.n_indexed);
        last.is_some_and(|page| self.prefixes.forget(&mut self.cache, page))
    }
}

/// What a prompt could use of a step.
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// Smaller goes first.
    priority: i32,
    tokens: usize,
}

/// How a step's tokens go to prompts that stand in order: the first has a share of its own, so that it always goes on; what
/// is left goes to the shortest of the first few, since whoever is nearly done makes others wait least; then to the rest.
fn shares(wishes: &[Wish], mut budget: usize) -> Vec<usize> {
    let mut given = vec![0; wishes.len()];
    let share = budget.div_ceil(PROMPTS_AT_ONCE);
    let mut give = |index: usize, most: usize| {
        let n = (wishes[index].tokens - given[index]).min(most).min(budget);
        (given[index], budget) = (given[index] + n, budget - n);
    };
    if !wishes.is_empty() {
        give(0, share);
    }
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order[..wishes.len().min(PROMPTS_AT_ONCE)].sort_by_key(|&i| (wishes[i].priority, wishes[i].tokens));
    order.into_iter().for_each(|index| give(index, usize::MAX));
    given
}

impl Sequence {
    /// Most tokens that the answer can still grow by; 0 if its tokens must be drawn one by one.
    fn room(&self, context: usize) -> usize {
        let stop = &self.job.request.stop;
        if self.grammar.is_some() {
            return 0;
        }
        let left = stop.max_tokens.map_or(usize::MAX, |max| max.saturating_sub(self.n_drawn()));
        left.min(context.saturating_sub(self.tokens.len()))
    }

    /// Tokens that had to be, or have to be, computed before the answer goes on.
    fn uncached_tokens(&self) -> usize {
        self.tokens.len().saturating_sub(self.cached_tokens.unwrap_or(0))
    }

    /// Whether logits of every token of the prompt are wanted.
    fn is_scored(&self) -> bool {
        self.job.request.prompt_logprobs.is_some() && self.n_drawn() == 0
    }

    /// Whether what the prefix cache knows does not help: something is wanted of every token of the prompt.
    fn needs_every_token(&self) -> bool {
        self.n_drawn() == 0 && (self.is_scored() || self.job.request.hidden == Some(Pooling::Mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares_of(tokens: &[usize], budget: usize) -> Vec<usize> {
        let wishes: Vec<Wish> = tokens.iter().map(|&tokens| Wish { priority: 0, tokens }).collect();
        shares(&wishes, budget)
    }

    #[test]
    fn short_prompts_pass_long_ones_which_still_go_on() {
        assert_eq!(shares_of(&[2000, 60], 100), [40, 60]);
        assert_eq!(shares_of(&[2000, 90, 30], 100), [25, 45, 30]);
        assert_eq!(shares_of(&[128, 128, 128, 128], 100), [100, 0, 0, 0]);
        assert_eq!(shares_of(&[28, 128, 128, 128], 100), [28, 72, 0, 0]);
        assert_eq!(
            shares_of(&[2000, 2000, 2000, 2000, 1], 100),
            [100, 0, 0, 0, 0],
            "the fifth is not among the first few"
        );
        assert_eq!(shares_of(&[10, 10], 100), [10, 10]);
        assert!(shares_of(&[], 100).is_empty());
        let important = Wish { priority: -1, tokens: 500 };
        assert_eq!(shares(&[important, Wish { priority: 0, tokens: 10 }], 100), [100, 0]);
    }
}

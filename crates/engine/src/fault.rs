//! After a fault of our own: a step that panicked ends the answers under way, and nothing else.
//!
//! What a step changes may be half changed then: all of it is made anew. The weights are only ever read, the thread pool
//! outlives the panics of its tasks, and pages on disk are checked as they are read, so these stay.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use octet_model::{Batch, KvCache, Record, Workspace};

use crate::Error;
use crate::core::Core;
use crate::masks::Masks;
use crate::observer::Observer;
use crate::pace::Pace;
use crate::prefix_cache::PrefixCache;
use crate::stats::add;

/// What whoever asked gets to read; the panic itself has been printed.
const BROKEN_OFF: &str = "the engine met a fault and broke off the answers under way (its log tells where); ask again";

impl Core {
    /// Goes one step; if that panics, all answers fail and the engine begins anew.
    pub(crate) fn guarded_step(&mut self, record: &mut dyn Record) {
        if catch_unwind(AssertUnwindSafe(|| self.step(record))).is_err() {
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        for sequence in std::mem::take(&mut self.sequences) {
            if !sequence.started {
                self.shared.counters.waiting.fetch_sub(1, Relaxed);
            }
            add(&self.shared.counters.failed, 1);
            // It may be the listener that panics.
            let tell = || sequence.job.fail(Error::Internal(BROKEN_OFF.into()));
            let _ = catch_unwind(AssertUnwindSafe(tell));
        }
        let info = &self.shared.info;
        match KvCache::new(&info.config, info.kv, info.kv_tokens) {
            Ok(cache) => self.cache = cache,
            // Without pages nothing can be answered: the engine ends as if it had been told to.
            Err(_) => self.shared.closed.store(true, Relaxed),
        }
        self.prefixes = PrefixCache::new(self.prefixes.take_disk());
        self.slots.clear();
        self.reserved = 0;
        self.pace = Pace::new(self.options.step_budget, self.options.open.chunk);
        (self.workspace, self.batch, self.masks) = (Workspace::default(), Batch::default(), Masks::default());
        self.observer = Observer::new(self.shared.counters.clone(), info.config.n_layers, info.config.dim);
        self.count();
    }
}

//! Once warm, nothing on a token's way allocates: not the forward pass on any thread, and not the sampler. The allocator of
//! this test counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use octet_checkpoint::ElementType;
use octet_engine::{Sampler, Sampling};
use octet_kernels::KvType;
use octet_model::{Batch, KvCache, LoadOptions, Logits, Nothing, SequenceId, Transformer, Workspace};

/// The system's allocator, with a count of the calls of all threads.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; the counter is an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sequences of a batch: one, a few and many tokens take different ways through the kernels.
const SEQUENCES: [usize; 3] = [1, 3, 17];
/// Tokens after which everything is warm: in the second page. (The lists of pages grow by doubling with the sequences, some
/// ten times until a context is full; that is not counted here.)
const WARM: usize = KvCache::PAGE_TOKENS + 6;
/// Tokens that each has in the end: before the third page.
const TOKENS: usize = 2 * KvCache::PAGE_TOKENS - 1;

struct Decoding {
    model: Transformer,
    cache: KvCache,
    workspace: Workspace,
    batch: Batch,
    sequences: Vec<(SequenceId, Sampler, Vec<u32>)>,
}

impl Decoding {
    fn new(model: Transformer, kv: KvType, n_sequences: usize) -> Decoding {
        let tokens = n_sequences * 2 * KvCache::PAGE_TOKENS;
        let mut cache = KvCache::new(model.config(), kv, tokens).unwrap();
        let sampling = Sampling {
            temperature: 0.8,
            top_k: Some(40),
            top_p: 0.95,
            min_p: 0.01,
            repetition_penalty: 1.1,
            frequency_penalty: 0.1,
            penalty_window: 16,
            logit_bias: vec![(3, -1.0)],
            ..Default::default()
        };
        let sequence = |index: usize| {
            let mut history = Vec::with_capacity(TOKENS + 1);
            history.push(index as u32 + 5);
            (cache.add_sequence(), Sampler::new(Sampling { seed: index as u64, ..sampling.clone() }), history)
        };
        let sequences = (0..n_sequences).map(sequence).collect();
        Decoding { model, cache, workspace: Workspace::default(), batch: Batch::default(), sequences }
    }

    /// One token more for every sequence.
    fn step(&mut self) {
        self.batch.clear();
        for (id, _, history) in &self.sequences {
            self.batch.push(*id, &history[history.len() - 1..], Logits::Last);
        }
        let logits = self.model.forward(&self.batch, &mut self.cache, &mut self.workspace, &mut Nothing).unwrap();
        let vocab_size = self.model.config().vocab_size;
        for ((_, sampler, history), logits) in self.sequences.iter_mut().zip(logits.chunks_exact(vocab_size)) {
            history.push(sampler.sample(logits, history));
        }
    }
}

/// Calls of the allocator in a stretch of warm steps: the fewest of three stretches, since a thread may take something of its
/// own once, when it first waits; what each step allocated would be in all of them.
fn calls_once_warm(folder: &std::path::Path, quantize: Option<ElementType>, kv: KvType, n_sequences: usize) -> usize {
    let model = Transformer::open(folder, 2, LoadOptions { quantize, ..Default::default() }).unwrap();
    let mut decoding = Decoding::new(model, kv, n_sequences);
    (0..WARM).for_each(|_| decoding.step());
    let mut stretch = || {
        let before = CALLS.load(Ordering::Relaxed);
        (0..(TOKENS - WARM) / 3).for_each(|_| decoding.step());
        CALLS.load(Ordering::Relaxed) - before
    };
    [stretch(), stretch(), stretch()].into_iter().min().expect("three stretches")
}

#[test]
fn a_warm_step_allocates_nothing() {
    let fixtures = std::env::var_os("OCTET_FIXTURES")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").into(), PathBuf::from);
    for name in ["mixtral-8x2", "mixtral-window", "llama-dense"] {
        for (quantize, kv) in [(None, KvType::F16), (Some(ElementType::Q8_0), KvType::Q8_0)] {
            for n_sequences in SEQUENCES {
                let calls = calls_once_warm(&fixtures.join(name), quantize, kv, n_sequences);
                assert_eq!(calls, 0, "{name}, {quantize:?}, {kv:?} cache, {n_sequences} sequences");
            }
        }
    }
}

//! The engine's loop: who is over, who may start, what has been computed meanwhile, what runs next; run it; draw.
//!
//! One step is one forward pass over a ragged batch: the token drawn last of every answer, and chunks of prompts as far
//! as [`Pace`] allows. A result does not depend on which tokens share a pass, so every decision here is about time and
//! memory only.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use octet_checkpoint::Checkpoint;
use octet_model::{Batch, Config, KvCache, LoadOptions, Record, Transformer, Workspace};
use octet_tokenizer::Tokenizer;

use crate::adapters::Adapters;
use crate::disk_cache::{DiskCache, fingerprint};
use crate::handle::{ModelInfo, Shared, within};
use crate::job::Job;
use crate::masks::Masks;
use crate::observer::Observer;
use crate::pace::Pace;
use crate::prefix_cache::{PrefixCache, Variant};
use crate::scheduler::Slot;
use crate::sequence::{Place, Sequence};
use crate::stats::{Counters, add, set};
use crate::{EngineOptions, Error, OpenOptions, StopReason};

/// How long a step may read pages from disk.
const LOADING: Duration = Duration::from_millis(50);

/// A model with all that runs on it. It acts only when [`Core::step`] is called.
pub(crate) struct Core {
    pub(crate) model: Transformer,
    pub(crate) adapters: Adapters,
    pub(crate) shared: Arc<Shared>,
    pub(crate) cache: KvCache,
    pub(crate) prefixes: PrefixCache,
    /// Those with a place run; those without wait: new ones, and those whose pages others needed more.
    pub(crate) sequences: Vec<Sequence>,
    /// Of the step at hand.
    pub(crate) slots: Vec<Slot>,
    /// Pages that the slots will take.
    pub(crate) reserved: usize,
    /// Counts steps.
    pub(crate) turn: usize,
    /// Sequences of the step at hand, first to last; kept for its memory.
    pub(crate) order: Vec<usize>,
    pub(crate) pace: Pace,
    pub(crate) options: EngineOptions,
    pub(crate) workspace: Workspace,
    pub(crate) batch: Batch,
    pub(crate) observer: Observer,
    pub(crate) ends: Vec<u32>,
    pub(crate) scratch: Vec<f32>,
    pub(crate) masks: Masks,
    /// Pages may be read from disk until then in this step.
    pub(crate) load_until: Instant,
    /// Tokens of a run with its guesses.
    pub(crate) joined: Vec<u32>,
}

impl Core {
    pub(crate) fn load(
        checkpoint: Arc<Checkpoint>,
        options: &EngineOptions,
        progress: Option<&mut dyn FnMut(u64, u64)>,
    ) -> Result<Core, Error> {
        let open = &options.open;
        within("experts_per_token", open.experts_per_token.unwrap_or(1), 1, checkpoint.params().n_experts())?;
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint)?;
        let path = checkpoint.path().to_path_buf();
        let files = checkpoint.files().to_vec();
        let threads = open.threads.unwrap_or_else(octet_kernels::cpu::available_threads);
        let adapters = Adapters::read(&open.adapters, checkpoint.params())?;
        let mut model = Transformer::load(
            checkpoint,
            threads,
            LoadOptions { quantize: open.quantize, progress, ..Default::default() },
        )?;
        let adapters = adapters.into_iter().map(|read| read.add_to(&mut model)).collect::<Result<_, _>>()?;
        let config = model.config().clone();
        let (context, kv_tokens) = sizes(options, &config)?;
        let cache = KvCache::new(&config, open.kv, kv_tokens)?;
        let disk = open_disk(options, &files, &cache)?;
        let counters = Arc::new(Counters::new(config.n_layers, config.num_experts));
        set(&counters.pages_total, cache.n_pages());
        let kv_tokens = cache.n_pages() * KvCache::PAGE_TOKENS;
        let info = ModelInfo {
            path,
            context,
            weights_bytes: model.weights_bytes(),
            active_bytes: model.active_bytes(config.num_experts_per_tok),
            kv: open.kv,
            kv_bytes: kv_tokens * cache.bytes_per_token(),
            kv_tokens,
            options: open.clone(),
            config,
        };
        let vocab_size = info.config.vocab_size as u32;
        Ok(Core {
            cache,
            prefixes: PrefixCache::new(disk),
            sequences: Vec::new(),
            slots: Vec::new(),
            reserved: 0,
            turn: 0,
            order: Vec::new(),
            adapters,
            pace: Pace::new(options.step_budget, open.chunk),
            options: options.clone(),
            workspace: Workspace::default(),
            batch: Batch::default(),
            observer: Observer::new(counters.clone(), info.config.n_layers, info.config.dim),
            ends: (0..vocab_size).filter(|&id| tokenizer.is_end_of_generation(id)).collect(),
            scratch: Vec::new(),
            masks: Masks::default(),
            load_until: Instant::now(),
            joined: Vec::new(),
            shared: Arc::new(Shared::new(info, tokenizer, counters, options)),
            model,
        })
    }

    /// Takes a job into the queue.
    pub(crate) fn enqueue(&mut self, job: Job) {
        self.sequences.push(Sequence::new(Arc::new(job), 0, &self.shared.tokenizer));
    }

    /// True if there is nothing to do until a job arrives.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Uses idle time to write a page to disk that is not there yet; false if there is nothing to do.
    pub(crate) fn save_one(&mut self) -> bool {
        self.prefixes.save_one(&self.cache)
    }

    /// Uses idle time to commit memory for keys and values, where that much was asked for; false if there is nothing to do.
    pub(crate) fn commit_some(&mut self) -> bool {
        self.options.kv_bytes.is_some() && self.cache.commit_some()
    }

    /// Goes one step.
    pub(crate) fn step(&mut self, record: &mut dyn Record) {
        let start = Instant::now();
        self.load_until = start + LOADING;
        self.slots.clear();
        self.sweep(start);
        self.admit();
        self.adopt();
        self.schedule();
        if !self.slots.is_empty() {
            // A step that hangs has to be seen from outside.
            self.count_running();
            self.run(record);
            let [prompt_tokens, streams, guesses] = self.composition();
            self.pace.learn(prompt_tokens, streams, guesses, start.elapsed());
            self.shared.counters.step(start.elapsed());
        }
        self.remove_ended();
        self.count();
    }

    /// Ends what was cancelled and what is late.
    fn sweep(&mut self, now: Instant) {
        let aborted = self.shared.aborted.load(Relaxed).then_some(StopReason::Cancelled);
        for sequence in &mut self.sequences {
            if let Some(reason) = aborted.or(sequence.job.interrupted(now)) {
                sequence.end(reason);
                let counters = &self.shared.counters;
                add(if reason == StopReason::Cancelled { &counters.cancelled } else { &counters.finished }, 1);
            }
        }
        self.remove_ended();
    }

    /// Lets go of sequences that have ended; what they computed stays in the prefix cache.
    fn remove_ended(&mut self) {
        let mut i = 0;
        while i < self.sequences.len() {
            if !self.sequences[i].ended {
                i += 1;
                continue;
            }
            self.vacate(i);
            if !self.sequences.swap_remove(i).started {
                self.shared.counters.waiting.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Takes a sequence's pages; those that are worth it stay in the prefix cache.
    pub(crate) fn vacate(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        let Some(mut place) = sequence.place.take() else { return };
        sequence.hidden = (Vec::new(), 0);
        self.index(index, &mut place);
        self.index_part(index, place);
        self.cache.remove_sequence(place.kv);
    }

    /// Makes the last, partly filled page of a sequence known to the prefix cache.
    pub(crate) fn index_part(&mut self, index: usize, place: Place) {
        let known = place.n_indexed * KvCache::PAGE_TOKENS;
        let len = self.cache.len(place.kv);
        if len > known {
            let page = self.cache.pages_of(place.kv)[place.n_indexed];
            self.prefixes.insert(&mut self.cache, place.node, &self.sequences[index].tokens[known..len], page);
        }
    }

    /// Makes the full pages of a sequence known to the prefix cache.
    pub(crate) fn index(&mut self, index: usize, place: &mut Place) {
        let tokens = &self.sequences[index].tokens;
        let full = self.cache.len(place.kv) / KvCache::PAGE_TOKENS;
        while place.n_indexed < full {
            let index = place.n_indexed;
            let tokens = &tokens[index * KvCache::PAGE_TOKENS..(index + 1) * KvCache::PAGE_TOKENS];
            let own = self.cache.pages_of(place.kv)[index];
            let known = self.prefixes.insert(&mut self.cache, place.node, tokens, own);
            if known.page != own {
                self.cache.replace(place.kv, index, known.page);
            }
            (place.node, place.n_indexed) = (known.node, index + 1);
        }
    }

    /// Where a sequence begins.
    pub(crate) fn new_place(&mut self, index: usize) -> Place {
        let sequence = &self.sequences[index];
        let adapter = sequence.job.request.adapter.as_ref().and_then(|name| self.adapters.get(name));
        let variant =
            Variant { experts_per_token: self.experts_per_token(sequence), adapter: adapter.map(|adapter| adapter.id) };
        let node = self.prefixes.root(variant, adapter.map_or(&[], |adapter| &adapter.fingerprint));
        Place { kv: self.cache.add_sequence(), variant, node, n_indexed: 0 }
    }

    /// Experts for each token of a sequence.
    pub(crate) fn experts_per_token(&self, sequence: &Sequence) -> usize {
        let asked = sequence.job.request.experts_per_token.or(self.options.open.experts_per_token);
        asked.unwrap_or(self.model.config().num_experts_per_tok)
    }

    /// Prompt tokens of this step, answers that are being written, and guesses.
    fn composition(&self) -> [usize; 3] {
        let streams = self.slots.iter().filter(|slot| !slot.reads).count();
        let prompt_tokens = self.slots.iter().filter(|slot| slot.reads).map(|slot| slot.n_tokens).sum();
        [prompt_tokens, streams, self.slots.iter().map(|slot| slot.guesses).sum()]
    }

    fn count_running(&self) {
        set(&self.shared.counters.running, self.sequences.iter().filter(|s| s.place.is_some()).count());
    }

    pub(crate) fn count(&self) {
        let counters = &self.shared.counters;
        let evictable = self.prefixes.evictable(&self.cache);
        self.count_running();
        set(&counters.pages_cached, evictable);
        set(&counters.pages_used, self.cache.n_pages() - self.cache.n_free() - evictable);
    }
}

/// Opens the cache on disk; what is in it belongs to these weights, this way of keeping numbers and this program.
fn open_disk(options: &EngineOptions, files: &[PathBuf], cache: &KvCache) -> Result<Option<DiskCache>, Error> {
    let Some(disk) = &options.disk_cache else { return Ok(None) };
    let unreadable = |error| Error::Setting(format!("the model's files cannot be read again: {error}"));
    let model = fingerprint(files).map_err(unreadable)?;
    let quantized = options.open.quantize.map_or("as stored", |element_type| element_type.name());
    let owner = format!("octet {}, model {model} {quantized}, {}", env!("CARGO_PKG_VERSION"), cache.format());
    DiskCache::open(disk, &owner).map(Some)
}

/// Tokens of context, and tokens that the KV cache has room for.
fn sizes(options: &EngineOptions, config: &Config) -> Result<(usize, usize), Error> {
    const DEFAULT_BYTES: usize = 4 << 30;
    let open = &options.open;
    let own = config.context_length.unwrap_or(OpenOptions::DEFAULT_CONTEXT);
    let context = open.context.unwrap_or(own.min(OpenOptions::DEFAULT_CONTEXT));
    let per_token = KvCache::new(config, open.kv, 0)?.bytes_per_token();
    let Some(bytes) = options.kv_bytes else {
        let contexts = options.max_running.min(4);
        return Ok((context, (contexts * context).min(DEFAULT_BYTES / per_token).max(context)));
    };
    let tokens = bytes as usize / per_token / KvCache::PAGE_TOKENS * KvCache::PAGE_TOKENS;
    match open.context {
        _ if tokens == 0 => Err(Error::Setting(format!(
            "{bytes} bytes for keys and values hold no page; one takes {} bytes",
            per_token * KvCache::PAGE_TOKENS
        ))),
        Some(context) if tokens < context => Err(Error::Setting(format!(
            "{bytes} bytes for keys and values hold {tokens} tokens, fewer than the context of {context}; it takes {} bytes",
            context * per_token
        ))),
        _ => Ok((context.min(tokens), tokens)),
    }
}

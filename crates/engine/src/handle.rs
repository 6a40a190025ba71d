//! How the rest of a program talks to an engine: requests in, events out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use octet_kernels::KvType;
use octet_model::Config;
use octet_tokenizer::Tokenizer;

use crate::grammar::{GrammarState, Grammars};
use crate::job::Job;
use crate::stats::{Counters, add};
use crate::{Constraint, EngineOptions, Error, Event, Flow, OpenOptions, Request, Sink, Stats};

/// Most answers to one prompt, where so many may run.
const MOST_ANSWERS: usize = 128;

/// What does not change while an engine runs.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Where the model lies.
    pub path: std::path::PathBuf,
    /// Its shape.
    pub config: Config,
    /// Tokens of context of a sequence.
    pub context: usize,
    /// Bytes of packed weights in memory.
    pub weights_bytes: usize,
    /// Bytes of weights that one generated token reads.
    pub active_bytes: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Bytes that keys and values of all sequences may take.
    pub kv_bytes: usize,
    /// Tokens whose keys and values fit.
    pub kv_tokens: usize,
    /// How it was opened.
    pub options: OpenOptions,
}

/// What an engine's thread and its handles share.
pub(crate) struct Shared {
    pub(crate) info: ModelInfo,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) counters: Arc<Counters>,
    pub(crate) max_queue: usize,
    pub(crate) max_running: usize,
    /// No new requests are taken.
    pub(crate) closed: AtomicBool,
    /// Everything ends at once.
    pub(crate) aborted: AtomicBool,
    arrivals: AtomicU64,
    /// Made with the first constraint.
    grammars: OnceLock<Result<Grammars, String>>,
}

impl Shared {
    pub(crate) fn new(
        info: ModelInfo,
        tokenizer: Tokenizer,
        counters: Arc<Counters>,
        options: &EngineOptions,
    ) -> Shared {
        let (max_queue, max_running) = (options.max_queue, options.max_running.max(1));
        let (closed, aborted, arrivals, grammars) = Default::default();
        Shared { info, tokenizer, counters, max_queue, max_running, closed, aborted, arrivals, grammars }
    }

    /// Checks a request and makes a job of it.
    pub(crate) fn job(&self, request: Request, cancelled: Arc<AtomicBool>, sink: Sink) -> Result<Job, Error> {
        self.check(&request)?;
        let grammar = request.constraint.as_ref().map(|constraint| self.compile(constraint)).transpose()?;
        let arrival = self.arrivals.fetch_add(1, Relaxed);
        add(&self.counters.requests, 1);
        self.counters.enqueued();
        Ok(Job::new(request, grammar, arrival, cancelled, sink))
    }

    fn compile(&self, constraint: &Constraint) -> Result<GrammarState, Error> {
        let make = || Grammars::new(&self.tokenizer, self.info.config.vocab_size).map_err(|error| error.to_string());
        match self.grammars.get_or_init(make) {
            Ok(grammars) => grammars.compile(constraint),
            Err(error) => Err(Error::Constraint(error.clone())),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let ModelInfo { config, context, .. } = &self.info;
        let (context, vocab_size) = (*context, config.vocab_size);
        request.sampling.check(vocab_size)?;
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if request.prompt.len() >= context {
            return Err(Error::PromptTooLong { prompt: request.prompt.len(), context });
        }
        let outside = |id: &&u32| **id as usize >= vocab_size;
        if let Some(&id) = request.prompt.iter().chain(&request.stop.token_ids).find(outside) {
            return Err(octet_model::Error::TokenOutsideVocabulary { id, vocab_size }.into());
        }
        let limits = [
            ("n", request.n, 1, self.max_running.min(MOST_ANSWERS)),
            ("logprobs", request.logprobs.unwrap_or(0), 0, 1000.min(vocab_size)),
            ("prompt_logprobs", request.prompt_logprobs.unwrap_or(0), 0, 1000.min(vocab_size)),
            ("experts_per_token", request.experts_per_token.unwrap_or(1), 1, config.num_experts),
        ];
        let adapters = &self.info.options.adapters;
        if let Some(name) = request.adapter.as_ref().filter(|name| !adapters.iter().any(|a| a.name == **name)) {
            let known: Vec<&str> = adapters.iter().map(|adapter| adapter.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(Error::Setting(format!("there is no adapter {name:.100}; this model has {known}")));
        }
        limits.into_iter().try_for_each(|(name, value, least, most)| within(name, value, least, most))
    }
}

/// Refuses a number outside its range, by its name.
pub(crate) fn within(name: &str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Setting(format!("{name} is {value}; it has to be from {least} to {most}")))
}

/// Gives requests to an engine. Cheap to clone, free to share between threads.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) jobs: Sender<Job>,
}

impl Handle {
    /// Asks for answers; `sink` is called with every event, on the engine's thread. The request ends when the ticket is
    /// dropped.
    ///
    /// A constraint is compiled here, on the caller's thread, which may take some milliseconds.
    ///
    /// # Errors
    /// A setting out of range, an empty prompt or one that fills the context, a constraint that cannot be
    /// enforced, a full queue, an engine that shuts down.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Error> {
        let counters = &self.shared.counters;
        if self.shared.closed.load(Relaxed) {
            return Err(Error::ShuttingDown);
        }
        let waiting = counters.waiting.load(Relaxed) as usize;
        if waiting >= self.shared.max_queue {
            return Err(Error::QueueFull { waiting });
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = self.shared.job(request, cancelled.clone(), sink)?;
        self.jobs.send(job).map_err(|_| Error::ShuttingDown)?;
        Ok(Ticket { cancelled })
    }

    /// Asks for answers, to be read as they come: an iterator of events that ends with the request. Dropping it ends the
    /// request.
    ///
    /// # Errors
    /// As [`Handle::submit`].
    pub fn generate(&self, request: Request) -> Result<Events, Error> {
        let (sender, receiver) = mpsc::channel();
        let sink = move |event| if sender.send(event).is_ok() { Flow::Continue } else { Flow::Stop };
        let ticket = self.submit(request, Box::new(sink))?;
        Ok(Events { receiver, _ticket: ticket })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Requests that may wait.
    pub fn max_queue(&self) -> usize {
        self.shared.max_queue
    }

    /// Numbers about what the engine does and did.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot(self.shared.info.config.num_experts)
    }
}

/// A request on its way. Dropping it ends the request, within one step of the engine.
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// Ends the request; [`Event::Finished`] comes for every answer that has not ended.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The events of a request, as they come.
pub struct Events {
    receiver: Receiver<Event>,
    _ticket: Ticket,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.receiver.recv().ok()
    }
}

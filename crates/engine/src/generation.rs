//! One conversation on the caller's thread: an engine's step, called until the answer is there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use octet_checkpoint::Checkpoint;
use octet_model::{AdapterId, Record, Transformer};
use octet_tokenizer::Tokenizer;

use crate::core::Core;
use crate::handle::within;
use crate::{EngineOptions, Error, Event, Flow, Logprobs, OpenOptions, Request, Sampling, Stop, StopReason, TextStart};

/// A model with its tokenizer and one answer at a time.
///
/// What was read is remembered: a prompt that begins with what has been seen already is only read from there on.
pub struct Generator {
    core: Core,
    /// Name of the adapter in use.
    adapter: Option<String>,
}

/// What is asked of a [`Generator`].
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Token ids of the prompt.
    pub prompt: &'a [u32],
    /// What the answer's text joins on to.
    pub start: TextStart,
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// When the answer ends.
    pub stop: &'a Stop,
    /// As [`Request::logprobs`].
    pub logprobs: Option<usize>,
}

/// A piece of an answer.
pub struct Piece<'a> {
    /// Text that is now certain; may be empty while a character or a stop string is incomplete.
    pub text: &'a str,
    /// The token, once it is drawn; `None` for progress on the prompt and for text that was held back to the end.
    pub token: Option<u32>,
    /// Tokens of the prompt read so far and in all.
    pub prompt: (usize, usize),
}

/// An answer and what it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Tokens drawn, without the end of text.
    pub tokens: Vec<u32>,
    /// Their text, without a stop string.
    pub text: String,
    /// How likely each was, if asked for.
    pub logprobs: Vec<Logprobs>,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were still remembered.
    pub cached_tokens: usize,
    /// Time to read the rest of the prompt, which is the time to the first token.
    pub prompt_time: Duration,
    /// Time for the tokens after the first.
    pub generation_time: Duration,
}

impl Answer {
    /// Prompt tokens per second, of those that were read.
    pub fn prompt_rate(&self) -> f64 {
        (self.prompt_tokens - self.cached_tokens) as f64 / self.prompt_time.as_secs_f64()
    }

    /// Generated tokens per second, the first one aside; 0 if there was no second one.
    pub fn generation_rate(&self) -> f64 {
        match self.generation_time.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.tokens.len().saturating_sub(1) as f64 / seconds,
        }
    }
}

impl Generator {
    /// Opens a model and its tokenizer.
    ///
    /// # Errors
    /// If either cannot be read, or the machine lacks the memory for the KV cache.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Generator, Error> {
        Generator::load(Arc::new(Checkpoint::open(path).map_err(octet_model::Error::from)?), options, None)
    }

    /// Makes a generator of an opened checkpoint, reporting bytes of weights read so far and in all.
    ///
    /// # Errors
    /// As [`Generator::open`].
    pub fn load(
        checkpoint: Arc<Checkpoint>,
        options: &OpenOptions,
        progress: Option<&mut dyn FnMut(u64, u64)>,
    ) -> Result<Generator, Error> {
        let alone = EngineOptions { max_running: 1, step_budget: Duration::MAX, ..EngineOptions::default() };
        let options = EngineOptions { open: options.clone(), ..alone };
        Ok(Generator { core: Core::load(checkpoint, &options, progress)?, adapter: None })
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.core.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.core.shared.tokenizer
    }

    /// Tokens of context.
    pub fn context(&self) -> usize {
        self.core.shared.info.context
    }

    /// Experts that work on each token from the next answer on; `None` for the model's own number.
    ///
    /// # Errors
    /// [`Error::Setting`] if the model has not so many, or none are asked for.
    pub fn set_experts_per_token(&mut self, experts: Option<usize>) -> Result<(), Error> {
        within("experts_per_token", experts.unwrap_or(1), 1, self.model().config().num_experts)?;
        self.core.options.open.experts_per_token = experts;
        Ok(())
    }

    /// Experts that work on each token.
    pub fn experts_per_token(&self) -> usize {
        self.core.options.open.experts_per_token.unwrap_or(self.model().config().num_experts_per_tok)
    }

    /// The adapter that answers from the next one on; `None` for the model alone.
    ///
    /// # Errors
    /// [`Error::Setting`] if it was not opened with the model.
    pub fn set_adapter(&mut self, name: Option<&str>) -> Result<(), Error> {
        if let Some(name) = name.filter(|name| self.core.adapters.get(name).is_none()) {
            return Err(Error::Setting(format!("there is no adapter {name}")));
        }
        self.adapter = name.map(str::to_owned);
        Ok(())
    }

    /// The model's name of the adapter in use.
    pub fn adapter(&self) -> Option<AdapterId> {
        self.adapter.as_ref().and_then(|name| self.core.adapters.get(name)).map(|adapter| adapter.id)
    }

    /// Reads the prompt and draws an answer. `watch` sees the text as it comes, `record` what the model does ([`Nothing`]
    /// to record nothing).
    ///
    /// [`Nothing`]: octet_model::Nothing
    ///
    /// # Errors
    /// A setting out of range, an empty prompt, or one that fills the context.
    pub fn generate(
        &mut self,
        prompt: &Prompt<'_>,
        record: &mut dyn Record,
        watch: &mut dyn FnMut(Piece<'_>) -> Flow,
    ) -> Result<Answer, Error> {
        let mut request = Request::new(prompt.prompt.to_vec(), prompt.start);
        request.adapter.clone_from(&self.adapter);
        (request.sampling, request.stop) = (prompt.sampling.clone(), prompt.stop.clone());
        request.logprobs = prompt.logprobs;
        let (sender, events) = mpsc::channel();
        let sink = move |event| if sender.send(event).is_ok() { Flow::Continue } else { Flow::Stop };
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = self.core.shared.job(request, cancelled.clone(), Box::new(sink))?;
        self.core.enqueue(job);
        let mut draft = Draft::new(prompt.prompt.len());
        while !self.core.is_idle() {
            self.core.step(record);
            if draft.take(&events, watch)? == Flow::Stop {
                cancelled.store(true, Relaxed);
            }
        }
        Ok(draft.answer)
    }
}

/// An answer being put together out of events.
struct Draft {
    answer: Answer,
    start: Instant,
}

impl Draft {
    fn new(prompt_tokens: usize) -> Draft {
        let answer = Answer {
            tokens: Vec::new(),
            text: String::new(),
            logprobs: Vec::new(),
            reason: StopReason::Cancelled,
            prompt_tokens,
            cached_tokens: 0,
            prompt_time: Duration::ZERO,
            generation_time: Duration::ZERO,
        };
        Draft { answer, start: Instant::now() }
    }

    /// Takes what has come and shows it.
    fn take(&mut self, events: &Receiver<Event>, watch: &mut dyn FnMut(Piece<'_>) -> Flow) -> Result<Flow, Error> {
        let mut flow = Flow::Continue;
        let whole = (self.answer.prompt_tokens, self.answer.prompt_tokens);
        let mut show = |text: &str, token, prompt| {
            if watch(Piece { text, token, prompt }) == Flow::Stop {
                flow = Flow::Stop;
            }
        };
        while let Ok(event) = events.try_recv() {
            let answer = &mut self.answer;
            match event {
                Event::PromptProgress { done, total } => show("", None, (done, total)),
                Event::Token { id, text, logprobs, .. } => {
                    if answer.tokens.is_empty() {
                        answer.prompt_time = self.start.elapsed();
                    }
                    answer.tokens.push(id);
                    answer.logprobs.extend(logprobs);
                    answer.text.push_str(&text);
                    show(&text, Some(id), whole);
                }
                Event::Finished { reason, text, usage, .. } => {
                    if answer.tokens.is_empty() {
                        answer.prompt_time = self.start.elapsed();
                    }
                    (answer.reason, answer.cached_tokens) = (reason, usage.cached_tokens);
                    answer.generation_time = self.start.elapsed() - answer.prompt_time;
                    if !text.is_empty() {
                        answer.text.push_str(&text);
                        show(&text, None, whole);
                    }
                }
                Event::Failed(error) => return Err(error),
                Event::Started { .. } | Event::PromptLogprobs { .. } | Event::Hidden(_) | Event::Routing(_) => {}
            }
        }
        Ok(flow)
    }
}

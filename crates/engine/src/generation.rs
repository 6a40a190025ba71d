//! One sequence at a time: read a prompt, then draw token after token.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octet_checkpoint::{Checkpoint, ElementType};
use octet_kernels::KvType;
use octet_model::{Batch, KvCache, LoadOptions, Logits, Record, SequenceId, Transformer, Workspace};
use octet_tokenizer::{DecodeStream, Tokenizer};

use crate::{Error, Sampler, Sampling, Stop, StopMatcher};

/// How a [`Generator`] is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Threads; `None` for as many as this process may use.
    pub threads: Option<usize>,
    /// Tokens of context; `None` for the model's own, at most [`OpenOptions::DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Quantize float weights to this type as they are read.
    pub quantize: Option<ElementType>,
    /// Tokens of a prompt that run in one pass.
    pub chunk: usize,
    /// Experts for each token; `None` for the model's own number.
    pub experts_per_token: Option<usize>,
}

impl OpenOptions {
    /// Context where neither the caller nor the model asks for less.
    pub const DEFAULT_CONTEXT: usize = 32768;
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            threads: None,
            context: None,
            kv: KvType::F16,
            quantize: None,
            chunk: 512,
            experts_per_token: None,
        }
    }
}

/// A model with its tokenizer and one sequence in progress.
///
/// The sequence is remembered: a prompt that begins with what has been seen already is only read from there on.
pub struct Generator {
    model: Transformer,
    tokenizer: Tokenizer,
    cache: KvCache,
    workspace: Workspace,
    batch: Batch,
    sequence: SequenceId,
    /// What the cache holds.
    seen: Vec<u32>,
    context: usize,
    options: OpenOptions,
}

/// What is asked of a model.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Token ids of the prompt.
    pub prompt: &'a [u32],
    /// What the answer's text joins on to.
    pub start: TextStart,
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// When the answer ends.
    pub stop: &'a Stop,
}

/// What the text of an answer joins on to: some vocabularies write a space before every word, which an answer of its own
/// must not begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStart {
    /// The answer is a text of its own, as in a chat.
    Fresh,
    /// The answer goes on where the prompt ends.
    Continued,
}

/// A piece of an answer.
pub struct Event<'a> {
    /// Text that is now certain; may be empty while a character or a stop string is incomplete.
    pub text: &'a str,
    /// The token, once it is drawn; `None` for progress on the prompt and for text that was held back to the end.
    pub token: Option<u32>,
    /// Tokens of the prompt read so far and in all.
    pub prompt: (usize, usize),
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Draw the next token.
    Continue,
    /// End the answer here.
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model's own end of text.
    EndOfText,
    /// A stop string.
    StopString,
    /// The limit on tokens.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller asked.
    Cancelled,
}

/// An answer and what it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Tokens drawn, without the end of text.
    pub tokens: Vec<u32>,
    /// Their text, without a stop string.
    pub text: String,
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
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint)?;
        let threads = options.threads.unwrap_or_else(octet_kernels::cpu::available_threads);
        let load = LoadOptions { quantize: options.quantize, progress };
        let model = Transformer::load(checkpoint, threads, load)?;
        let own = model.config().context_length.unwrap_or(OpenOptions::DEFAULT_CONTEXT);
        let context = options.context.unwrap_or(own.min(OpenOptions::DEFAULT_CONTEXT));
        let mut cache = KvCache::new(model.config(), options.kv, context)?;
        let sequence = cache.add_sequence();
        Ok(Generator {
            model,
            tokenizer,
            cache,
            workspace: Workspace::default(),
            batch: Batch::default(),
            sequence,
            seen: Vec::new(),
            context,
            options: options.clone(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of context.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Experts that work on each token from the next answer on; `None` for the model's own number. What is remembered was
    /// made by other experts, so it is forgotten where the number changes.
    ///
    /// # Errors
    /// [`Error::Setting`] if the model has not so many, or none are asked for.
    pub fn set_experts_per_token(&mut self, experts: Option<usize>) -> Result<(), Error> {
        let n_experts = self.model.config().num_experts;
        if experts.is_some_and(|k| k == 0 || k > n_experts) {
            let asked = experts.unwrap_or_default();
            return Err(Error::Setting(format!("experts_per_token is {asked}; it has to be from 1 to {n_experts}")));
        }
        if self.options.experts_per_token != experts {
            self.seen.clear();
            self.options.experts_per_token = experts;
        }
        Ok(())
    }

    /// Experts that work on each token.
    pub fn experts_per_token(&self) -> usize {
        self.options.experts_per_token.unwrap_or(self.model.config().num_experts_per_tok)
    }

    /// Bytes of keys and values that the remembered tokens take.
    pub fn cache_bytes(&self) -> usize {
        self.seen.len() * self.cache.bytes_per_token()
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
        request: &Request<'_>,
        record: &mut dyn Record,
        watch: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Answer, Error> {
        let &Request { prompt, stop, .. } = request;
        request.sampling.check(self.model.config().vocab_size)?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context: self.context });
        }
        let cached = self.rewind(prompt);
        let start = Instant::now();
        let mut draft = Draft::new(request, &self.tokenizer);
        let Some(mut next) = self.read(prompt, cached, &mut draft.sampler, record, watch)? else {
            return Ok(draft.finish(StopReason::Cancelled, cached, start.elapsed(), Duration::ZERO));
        };
        let prompt_time = start.elapsed();
        let reason = loop {
            if let Some(reason) = draft.take(next, &self.tokenizer, stop, watch) {
                break reason;
            }
            if self.seen.len() + 1 >= self.context {
                break StopReason::ContextFull;
            }
            let logits = self.advance(&[next], Logits::Last, record)?.expect("logits of the last row were asked for");
            next = draft.sampler.sample(logits, &draft.history);
        };
        draft.flush(reason, watch);
        Ok(draft.finish(reason, cached, prompt_time, start.elapsed() - prompt_time))
    }

    /// Forgets what differs from `prompt`, and at least its last token, whose logits are needed again.
    fn rewind(&mut self, prompt: &[u32]) -> usize {
        let same = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let cached = same.min(prompt.len() - 1);
        self.seen.truncate(cached);
        self.cache.truncate(self.sequence, cached);
        cached
    }

    /// Reads the prompt in chunks and draws the first token; `None` if the caller stopped it.
    fn read(
        &mut self,
        prompt: &[u32],
        cached: usize,
        sampler: &mut Sampler,
        record: &mut dyn Record,
        watch: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Option<u32>, Error> {
        let mut done = cached;
        for chunk in prompt[cached..].chunks(self.options.chunk.max(1)) {
            done += chunk.len();
            let wanted = if done == prompt.len() { Logits::Last } else { Logits::None };
            if let Some(logits) = self.advance(chunk, wanted, record)? {
                return Ok(Some(sampler.sample(logits, prompt)));
            }
            if watch(Event { text: "", token: None, prompt: (done, prompt.len()) }) == Flow::Stop {
                return Ok(None);
            }
        }
        unreachable!("the last chunk of a prompt asks for logits")
    }

    fn advance(&mut self, tokens: &[u32], wanted: Logits, record: &mut dyn Record) -> Result<Option<&[f32]>, Error> {
        self.batch.clear();
        self.batch.experts_per_token = self.options.experts_per_token;
        self.batch.push(self.sequence, tokens, wanted);
        let logits = self.model.forward(&self.batch, &mut self.cache, &mut self.workspace, record)?;
        self.seen.extend_from_slice(tokens);
        Ok((!logits.is_empty()).then_some(logits))
    }
}

/// An answer being written.
struct Draft {
    sampler: Sampler,
    /// Prompt and answer.
    history: Vec<u32>,
    prompt_tokens: usize,
    text: String,
    /// `None` once the answer is over.
    decoder: Option<DecodeStream>,
    matcher: StopMatcher,
}

impl Draft {
    fn new(request: &Request<'_>, tokenizer: &Tokenizer) -> Draft {
        Draft {
            sampler: Sampler::new(request.sampling.clone()),
            history: request.prompt.to_vec(),
            prompt_tokens: request.prompt.len(),
            text: String::new(),
            decoder: Some(match request.start {
                TextStart::Fresh => DecodeStream::new(tokenizer),
                TextStart::Continued => DecodeStream::continuing(tokenizer),
            }),
            matcher: StopMatcher::new(&request.stop.strings),
        }
    }

    /// Adds a drawn token; gives a reason if the answer ends with (or before) it.
    fn take(
        &mut self,
        token: u32,
        tokenizer: &Tokenizer,
        stop: &Stop,
        watch: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Option<StopReason> {
        if stop.max_tokens == Some(0) {
            return Some(StopReason::MaxTokens);
        }
        if tokenizer.is_end_of_generation(token) {
            return Some(StopReason::EndOfText);
        }
        self.history.push(token);
        let decoded = self.decoder.as_mut().map_or(String::new(), |decoder| decoder.push(token));
        let (text, stopped) = self.matcher.push(&decoded);
        self.text.push_str(&text);
        let flow = watch(Event { text: &text, token: Some(token), prompt: (self.prompt_tokens, self.prompt_tokens) });
        if stopped {
            Some(StopReason::StopString)
        } else if flow == Flow::Stop {
            Some(StopReason::Cancelled)
        } else if stop.max_tokens.is_some_and(|max| self.history.len() - self.prompt_tokens >= max) {
            Some(StopReason::MaxTokens)
        } else {
            None
        }
    }

    /// Gives out what was held back, unless a stop string swallowed it.
    fn flush(&mut self, reason: StopReason, watch: &mut dyn FnMut(Event<'_>) -> Flow) {
        if reason == StopReason::StopString {
            return;
        }
        let rest = self.decoder.take().map_or(String::new(), DecodeStream::finish);
        let (mut text, stopped) = self.matcher.push(&rest);
        if !stopped {
            text.push_str(&self.matcher.finish());
        }
        if !text.is_empty() {
            self.text.push_str(&text);
            watch(Event { text: &text, token: None, prompt: (self.prompt_tokens, self.prompt_tokens) });
        }
    }

    fn finish(self, reason: StopReason, cached: usize, prompt_time: Duration, generation_time: Duration) -> Answer {
        Answer {
            tokens: self.history[self.prompt_tokens..].to_vec(),
            text: self.text,
            reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: cached,
            prompt_time,
            generation_time,
        }
    }
}

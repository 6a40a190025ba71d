//! The seam to the engine: the only file that knows its requests and events.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octet_engine::{Engine, Error, Flow, Handle, Logprobs, Pooling, Request, Routed, Stats, Stop, StopReason, Ticket};
use octet_tokenizer::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::ask::{Ask, Constraint};
use crate::piece::{Alternative, End, Token, Usage};
use crate::refusal::{Fault, Refusal};

/// What the engine says about a choice.
#[derive(Debug)]
pub enum Event {
    /// Tokens of prompt number `prompt` that have been read.
    Reading {
        /// Which prompt.
        prompt: usize,
        /// Tokens.
        done: usize,
        /// Those of them that the prefix cache had.
        cached: usize,
    },
    /// The prompt's tokens.
    Prompt(Arc<[Token]>),
    /// A token, with the text that it completes.
    Token {
        /// May be empty.
        text: String,
        /// The token.
        token: Token,
        /// Whether the client asked for tokens.
        is_wanted: bool,
    },
    /// Text that was held back, in case it would become a stop string.
    Rest(String),
    /// Which experts worked.
    Routing(Routed),
    /// The choice is over.
    End {
        /// Why.
        end: End,
        /// What it took; completion tokens are counted elsewhere.
        usage: Usage,
    },
    /// The choice was cancelled: by the answer, which had its end already, or because the server goes down.
    Cancelled {
        /// What it took until then.
        usage: Usage,
    },
    /// It broke off.
    Failed(Refusal),
}

/// Events with the choice that they belong to.
pub type Events = UnboundedReceiver<(usize, Event)>;

/// What the engine still works on; ends when dropped.
pub type Running = Vec<Ticket>;

/// A model that answers.
pub struct EngineHandle {
    handle: Handle,
    /// The adapter that every request through this handle gets.
    adapter: Option<String>,
    /// None where others own the engine.
    engine: Mutex<Option<Engine>>,
}

impl EngineHandle {
    /// Of a running engine.
    pub fn new(engine: Engine) -> EngineHandle {
        EngineHandle { handle: engine.clone(), adapter: None, engine: Mutex::new(Some(engine)) }
    }

    /// The same engine with one of its adapters.
    pub fn adapted(&self, adapter: &str) -> EngineHandle {
        EngineHandle { handle: self.handle.clone(), adapter: Some(adapter.into()), engine: Mutex::new(None) }
    }

    /// What the engine does and did.
    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Ends the engine, once what it answers is done or `patience` is over; waits for that.
    pub fn drain(&self, patience: Duration) {
        let engine = self.engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(engine) = engine {
            engine.drain(patience);
        }
    }

    /// Hands over a request. A constraint is compiled here, which may take some milliseconds.
    ///
    /// # Errors
    /// A setting out of range, a constraint that cannot be enforced, a full queue.
    pub fn submit(&self, ask: &Ask) -> Result<(Events, Running), Refusal> {
        let most = self.handle.max_queue();
        if ask.prompts.len() > most {
            let n = ask.prompts.len();
            return Err(Refusal::field("prompt", format!("{n} prompts; this server's queue has room for {most}")));
        }
        let (sender, events) = unbounded_channel();
        let submit = |(prompt, ids): (usize, &Vec<u32>)| {
            let tokenizer = self.handle.tokenizer().clone();
            let mut teller = Teller::new(ask, prompt, tokenizer, sender.clone());
            let sink = Box::new(move |event| teller.tell(event));
            let request = Request { adapter: self.adapter.clone(), ..request(ask, ids) };
            self.handle.submit(request, sink).map_err(|error| match (refuse(&error), &ask.calls) {
                // Where calls are held to schemas, a schema that cannot be enforced is a tool's.
                (refusal, Some(_)) if matches!(error, Error::Constraint(_)) => {
                    Refusal { param: Some("tools".into()), ..refusal }
                }
                (refusal, _) => refusal,
            })
        };
        let running = ask.prompts.iter().enumerate().map(submit).collect::<Result<Vec<_>, _>>()?;
        Ok((events, running))
    }

    /// Has the mean of the last hidden states of a prompt worked out, not normalised.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn embed(&self, ids: &[u32]) -> Result<Embedding, Refusal> {
        let mut request = Request::new(ids.to_vec(), octet_engine::TextStart::Fresh);
        request.hidden = Some(Pooling::Mean);
        request.adapter.clone_from(&self.adapter);
        request.stop = Stop::after(0);
        let (sender, receiver) = oneshot::channel();
        let mut sender = Some(sender);
        let sink = Box::new(move |event| {
            let answer = match event {
                octet_engine::Event::Hidden(vector) => Ok(vector),
                octet_engine::Event::Failed(error) => Err(refuse(&error)),
                _ => return Flow::Continue,
            };
            if let Some(sender) = sender.take() {
                // Nobody listens any more: nothing to tell.
                let _ = sender.send(answer);
            }
            Flow::Continue
        });
        let ticket = self.handle.submit(request, sink).map_err(|error| refuse(&error))?;
        Ok(Embedding { receiver, _ticket: ticket })
    }
}

/// A prompt's hidden states on their way; dropping it ends the work.
pub struct Embedding {
    receiver: oneshot::Receiver<Result<Vec<f32>, Refusal>>,
    _ticket: Ticket,
}

impl Embedding {
    /// Waits for them.
    ///
    /// # Errors
    /// The engine failed.
    pub async fn wait(self) -> Result<Vec<f32>, Refusal> {
        let stopped = || Refusal::internal("the engine stopped; the server's log tells why");
        self.receiver.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn request(ask: &Ask, ids: &[u32]) -> Request {
    let ending = &ask.ending;
    let mut request = Request::new(ids.to_vec(), ask.start);
    request.sampling = ask.sampling.clone();
    request.stop = Stop {
        strings: ending.strings.clone(),
        max_tokens: ending.max_tokens,
        token_ids: ending.token_ids.clone(),
        min_tokens: ending.min_tokens,
        ignore_eos: ending.ignore_eos,
    };
    request.n = ask.n;
    request.logprobs = ask.logprobs;
    request.prompt_logprobs = ask.logprobs.filter(|_| ask.echo);
    request.constraint = ask.constraint.as_ref().map(|constraint| match constraint {
        Constraint::JsonObject => octet_engine::Constraint::Json,
        Constraint::JsonSchema(schema) => octet_engine::Constraint::JsonSchema(schema.to_string()),
        Constraint::Regex(regex) => octet_engine::Constraint::Regex(regex.clone()),
        Constraint::Grammar(grammar) => octet_engine::Constraint::Lark(grammar.clone()),
    });
    request.priority = ask.priority;
    // A time beyond the clock is none.
    request.deadline = ask.deadline.and_then(|time| Instant::now().checked_add(time));
    request.experts_per_token = ask.experts_per_token;
    request.record_routing = ask.wants.routing;
    request
}

fn refuse(error: &Error) -> Refusal {
    let message = error.to_string();
    match error {
        Error::QueueFull { .. } => Refusal::too_many(message, 1),
        Error::ShuttingDown => Refusal::new(Fault::Unavailable, message),
        Error::PromptTooLong { .. } => Refusal::new(Fault::ContextTooLong, message),
        Error::Constraint(_) => Refusal::field("response_format", message),
        Error::Internal(_) => Refusal::internal(message),
        _ => Refusal::new(Fault::Invalid, message),
    }
}

/// Puts the engine's events of one prompt into ours, on the engine's thread.
struct Teller {
    sender: UnboundedSender<(usize, Event)>,
    tokenizer: Tokenizer,
    prompt: usize,
    /// The choice that the prompt's first one is.
    first: usize,
    n: usize,
    wants_tokens: bool,
    /// The prompt's tokens, until they are told.
    echo: Option<Vec<Token>>,
    submitted: Instant,
    started: Option<Instant>,
    cached: usize,
    first_token: Option<Instant>,
}

impl Teller {
    fn new(ask: &Ask, prompt: usize, tokenizer: Tokenizer, sender: UnboundedSender<(usize, Event)>) -> Teller {
        let echo = ask.echo.then(|| ask.prompts[prompt].iter().map(|&id| token(&tokenizer, id)).collect());
        Teller {
            sender,
            tokenizer,
            prompt,
            first: prompt * ask.n,
            n: ask.n,
            wants_tokens: ask.logprobs.is_some() || ask.wants.tokens,
            echo,
            submitted: Instant::now(),
            started: None,
            cached: 0,
            first_token: None,
        }
    }

    fn tell(&mut self, event: octet_engine::Event) -> Flow {
        use octet_engine::Event as From;
        let (choice, event) = match event {
            From::Started { cached_tokens, .. } => {
                (self.started, self.cached) = (Some(Instant::now()), cached_tokens);
                return Flow::Continue;
            }
            From::PromptProgress { done, .. } => (0, Event::Reading { prompt: self.prompt, done, cached: self.cached }),
            From::PromptLogprobs { first, tokens } => {
                self.keep(first, &tokens);
                return Flow::Continue;
            }
            From::Hidden(_) => return Flow::Continue,
            From::Routing(routed) => (routed.choice, Event::Routing(routed)),
            From::Token { choice, id, text, logprobs } => {
                self.first_token.get_or_insert_with(Instant::now);
                self.tell_prompt();
                let token = self.token(id, logprobs.as_ref());
                (choice, Event::Token { text, token, is_wanted: self.wants_tokens })
            }
            From::Finished { choice, reason: StopReason::Cancelled, usage, .. } => {
                (choice, Event::Cancelled { usage: self.usage(&usage) })
            }
            From::Finished { choice, reason, stop_string, text, usage } => {
                self.tell_prompt();
                if !text.is_empty() {
                    self.send(choice, Event::Rest(text));
                }
                (choice, Event::End { end: end(reason, stop_string), usage: self.usage(&usage) })
            }
            From::Failed(error) => (0, Event::Failed(refuse(&error))),
        };
        self.send(choice, event)
    }

    fn send(&self, choice: usize, event: Event) -> Flow {
        if self.sender.send((self.first + choice, event)).is_ok() { Flow::Continue } else { Flow::Stop }
    }

    fn keep(&mut self, first: usize, tokens: &[Logprobs]) {
        for (place, of) in (first..).zip(tokens) {
            let token = self.token(of.id, Some(of));
            if let Some(kept) = self.echo.as_mut().and_then(|echo| echo.get_mut(place)) {
                *kept = token;
            }
        }
    }

    /// Tells the prompt, once, before the first word of any choice.
    fn tell_prompt(&mut self) {
        if let Some(echo) = self.echo.take() {
            let echo: Arc<[Token]> = echo.into();
            for choice in 0..self.n {
                self.send(choice, Event::Prompt(echo.clone()));
            }
        }
    }

    fn token(&self, id: u32, logprobs: Option<&Logprobs>) -> Token {
        let alternative = |&(id, logprob): &(u32, f32)| {
            let Token { text, bytes, .. } = token(&self.tokenizer, id);
            Alternative { id, text, bytes, logprob }
        };
        let mut token = token(&self.tokenizer, id);
        if let Some(of) = logprobs {
            token.logprob = Some(of.logprob);
            token.top = of.top.iter().map(alternative).collect();
        }
        token
    }

    fn usage(&self, of: &octet_engine::Usage) -> Usage {
        let started = self.started.unwrap_or(self.submitted);
        let first = self.first_token.unwrap_or_else(Instant::now);
        Usage {
            prompt_tokens: of.prompt_tokens,
            cached_tokens: of.cached_tokens,
            completion_tokens: of.completion_tokens,
            queued: started - self.submitted,
            prompt_time: first.saturating_duration_since(started),
            generation_time: first.elapsed(),
        }
    }
}

fn token(tokenizer: &Tokenizer, id: u32) -> Token {
    // A control token has no bytes in a text; for whoever looks at tokens it has its name.
    let bytes = tokenizer.bytes(id);
    let bytes = if bytes.is_empty() { tokenizer.piece(id).as_bytes() } else { bytes };
    Token { id, text: String::from_utf8_lossy(bytes).into_owned(), bytes: bytes.to_vec(), ..Token::default() }
}

fn end(reason: StopReason, stop_string: Option<String>) -> End {
    match reason {
        StopReason::EndOfText | StopReason::StopToken(_) | StopReason::ConstraintComplete => End::Eos,
        StopReason::StopString => End::StopString(stop_string.unwrap_or_default()),
        StopReason::MaxTokens => End::MaxTokens,
        StopReason::ContextFull => End::ContextFull,
        StopReason::Deadline | StopReason::Cancelled => End::Deadline,
    }
}

//! What all handlers share.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::answer::Answer;
use crate::ask::Ask;
use crate::caller::Caller;
use crate::keys::Keys;
use crate::limits::Place;
use crate::metrics::Metrics;
use crate::models::{Model, Models};
use crate::octet::answers::Answers;
use crate::octet::conversations::History;
use crate::octet::history::Samples;
use crate::octet::journal::Journal;
use crate::octet::peers::Peers;
use crate::on_demand::Use;
use crate::refusal::Refusal;
use crate::track::Track;

/// The state of the server.
pub struct App {
    /// The models.
    pub models: Arc<Models>,
    /// The keys; SIGHUP puts others in.
    pub keys: RwLock<Arc<Keys>>,
    /// Bounds.
    pub limits: Limits,
    /// Counts and times.
    pub metrics: Arc<Metrics>,
    /// Conversations, unless none are kept.
    pub history: Option<History>,
    /// Answers that go on by themselves.
    pub answers: Answers,
    /// Other servers that the page may ask.
    pub peers: Peers,
    /// The last lines of the log, for the page.
    pub journal: Arc<Journal>,
    /// Load and speed of the last minutes.
    pub samples: Samples,
    /// When the server began.
    pub started: Instant,
    /// What `octet plan` would say, as JSON of a request in JSON; the program knows how.
    pub planner: Planner,
    /// Whether prompts and answers may stand in the log.
    pub log_text: bool,
    /// Origins whose pages may call, besides our own.
    pub origins: Vec<String>,
}

/// Predicts memory and speed of a model, from a request in JSON.
pub type Planner = Arc<dyn Fn(serde_json::Value) -> Result<serde_json::Value, String> + Send + Sync>;

/// As handlers get it.
pub type Shared = Arc<App>;

/// Bounds on what comes from outside.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Seconds until a body is whole.
    pub body_timeout_s: u64,
    /// Seconds until the headers are whole, and that a connection may be idle.
    pub header_timeout_s: u64,
    /// Tokens of a prompt; `None` for the context's.
    pub prompt_tokens: Option<usize>,
    /// Connections.
    pub connections: usize,
    /// Seconds after which a reader that takes nothing loses its answer.
    pub slow_reader_s: u64,
    /// Seconds that answers may take to end when the server goes down.
    pub drain_s: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: 16 << 20,
            body_timeout_s: 30,
            header_timeout_s: 30,
            prompt_tokens: None,
            connections: 2048,
            slow_reader_s: 60,
            drain_s: 30,
        }
    }
}

impl App {
    /// The keys as they are now.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// How long a reader may take nothing.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.limits.slow_reader_s)
    }

    /// Hands a request to its model's engine.
    ///
    /// # Errors
    /// A prompt that is too long, a setting that the engine refuses, a queue or an allowance that is full.
    pub fn answer(&self, caller: &Caller, model: &Arc<Model>, ask: &Ask) -> Result<Answer, Refusal> {
        model.check(ask, self.limits.prompt_tokens)?;
        let place = Place::take(caller.key.as_ref())?;
        // To compile a grammar takes a while, which other requests should not wait for.
        let (events, running) = match ask.constraint {
            Some(_) => tokio::task::block_in_place(|| model.engine.submit(ask))?,
            None => model.engine.submit(ask)?,
        };
        let track = Track::new(self.metrics.clone(), self.journal.clone(), caller, &model.name, place);
        if self.log_text {
            for ids in &ask.prompts {
                tracing::info!(request_id = &*caller.request_id, prompt = model.tokenizer.decode(ids), "prompt");
            }
        }
        Ok(Answer::new(ask, events, running, track).using(Use::of(&self.models, model)))
    }
}

/// Bounds the work that is not the engine's: rendering and tokenizing run where they may take their time.
static TEXT_WORK: Semaphore = Semaphore::const_new(4);
/// The same of plans, which take seconds: nobody's prompt is to wait for them.
static PLAN_WORK: Semaphore = Semaphore::const_new(4);

/// Runs `work` on texts on a thread for it.
///
/// # Errors
/// What `work` refuses.
pub async fn text_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    bounded(&TEXT_WORK, work).await
}

/// Runs `work` on plans, which takes its time, on a thread for it.
///
/// # Errors
/// What `work` refuses.
pub async fn plan_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    bounded(&PLAN_WORK, work).await
}

async fn bounded<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let place = places.acquire().await.map_err(|_| Refusal::internal("the server is going down"))?;
    // The place goes with the work: a client that hangs up ends its wait, and not what the thread is at.
    let held = move || {
        let _place = place;
        work()
    };
    tokio::task::spawn_blocking(held).await.unwrap_or_else(|_| Err(Refusal::internal("a worker's thread broke off")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_hangs_up_does_not_make_room_for_more_work() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let slow = bounded(&ONE, move || {
            let _ = wait.recv();
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), slow).await.is_err(), "its client hangs up");
        assert_eq!(ONE.available_permits(), 0);
        drop(go);
        assert!(bounded(&ONE, || Ok(())).await.is_ok());
    }
}

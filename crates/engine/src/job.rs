//! A request on its way through the engine, with whoever listens to it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::grammar::GrammarState;
use crate::{Error, Event, Flow, Request, Sink, StopReason};

/// What all answers to one request share.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// The constraint, compiled, before its first token.
    pub(crate) grammar: Option<Mutex<GrammarState>>,
    /// Place in the order of arrival.
    pub(crate) arrival: u64,
    cancelled: Arc<AtomicBool>,
    /// `None` once nobody listens. Only the engine's thread locks it.
    sink: Mutex<Option<Sink>>,
}

impl Job {
    pub(crate) fn new(
        request: Request,
        grammar: Option<GrammarState>,
        arrival: u64,
        cancelled: Arc<AtomicBool>,
        sink: Sink,
    ) -> Job {
        Job { request, grammar: grammar.map(Mutex::new), arrival, cancelled, sink: Mutex::new(Some(sink)) }
    }

    /// Tells the listener; if it is gone, the job is cancelled.
    pub(crate) fn send(&self, event: Event) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.as_mut().is_some_and(|sink| sink(event) == Flow::Stop) {
            *sink = None;
            self.cancelled.store(true, Relaxed);
        }
    }

    /// Ends the job with an error, the last thing that is told.
    pub(crate) fn fail(&self, error: Error) {
        self.send(Event::Failed(error));
        *self.sink.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.cancelled.store(true, Relaxed);
    }

    /// Why the job should end now, if it should.
    pub(crate) fn interrupted(&self, now: Instant) -> Option<StopReason> {
        if self.cancelled.load(Relaxed) {
            return Some(StopReason::Cancelled);
        }
        self.request.deadline.is_some_and(|deadline| now >= deadline).then_some(StopReason::Deadline)
    }

    /// Smaller goes first: priority, then arrival.
    pub(crate) fn rank(&self) -> (i32, u64) {
        (-self.request.priority.max(-i32::MAX), self.arrival)
    }
}

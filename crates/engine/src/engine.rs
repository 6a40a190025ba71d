//! An engine: a model on a thread of its own, which runs at its own pace, with channels to the rest of the program.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use octet_checkpoint::Checkpoint;
use octet_model::Nothing;

use crate::core::Core;
use crate::job::Job;
use crate::{EngineOptions, Error, Handle};

/// How long an engine that ends writes pages to its cache on disk.
const SAVING: Duration = Duration::from_secs(5);
/// How often an engine without work looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);

/// A running model. Dropping it ends all requests and waits for its thread.
pub struct Engine {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Engine {
    /// Opens a model and its tokenizer and starts the engine's thread.
    ///
    /// # Errors
    /// If either cannot be read, or the machine lacks the memory for the KV cache.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine, Error> {
        Engine::load(Arc::new(Checkpoint::open(path).map_err(octet_model::Error::from)?), options, None)
    }

    /// Makes an engine of an opened checkpoint, reporting bytes of weights read so far and in all.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn load(
        checkpoint: Arc<Checkpoint>,
        options: &EngineOptions,
        progress: Option<&mut dyn FnMut(u64, u64)>,
    ) -> Result<Engine, Error> {
        let core = Core::load(checkpoint, options, progress)?;
        let (jobs, queue) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let handle = Handle { shared: core.shared.clone(), jobs };
        let thread = std::thread::Builder::new().name("octet-engine".into()).spawn(move || {
            let _alive = alive;
            run(core, &queue);
        });
        let thread = thread.map_err(|error| Error::Internal(format!("no thread for the engine: {error}")))?;
        Ok(Engine { handle, thread: Some(thread), ended })
    }

    /// Takes no more requests, finishes those it has for at most `patience`, then ends the rest.
    pub fn drain(self, patience: Duration) {
        self.handle.shared.closed.store(true, Relaxed);
        let _ = self.ended.recv_timeout(patience);
    }
}

impl std::ops::Deref for Engine {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.shared.closed.store(true, Relaxed);
        self.handle.shared.aborted.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic over there has been told already.
            let _ = thread.join();
        }
    }
}

/// The thread: takes what has arrived, goes a step; waits where there is nothing to do.
fn run(mut core: Core, queue: &Receiver<Job>) {
    loop {
        if core.is_idle() {
            let patience = if core.save_one() || core.commit_some() { Duration::ZERO } else { IDLE };
            match queue.recv_timeout(patience) {
                Ok(job) => core.enqueue(job),
                Err(RecvTimeoutError::Timeout) if !core.shared.closed.load(Relaxed) => continue,
                Err(_) => break,
            }
        }
        while let Ok(job) = queue.try_recv() {
            core.enqueue(job);
        }
        core.guarded_step(&mut Nothing);
    }
    // What is still in memory survives the restart too, as far as there is time.
    let end = Instant::now() + SAVING;
    while Instant::now() < end && core.prefixes.unsaved().is_some() {
        if !core.save_one() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

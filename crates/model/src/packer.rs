//! Packs weights while the model already works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use octet_checkpoint::Checkpoint;
use octet_kernels::Unsettled;

use crate::weights::{Share, forget_pages};

/// How long packing waits for the model's first answer, which it would hold up.
const HEAD_START: Duration = Duration::from_millis(500);

/// A thread that packs matrices, and stops when it is dropped. One: clearing memory for them is most of the work, and the
/// model's own threads want the cores.
pub(crate) struct Packer {
    /// Whether the thread need not wait any longer.
    begun: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    checkpoint: Arc<Checkpoint>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Packer {
    /// Packs `matrices` in this order, then lets go of the pages of their files.
    ///
    /// # Panics
    /// If the system gives no thread.
    pub(crate) fn start(matrices: Vec<Unsettled>, checkpoint: Arc<Checkpoint>) -> Packer {
        let (begun, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = (!matrices.is_empty()).then(|| {
            let (begun, stop, of_thread) = (Arc::clone(&begun), Arc::clone(&stop), Arc::clone(&checkpoint));
            let work = move || {
                if !begun.load(Ordering::Acquire) {
                    std::thread::park_timeout(HEAD_START);
                }
                matrices.iter().for_each(|matrix| matrix.settle(&stop));
                // Whoever stops this does the other half.
                let share = if stop.load(Ordering::Relaxed) { Share::Even } else { Share::All };
                forget_pages(&of_thread, share);
            };
            let named = std::thread::Builder::new().name("octet-packer".into());
            named.spawn(work).unwrap_or_else(|e| panic!("the system gives no thread for packing weights: {e}"))
        });
        Packer { begun, stop, checkpoint, thread: Mutex::new(thread) }
    }

    /// Begins to pack if it has not: the first answer is there.
    pub(crate) fn begin(&self) {
        if self.begun.load(Ordering::Relaxed) || self.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.thread().unpark();
        }
    }

    /// Waits until all is packed.
    pub(crate) fn wait(&self) {
        self.begin();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.begin();
        // Unmapping a file that was read costs a tenth of what one answer does; two threads share it.
        let is_packing = self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_packing {
            forget_pages(&self.checkpoint, Share::Odd);
        }
        self.wait();
    }
}

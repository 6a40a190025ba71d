//! Threads that wait at a barrier which costs nothing noticeable.
//!
//! A token takes some 300 parallel regions, each of which lasts from 5 µs to some ms. So a region is opened by one store
//! that idle workers watch (for some 100 µs, then they sleep), work is handed out item by item from a counter, so that a
//! thread that was preempted takes fewer, and a region ends when its items are done: a worker that never woke up is not
//! waited for. All of this is one word:
//!
//! ```text
//! state = | generation: 48 bits | open: 1 bit | workers inside: 15 bits |
//! ```
//!
//! Opening stores `generation + 1, open, 0`. A worker enters by adding 1 while the word says open, and leaves by
//! subtracting 1. Closing clears `open`; then the opener waits until nobody is inside, and only then lets go of the
//! closure that the workers borrow.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// What a region runs: the item's index, and the index of the thread that runs it, `0..threads`.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

const OPEN: u64 = 1 << 15;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 16;
/// Pauses before an idle worker sleeps: some 60 to 100 µs, longer than the gaps between the regions of a token.
const SPINS: usize = 4000;

/// Below this many numbers a thread alone has done them before the others have come: at a cycle or two each, a µs.
const PARALLEL_FROM: usize = 1 << 12;
/// Work items for each thread that are worth having, for balance.
const ITEMS_PER_THREAD: usize = 8;

thread_local! {
    /// The pool whose region this thread works for, by address, and its index there.
    static WORKING_FOR: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// A fixed set of threads for short parallel regions. The thread that calls [`run`](ThreadPool::run) is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The workers' handles, for waking them.
    handles: Vec<Thread>,
    /// Whether some thread has a region open.
    taken: AtomicBool,
}

struct Shared {
    state: Line<AtomicU64>,
    /// The next item that nobody has taken.
    next: Line<AtomicUsize>,
    /// How many workers sleep, or are about to.
    sleeping: Line<AtomicUsize>,
    stop: AtomicBool,
    /// Written only while the region is closed and nobody is inside.
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the one field that is not Sync by itself. It is written by the opener alone, while no worker is inside
// a region and none can enter, and read by workers inside; `state` orders the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is followed only inside a region, while what it points to is borrowed.
unsafe impl Send for Shared {}

/// A cache line of its own, so that one thread's stores do not slow another's loads.
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    n_items: usize,
}

impl ThreadPool {
    /// A pool of `threads` threads, at least 1, counting the caller: `threads - 1` are started.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> ThreadPool {
        let nothing: &'static Task<'static> = &|_, _| {};
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            sleeping: Line(AtomicUsize::new(0)),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(Job { task: nothing, n_items: 0 }),
            panic: Mutex::new(None),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("octet-{index}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.work(index))
                .unwrap_or_else(|e| panic!("the system gives no thread {index} of {threads}: {e}"))
        };
        let workers: Vec<_> = (1..threads.clamp(1, INSIDE as usize)).map(start).collect();
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        ThreadPool { shared, workers, handles, taken: AtomicBool::new(false) }
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(item, thread)` once for each `item` in `0..n_items`, in any order and on any thread, and returns when
    /// all calls have. Two calls that run at the same time differ in `thread`, which is below [`threads`](Self::threads).
    ///
    /// A call from inside a task, or while another thread has a region open, runs its items on the calling thread.
    ///
    /// # Panics
    /// With the payload of the first task that panics; items that were not begun are left out.
    pub fn run(&self, n_items: usize, task: &Task<'_>) {
        let inside = WORKING_FOR.get().filter(|(pool, _)| *pool == self.shared.address());
        let alone = n_items <= 1 || self.workers.is_empty() || inside.is_some();
        if alone || self.taken.swap(true, Ordering::Acquire) {
            let thread = inside.map_or(0, |(_, thread)| thread);
            return (0..n_items).for_each(|item| task(item, thread));
        }
        let panic = self.run_region(n_items, task);
        self.taken.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `each(row)` for rows of `cols` numbers that each take a moment; threads share them where there are enough.
    pub(crate) fn run_rows(&self, rows: usize, cols: usize, each: impl Fn(usize) + Sync) {
        let of_item = rows.div_ceil(self.threads() * ITEMS_PER_THREAD).max(1);
        match rows * cols < PARALLEL_FROM {
            true => (0..rows).for_each(each),
            false => self.run(rows.div_ceil(of_item), &|item, _| {
                (item * of_item..((item + 1) * of_item).min(rows)).for_each(&each);
            }),
        }
    }

    fn run_region(&self, n_items: usize, task: &Task<'_>) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes. Workers follow the pointer only inside the region, and this function does
        // not return before they have left it and no more can enter.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let job = Job { task, n_items };
        let shared = &*self.shared;
        // SAFETY: the region is closed and nobody is inside; `taken` keeps other openers out.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        let closed = shared.state.0.load(Ordering::Relaxed);
        // Sequentially consistent, as is the sleeper's side: either it sees the open region or we see that it sleeps.
        shared.state.0.store((closed + GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleeping.0.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
        let outer = WORKING_FOR.replace(Some((shared.address(), 0)));
        shared.take_items(job, 0);
        WORKING_FOR.set(outer);
        shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut waited = 0;
        while shared.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            pause(&mut waited);
        }
        shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            worker.join().expect("tasks' panics are caught, and workers have no others");
        }
    }
}

impl Shared {
    /// What tells one pool from another.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        WORKING_FOR.set(Some((self.address(), thread)));
        let mut seen = 0;
        while let Some(generation) = self.enter(seen) {
            seen = generation;
            // SAFETY: we are inside the region, so the opener does not write the job.
            let job = unsafe { *self.job.get() };
            self.take_items(job, thread);
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open region other than `seen` and enters it; `None` when the pool stops.
    fn enter(&self, seen: u64) -> Option<u64> {
        let mut waited = 0;
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if state & OPEN != 0 && state / GENERATION != seen {
                let entered = self.state.0.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(state / GENERATION);
                }
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            if waited < SPINS {
                waited += 1;
                std::hint::spin_loop();
                continue;
            }
            self.sleep(seen);
            waited = 0;
        }
    }

    /// Sleeps until woken, unless a region has opened.
    fn sleep(&self, seen: u64) {
        self.sleeping.0.fetch_add(1, Ordering::SeqCst);
        let state = self.state.0.load(Ordering::SeqCst);
        let opened = state & OPEN != 0 && state / GENERATION != seen;
        if !opened && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.sleeping.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes items until none is left. A panic is kept for the opener and ends the region.
    fn take_items(&self, job: Job, thread: usize) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the opener keeps the closure borrowed until all have left the region.
            let task = unsafe { &*job.task };
            loop {
                let item = self.next.0.fetch_add(1, Ordering::Relaxed);
                if item >= job.n_items {
                    break;
                }
                task(item, thread);
            }
        }));
        if let Err(panic) = outcome {
            self.next.0.store(job.n_items, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

/// Waits a moment: first by pausing, then by letting others have the core, who may be the one that is waited for.
fn pause(waited: &mut usize) {
    *waited += 1;
    match *waited < SPINS {
        true => std::hint::spin_loop(),
        false => std::thread::yield_now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once() {
        for threads in 1..5 {
            let pool = ThreadPool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(n, &|item, thread| {
                        assert!(thread < threads);
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn threads_of_simultaneous_calls_differ() {
        let pool = ThreadPool::new(4);
        let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
        pool.run(10_000, &|_, thread| {
            assert!(!busy[thread].swap(true, Ordering::SeqCst));
            busy[thread].store(false, Ordering::SeqCst);
        });
    }

    #[test]
    fn regions_inside_regions_run_where_they_are() {
        let pool = ThreadPool::new(3);
        let count = AtomicUsize::new(0);
        pool.run(20, &|_, outer| {
            pool.run(30, &|_, inner| {
                assert_eq!(outer, inner);
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 600);
    }

    #[test]
    fn several_callers_share_a_pool() {
        let pool = ThreadPool::new(2);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        for bad in [0, 17, 99] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|item, _| assert!(item != bad, "item {bad}"));
            }));
            let message = outcome.expect_err("the task panics");
            assert_eq!(message.downcast_ref::<String>(), Some(&format!("item {bad}")));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|item, _| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = ThreadPool::new(2);
        while pool.shared.sleeping.0.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // Both items wait for each other, so two threads must have come.
        let arrived = AtomicUsize::new(0);
        pool.run(2, &|_, _| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
        assert_eq!(arrived.into_inner(), 2);
    }
}

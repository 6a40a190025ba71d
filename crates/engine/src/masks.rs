//! Masks of constrained answers, worked out on a thread of their own while the forward pass runs.

use std::sync::mpsc::{self, Receiver, Sender};

use crate::grammar::{GrammarState, Mask};

/// One answer's grammar, on its way there and back.
pub(crate) struct Work {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    pub(crate) state: GrammarState,
    /// What may come next, on the way back.
    pub(crate) mask: Option<Mask>,
}

/// The thread, begun with the first constraint.
#[derive(Default)]
pub(crate) struct Masks {
    thread: Option<(Sender<Work>, Receiver<Work>)>,
    outstanding: usize,
}

impl Masks {
    /// Begins to work out what may come next.
    pub(crate) fn begin(&mut self, sequence: usize, state: GrammarState) {
        let (there, _) = self.thread.get_or_insert_with(start);
        there.send(Work { sequence, state, mask: None }).expect("the thread lives as long as its channel");
        self.outstanding += 1;
    }

    /// The next result; `None` once all that was begun has come back.
    pub(crate) fn finish(&mut self) -> Option<Work> {
        self.outstanding = self.outstanding.checked_sub(1)?;
        let (_, back) = self.thread.as_ref()?;
        Some(back.recv().expect("the thread answers everything"))
    }
}

fn start() -> (Sender<Work>, Receiver<Work>) {
    let (there, inbox) = mpsc::channel::<Work>();
    let (outbox, back) = mpsc::channel();
    std::thread::spawn(move || {
        for mut work in inbox {
            work.mask = work.state.mask();
            if outbox.send(work).is_err() {
                return;
            }
        }
    });
    (there, back)
}

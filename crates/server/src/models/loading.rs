//! Into memory and out of it: opening models, letting go of them, and who uses them meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use octet_tokenizer::ChatFormat;
use tokio::sync::watch;

use super::{Entry, Known, LoadFailure, Loaded, Model, Models, Slot};
use crate::ids;
use crate::on_demand::Afterwards;
use crate::refusal::{Fault, Refusal};

/// How long answers may go on when their model is unloaded.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(30);

impl Models {
    /// Opens the model of this name, which takes a while; call it where one may wait. With `anyway` even where it is predicted
    /// not to fit in memory.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn load(&self, name: &str, anyway: bool) -> Result<(), Refusal> {
        {
            let mut entries = self.write();
            let Some(at) = entries.iter().position(|entry| entry.name == name) else {
                return Err(self.no_such(name, &entries));
            };
            let soon = |what: &str| Refusal {
                retry_after_s: Some(5),
                ..Refusal::new(Fault::Unavailable, format!("{name} is being {what}"))
            };
            match entries[at].slot {
                Slot::Ready(_) => return Ok(()),
                Slot::Loading => return Err(soon("loaded already")),
                Slot::Unloading => return Err(soon("let go of")),
                Slot::Unloaded | Slot::Failed(_) => self.put(&mut entries[at], Slot::Loading),
            }
        }
        self.open(name, anyway)
    }

    /// Marks the model as being loaded, if it is not in memory and has not failed; [`Models::open`] has to follow then.
    pub fn begin(&self, name: &str) -> bool {
        let mut entries = self.write();
        let entry = own(&mut entries, name).filter(|entry| matches!(entry.slot, Slot::Unloaded));
        let Some(entry) = entry else { return false };
        self.put(entry, Slot::Loading);
        true
    }

    /// Opens a model that is marked as being loaded.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn open(&self, name: &str, anyway: bool) -> Result<(), Refusal> {
        let (path, adapters) = {
            let entries = self.read();
            let entry = entries.iter().find(|entry| entry.name == name);
            let entry = entry.ok_or_else(|| self.no_such(name, &entries))?;
            (entry.path.clone(), entry.adapters.clone())
        };
        let opened = catch_unwind(AssertUnwindSafe(|| (self.loader)(&path, &adapters, anyway)));
        let why = "opening it met a fault; the log tells where";
        let (slot, outcome) = match opened.unwrap_or_else(|_| Err(LoadFailure { why: why.into(), does_not_fit: false }))
        {
            Ok(Loaded { facts, tokenizer, engine }) => {
                let format = ChatFormat::for_tokenizer(&tokenizer).map_err(|error| error.to_string());
                let (name, created, system_noise) = (name.into(), ids::unix_s(), self.system_noise.clone());
                let parent = None;
                let model = Model { name, created, facts, tokenizer, format, engine, system_noise, parent };
                (Slot::Ready(Arc::new(model)), Ok(()))
            }
            Err(failure) => {
                let refusal = Refusal::new(Fault::Unavailable, failure.why.clone());
                (Slot::Failed(failure), Err(refusal))
            }
        };
        if let Some(entry) = own(&mut self.write(), name) {
            self.put(entry, slot);
        }
        outcome
    }

    /// Lets go of the model of this name; answers that are being written end well.
    ///
    /// # Errors
    /// There is none.
    pub fn unload(&self, name: &str) -> Result<(), Refusal> {
        let model = {
            let mut entries = self.write();
            let Some(at) = entries.iter().position(|entry| entry.name == name) else {
                return Err(self.no_such(name, &entries));
            };
            self.take_out(&mut entries[at])
        };
        if let Some(model) = model {
            self.end(&model);
        }
        Ok(())
    }

    /// Takes the model out of its slot, if it is there; [`Models::end`] has to follow.
    fn take_out(&self, entry: &mut Entry) -> Option<Arc<Model>> {
        match &entry.slot {
            Slot::Ready(model) => {
                let model = model.clone();
                self.put(entry, Slot::Unloading);
                Some(model)
            }
            Slot::Failed(_) => {
                self.put(entry, Slot::Unloaded);
                None
            }
            Slot::Unloaded | Slot::Loading | Slot::Unloading => None,
        }
    }

    /// Ends a model that was taken out; waits until its answers have ended and its memory is free.
    pub fn end(&self, model: &Model) {
        model.engine.drain(UNLOAD_PATIENCE);
        let mut entries = self.write();
        if let Some(entry) = own(&mut entries, &model.name).filter(|entry| matches!(entry.slot, Slot::Unloading)) {
            self.put(entry, Slot::Unloaded);
        }
    }

    /// As [`Models::get`], and counts one more that uses the model, until [`Models::leave`].
    ///
    /// # Errors
    /// As there.
    pub fn hold(&self, name: &str) -> Result<Arc<Model>, Refusal> {
        let mut entries = self.write();
        let model = self.find(Some(name), &entries)?;
        add_user(&mut entries, model.entry_name());
        Ok(model)
    }

    /// Counts one more that uses a model.
    pub fn hold_again(&self, model: &Model) {
        add_user(&mut self.write(), model.entry_name());
    }

    /// Counts one less. The last one may take the model out: it goes to [`Models::end`] then.
    pub fn leave(&self, name: &str, afterwards: Afterwards) -> Option<Arc<Model>> {
        let mut entries = self.write();
        let entry = own(&mut entries, name)?;
        entry.users = entry.users.saturating_sub(1);
        let is_to_go = afterwards == Afterwards::Unload && entry.users == 0 && matches!(entry.slot, Slot::Ready(_));
        if is_to_go { self.take_out(entry) } else { None }
    }

    /// What the entry of this name holds now.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.read().iter().find(|entry| entry.name == name).map(|entry| entry.slot.clone())
    }

    /// Told whenever a slot holds something else.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Puts something else into a slot, and tells who waits for it.
    fn put(&self, entry: &mut Entry, slot: Slot) {
        if let Slot::Ready(model) = &slot {
            entry.known = Some(Arc::new(Known::of(model)));
        }
        entry.slot = slot;
        self.changes.send_replace(());
    }
}

/// The entry of this name, which is its own and no alias.
fn own<'a>(entries: &'a mut [Entry], name: &str) -> Option<&'a mut Entry> {
    entries.iter_mut().find(|entry| entry.name == name)
}

fn add_user(entries: &mut [Entry], name: &str) {
    if let Some(entry) = own(entries, name) {
        entry.users += 1;
    }
}

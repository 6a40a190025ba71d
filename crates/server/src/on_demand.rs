//! Models that are opened when somebody asks for them, and let go of after the last answer where that is asked for, as Ollama
//! does both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::models::{Model, Models, Slot};
use crate::refusal::Refusal;

/// A use of a model, over when dropped.
pub struct Use {
    models: Arc<Models>,
    /// The entry that the model is in.
    name: String,
    afterwards: Afterwards,
}

/// What becomes of a model when a use of it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It stays.
    Keep,
    /// It is let go of, unless somebody else uses it: nobody's answer is cut short.
    Unload,
}

impl Use {
    /// A use of this model.
    pub fn of(models: &Arc<Models>, model: &Model) -> Use {
        models.hold_again(model);
        Use { models: models.clone(), name: model.entry_name().into(), afterwards: Afterwards::Keep }
    }

    /// The same, and what comes afterwards.
    pub fn then(mut self, afterwards: Afterwards) -> Use {
        self.afterwards = afterwards;
        self
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let Some(model) = self.models.leave(&self.name, self.afterwards) else { return };
        let models = self.models.clone();
        let end = move || models.end(&model);
        // To free a model's memory takes a while, which no thread of HTTP has.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}

/// A model that is in memory, and stays there meanwhile.
pub struct Held {
    /// The model.
    pub model: Arc<Model>,
    /// What keeps it.
    pub using: Use,
    /// How long one had to wait for it.
    pub load_time: Duration,
}

/// The model of this name, opened if it is not in memory. One that could not be opened stays refused, until somebody loads it
/// by name.
///
/// # Errors
/// There is none of that name, or it cannot be opened.
pub async fn held(models: &Arc<Models>, name: &str) -> Result<Held, Refusal> {
    let started = Instant::now();
    let own = models.own_name(name)?;
    let mut load_time = Duration::ZERO;
    loop {
        let slot = models.slot(&own);
        match models.hold(name) {
            Ok(model) => {
                let using = Use { models: models.clone(), name: own, afterwards: Afterwards::Keep };
                return Ok(Held { model, using, load_time });
            }
            Err(refusal) if matches!(slot, None | Some(Slot::Failed(_))) => return Err(refusal),
            Err(_) if matches!(slot, Some(Slot::Unloaded)) && models.begin(&own) => {
                in_time(models, &own, |models, own| models.open(own, false)).await?;
            }
            // Somebody else has begun to put it in or to take it out.
            Err(_) => settled(models, &own).await,
        }
        load_time = started.elapsed();
    }
}

/// Opens the model of the entry of this name, also one that could not be opened before.
///
/// # Errors
/// There is none, or it cannot be opened.
pub async fn load(models: &Arc<Models>, name: &str, anyway: bool) -> Result<(), Refusal> {
    settled(models, name).await;
    in_time(models, name, move |models, name| models.load(name, anyway)).await
}

/// Lets go of the model of the entry of this name; waits until its answers have ended and its memory is free.
///
/// # Errors
/// There is none.
pub async fn unload(models: &Arc<Models>, name: &str) -> Result<(), Refusal> {
    in_time(models, name, Models::unload).await
}

/// Loads or unloads on a thread that may take its time; goes on to the end even where nobody waits any more.
async fn in_time(
    models: &Arc<Models>,
    name: &str,
    change: impl FnOnce(&Models, &str) -> Result<(), Refusal> + Send + 'static,
) -> Result<(), Refusal> {
    let (models, name) = (models.clone(), name.to_owned());
    let changed = tokio::task::spawn_blocking(move || change(&models, &name)).await;
    changed.unwrap_or_else(|_| Err(Refusal::internal("the model's thread broke off; the log tells why")))
}

/// Waits while the model is on its way in or out.
async fn settled(models: &Models, name: &str) {
    let mut changes = models.changes();
    while is_moving(models, name) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn is_moving(models: &Models, name: &str) -> bool {
    matches!(models.slot(name), Some(Slot::Loading | Slot::Unloading))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::models::LoadFailure;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_model_that_could_not_be_opened_is_tried_again_only_by_name() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let loader = move |_: &std::path::Path, _: &[_], _| {
            counted.fetch_add(1, Ordering::Relaxed);
            Err(LoadFailure { why: "no memory".into(), does_not_fit: true })
        };
        let named = vec![("small".to_owned(), "small.gguf".into())];
        let models = Arc::new(Models::new(named, Vec::new(), Vec::new(), Arc::new(loader)).unwrap());
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let models = models.clone();
            asked.spawn(async move { held(&models, "small:latest").await.err().unwrap().message });
        }
        // Those who came meanwhile have waited for the one that tried.
        for message in asked.join_all().await {
            assert!(message.contains("no memory"), "{message}");
        }
        assert_eq!(tries.load(Ordering::Relaxed), 1);
        assert!(load(&models, "small", false).await.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        assert!(held(&models, "large").await.err().unwrap().message.contains("not found"));
    }

    #[tokio::test]
    async fn a_fault_while_opening_leaves_nobody_waiting() {
        let named = vec![("small".to_owned(), "small.gguf".into())];
        let models = Models::new(named, Vec::new(), Vec::new(), Arc::new(|_, _, _| panic!("on purpose"))).unwrap();
        let models = Arc::new(models);
        assert!(held(&models, "small").await.err().unwrap().message.contains("fault"));
        assert!(matches!(models.slot("small"), Some(Slot::Failed(_))));
    }
}

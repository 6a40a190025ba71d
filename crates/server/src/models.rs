//! The models of this server by name: which are loaded, which could be, and what else they are called.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use octet_tokenizer::{ChatFormat, Tokenizer};
use serde::Serialize;
use tokio::sync::watch;

use crate::bridge::EngineHandle;
use crate::refusal::{Fault, Refusal};

mod loading;

/// A loaded model.
pub struct Model {
    /// Its name in the APIs.
    pub name: String,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    /// What it is.
    pub facts: Facts,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How conversations are written for it; the reason where nothing tells.
    pub format: Result<ChatFormat, String>,
    /// What answers.
    pub engine: EngineHandle,
    /// How lines of system texts begin that the model is not shown.
    pub system_noise: Arc<[String]>,
    /// The model that this is an adapter of.
    pub parent: Option<String>,
}

impl Model {
    /// The model under the name of one of its adapters.
    fn adapted(&self, adapter: &str) -> Model {
        Model {
            name: adapter.into(),
            created: self.created,
            facts: self.facts.clone(),
            tokenizer: self.tokenizer.clone(),
            format: self.format.clone(),
            engine: self.engine.adapted(adapter),
            system_noise: self.system_noise.clone(),
            parent: Some(self.name.clone()),
        }
    }

    /// The name of the entry that it is in: its own, or that of the model which it is an adapter of.
    pub fn entry_name(&self) -> &str {
        self.parent.as_deref().unwrap_or(&self.name)
    }
}

/// What lists tell of a model, in memory or not: as it was when it was opened last.
#[derive(Clone, Debug)]
pub struct Known {
    /// When that was, seconds since 1970.
    pub created: u64,
    /// What it is.
    pub facts: Facts,
    /// Its chat template.
    pub template: Option<String>,
    /// Whether conversations can be written for it.
    pub can_chat: bool,
    /// Whether it was trained to fill a middle.
    pub can_fill: bool,
}

impl Known {
    fn of(model: &Model) -> Known {
        Known {
            created: model.created,
            facts: model.facts.clone(),
            template: model.tokenizer.chat_template().map(str::to_owned),
            can_chat: model.format.is_ok(),
            can_fill: model.tokenizer.control_id("[SUFFIX]").is_some(),
        }
    }
}

/// An adapter that requests name as they name a model.
#[derive(Clone, Debug)]
pub struct AdapterOption {
    /// Its name in the APIs.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Name of the model below; `None` for the only one.
    pub model: Option<String>,
}

/// What a model is, for those who list it.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Where its weights are.
    pub path: PathBuf,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// Bytes of the weights in memory.
    pub weights_bytes: u64,
    /// How many.
    pub parameters: u64,
    /// How many of them a token uses.
    pub active_parameters: u64,
    /// Type of most weights, as `Q4_K`.
    pub quantization: String,
    /// Tokens of context.
    pub context: usize,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer, 1 for a dense model.
    pub experts: usize,
    /// Experts of a token.
    pub experts_per_token: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
}

/// A model on its way into the server.
pub struct Loaded {
    /// What it is.
    pub facts: Facts,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// What answers.
    pub engine: EngineHandle,
}

/// Opens the model at a path with adapters; the program knows how. The third argument is whether to try even where it is
/// predicted not to fit in memory.
pub type Loader = Arc<dyn Fn(&std::path::Path, &[AdapterOption], bool) -> Result<Loaded, LoadFailure> + Send + Sync>;

/// Why a model could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// In words.
    pub why: String,
    /// It was not tried, because it is predicted not to fit in the memory that is free; it may be tried anyway.
    pub does_not_fit: bool,
}

/// What a slot holds.
#[derive(Clone)]
pub enum Slot {
    /// Not in memory.
    Unloaded,
    /// Being opened.
    Loading,
    /// Answers.
    Ready(Arc<Model>),
    /// Being let go of: what it answered ends, and then its memory is free.
    Unloading,
    /// Could not be opened; the reason.
    Failed(LoadFailure),
}

impl Slot {
    /// `unloaded`, `loading`, `ready` or `failed`.
    pub fn name(&self) -> &'static str {
        match self {
            Slot::Unloaded | Slot::Unloading => "unloaded",
            Slot::Loading => "loading",
            Slot::Ready(_) => "ready",
            Slot::Failed(_) => "failed",
        }
    }
}

/// A name, where its weights are, and what it holds.
#[derive(Clone)]
pub struct Entry {
    /// Name in the APIs.
    pub name: String,
    /// Its weights.
    pub path: PathBuf,
    /// What it holds now.
    pub slot: Slot,
    /// Its adapters.
    pub adapters: Vec<AdapterOption>,
    /// What is known of it, once it has been opened.
    known: Option<Arc<Known>>,
    /// Requests that use it now.
    users: usize,
}

impl Entry {
    /// Its name and those of its adapters.
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.adapters.iter().map(|adapter| adapter.name.as_str()))
    }

    /// What answers under a name: the model's, or that of one of its adapters.
    fn named(&self, name: &str) -> Slot {
        match &self.slot {
            Slot::Ready(model) if name != self.name => Slot::Ready(Arc::new(model.adapted(name))),
            slot => slot.clone(),
        }
    }
}

/// All models.
pub struct Models {
    entries: RwLock<Vec<Entry>>,
    aliases: BTreeMap<String, String>,
    loader: Loader,
    system_noise: Arc<[String]>,
    /// Told whenever a slot holds something else.
    changes: watch::Sender<()>,
}

impl Models {
    /// Models by name and path, and other names for them. Nothing is loaded yet.
    ///
    /// # Errors
    /// A name that is there twice, or an alias of nothing.
    pub fn new(
        named: Vec<(String, PathBuf)>,
        adapters: Vec<AdapterOption>,
        aliases: Vec<(String, String)>,
        loader: Loader,
    ) -> Result<Models, String> {
        let mut entries: Vec<Entry> = Vec::new();
        for (name, path) in named {
            if entries.iter().any(|entry| entry.name == name) {
                return Err(format!("two models are called {name}; name one with OTHER={}", path.display()));
            }
            let (slot, adapters) = (Slot::Unloaded, Vec::new());
            entries.push(Entry { name, path, slot, adapters, known: None, users: 0 });
        }
        adapters.into_iter().try_for_each(|adapter| add_adapter(&mut entries, adapter))?;
        let mut map = BTreeMap::new();
        for (alias, name) in aliases {
            if !names(&entries).any(|known| known == name) {
                let names: Vec<_> = names(&entries).collect();
                return Err(format!("--alias {alias}={name}: there is no model {name}, only {}", names.join(", ")));
            }
            map.insert(alias, name);
        }
        let (entries, changes) = (RwLock::new(entries), watch::Sender::new(()));
        Ok(Models { entries, aliases: map, loader, system_noise: Arc::default(), changes })
    }

    /// The same, whose models are not shown lines of system texts that begin so.
    pub fn without_noise(mut self, noise: Vec<String>) -> Models {
        self.system_noise = noise.into();
        self
    }

    /// All entries as they are now.
    pub fn list(&self) -> Vec<Entry> {
        self.read().clone()
    }

    /// Other names and what they mean.
    pub fn aliases(&self) -> &BTreeMap<String, String> {
        &self.aliases
    }

    /// Models that answer, and the names under which they do, aliases last.
    pub fn ready(&self) -> Vec<(String, Arc<Model>)> {
        let entries = self.read();
        let own = entries.iter().filter_map(|entry| match &entry.slot {
            Slot::Ready(model) => Some((entry, model)),
            _ => None,
        });
        let with_adapters = own.flat_map(|(entry, model)| {
            let adapted = |adapter: &AdapterOption| (adapter.name.clone(), Arc::new(model.adapted(&adapter.name)));
            std::iter::once((entry.name.clone(), model.clone())).chain(entry.adapters.iter().map(adapted))
        });
        self.with_aliases(with_adapters.collect())
    }

    /// The same of all that have ever been opened, in memory or not.
    pub fn known(&self) -> Vec<(String, Arc<Known>)> {
        let entries = self.read();
        let known = entries.iter().filter_map(|entry| Some((entry, entry.known.as_ref()?)));
        let named = known.flat_map(|(entry, known)| entry.names().map(move |name| (name.to_owned(), known.clone())));
        self.with_aliases(named.collect())
    }

    fn with_aliases<T: Clone>(&self, mut list: Vec<(String, T)>) -> Vec<(String, T)> {
        let of = |name: &String| list.iter().find(|(own, _)| own == name).map(|(_, one)| one.clone());
        let aliased = self.aliases.iter().filter_map(|(alias, name)| Some((alias.clone(), of(name)?)));
        let aliased: Vec<_> = aliased.collect();
        list.extend(aliased);
        list
    }

    /// The model that is meant: by name, alias, or name with Ollama's `:latest`; without a name the only one.
    ///
    /// # Errors
    /// 404 if there is none of that name, 503 while it is not loaded.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<Model>, Refusal> {
        self.find(name, &self.read())
    }

    fn find(&self, name: Option<&str>, entries: &[Entry]) -> Result<Arc<Model>, Refusal> {
        let (entry, name) = match name {
            None if entries.len() == 1 => (&entries[0], entries[0].name.as_str()),
            None => return Err(Refusal::field("model", "model is missing; this server has several")),
            Some(name) => self.entry(name, entries)?,
        };
        let unavailable = |what: &str| Refusal::new(Fault::Unavailable, format!("the model {} {what}", entry.name));
        let soon = |what| Refusal { retry_after_s: Some(5), ..unavailable(what) };
        match entry.named(name) {
            Slot::Ready(model) => Ok(model),
            Slot::Loading => Err(soon("is being loaded")),
            Slot::Unloading => Err(soon("is being let go of")),
            Slot::Unloaded => Err(unavailable("is not loaded; load it first")),
            Slot::Failed(LoadFailure { why, .. }) => Err(unavailable(&format!("could not be loaded: {why}"))),
        }
    }

    /// What is known of the model that `name` means, in memory or not.
    ///
    /// # Errors
    /// 404 if there is none of that name, 503 where it has never been opened.
    pub fn known_as(&self, name: &str) -> Result<Arc<Known>, Refusal> {
        let entries = self.read();
        let known = self.entry(name, &entries)?.0.known.clone();
        known.ok_or_else(|| Refusal::new(Fault::Unavailable, format!("the model {name} is not loaded")))
    }

    /// The name of the model that `name` means, loaded or not.
    ///
    /// # Errors
    /// 404 if there is none.
    pub fn own_name(&self, name: &str) -> Result<String, Refusal> {
        let entries = self.read();
        self.entry(name, &entries).map(|(entry, _)| entry.name.clone())
    }

    /// The entry that answers to a name, and the name without aliases: the entry's or that of an adapter.
    fn entry<'a>(&self, name: &str, entries: &'a [Entry]) -> Result<(&'a Entry, &'a str), Refusal> {
        let known = |name: &str| {
            let name = self.aliases.get(name).map_or(name, String::as_str);
            entries.iter().find_map(|entry| Some((entry, entry.names().find(|known| *known == name)?)))
        };
        known(name).or_else(|| known(name.strip_suffix(":latest")?)).ok_or_else(|| self.no_such(name, entries))
    }

    fn no_such(&self, name: &str, entries: &[Entry]) -> Refusal {
        let names: Vec<&str> = names(entries).chain(self.aliases.keys().map(String::as_str)).collect();
        // Ollama's clients look for these words.
        let message = format!("model '{name}' not found; this server has {}", names.join(", "));
        Refusal { param: Some("model".into()), ..Refusal::not_found(message) }
    }

    /// Ends all engines, once what they answer is done, or at `until`.
    pub fn drain(&self, until: Instant) {
        for entry in self.list() {
            if let Slot::Ready(model) = entry.slot {
                model.engine.drain(until.saturating_duration_since(Instant::now()));
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// All names of models and adapters.
fn names(entries: &[Entry]) -> impl Iterator<Item = &str> {
    entries.iter().flat_map(Entry::names)
}

/// Puts an adapter to its model.
fn add_adapter(entries: &mut [Entry], adapter: AdapterOption) -> Result<(), String> {
    let AdapterOption { name, folder, model } = &adapter;
    let what = format!("--adapter {name}={}", folder.display());
    if names(entries).any(|known| known == name) {
        return Err(format!("{what}: there is a model or adapter of this name already; take another"));
    }
    let known: Vec<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    let entry = match model {
        None if entries.len() > 1 => {
            return Err(format!("{what}: say which model it is for, as {what}:MODEL; there are {}", known.join(", ")));
        }
        None => entries.first_mut(),
        Some(model) => entries.iter_mut().find(|entry| entry.name == *model),
    };
    let Some(entry) = entry else {
        let model = model.as_deref().unwrap_or_default();
        return Err(format!("{what}:{model}: there is no model {model}, only {}", known.join(", ")));
    };
    entry.adapters.push(adapter);
    Ok(())
}

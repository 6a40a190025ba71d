//! How a model is opened, and what an engine may use.

use std::path::PathBuf;
use std::time::Duration;

use octet_checkpoint::ElementType;
use octet_kernels::KvType;

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Threads; `None` for as many as this process may use.
    pub threads: Option<usize>,
    /// Tokens of context; `None` for the model's own, at most [`OpenOptions::DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Quantize float weights to this type as they are read.
    pub quantize: Option<ElementType>,
    /// Tokens of a prompt that run in one pass.
    pub chunk: usize,
    /// Experts for each token; `None` for the model's own number.
    pub experts_per_token: Option<usize>,
    /// Adapters that requests may name.
    pub adapters: Vec<AdapterSource>,
}

/// An adapter, and how requests call it.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSource {
    /// Its name.
    pub name: String,
    /// Its folder, in PEFT's format.
    pub folder: PathBuf,
}

impl OpenOptions {
    /// Context where neither the caller nor the model asks for less.
    pub const DEFAULT_CONTEXT: usize = 32768;
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            threads: None,
            context: None,
            kv: KvType::F16,
            quantize: None,
            chunk: 512,
            experts_per_token: None,
            adapters: Vec::new(),
        }
    }
}

/// What an [`Engine`](crate::Engine) may use.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The model.
    pub open: OpenOptions,
    /// Bytes for keys and values of all sequences and of the prefix cache; `None` for four contexts, or as many as
    /// sequences may run, within 4 GiB, but always one context. What is named here is committed in idle time, so that it is
    /// there when it is needed.
    pub kv_bytes: Option<u64>,
    /// Sequences that run at the same time, each of the `n` answers to a prompt being one; more wait, and a larger `n` is
    /// refused.
    pub max_running: usize,
    /// Requests that may wait; more are refused with [`Error::QueueFull`](crate::Error::QueueFull).
    pub max_queue: usize,
    /// How long a step may take where a prompt is read while other answers stream; two thirds more for prompts of more than
    /// 512 tokens and where more prompts wait than answers stream, ten thirds of it where no answer streams, and less where
    /// the answers' own steps are fast. [`Duration::MAX`] for whole chunks always.
    pub step_budget: Duration,
    /// Where pages go that fall out of memory; `None` for nowhere.
    pub disk_cache: Option<DiskCacheOptions>,
    /// Guess tokens from the text so far and check the guesses, where that is measured to be faster.
    pub speculation: bool,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            open: OpenOptions::default(),
            kv_bytes: None,
            max_running: 64,
            max_queue: 1024,
            step_budget: Duration::from_millis(225),
            disk_cache: None,
            speculation: true,
        }
    }
}

/// A cache of keys and values on disk.
#[derive(Clone, Debug)]
pub struct DiskCacheOptions {
    /// Its folder; made if it is not there.
    pub folder: PathBuf,
    /// Most bytes that it may take; the least recently used leave first.
    pub bytes: u64,
}

//! The options by which commands open a model, said once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use octet_checkpoint::{Checkpoint, ElementType};
use octet_engine::{AdapterSource, Engine, EngineOptions, Generator, OpenOptions};
use octet_kernels::KvType;

use crate::progress::Progress;

/// Which model, and how it runs.
#[derive(clap::Args)]
pub struct ModelOptions {
    /// Folder or file of the checkpoint, in Mistral's, Hugging Face's or GGUF's layout
    pub model: PathBuf,
    #[command(flatten)]
    pub run: RunOptions,
}

/// How a model runs.
#[derive(clap::Args, Clone)]
pub struct RunOptions {
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    pub threads: Option<usize>,
    /// Tokens of context [default: the model's own, at most 32768]
    #[arg(short, long)]
    pub context: Option<usize>,
    /// Type of the KV cache: f16, q8_0 or f32
    #[arg(long, default_value = "f16", value_parser = kv_type)]
    pub kv: KvType,
    /// Quantize float weights to this type while loading, such as Q8_0 or Q4_K
    #[arg(long, value_name = "TYPE", value_parser = quantized_type)]
    pub quantize: Option<ElementType>,
    /// Tokens of a prompt that run in one pass
    #[arg(long, default_value_t = 512)]
    pub chunk: usize,
    /// Experts that work on each token, in place of the model's own number: fewer are faster and worse
    #[arg(long, value_name = "K")]
    pub experts_per_token: Option<usize>,
    /// Answer with this adapter (LoRA): a folder in PEFT's format
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// Load even where the model is predicted not to fit in memory
    #[arg(long)]
    pub load_anyway: bool,
}

impl ModelOptions {
    /// Opens the model with a progress bar.
    pub fn open(&self) -> anyhow::Result<Generator> {
        self.run.open(&self.model)
    }
}

impl RunOptions {
    /// The engine's form of these options.
    pub fn open_options(&self) -> anyhow::Result<OpenOptions> {
        for (flag, value) in [("--threads", self.threads), ("--context", self.context), ("--chunk", Some(self.chunk))] {
            if value == Some(0) {
                bail!("{flag} is 0; it has to be 1 or more");
            }
        }
        if let Some(threads) = self.threads.filter(|&n| n > 1024) {
            bail!("--threads {threads} is more than any machine gains from; the limit is 1024");
        }
        Ok(OpenOptions {
            threads: self.threads,
            context: self.context,
            kv: self.kv,
            quantize: self.quantize,
            chunk: self.chunk,
            experts_per_token: self.experts_per_token,
            adapters: self.adapter.iter().map(|folder| self.named(folder)).collect(),
        })
    }

    fn named(&self, folder: &Path) -> AdapterSource {
        AdapterSource { name: folder.to_string_lossy().into_owned(), folder: folder.to_path_buf() }
    }

    /// Opens the model at `path` with a progress bar.
    pub fn open(&self, path: &Path) -> anyhow::Result<Generator> {
        let options = self.open_options()?;
        let checkpoint = self.checkpoint(path)?;
        let progress = Progress::new("loading");
        let mut generator = Generator::load(checkpoint, &options, Some(&mut |done, total| progress.at(done, total)))
            .with_context(|| cannot_open(path))?;
        progress.finish();
        generator.set_adapter(options.adapters.first().map(|adapter| adapter.name.as_str()))?;
        Ok(generator)
    }

    /// The checkpoint at `path`, of which no weights are read yet. Errors: it is none, or will not fit in memory.
    pub fn checkpoint(&self, path: &Path) -> anyhow::Result<Arc<Checkpoint>> {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        if !self.load_anyway {
            crate::plan::check_fits(&checkpoint, &self.open_options()?)?;
        }
        Ok(checkpoint)
    }

    /// A model on a thread of its own, as `engine` says, with a progress bar.
    pub fn engine(&self, checkpoint: Arc<Checkpoint>, engine: EngineOptions) -> anyhow::Result<Engine> {
        let cannot = cannot_open(checkpoint.path());
        let progress = Progress::new("loading");
        let engine = Engine::load(checkpoint, &engine, Some(&mut |done, total| progress.at(done, total)));
        progress.finish();
        engine.context(cannot)
    }
}

fn cannot_open(path: &Path) -> String {
    format!("cannot open {}", path.display())
}

/// Reads the type of a KV cache.
pub fn kv_type(name: &str) -> Result<KvType, String> {
    match name.to_ascii_lowercase().as_str() {
        "f16" => Ok(KvType::F16),
        "q8_0" => Ok(KvType::Q8_0),
        "f32" => Ok(KvType::F32),
        _ => Err("the KV cache is f16, q8_0 or f32".into()),
    }
}

/// Reads a type that weights can be quantized to.
pub fn quantized_type(name: &str) -> Result<ElementType, String> {
    let known = ElementType::from_name(name).filter(|t| octet_kernels::quantize::is_writable(*t));
    known.ok_or_else(|| "not a type that can be written; try Q8_0, Q6_K, Q5_K, Q4_K, Q4_0, Q3_K or Q2_K".into())
}

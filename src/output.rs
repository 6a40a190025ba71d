//! What the commands that write checkpoints have in common: options, and a plan carried out under the user's eyes.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use octet_checkpoint::write::{Event, Existing, Job, Plan};
use octet_checkpoint::{Checkpoint, Layout};

use crate::format;
use crate::progress::Progress;

/// Options of every command that writes a checkpoint.
#[derive(clap::Args)]
pub struct OutputOptions {
    /// Replace OUT if it is there already
    #[arg(long)]
    force: bool,
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    threads: Option<usize>,
}

impl OutputOptions {
    /// Threads to work with.
    pub fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(0) => bail!("--threads is 0; it has to be 1 or more"),
            Some(threads) => Ok(threads),
            None => Ok(octet_kernels::cpu::available_threads()),
        }
    }

    /// Refuses `out` if it is taken or cannot be, before any work is done for it.
    pub fn check(&self, out: &Path, layout: Layout) -> anyhow::Result<()> {
        Ok(self.job(out, Vec::new())?.check(layout)?)
    }

    fn job(&self, out: &Path, made_from: Vec<String>) -> anyhow::Result<Job> {
        let existing = if self.force { Existing::Replace } else { Existing::Refuse };
        Ok(Job { out: out.to_owned(), existing, threads: self.threads()?, made_from })
    }

    /// Writes `plan` to `out`. `made_from` are the inputs' files and the settings: only if they are the same does a run
    /// go on with what a killed one left.
    pub fn write(&self, out: &Path, plan: &Plan<'_>, made_from: Vec<String>) -> anyhow::Result<()> {
        let job = self.job(out, made_from)?;
        let progress = Progress::new("writing");
        let (mut done, mut of) = (0, 0);
        job.run(plan, &mut |event| {
            match event {
                Event::Discarded => {
                    tell(&format!("the part of {} is of other input or settings; starting anew", out.display()))
                }
                Event::Begun { total, kept } => {
                    (done, of) = (kept, total);
                    if kept > 0 {
                        tell(&format!("going on with {} of {} from a stopped run", format::bytes(kept), out.display()));
                    }
                }
                Event::Made(bytes) => done += bytes,
            }
            if of > 0 {
                progress.at(done, of);
            }
        })?;
        Ok(())
    }
}

/// Says something that is no error. Commands do so when they have succeeded, so that a failure is one line.
pub fn tell(note: &str) {
    eprintln!("note: {note}");
}

/// Each of a checkpoint's weight files with size and time of change: another one is another source.
pub fn identity(checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
    checkpoint.files().iter().map(|path| file_identity(path)).collect()
}

/// A file's name, size and time of change.
pub fn file_identity(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let meta = path.metadata().with_context(cannot)?;
    let changed = meta.modified().with_context(cannot)?.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} {} bytes {} ns", meta.len(), changed.as_nanos()))
}

/// Refuses an output that would overwrite an input, or stand in an input's folder and make two checkpoints of one.
pub fn refuse_inside(out: &Path, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let source =
        checkpoint.path().canonicalize().with_context(|| format!("cannot read {}", checkpoint.path().display()))?;
    let out_real = resolve(out);
    let is_a_part = checkpoint.files().iter().any(|file| file.canonicalize().is_ok_and(|file| file == out_real));
    if out_real == source || is_a_part {
        bail!("{}: is the model itself; choose another name for the output", out.display());
    }
    if source.is_dir() && out_real.starts_with(&source) {
        bail!(
            "{}: lies in the model's own folder; choose a place outside {}",
            out.display(),
            checkpoint.path().display()
        );
    }
    Ok(())
}

/// Refuses two outputs of one name.
pub fn refuse_same(one: &Path, other: &Path) -> anyhow::Result<()> {
    if resolve(one) == resolve(other) {
        bail!("{}: is the name of two outputs; choose another for one of them", one.display());
    }
    Ok(())
}

/// The real path of something that need not exist yet.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().and_then(|parent| parent.canonicalize().ok()), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

/// The name of a model at `path`: its folder's, or its file's without the ending.
pub fn model_name(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if real.is_dir() { real.file_name() } else { real.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

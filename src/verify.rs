//! `octet verify`: every tensor present, of the right shape, and finite; and the checksums, where a list lies beside.
//!
//! Reads all weights once, whatever their type and size, a few rows at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::bail;
use octet_checkpoint::{Checkpoint, LayerTensor, Tensor, TensorName};
use octet_kernels::ThreadPool;
use octet_kernels::blocks::dequantize_row;
use serde::Serialize;

use crate::checksums::{self, Checksum};
use crate::format;
use crate::progress::Progress;
use crate::stdout;

/// Weights that a thread looks at in one go.
const CHUNK_WEIGHTS: usize = 1 << 18;
/// Faults that are printed; the rest is counted.
const MAX_SHOWN_FAULTS: usize = 20;

/// Check that every tensor is there, of the right shape, and finite; and checksums
///
/// Reads all weights, so it takes as long as the disk needs. Lists such as RELEASE, SHA256SUMS or *.md5 in the folder of
/// the weights are checked too. Exits with 1 if anything is wrong.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// Leave out checksums, which read the files a second time
    #[arg(long)]
    no_checksums: bool,
    /// Threads [default: as many as this process may use]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default, Serialize)]
struct Report {
    model: PathBuf,
    /// Tensors that the model needs, and how many of them are there in the right shape.
    tensors_expected: usize,
    tensors_present: usize,
    /// Weights that were looked at.
    values: u64,
    checksums: Vec<Checked>,
    /// Names of tensors in the files that are no part of the model.
    unexpected_tensors: Vec<String>,
    faults: Vec<String>,
}

#[derive(Serialize)]
struct Checked {
    file: PathBuf,
    list: PathBuf,
    digest: String,
    matches: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (checkpoint, problems) = Checkpoint::examine(&args.model)?;
    let pool = ThreadPool::new(args.threads.map_or_else(octet_kernels::cpu::available_threads, usize::from));
    let mut report = Report {
        model: args.model.clone(),
        tensors_expected: checkpoint.params().tensors().count(),
        unexpected_tensors: checkpoint.unexpected().map(|(_, tensor)| tensor.name.clone()).collect(),
        faults: problems.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    check_values(&checkpoint, &pool, &mut report);
    if !args.no_checksums {
        check_sums(&checkpoint, &pool, &mut report)?;
    }
    if args.json { stdout::print_json(&report) } else { stdout::print(&describe(&report)) }?;
    match report.faults.as_slice() {
        [] => Ok(()),
        [only] => bail!("{only}"),
        faults => {
            bail!("{}: {} faults, as listed; fetch the files that they name again", args.model.display(), faults.len())
        }
    }
}

/// Looks at every weight of every tensor that is there.
fn check_values(checkpoint: &Checkpoint, pool: &ThreadPool, report: &mut Report) {
    let tensors: Vec<Tensor> = checkpoint.params().tensors().filter_map(|name| checkpoint.find(name)).collect();
    report.tensors_present = tensors.len();
    let bytes = |tensor: &Tensor| (tensor.rows() * tensor.row_bytes()) as u64;
    let total = tensors.iter().map(bytes).sum();
    let progress = Progress::new("reading weights");
    let mut done = 0;
    for tensor in &tensors {
        report.values += (tensor.rows() * tensor.cols()) as u64;
        if let Some(fault) = survey(tensor, pool).fault(tensor) {
            report.faults.push(fault);
        }
        tensor.forget_pages();
        done += bytes(tensor);
        progress.at(done, total);
    }
    progress.finish();
}

/// Counts what is wrong with the weights of a tensor; all threads share its rows.
fn survey(tensor: &Tensor, pool: &ThreadPool) -> Survey {
    let rows_at_once = (CHUNK_WEIGHTS / tensor.cols()).max(1);
    let survey = Mutex::new(Survey::default());
    pool.run(tensor.rows().div_ceil(rows_at_once), &|chunk, _thread| {
        let first = chunk * rows_at_once;
        let part = Survey::of_rows(tensor, first..(first + rows_at_once).min(tensor.rows()));
        survey.lock().expect("no holder of this lock panics").add(part);
    });
    survey.into_inner().expect("no holder of this lock panics")
}

/// Weights of a tensor that no model has.
#[derive(Default)]
struct Survey {
    nan: u64,
    infinite: u64,
    other_than_zero: u64,
    /// Row and column of the first that is NaN or infinite.
    first: Option<(usize, usize)>,
}

impl Survey {
    fn of_rows(tensor: &Tensor, rows: Range<usize>) -> Survey {
        let mut survey = Survey::default();
        let mut bytes = vec![0; rows.len() * tensor.row_bytes()];
        let mut values = vec![0.0; tensor.cols()];
        tensor.read_rows(rows.clone(), &mut bytes);
        for (row, bytes) in rows.zip(bytes.chunks_exact(tensor.row_bytes())) {
            dequantize_row(tensor.element_type(), bytes, &mut values);
            survey.other_than_zero += values.iter().filter(|&&v| v != 0.0).count() as u64;
            if values.iter().all(|v| v.is_finite()) {
                continue;
            }
            survey.nan += values.iter().filter(|v| v.is_nan()).count() as u64;
            survey.infinite += values.iter().filter(|v| v.is_infinite()).count() as u64;
            let column = values.iter().position(|v| !v.is_finite());
            survey.first = survey.first.or(column.map(|column| (row, column)));
        }
        survey
    }

    fn add(&mut self, other: Survey) {
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.other_than_zero += other.other_than_zero;
        self.first = [self.first, other.first].into_iter().flatten().min();
    }

    fn fault(&self, tensor: &Tensor) -> Option<String> {
        let place = format!("{}: tensor {}", tensor.path().display(), tensor.stored_name());
        if let Some((row, column)) = self.first {
            let (nan, infinite) = (self.nan, self.infinite);
            return Some(format!(
                "{place} holds {nan} NaN and {infinite} infinite weights, the first in row {row}, column {column}; \
                 fetch the file again"
            ));
        }
        // A fresh router may be zero: all experts alike. Nothing else that was trained is.
        let may_be_zero = matches!(tensor.name(), TensorName::Layer(_, LayerTensor::Router));
        let zero = self.other_than_zero == 0 && !may_be_zero;
        zero.then(|| {
            format!("{place} holds nothing but zeros, as an interrupted download leaves it; fetch the file again")
        })
    }
}

/// Checks the lists beside the weights, as many files at a time as there are threads.
fn check_sums(checkpoint: &Checkpoint, pool: &ThreadPool, report: &mut Report) -> anyhow::Result<()> {
    let Some(weights) = checkpoint.files().first() else { return Ok(()) };
    let folder = weights.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (present, missing): (Vec<_>, Vec<_>) =
        checksums::in_folder(folder)?.into_iter().partition(|checksum| checksum.file.is_file());
    // A list may speak of twenty variants of which one was fetched; only a whole folder has to be complete.
    let whole = report.model.is_dir();
    let ours = |file: &PathBuf| whole || checkpoint.files().iter().any(|f| f.file_name() == file.file_name());
    let listed: Vec<Checksum> = present.into_iter().filter(|c| ours(&c.file)).collect();
    for checksum in missing.iter().filter(|c| whole && is_weights(&c.file)) {
        let (list, file) = (checksum.list.display(), checksum.file.display());
        report.faults.push(format!("{file} is listed in {list} but not there; fetch it"));
    }
    let bytes = |c: &Checksum| c.file.metadata().map_or(0, |m| m.len());
    let total = listed.iter().map(bytes).sum();
    let progress = Progress::new("checksums");
    let done = AtomicU64::new(0);
    let digests = Mutex::new(vec![None; listed.len()]);
    pool.run(listed.len(), &|i, thread| {
        let count = |n| {
            let done = done.fetch_add(n, Ordering::Relaxed) + n;
            if thread == 0 {
                progress.at(done, total);
            }
        };
        let digest = checksums::digest(&listed[i], &count).map_err(|e| format!("{e:#}"));
        digests.lock().expect("no holder of this lock panics")[i] = Some(digest);
    });
    progress.finish();
    for (checksum, digest) in listed.into_iter().zip(digests.into_inner().expect("no holder of this lock panics")) {
        compare(checksum, digest.expect("the pool runs every item"), report);
    }
    Ok(())
}

/// Weights and tokenizers; a RELEASE may also speak of files that nobody needs.
fn is_weights(file: &Path) -> bool {
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["pth", "pt", "safetensors", "gguf", "model"].contains(&extension)
}

fn compare(checksum: Checksum, digest: Result<String, String>, report: &mut Report) {
    let digest = match digest {
        Ok(digest) => digest,
        Err(error) => return report.faults.push(error),
    };
    let matches = digest == checksum.expected;
    if !matches {
        report.faults.push(format!(
            "{} has checksum {digest}, but {} says {}; fetch the file again",
            checksum.file.display(),
            checksum.list.display(),
            checksum.expected
        ));
    }
    report.checksums.push(Checked { file: checksum.file, list: checksum.list, digest, matches });
}

fn describe(report: &Report) -> String {
    let count = |n: usize| format::count(n as u64);
    let right = report.checksums.iter().filter(|c| c.matches).count();
    let mut text = format!(
        "{}\n  tensors    {} of {} there, of the right shape\n  weights    {} read\n",
        report.model.display(),
        count(report.tensors_present),
        count(report.tensors_expected),
        format::count(report.values),
    );
    text += &match report.checksums.len() {
        0 => "  checksums  no list beside the weights\n".to_string(),
        n => format!("  checksums  {right} of {n} right\n"),
    };
    if !report.unexpected_tensors.is_empty() {
        let first = &report.unexpected_tensors[0];
        text += &format!(
            "  not used   {} tensors, such as {}\n",
            count(report.unexpected_tensors.len()),
            first.escape_debug()
        );
    }
    for fault in report.faults.iter().take(MAX_SHOWN_FAULTS) {
        text += &format!("  fault      {fault}\n");
    }
    if report.faults.len() > MAX_SHOWN_FAULTS {
        text += &format!("  and {} more faults\n", count(report.faults.len() - MAX_SHOWN_FAULTS));
    }
    if report.faults.is_empty() {
        text += "  all well\n";
    }
    text
}

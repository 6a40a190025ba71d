//! Carries out a plan: whole or not at all, and from where a killed run stopped.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};

use super::Plan;
use super::disk::{allocated_bytes, check_room, sync_folder, write_error};
use super::journal::{Journal, Past};
use super::plan::{Form, NewFile, NewTensor, Place};
use crate::{Error, Layout};

/// Output bytes that one thread makes at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Finished bytes after which the disk is synced and the journal written.
const JOURNAL_EVERY_BYTES: u64 = 4 << 20;
/// Finished pieces that may wait for the thread that keeps the journal. With the tensor in progress and
/// [`JOURNAL_EVERY_BYTES`] this bounds what a kill can cost.
const MAX_WAITING_PIECES: usize = 8;

/// What to do with something that already has the output's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Refuse,
    /// Put the output in its place once that is whole. A folder is only replaced if it is a checkpoint and nothing else.
    Replace,
}

/// What a job tells while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A partial output of other input or settings was found and is discarded.
    Discarded,
    /// Work begins: the output will have `total` bytes, of which an earlier run left `kept`.
    Begun {
        /// Bytes of the whole output.
        total: u64,
        /// Bytes of tensors that are there already.
        kept: u64,
    },
    /// So many more bytes are made.
    Made(u64),
}

/// Where and how to write a plan.
#[derive(Clone, Debug)]
pub struct Job {
    /// The file or folder that shall appear.
    pub out: PathBuf,
    /// If it is there already.
    pub existing: Existing,
    /// Threads that make rows; at least 1.
    pub threads: usize,
    /// What the output is made from and how, beyond what its headers say: files with size and time, settings. An
    /// earlier run's part is only taken over if this is the same.
    pub made_from: Vec<String>,
}

impl Job {
    /// Writes the whole output; `watch` hears of every step.
    ///
    /// Errors: the output exists, no room, the disk full, a source that fails. After an error of its own nothing is
    /// left behind, unless all is written and only the name was not to be had; then, and after a kill, `OUT.part` and its
    /// journal are.
    pub fn run(&self, plan: &Plan<'_>, watch: &mut dyn FnMut(Event)) -> Result<(), Error> {
        self.check_out(plan.form)?;
        let (part, journal_path) = (with_suffix(&self.out, ".part"), with_suffix(&self.out, ".part.journal"));
        if exists(&part) && !exists(&journal_path) {
            return Err(Error::Exists { path: part, remedy: "it is not from an interrupted run; move it away" });
        }
        let journal = Journal::open(&journal_path)?;
        let mut run = Run { job: self, plan, part, journal, files: Vec::new(), n_kept: 0, is_whole: false };
        match run.write(watch) {
            Ok(()) => {
                run.journal.remove();
                Ok(())
            }
            // The kept part of an earlier run stays for the time when there is room.
            Err(error @ Error::NoRoom { .. }) if run.n_kept > 0 => Err(error),
            // Nor is a whole one thrown away for its name.
            Err(error) if run.is_whole => Err(error),
            Err(error) => {
                discard(&run.part);
                run.journal.remove();
                Err(error)
            }
        }
    }

    /// Refuses an output name that is taken, or cannot be, for a checkpoint of this layout: what [`Job::run`] does first, for
    /// whoever has much to do before.
    pub fn check(&self, layout: Layout) -> Result<(), Error> {
        self.check_out(if layout == Layout::Gguf { Form::File } else { Form::Folder })
    }

    fn check_out(&self, form: Form) -> Result<(), Error> {
        let folder = parent(&self.out);
        if !folder.is_dir() {
            return Err(Error::not_found(folder, "there is no such folder to write to; make it first"));
        }
        let Ok(meta) = fs::symlink_metadata(&self.out) else {
            return Ok(());
        };
        let exists = |remedy| Err(Error::Exists { path: self.out.clone(), remedy });
        if !meta.is_dir() && !self.out.is_file() {
            return exists("is no regular file; give another name");
        }
        match (form, meta.is_dir()) {
            (Form::File, true) => exists("is a folder; give the name of a file"),
            (Form::Folder, false) => exists("is a file; give the name of a folder"),
            (Form::Folder, true) if is_empty(&self.out) => Ok(()),
            _ if self.existing == Existing::Refuse => exists("choose another name, or replace it with --force"),
            (Form::Folder, true) => {
                let (old, aside) = (with_suffix(&self.out, ".old"), "is where OUT is put aside; move it away");
                match why_not_replaced(&self.out) {
                    Some(remedy) => exists(remedy),
                    None if self::exists(&old) => Err(Error::Exists { path: old, remedy: aside }),
                    None => Ok(()),
                }
            }
            (Form::File, false) => Ok(()),
        }
    }
}

/// A job under way.
struct Run<'j, 'p> {
    job: &'j Job,
    plan: &'j Plan<'p>,
    /// `OUT.part`.
    part: PathBuf,
    journal: Journal,
    /// The open files of the plan, in its order.
    files: Vec<File>,
    /// Tensors that an earlier run left.
    n_kept: usize,
    /// All is written and synced; only the name is wanting.
    is_whole: bool,
}

impl Run<'_, '_> {
    fn write(&mut self, watch: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let identity = self.identity();
        let n_done = self.take_over(&identity, watch)?;
        self.n_kept = n_done;
        let kept: u64 = self.files.iter().map(allocated_bytes).sum();
        check_room(&self.job.out, parent(&self.job.out), self.plan.bytes().saturating_sub(kept))?;
        if n_done == 0 {
            self.write_heads()?;
        }
        let kept = self.plan.tensors[..n_done].iter().map(|(tensor, _)| tensor.bytes()).sum();
        watch(Event::Begun { total: self.plan.bytes(), kept });
        self.stream(n_done, watch)?;
        self.finish()
    }

    /// One line that says what the output is and what it is made from.
    fn identity(&self) -> String {
        let mut hasher = DefaultHasher::new();
        for file in &self.plan.files {
            (&file.name, &file.head, file.len).hash(&mut hasher);
        }
        self.plan.small_files.hash(&mut hasher);
        let identity = serde_json::json!({
            "octet": env!("CARGO_PKG_VERSION"),
            "plan": format!("{:016x}", hasher.finish()),
            "made_from": self.job.made_from,
        });
        identity.to_string()
    }

    /// Opens what an earlier run left, or makes it new. Returns how many tensors are done.
    fn take_over(&mut self, identity: &str, watch: &mut dyn FnMut(Event)) -> Result<usize, Error> {
        let past = self.journal.past(identity);
        if let Past::Same(n_done) = past
            && let Some(files) = self.open_earlier(n_done)
        {
            self.files = files;
            self.journal.begin(identity)?;
            self.journal.record(n_done)?;
            return Ok(n_done);
        }
        if exists(&self.part) {
            discard(&self.part);
            watch(Event::Discarded);
        }
        self.journal.begin(identity)?;
        self.make_files()?;
        Ok(0)
    }

    /// The files of an earlier run, if they reach as far as they must to hold `n_done` tensors.
    fn open_earlier(&self, n_done: usize) -> Option<Vec<File>> {
        let done = self.plan.tensors.get(..n_done)?;
        let open = |(index, file): (usize, &NewFile)| {
            let ends = done.iter().filter(|(_, place)| place.file == index).map(|(t, place)| place.offset + t.bytes());
            let least = ends.max().unwrap_or(0).max(file.head.len() as u64);
            let opened = File::options().read(true).write(true).open(self.file_path(&file.name)).ok()?;
            (opened.metadata().ok()?.len() >= least).then_some(opened)
        };
        self.plan.files.iter().enumerate().map(open).collect()
    }

    /// Makes the files, still empty.
    fn make_files(&mut self) -> Result<(), Error> {
        if self.plan.form == Form::Folder {
            fs::create_dir(&self.part).map_err(|e| self.error(e))?;
        }
        for file in &self.plan.files {
            let opened = File::options().read(true).write(true).create_new(true).open(self.file_path(&file.name));
            let opened = opened.map_err(|e| self.error(e))?;
            self.files.push(opened);
        }
        Ok(())
    }

    fn write_heads(&self) -> Result<(), Error> {
        for (file, planned) in self.files.iter().zip(&self.plan.files) {
            write_at(file, &planned.head, 0).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    fn file_path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.part.clone() } else { self.part.join(name) }
    }

    fn error(&self, source: std::io::Error) -> Error {
        write_error(&self.part, self.plan.bytes(), source)
    }

    /// Makes the tensors from number `n_done` on.
    fn stream(&mut self, n_done: usize, watch: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let pieces = pieces(self.plan, n_done);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (results, finished) = mpsc::sync_channel(MAX_WAITING_PIECES);
        let mut left: HashMap<usize, usize> = HashMap::new();
        for piece in &pieces {
            *left.entry(piece.tensor).or_default() += 1;
        }
        let Run { plan, files, part, journal, .. } = self;
        let maker = Maker { plan, files, part, pieces: &pieces, next: &next, stop: &stop };
        let mut book = Book { plan, files, part, journal, left, n_done, n_recorded: n_done, unrecorded_bytes: 0 };
        std::thread::scope(|scope| {
            for _ in 0..self.job.threads.max(1) {
                let results = results.clone();
                scope.spawn(move || maker.make(&results));
            }
            drop(results);
            for result in finished {
                // On an error the receiver goes, and with it the makers: each finds that nobody listens.
                let done = result.and_then(|piece: Made| book.enter(piece).map(|()| piece.bytes));
                match done {
                    Ok(bytes) => watch(Event::Made(bytes)),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(())
        })
    }

    /// Adds the small files, makes all of it last, and gives it its name.
    fn finish(&mut self) -> Result<(), Error> {
        for (name, content) in &self.plan.small_files {
            let path = self.file_path(name);
            let write = File::create(&path).and_then(|mut file| {
                std::io::Write::write_all(&mut file, content)?;
                file.sync_all()
            });
            write.map_err(|e| write_error(&path, self.plan.bytes(), e))?;
        }
        for (file, planned) in self.files.iter().zip(&self.plan.files) {
            // Padding after the last tensor is written by nobody else.
            file.set_len(planned.len).and_then(|()| file.sync_all()).map_err(|e| self.error(e))?;
        }
        if self.plan.form == Form::Folder {
            sync_folder(&self.part);
        }
        self.is_whole = true;
        self.job.check_out(self.plan.form)?;
        self.rename().map_err(|e| Error::io(&self.job.out, e))?;
        sync_folder(parent(&self.job.out));
        Ok(())
    }

    /// `OUT.part` becomes `OUT`. A folder that stands there steps aside first, since only an empty one gives way.
    fn rename(&self) -> std::io::Result<()> {
        let out = &self.job.out;
        if self.plan.form == Form::File || !exists(out) || is_empty(out) {
            return fs::rename(&self.part, out);
        }
        let old = with_suffix(out, ".old");
        fs::rename(out, &old)?;
        fs::rename(&self.part, out).inspect_err(|_| drop(fs::rename(&old, out)))?;
        // The output is there; what cannot be removed of the one before makes it no worse.
        let _ = fs::remove_dir_all(old);
        Ok(())
    }
}

/// Some rows of a tensor: what a thread makes at a time.
struct Piece {
    tensor: usize,
    rows: Range<usize>,
}

/// The tensors from number `first` on, cut into pieces of about [`PIECE_BYTES`].
fn pieces(plan: &Plan<'_>, first: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, (tensor, _)) in plan.tensors.iter().enumerate().skip(first) {
        let rows = tensor.rows();
        let step = (PIECE_BYTES / tensor.row_bytes().max(1)).max(1);
        pieces.extend((0..rows).step_by(step).map(|from| Piece { tensor: index, rows: from..rows.min(from + step) }));
    }
    pieces
}

/// A piece that is written.
#[derive(Clone, Copy)]
struct Made {
    tensor: usize,
    bytes: u64,
}

/// What each thread works with.
#[derive(Clone, Copy)]
struct Maker<'a, 'p> {
    plan: &'a Plan<'p>,
    files: &'a [File],
    part: &'a Path,
    pieces: &'a [Piece],
    next: &'a AtomicUsize,
    stop: &'a AtomicBool,
}

impl Maker<'_, '_> {
    /// Makes pieces until there are no more.
    fn make(self, results: &SyncSender<Result<Made, Error>>) {
        let mut buffer = Vec::new();
        while !self.stop.load(Ordering::Relaxed)
            && let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            if results.send(self.make_one(piece, &mut buffer)).is_err() {
                return;
            }
        }
    }

    fn make_one(self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<Made, Error> {
        let (tensor, place): &(NewTensor<'_>, Place) = &self.plan.tensors[piece.tensor];
        let row_bytes = tensor.row_bytes();
        buffer.clear();
        buffer.resize(piece.rows.len() * row_bytes, 0);
        tensor.source.read(piece.rows.clone(), buffer)?;
        let at = place.offset + piece.rows.start as u64 * row_bytes as u64;
        write_at(&self.files[place.file], buffer, at).map_err(|e| write_error(self.part, self.plan.bytes(), e))?;
        Ok(Made { tensor: piece.tensor, bytes: buffer.len() as u64 })
    }
}

/// Counts finished pieces and keeps the journal.
struct Book<'a, 'p> {
    plan: &'a Plan<'p>,
    files: &'a [File],
    part: &'a Path,
    journal: &'a mut Journal,
    /// Pieces that each tensor still lacks; none once it is whole.
    left: HashMap<usize, usize>,
    /// The tensors before this one are whole.
    n_done: usize,
    /// The tensors before this one are in the journal.
    n_recorded: usize,
    unrecorded_bytes: u64,
}

impl Book<'_, '_> {
    fn enter(&mut self, piece: Made) -> Result<(), Error> {
        let left = self.left.get_mut(&piece.tensor).expect("every piece of a tensor is counted");
        *left -= 1;
        if *left == 0 {
            self.left.remove(&piece.tensor);
        }
        while self.n_done < self.plan.tensors.len() && !self.left.contains_key(&self.n_done) {
            self.unrecorded_bytes += self.plan.tensors[self.n_done].0.bytes();
            self.n_done += 1;
        }
        if self.unrecorded_bytes >= JOURNAL_EVERY_BYTES { self.record() } else { Ok(()) }
    }

    /// Syncs the data, then says so: never the other way round.
    fn record(&mut self) -> Result<(), Error> {
        let touched = self.plan.tensors[self.n_recorded..self.n_done].iter().map(|(_, place)| place.file);
        let touched: std::collections::BTreeSet<usize> = touched.chain((self.n_recorded == 0).then_some(0)).collect();
        for file in touched {
            self.files[file].sync_data().map_err(|e| write_error(self.part, self.plan.bytes(), e))?;
        }
        self.journal.record(self.n_done)?;
        (self.n_recorded, self.unrecorded_bytes) = (self.n_done, 0);
        Ok(())
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        (bytes, offset) = (&bytes[n..], offset + n as u64);
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Removes a partial output, file or folder.
fn discard(part: &Path) {
    // An error here must not hide the one that brought us here.
    let _ = if part.is_dir() { fs::remove_dir_all(part) } else { fs::remove_file(part) };
}

/// Why a folder is not replaced, unless it is a checkpoint and nothing else, as we write them: a configuration, weights, and
/// what goes with them. An adapter is none.
fn why_not_replaced(folder: &Path) -> Option<&'static str> {
    let (mut has_configuration, mut has_weights) = (false, false);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        match name.to_str().filter(|_| !entry.path().is_dir()) {
            Some("adapter_config.json") => return Some("is an adapter, so it is not replaced; choose another name"),
            Some("config.json" | "params.json") => has_configuration = true,
            Some(name) if name.ends_with(".safetensors") => has_weights = true,
            Some(name) if name.ends_with(".json") || name.ends_with(".jinja") || name.starts_with("tokenizer.") => {}
            _ => return Some("holds more than a checkpoint, so it is not replaced; choose another name"),
        }
    }
    let is_checkpoint = has_configuration && has_weights;
    (!is_checkpoint).then_some("is no checkpoint, so it is not replaced; choose another name")
}

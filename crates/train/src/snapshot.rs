//! The state of a run on disk, from which it goes on to exactly the same losses.
//!
//! A snapshot is a folder `step-000000120` with `state.json` and `tensors.safetensors`. It is written as `….part`, flushed
//! to the disk, and renamed; only then is the one before it removed. So whenever a run is killed, one whole snapshot is
//! there.

use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Everything of a run that is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps that are done.
    pub step: u64,
    /// Tokens that were read.
    pub tokens: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// What the run is of: model, data and settings. Another one cannot go on from here.
    pub fingerprint: String,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_without_gain: u32,
}

/// An evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After this many steps.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

/// A tensor to be written.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its values.
    pub values: &'a [f32],
}

/// Writes a snapshot into `folder` and removes older ones. What was there stays if anything fails.
///
/// # Errors
/// The disk is full, or something else that the system says; no half-written snapshot is left.
pub fn save<'a>(folder: &Path, state: &State, tensors: impl Iterator<Item = Named<'a>>) -> io::Result<PathBuf> {
    let path = folder.join(format!("step-{:09}", state.step));
    let part = path.with_extension("part");
    let written = write(&part, state, tensors).and_then(|()| {
        remove(&path)?;
        fs::rename(&part, &path)?;
        File::open(folder)?.sync_all()
    });
    if let Err(error) = written {
        // The error that matters is the one above.
        let _ = fs::remove_dir_all(&part);
        return Err(error);
    }
    for old in whole(folder)?.into_iter().filter(|old| *old != path) {
        fs::remove_dir_all(old)?;
    }
    Ok(path)
}

fn write<'a>(part: &Path, state: &State, tensors: impl Iterator<Item = Named<'a>>) -> io::Result<()> {
    write_tensors(part, tensors)?;
    let file = part.join("state.json");
    fs::write(&file, serde_json::to_vec_pretty(state)?)?;
    File::open(&file)?.sync_all()?;
    File::open(part)?.sync_all()
}

fn write_tensors<'a>(part: &Path, tensors: impl Iterator<Item = Named<'a>>) -> io::Result<()> {
    remove(part)?;
    fs::create_dir_all(part)?;
    let views = tensors.map(|tensor| (tensor.name, Floats { shape: [tensor.values.len()], values: tensor.values }));
    let file = part.join("tensors.safetensors");
    safetensors::serialize_to_file(views, None, &file).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })?;
    File::open(&file)?.sync_all()
}

/// The latest whole snapshot in `folder`, if there is one.
///
/// # Errors
/// The folder cannot be listed.
pub fn latest(folder: &Path) -> io::Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    Ok(whole(folder)?.pop())
}

/// Whole snapshots, the latest last.
fn whole(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_prefix("step-").is_some_and(|step| step.bytes().all(|b| b.is_ascii_digit())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the state of a snapshot.
///
/// # Errors
/// One line that names the file.
pub fn state(path: &Path) -> Result<State, String> {
    let file = path.join("state.json");
    let named = |problem: &dyn std::fmt::Display| format!("{}: {problem}", file.display());
    let bytes = fs::read(&file).map_err(|error| named(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| named(&error))
}

/// Fills `tensors` with what the snapshot holds by their names.
///
/// # Errors
/// One line that names the file, and the tensor that is missing or of another size.
pub fn load<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, &'a mut [f32])>) -> Result<(), String> {
    let file = path.join("tensors.safetensors");
    let named = |problem: &dyn std::fmt::Display| format!("{}: {problem}", file.display());
    let bytes = fs::read(&file).map_err(|error| named(&error))?;
    let stored = safetensors::SafeTensors::deserialize(&bytes).map_err(|error| named(&error))?;
    let stored: HashMap<String, _> = stored.tensors().into_iter().collect();
    for (name, values) in tensors {
        let view = stored.get(name).ok_or_else(|| named(&format!("tensor {name} is missing")))?;
        if view.dtype() != Dtype::F32 || view.data().len() != 4 * values.len() {
            return Err(named(&format!("tensor {name} has {} bytes, not {} floats", view.data().len(), values.len())));
        }
        for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(4)) {
            *value = f32::from_le_bytes(bytes.try_into().expect("chunks of four"));
        }
    }
    Ok(())
}

/// Trained values alone, in a folder of their own: those of the best evaluation.
pub struct Values<'a> {
    /// The folder.
    pub path: &'a Path,
}

impl Values<'_> {
    /// Writes them, in place of what was there, which stands aside until they are there.
    ///
    /// # Errors
    /// What the system says; what was there stays.
    pub fn write<'t>(&self, tensors: impl Iterator<Item = Named<'t>>) -> io::Result<()> {
        let (part, old) = (self.beside("part"), self.beside("old"));
        let written = write_tensors(&part, tensors).and_then(|()| {
            if self.path.exists() {
                remove(&old)?;
                fs::rename(self.path, &old)?;
            }
            fs::rename(&part, self.path).inspect_err(|_| drop(fs::rename(&old, self.path)))
        });
        // Of what is beside the values nothing is wanted any more; an error that matters is the one above.
        let _ = if written.is_ok() { remove(&old) } else { remove(&part) };
        written
    }

    /// Whether some were written.
    pub fn exist(&self) -> bool {
        self.place().is_some()
    }

    /// Fills `tensors`; false if nothing was written.
    ///
    /// # Errors
    /// As [`load`].
    pub fn read<'t>(&self, tensors: impl Iterator<Item = (&'t str, &'t mut [f32])>) -> Result<bool, String> {
        match self.place() {
            Some(place) => load(&place, tensors).map(|()| true),
            None => Ok(false),
        }
    }

    /// Removes them.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self) -> io::Result<()> {
        [self.path, &self.beside("old"), &self.beside("part")].into_iter().try_for_each(remove)
    }

    /// Where they are: a write that was killed may have left the ones before it aside.
    fn place(&self) -> Option<PathBuf> {
        [self.path.to_owned(), self.beside("old")].into_iter().find(|path| path.exists())
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.path.with_extension(extension)
    }
}

/// Removes a folder if it is there.
fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}

/// Floats as safetensors wants them.
struct Floats<'a> {
    shape: [usize; 1],
    values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_state(step: u64) -> State {
        State {
            step,
            tokens: 7,
            seconds: 0.1 + 0.2,
            fingerprint: "f".into(),
            best: Some(Best { step: 1, loss: 1.0 / 3.0 }),
            evaluations_without_gain: 2,
        }
    }

    #[test]
    fn a_snapshot_comes_back_bit_for_bit_and_takes_the_place_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0f32 / 3.0, f32::MIN_POSITIVE / 2.0, -0.0];
        let tensors = || [Named { name: "a", values: &values }].into_iter();
        save(folder.path(), &a_state(1), tensors()).unwrap();
        save(folder.path(), &a_state(2), tensors()).unwrap();
        let path = latest(folder.path()).unwrap().unwrap();
        assert_eq!(state(&path).unwrap(), a_state(2));
        let mut back = [0.0f32; 3];
        load(&path, [("a", &mut back[..])].into_iter()).unwrap();
        assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = load(&path, [("b", &mut back[..])].into_iter()).unwrap_err();
        assert!(error.contains("tensor b is missing"), "{error}");
    }

    #[test]
    fn what_a_killed_run_half_wrote_is_no_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0f32];
        save(folder.path(), &a_state(1), [Named { name: "a", values: &values }].into_iter()).unwrap();
        fs::create_dir(folder.path().join("step-000000002.part")).unwrap();
        assert!(latest(folder.path()).unwrap().unwrap().ends_with("step-000000001"));
    }

    #[test]
    fn a_disk_that_refuses_leaves_the_last_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0f32];
        let tensors = || [Named { name: "a", values: &values }].into_iter();
        save(folder.path(), &a_state(1), tensors()).unwrap();
        // A file stands where the folder is to be made.
        fs::write(folder.path().join("step-000000002.part"), "").unwrap();
        assert!(save(folder.path(), &a_state(2), tensors()).is_err());
        assert!(latest(folder.path()).unwrap().unwrap().ends_with("step-000000001"));
    }

    #[test]
    fn values_stand_aside_until_newer_ones_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best");
        let best = Values { path: &path };
        let read = || {
            let mut back = [0.0f32];
            best.read([("a", &mut back[..])].into_iter()).unwrap().then_some(back[0])
        };
        let write = |value: f32| best.write([Named { name: "a", values: &[value] }].into_iter());
        assert_eq!((best.exist(), read()), (false, None));
        write(1.0).unwrap();
        // Killed between the two renames: the values before are still found, and the next write takes their place.
        fs::rename(&path, path.with_extension("old")).unwrap();
        assert_eq!((best.exist(), read()), (true, Some(1.0)));
        write(2.0).unwrap();
        assert_eq!(read(), Some(2.0));
        write(3.0).unwrap();
        assert_eq!((read(), fs::read_dir(folder.path()).unwrap().count()), (Some(3.0), 1));
        best.remove().unwrap();
        assert_eq!((best.exist(), fs::read_dir(folder.path()).unwrap().count()), (false, 0));
    }
}

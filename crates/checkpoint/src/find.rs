//! From a path to the files of one checkpoint.
//!
//! A folder must hold exactly one; the published folders that hold both of Mistral's and Hugging Face's layouts are
//! told apart by giving the path of a weights file (or of the configuration) within.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::gguf::split::PartName;
use crate::{Error, gguf, hugging_face, mistral};

/// The files of a checkpoint.
#[derive(Debug)]
pub(crate) enum Found {
    /// `params.json` and the parts of the weights.
    Mistral { params: PathBuf, weights: Vec<PathBuf> },
    /// `config.json` and the shards of the weights.
    HuggingFace { config: PathBuf, weights: Vec<PathBuf> },
    /// The parts of a GGUF.
    Gguf(Vec<PathBuf>),
}

/// Finds the checkpoint at a path.
pub(crate) fn find(path: &Path) -> Result<Found, Error> {
    if is_folder(path)? { find_in_folder(path) } else { find_by_file(path) }
}

/// The configuration at a path that is enough to know a model's shape: a `.json` file that is no index, or the only
/// one of a folder without weights. `None` where the weights must be opened.
pub(crate) fn configuration(path: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_folder(path)? {
        let name = file_name(path);
        return Ok((name.ends_with(".json") && !name.ends_with(".index.json")).then(|| path.to_owned()));
    }
    if !Listing::read(path)?.candidates().is_empty() {
        return Ok(None);
    }
    let files = [mistral::PARAMS, hugging_face::CONFIG].map(|name| path.join(name));
    let [params, config] = files.each_ref().map(|file| file.is_file());
    let [params_path, config_path] = files;
    match (params, config) {
        (true, true) => Err(Error::Ambiguous {
            folder: path.into(),
            first: mistral::PARAMS.into(),
            second: hugging_face::CONFIG.into(),
        }),
        (true, false) => Ok(Some(params_path)),
        (false, true) => Ok(Some(config_path)),
        (false, false) => Ok(None),
    }
}

/// True for a folder, false for a file; anything else (a pipe would keep us waiting) is an error.
fn is_folder(path: &Path) -> Result<bool, Error> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(Error::not_found(
            path,
            "is neither a file nor a folder; weights are mapped, so save them to a file",
        ));
    }
    Ok(meta.is_dir())
}

/// Finds the one checkpoint of a folder, by the file that stands for it.
fn find_in_folder(folder: &Path) -> Result<Found, Error> {
    let listing = Listing::read(folder)?;
    let candidates = listing.candidates();
    match candidates.as_slice() {
        [] => Err(listing.nothing()),
        [one] => find_by_file(one),
        [first, second, ..] => Err(Error::Ambiguous {
            folder: folder.to_owned(),
            first: file_name(first).into(),
            second: file_name(second).into(),
        }),
    }
}

fn find_by_file(path: &Path) -> Result<Found, Error> {
    let name = file_name(path);
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "gguf" => Ok(Found::Gguf(gguf::parts(path)?)),
        "pth" | "pt" => mistral_release(path),
        "safetensors" if name.starts_with(mistral::WEIGHTS) => mistral_release(path),
        "safetensors" => hugging_face_with(path, shards_of(path)?),
        "json" if name.ends_with(".safetensors.index.json") && name.starts_with(mistral::WEIGHTS) => {
            Ok(Found::Mistral { params: beside(path, mistral::PARAMS)?, weights: hugging_face::read_index(path)? })
        }
        "json" if name.ends_with(".safetensors.index.json") => hugging_face_with(path, hugging_face::read_index(path)?),
        "json" if name == mistral::PARAMS => by_configuration(path, Listing::mistral_candidates),
        "json" if name == hugging_face::CONFIG => by_configuration(path, Listing::hugging_face_candidates),
        _ if has_gguf_magic(path)? => Ok(Found::Gguf(vec![path.to_owned()])),
        _ => Err(Error::not_found(
            path,
            "is no checkpoint; give a .gguf, .safetensors or .pth file, or the folder of a model",
        )),
    }
}

/// The weights beside a configuration.
fn by_configuration(path: &Path, candidates: fn(&Listing) -> Vec<PathBuf>) -> Result<Found, Error> {
    let listing = Listing::read(&folder_of(path))?;
    match candidates(&listing).as_slice() {
        [] => Err(Error::not_found(path, "has no weights beside it; fetch them too")),
        [one] => find_by_file(one),
        [first, second, ..] => Err(Error::Ambiguous {
            folder: folder_of(path),
            first: file_name(first).into(),
            second: file_name(second).into(),
        }),
    }
}

fn hugging_face_with(path: &Path, weights: Vec<PathBuf>) -> Result<Found, Error> {
    Ok(Found::HuggingFace { config: beside(path, hugging_face::CONFIG)?, weights })
}

/// A shard stands for all that the index beside it names; another file for itself.
fn shards_of(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = path.with_file_name(hugging_face::INDEX);
    if file_name(path) != hugging_face::SINGLE && index.is_file() {
        let shards = hugging_face::read_index(&index)?;
        if shards.iter().any(|shard| file_name(shard) == file_name(path)) {
            return Ok(shards);
        }
    }
    Ok(vec![path.to_owned()])
}

/// All parts of the release that a part belongs to: those of its kind in its folder.
fn mistral_release(path: &Path) -> Result<Found, Error> {
    let params = beside(path, mistral::PARAMS)?;
    if !file_name(path).starts_with(mistral::WEIGHTS) {
        return Ok(Found::Mistral { params, weights: vec![path.to_owned()] });
    }
    let mut weights = Listing::read(&folder_of(path))?.consolidated;
    weights.retain(|part| part.extension() == path.extension());
    Ok(Found::Mistral { params, weights })
}

fn beside(path: &Path, name: &str) -> Result<PathBuf, Error> {
    let file = path.with_file_name(name);
    if file.is_file() {
        return Ok(file);
    }
    Err(Error::not_found(
        &file,
        format!("is missing beside {}; fetch it from where the weights came from", path.display()),
    ))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn has_gguf_magic(path: &Path) -> Result<bool, Error> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut magic = Vec::new();
    file.take(4).read_to_end(&mut magic).map_err(|e| Error::io(path, e))?;
    Ok(magic == b"GGUF")
}

/// The files of a folder that matter here.
struct Listing {
    folder: PathBuf,
    index: Option<PathBuf>,
    single: Option<PathBuf>,
    consolidated: Vec<PathBuf>,
    gguf: Vec<PathBuf>,
    /// A configuration, or weights in a format that we do not read.
    remains: Option<PathBuf>,
}

impl Listing {
    fn read(folder: &Path) -> Result<Listing, Error> {
        let mut listing = Listing {
            folder: folder.to_owned(),
            index: None,
            single: None,
            consolidated: Vec::new(),
            gguf: Vec::new(),
            remains: None,
        };
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
            let path = entry.map_err(|e| Error::io(folder, e))?.path();
            if path.is_file() {
                listing.take(path);
            }
        }
        listing.consolidated.sort();
        listing.gguf.sort();
        Ok(listing)
    }

    fn take(&mut self, path: PathBuf) {
        let name = file_name(&path);
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        match extension {
            Some("json") if name == hugging_face::INDEX => self.index = Some(path),
            Some("safetensors") if name == hugging_face::SINGLE => self.single = Some(path),
            Some("safetensors" | "pth" | "pt") if name.starts_with(mistral::WEIGHTS) => self.consolidated.push(path),
            Some("gguf") => self.gguf.push(path),
            Some("json") if name == hugging_face::CONFIG || name == mistral::PARAMS => self.remains = Some(path),
            Some("bin") if name.starts_with("pytorch_model") => self.remains = Some(path),
            _ => {}
        }
    }

    /// One file of each checkpoint in the folder.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut all = self.hugging_face_candidates();
        all.extend(self.mistral_candidates());
        all.extend(self.gguf_candidates());
        all
    }

    fn hugging_face_candidates(&self) -> Vec<PathBuf> {
        self.index.iter().chain(&self.single).cloned().collect()
    }

    /// The first part of each kind: `.pth` parts do not mix with safetensors parts.
    fn mistral_candidates(&self) -> Vec<PathBuf> {
        let mut first_of_kind = BTreeMap::new();
        for part in &self.consolidated {
            first_of_kind.entry(part.extension()).or_insert_with(|| part.clone());
        }
        first_of_kind.into_values().collect()
    }

    /// The first part of each split file, and each other file.
    fn gguf_candidates(&self) -> Vec<PathBuf> {
        let mut seen = std::collections::BTreeSet::new();
        let is_new = |path: &&PathBuf| PartName::parse(file_name(path)).is_none_or(|part| seen.insert(part));
        self.gguf.iter().filter(is_new).cloned().collect()
    }

    fn nothing(&self) -> Error {
        let problem = match &self.remains {
            Some(path) if file_name(path).ends_with(".bin") => {
                "holds only pytorch_model.bin, which is not read; get the model's safetensors".to_owned()
            }
            Some(path) => format!("holds {} but no weights; fetch them too", file_name(path)),
            None => "holds no checkpoint (no model.safetensors, consolidated.* or .gguf)".to_owned(),
        };
        Error::not_found(&self.folder, problem)
    }
}

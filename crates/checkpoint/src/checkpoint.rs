//! A checkpoint: the files of a model mapped, and each of its tensors found in them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::shown;
use crate::find::{self, Found};
use crate::mapping::Mapping;
use crate::stored::{StoredTensor, StoredType};
use crate::tensor::{Arrangement, Source, Tensor};
use crate::{ElementType, Error, Params, TensorName, config_file, gguf, hugging_face, mistral, safetensors};

/// How a checkpoint's files are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `params.json` and `consolidated.*`, as Mistral publishes.
    MistralRelease,
    /// `config.json` and safetensors.
    HuggingFace,
    /// llama.cpp's format, in one file or split.
    Gguf,
}

impl Layout {
    /// The layout's name for people.
    pub fn name(self) -> &'static str {
        match self {
            Layout::MistralRelease => "Mistral release",
            Layout::HuggingFace => "Hugging Face",
            Layout::Gguf => "GGUF",
        }
    }

    /// The places where files of this layout may hold a tensor, in order of preference.
    fn sources(self, params: &Params, name: TensorName) -> Vec<Source> {
        match self {
            Layout::MistralRelease => mistral::sources(params, name),
            Layout::HuggingFace => hugging_face::sources(params, name),
            Layout::Gguf => gguf::llama::sources(params, name),
        }
    }
}

/// A model's weights on disk, mapped and checked; shared freely between threads.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<PathBuf>,
    layout: Layout,
    params: Params,
    inventory: Inventory,
    located: HashMap<TensorName, Located>,
    gguf: Option<gguf::Metadata>,
}

/// Where a tensor of the model was found.
#[derive(Clone, Copy, Debug)]
struct Located {
    /// Index in the inventory.
    stored: usize,
    element_type: ElementType,
    arrangement: Arrangement,
}

impl Checkpoint {
    /// Opens a file or folder of any layout. Reads and checks headers only, so it takes no time for any size.
    ///
    /// Errors: whatever [`Checkpoint::examine`] finds first.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let (checkpoint, problems) = Checkpoint::examine(path)?;
        problems.into_iter().next().map_or(Ok(checkpoint), Err)
    }

    /// Like [`Checkpoint::open`], but goes on where a tensor is missing or has the wrong shape or type: those are
    /// listed (at most 1000), and [`Checkpoint::find`] does not find them.
    ///
    /// Errors: no checkpoint there, or two; a file that breaks its format; a model that Octet does not run.
    pub fn examine(path: &Path) -> Result<(Checkpoint, Vec<Error>), Error> {
        let (layout, params, inventory, gguf) = match find::find(path)? {
            Found::Gguf(files) => open_gguf(&files)?,
            Found::HuggingFace { config, weights } => {
                let params = hugging_face::params(&config_file::ConfigFile::read(&config)?)?;
                (Layout::HuggingFace, params, Inventory::open(&weights)?, None)
            }
            Found::Mistral { params, weights } => {
                let mut params = mistral::params(&config_file::ConfigFile::read(&params)?)?;
                let inventory = Inventory::open(&weights)?;
                params.tied_embeddings |= inventory.find("output.weight").is_none();
                (Layout::MistralRelease, params, inventory, None)
            }
        };
        inventory.refuse_unsupported()?;
        let located = HashMap::new();
        let files = inventory.mappings.iter().map(|mapping| mapping.path().to_owned()).collect();
        let mut checkpoint = Checkpoint { path: path.to_owned(), files, layout, params, inventory, located, gguf };
        let problems = checkpoint.locate_all();
        Ok((checkpoint, problems))
    }

    /// How the files are laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The model's shape, as its files say it.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the weights, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Keys and values of a GGUF; `None` for other layouts.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        self.gguf.as_ref()
    }

    /// A tensor of the model. Errors: it is not there.
    pub fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, Error> {
        self.find(name).ok_or_else(|| self.missing(name))
    }

    /// Whether the tensors' bytes seem to be in the system's page cache: a few places of the files are read, and timed. Half
    /// of them decide, since any may fall to another process's turn. A place's first page may wait for a page of addresses,
    /// which a virtual machine has to fetch from its host, so one further on is timed, beyond what is read ahead.
    pub fn is_in_page_cache(&self) -> bool {
        const PLACES: usize = 64;
        // A page of the cache takes some five microseconds to map, one of the fastest disk some fifty to read.
        const MOST: Duration = Duration::from_micros(25);
        const FURTHER: usize = 256 << 10;
        let tensors = self.inventory.tensors.len();
        let places = PLACES.min(tensors);
        let quick = (0..places).filter(|place| {
            let (mapping, tensor) = self.inventory.get(place * tensors / places);
            let at = tensor.bytes.start + tensor.bytes.len() / 2;
            let read = |at: usize| std::hint::black_box(mapping.get(at).copied());
            read(at);
            let start = Instant::now();
            read((at + FURTHER).min(mapping.len().saturating_sub(1)));
            start.elapsed() < MOST
        });
        quick.count() * 2 >= places
    }

    /// A tensor of the model, if it is there.
    pub fn find(&self, name: TensorName) -> Option<Tensor<'_>> {
        let located = self.located.get(&name)?;
        let (mapping, stored) = self.inventory.get(located.stored);
        let [rows, cols] = self.params.shape(name);
        let row_bytes = |cols| located.element_type.row_bytes(cols).expect("checked when the tensor was located");
        let offset = match located.arrangement {
            Arrangement::Rows { first } => first * row_bytes(cols),
            Arrangement::Transposed { first } => first * row_bytes(rows),
            Arrangement::RotaryHalves { .. } => 0,
        };
        Some(Tensor {
            name,
            stored_name: &stored.name,
            element_type: located.element_type,
            rows,
            cols,
            arrangement: located.arrangement,
            mapping,
            start: stored.bytes.start + offset,
        })
    }

    /// Every tensor of the files as they describe it, with the file that holds it.
    pub fn stored(&self) -> impl Iterator<Item = (&Path, &StoredTensor)> {
        (0..self.inventory.tensors.len()).map(|i| {
            let (mapping, tensor) = self.inventory.get(i);
            (mapping.path(), tensor)
        })
    }

    /// Tensors of the files that are no part of the model, and that we know no reason for.
    pub fn unexpected(&self) -> impl Iterator<Item = (&Path, &StoredTensor)> {
        let mut used = vec![false; self.inventory.tensors.len()];
        self.located.values().for_each(|located| used[located.stored] = true);
        self.stored()
            .zip(used)
            .filter(|((_, tensor), used)| !used && !self.is_harmless(tensor))
            .map(|(tensor, _)| tensor)
    }

    /// Rotary frequencies, which follow from `rope_theta`, and the head that a tied model repeats.
    fn is_harmless(&self, tensor: &StoredTensor) -> bool {
        let name = tensor.name.as_str();
        let heads = [TensorName::Output.hugging_face(None), TensorName::Output.mistral(None)];
        let repeated_head = self.params.tied_embeddings && heads.iter().any(|head| head == name);
        repeated_head || name.ends_with("rotary_emb.inv_freq") || name == "rope.freqs"
    }

    fn missing(&self, name: TensorName) -> Error {
        let names: Vec<String> =
            self.layout.sources(&self.params, name).into_iter().map(|source| source.stored).collect();
        let expected = without_leading_ones(&self.params.shape(name).map(|n| n as u64)).to_vec();
        Error::MissingTensor { path: self.path.clone(), tensor: names.join(" or "), expected }
    }

    /// Finds every tensor of the model; returns what is wrong.
    fn locate_all(&mut self) -> Vec<Error> {
        const MAX_PROBLEMS: usize = 1000;
        let mut problems = Vec::new();
        for name in self.params.tensors() {
            match self.locate(name) {
                Ok(located) => {
                    self.located.insert(name, located);
                }
                Err(problem) => problems.push(problem),
            }
            if problems.len() == MAX_PROBLEMS {
                break;
            }
        }
        problems
    }

    fn locate(&self, name: TensorName) -> Result<Located, Error> {
        let sources = self.layout.sources(&self.params, name);
        let found = sources.iter().find_map(|source| Some((source, *self.inventory.by_name.get(&source.stored)?)));
        let Some((source, index)) = found else {
            return Err(self.missing(name));
        };
        let (mapping, stored) = self.inventory.get(index);
        if without_leading_ones(&stored.shape) != without_leading_ones(&source.shape) {
            return Err(Error::WrongShape {
                path: mapping.path().to_owned(),
                tensor: shown(&stored.name),
                found: stored.shape.clone(),
                expected: source.shape.clone(),
            });
        }
        match stored.element_type {
            StoredType::Known(element_type) => {
                Ok(Located { stored: index, element_type, arrangement: source.arrangement })
            }
            StoredType::Foreign(_) => {
                let what = format!("tensor {} of type {}", shown(&stored.name), stored.element_type);
                Err(Error::unsupported(mapping.path(), what, "get the model's BF16 weights, or a GGUF of it"))
            }
        }
    }
}

/// GGUF drops leading dimensions of 1, and a vector is a matrix of one row.
fn without_leading_ones(shape: &[u64]) -> &[u64] {
    let ones = shape.iter().take_while(|&&n| n == 1).count();
    &shape[ones..]
}

type Opened = (Layout, Params, Inventory, Option<gguf::Metadata>);

fn open_gguf(files: &[PathBuf]) -> Result<Opened, Error> {
    let mut inventory = Inventory::default();
    let mut first = None;
    for (i, path) in files.iter().enumerate() {
        let file = gguf::File::open(path)?;
        gguf::split::check_part(&file, i, files.len())?;
        let (mapping, metadata, tensors) = file.into_parts();
        inventory.add(mapping, tensors)?;
        first.get_or_insert(metadata);
    }
    let metadata = first.unwrap_or_default();
    gguf::split::check_total(&files[0], &metadata, inventory.tensors.len())?;
    let params = gguf::llama::params(&files[0], &metadata, &inventory)?;
    Ok((Layout::Gguf, params, inventory, Some(metadata)))
}

/// True for two tensors of one type and shape that begin and end alike. Their middle is not read: opening a
/// checkpoint must not take the time of reading it, and slices of one tensor differ at their ends too.
fn is_same(a: (&Mapping, &StoredTensor), b: (&Mapping, &StoredTensor)) -> bool {
    const ENDS_BYTES: usize = 4096;
    let ends = |(mapping, tensor): (&Mapping, &StoredTensor)| {
        let bytes = &mapping[tensor.bytes.clone()];
        let len = bytes.len().min(ENDS_BYTES);
        [bytes[..len].to_vec(), bytes[bytes.len() - len..].to_vec()]
    };
    (&a.1.element_type, &a.1.shape) == (&b.1.element_type, &b.1.shape) && ends(a) == ends(b)
}

/// All tensors of all files of a checkpoint, by name.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    mappings: Vec<Mapping>,
    /// Index of the mapping, and the tensor in it.
    tensors: Vec<(usize, StoredTensor)>,
    by_name: HashMap<String, usize>,
}

impl Inventory {
    /// Opens safetensors and torch files; the extension tells which.
    fn open(paths: &[PathBuf]) -> Result<Inventory, Error> {
        let mut inventory = Inventory::default();
        for path in paths {
            let mapping = Mapping::open(path)?;
            let tensors = match path.extension().and_then(|extension| extension.to_str()) {
                Some("pth" | "pt") => crate::torch::read_tensors(path, &mapping)?,
                _ => safetensors::read_header(path, &mapping)?,
            };
            inventory.add(mapping, tensors)?;
        }
        Ok(inventory)
    }

    /// Adds a file's tensors. One that another file holds already is passed over if it is the same: the eight parts
    /// of a release may repeat what the experts share.
    fn add(&mut self, mapping: Mapping, tensors: Vec<StoredTensor>) -> Result<(), Error> {
        let file = self.mappings.len();
        for tensor in tensors {
            match self.by_name.get(&tensor.name).map(|&other| self.get(other)) {
                None => {
                    self.by_name.insert(tensor.name.clone(), self.tensors.len());
                    self.tensors.push((file, tensor));
                }
                Some((other_mapping, other)) if is_same((&mapping, &tensor), (other_mapping, other)) => {}
                Some((other, _)) => {
                    let (name, other) = (shown(&tensor.name), other.path().display());
                    let problem = format!(
                        "tensor {name} is also in {other}, with other numbers; parts must hold different tensors, \
                         remove the wrong file"
                    );
                    return Err(Error::malformed(mapping.path(), problem));
                }
            }
        }
        self.mappings.push(mapping);
        Ok(())
    }

    fn get(&self, index: usize) -> (&Mapping, &StoredTensor) {
        let (file, tensor) = &self.tensors[index];
        (&self.mappings[*file], tensor)
    }

    /// The tensor of this name, if any file has it.
    pub(crate) fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.by_name.get(name).map(|&index| self.get(index).1)
    }

    /// Refuses tensors that a plain decoder has not and whose omission would give wrong numbers.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        const SUFFIXES: [&str; 5] = [
            ".bias",
            "rope_freqs.weight",
            "rope_factors_long.weight",
            "rope_factors_short.weight",
            ".weight_scale_inv",
        ];
        let index =
            (0..self.tensors.len()).find(|&i| SUFFIXES.iter().any(|suffix| self.tensors[i].1.name.ends_with(suffix)));
        match index.map(|index| self.get(index)) {
            Some((mapping, tensor)) => {
                let what = format!("tensor {}", shown(&tensor.name));
                Err(Error::unsupported(mapping.path(), what, "Octet runs decoders without biases or rope scaling"))
            }
            None => Ok(()),
        }
    }
}

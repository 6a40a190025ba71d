//! The two formats in which llama-imatrix wrote importance matrices, read into one form.
//!
//! Since July 2025 a GGUF: for a tensor `NAME`, `NAME.in_sum2 [n, cols]`, sums of squares, and `NAME.counts [n, 1]`, tokens
//! seen, `n` being 1 or the number of experts. Before, a `.dat`, little endian throughout:
//!
//! ```text
//! n_entries i32 | entries: name_len i32, name, n_calls i32, n_values i32, values f32[n_values] | last_call i32, text_len i32, text
//! ```
//! Its values are mean squares times `n_calls`, the number of chunks of text; what an expert saw is not in it, but one that
//! saw nothing has the same number in every column.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use octet_checkpoint::gguf;
use octet_checkpoint::{ElementType, StoredType};

/// Tokens that a `.dat` is taken to have run at a time, its tool's default.
const CHUNK_TOKENS: f32 = 512.0;
/// Longest `.dat` that is read; one of Mixtral 8x22B has some 60 MB.
const MAX_BYTES: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Default)]
pub struct ImportanceFile {
    /// The texts, by name.
    pub datasets: Vec<String>,
    /// By the tensor's name.
    pub tensors: HashMap<String, StoredImportance>,
}

/// What a tensor's matrices were multiplied with.
#[derive(Debug)]
pub struct StoredImportance {
    /// Sums of squares of each column, matrix after matrix.
    pub squares: Vec<f32>,
    /// Tokens seen: of each matrix, or one number for all.
    pub tokens: Vec<f32>,
}

/// Reads either format. Errors: neither, or damaged.
pub fn read(path: &Path) -> anyhow::Result<ImportanceFile> {
    let cannot = || format!("cannot read {}", path.display());
    let len = path.metadata().with_context(cannot)?.len();
    let mut magic = [0; 4];
    let is_gguf = std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .is_ok_and(|()| &magic == b"GGUF");
    if is_gguf {
        return read_gguf(path);
    }
    if len > MAX_BYTES {
        bail!("{}: is no importance matrix: neither a GGUF nor under {MAX_BYTES} bytes", path.display());
    }
    let bytes = std::fs::read(path).with_context(cannot)?;
    let problem = "is no importance matrix, neither a GGUF nor a .dat as llama-imatrix writes them";
    read_dat(&bytes).with_context(|| format!("{}: {problem}", path.display()))
}

fn read_gguf(path: &Path) -> anyhow::Result<ImportanceFile> {
    let file = gguf::File::open(path)?;
    let floats = |name: &str| {
        let tensor = file.tensors().iter().find(|t| t.name == name)?;
        let is_f32 = tensor.element_type == StoredType::Known(ElementType::F32);
        is_f32.then(|| file.bytes(tensor).as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    };
    let mut read = ImportanceFile::default();
    read.datasets.extend(file.metadata().strings("imatrix.datasets").unwrap_or_default().iter().cloned());
    for tensor in file.tensors() {
        let Some(name) = tensor.name.strip_suffix(".in_sum2") else { continue };
        let (Some(squares), Some(tokens)) = (floats(&tensor.name), floats(&format!("{name}.counts"))) else {
            bail!("{}: {name} lacks its .in_sum2 or .counts in F32; make the file again", path.display());
        };
        read.tensors.insert(name.to_owned(), StoredImportance { squares, tokens });
    }
    Ok(read)
}

/// The rest of a `.dat`.
struct Dat<'a>(&'a [u8]);

impl<'a> Dat<'a> {
    fn take(&mut self, len: usize, what: &str) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).with_context(|| format!("it ends within {what}"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn count(&mut self, what: &str) -> anyhow::Result<usize> {
        let bytes = self.take(4, what)?.try_into().expect("four were taken");
        usize::try_from(i32::from_le_bytes(bytes)).with_context(|| format!("{what} is negative"))
    }

    fn text(&mut self, what: &str) -> anyhow::Result<String> {
        let len = self.count(what)?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }
}

fn read_dat(bytes: &[u8]) -> anyhow::Result<ImportanceFile> {
    let mut dat = Dat(bytes);
    let mut read = ImportanceFile::default();
    let n_entries = dat.count("the number of entries")?;
    for _ in 0..n_entries {
        let name = dat.text("a tensor's name")?;
        let n_calls = dat.count("the number of calls")?.max(1) as f32;
        let n_values = dat.count("the number of values")?;
        let values = dat.take(n_values.checked_mul(4).context("the number of values is too large")?, "the values")?;
        let mean = values.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes) / n_calls);
        let tokens = n_calls * CHUNK_TOKENS;
        let squares = mean.map(|mean| mean * tokens).collect();
        read.tensors.insert(name, StoredImportance { squares, tokens: vec![tokens] });
    }
    // The end came later than the format: the last call, and the text's name.
    if dat.count("the last call").is_ok() {
        read.datasets.extend(dat.text("the text's name").ok().filter(|name| !name.is_empty()));
    }
    Ok(read)
}

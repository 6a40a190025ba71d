//! How much each column of each matrix matters: the mean square of what it is multiplied with, over a text.
//!
//! Quantization then spends its precision where the model uses it. Files are llama.cpp's, see `importance_file`; written is
//! the newer kind, with all experts of a layer in one tensor.
//!
//! An expert that saw too few tokens has no opinion of its own. The rule: below [`MIN_TOKENS`] tokens it gets the mean of
//! all experts of its layer, each token counted once; where no expert of the layer saw any, the matrix is quantized without.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, bail};
use octet_checkpoint::gguf::{Array, Value};
use octet_checkpoint::write::{self, NewTensor, Plan};
use octet_checkpoint::{ElementType, ExpertMatrix, LayerTensor, Params, TensorName};
use octet_model::Record;

use crate::importance_file::{self, StoredImportance};

/// Tokens that an expert must have seen for its own figures to be used.
pub const MIN_TOKENS: u64 = 64;

/// What a text taught about a model's matrices.
#[derive(Debug, Default)]
pub struct Importance {
    matrices: HashMap<TensorName, Seen>,
    /// The texts, by name.
    pub datasets: Vec<String>,
}

/// What one matrix was multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// Sum of squares of each column `[cols]`.
    squares: Vec<f64>,
    tokens: u64,
}

impl Seen {
    /// The sums as a file holds them, so that what is learned now and what is read later are the same.
    fn stored(&self) -> impl Iterator<Item = f32> {
        self.squares.iter().map(|&sum| sum as f32)
    }
}

/// Collects while the model runs. The head is left out: it is kept finer in any case, and would need the logits of
/// every token.
impl Record for Importance {
    fn input(&mut self, layer: usize, tensor: LayerTensor, x: &[f32], cols: usize) {
        self.add(TensorName::Layer(layer, tensor), x, cols);
    }
}

impl Importance {
    /// Counts the rows of `x [rows, cols]` as inputs of a matrix.
    fn add(&mut self, name: TensorName, x: &[f32], cols: usize) {
        let seen = self.matrices.entry(name).or_default();
        seen.squares.resize(cols, 0.0);
        for row in x.chunks_exact(cols) {
            for (sum, x) in seen.squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            seen.tokens += 1;
        }
    }

    /// The importance of each column of a matrix `[cols]`; `None` where nothing is known of it.
    ///
    /// Tied embeddings are multiplied as the output head, so they are asked for under that name.
    pub fn of(&self, name: TensorName) -> Option<Vec<f32>> {
        let seen = self.matrices.get(&name).filter(|seen| seen.tokens > 0)?;
        let mean: Vec<f32> = seen.stored().map(|sum| (f64::from(sum) / seen.tokens as f64) as f32).collect();
        // All zero or not finite says nothing about which column matters.
        (mean.iter().all(|x| x.is_finite()) && mean.iter().any(|&x| x > 0.0)).then_some(mean)
    }

    /// Tokens that a matrix saw.
    pub fn tokens(&self, name: TensorName) -> u64 {
        self.matrices.get(&name).map_or(0, |seen| seen.tokens)
    }

    /// Gives experts that saw fewer than [`MIN_TOKENS`] tokens the mean of their layer. Returns which these were: layer,
    /// expert, tokens seen.
    pub fn lend_to_unseen(&mut self, params: &Params) -> Vec<(usize, usize, u64)> {
        let mut unseen = BTreeSet::new();
        for layer in 0..params.n_layers {
            for matrix in [ExpertMatrix::W1, ExpertMatrix::W2, ExpertMatrix::W3] {
                let name = |e| TensorName::Layer(layer, LayerTensor::Expert(e, matrix));
                let few: Vec<_> = (0..params.n_experts()).filter(|&e| self.tokens(name(e)) < MIN_TOKENS).collect();
                unseen.extend(few.iter().map(|&e| (layer, e, self.tokens(name(e)))));
                let all = sum((0..params.n_experts()).filter_map(|e| self.matrices.get(&name(e))));
                for expert in few {
                    self.matrices.insert(name(expert), all.clone());
                }
            }
        }
        unseen.into_iter().collect()
    }

    /// Reads what llama-imatrix or [`Importance::plan`] wrote. Errors: another kind of file, or one of a model of another
    /// shape.
    pub fn read(path: &Path, params: &Params) -> anyhow::Result<Importance> {
        let file = importance_file::read(path)?;
        let mut importance = Importance { datasets: file.datasets, ..Importance::default() };
        for name in matrices(params) {
            let (merged, index, n) = stored_place(params, name);
            let single = single_expert(name);
            let found = file.tensors.get_key_value(&merged).map(|found| (found, index, n));
            let found = found.or_else(|| Some((file.tensors.get_key_value(single.as_ref()?)?, 0, 1)));
            if let Some(((stored_name, stored), index, n)) = found {
                let [_, cols] = params.shape(name);
                let seen = part(stored, index, n, cols).with_context(|| {
                    let has = stored.squares.len();
                    let what = format!(
                        "{has} columns of importance, but this model needs {n} x {cols}; it is another model's"
                    );
                    format!("{}: {stored_name} has {what}", path.display())
                })?;
                importance.matrices.insert(name, seen);
            }
        }
        if importance.matrices.is_empty() {
            bail!("{}: holds no importance of this model's matrices; make one with --calibrate", path.display());
        }
        Ok(importance)
    }

    /// Lays out the file that llama.cpp's tools and [`Importance::read`] read.
    pub fn plan(&self, params: &Params) -> Plan<'static> {
        // A merged tensor is written if any of its experts was seen; the others count as unseen.
        let place = |name| stored_place(params, name);
        let seen: BTreeSet<String> =
            matrices(params).filter(|name| self.matrices.contains_key(name)).map(|name| place(name).0).collect();
        let names = matrices(params).filter(|&name| place(name).1 == 0 && seen.contains(&place(name).0));
        let tensors = names.flat_map(|name| self.stored_tensors(params, name)).collect();
        let metadata = [
            ("general.type", Value::String("imatrix".into())),
            ("imatrix.datasets", Value::Array(Array::String(self.datasets.clone()))),
            ("imatrix.chunk_count", Value::U32(1)),
            (
                "imatrix.chunk_size",
                Value::U32(params.context_length.and_then(|n| u32::try_from(n).ok()).unwrap_or(512)),
            ),
        ];
        write::gguf::plan(&metadata.map(|(key, value)| (key.to_owned(), value)), tensors)
    }

    /// `in_sum2` and `counts` of the stored tensor that `first` begins.
    fn stored_tensors(&self, params: &Params, first: TensorName) -> [NewTensor<'static>; 2] {
        let (stored, _, n) = stored_place(params, first);
        let [_, cols] = params.shape(first);
        let none = Seen { squares: vec![0.0; cols], tokens: 0 };
        let experts = (0..n).map(|index| self.matrices.get(&with_expert(first, index)).unwrap_or(&none));
        let (mut sums, mut counts) = (Vec::new(), Vec::new());
        for seen in experts {
            sums.extend(seen.stored().flat_map(f32::to_le_bytes));
            counts.extend((seen.tokens as f32).to_le_bytes());
        }
        let tensor = |suffix, cols: usize, bytes: Vec<u8>| {
            let fill = move |rows: std::ops::Range<usize>, out: &mut [u8]| {
                out.copy_from_slice(&bytes[rows.start * cols * 4..rows.end * cols * 4]);
                Ok(())
            };
            let shape = vec![n as u64, cols as u64];
            NewTensor::new(format!("{stored}.{suffix}"), ElementType::F32, shape, Box::new(fill))
        };
        [tensor("in_sum2", cols, sums), tensor("counts", 1, counts)]
    }
}

/// The matrices that multiply something; the embedding only where it is the output head too.
fn matrices(params: &Params) -> impl Iterator<Item = TensorName> + use<> {
    let head = params.tied_embeddings.then_some(TensorName::Output);
    params.tensors().filter(|name| matches!(name, TensorName::Layer(..) | TensorName::Output)).chain(head)
}

/// The stored tensor that holds a matrix, its number in it, and how many that one holds.
fn stored_place(params: &Params, name: TensorName) -> (String, usize, usize) {
    let stored = match name {
        TensorName::Output if params.tied_embeddings => TensorName::TokenEmbedding.gguf(None),
        _ => name.gguf(params.moe),
    };
    match name {
        TensorName::Layer(_, LayerTensor::Expert(expert, _)) => (stored, expert, params.n_experts()),
        _ => (stored, 0, 1),
    }
}

fn with_expert(name: TensorName, index: usize) -> TensorName {
    match name {
        TensorName::Layer(layer, LayerTensor::Expert(_, matrix)) => {
            TensorName::Layer(layer, LayerTensor::Expert(index, matrix))
        }
        _ => name,
    }
}

/// The name that an expert's matrix had before experts were merged, in files of up to April 2024.
fn single_expert(name: TensorName) -> Option<String> {
    let TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)) = name else { return None };
    Some(format!("blk.{layer}.ffn_{}.{expert}.weight", matrix.gguf()))
}

/// What the `index`-th of the `n` matrices of a stored tensor saw; `None` if their columns are not `cols` each.
fn part(stored: &StoredImportance, index: usize, n: usize, cols: usize) -> Option<Seen> {
    if stored.squares.len() != n * cols || (stored.tokens.len() != n && stored.tokens.len() != 1) {
        return None;
    }
    let squares: Vec<f64> = stored.squares[index * cols..][..cols].iter().map(|&x| f64::from(x)).collect();
    let tokens = stored.tokens[index.min(stored.tokens.len() - 1)].max(0.0) as u64;
    // The older format says of an expert that saw nothing that all columns matter alike.
    let says_nothing = n > stored.tokens.len() && squares.iter().all(|x| *x == squares[0]);
    Some(Seen { squares, tokens: if says_nothing { 0 } else { tokens } })
}

fn sum<'a>(all: impl Iterator<Item = &'a Seen>) -> Seen {
    let mut total = Seen::default();
    for seen in all {
        total.squares.resize(seen.squares.len(), 0.0);
        total.squares.iter_mut().zip(seen.stored()).for_each(|(total, x)| *total += f64::from(x));
        total.tokens += seen.tokens;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_checkpoint::write::{Existing, Job};

    fn params() -> Params {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        let folder = std::env::var("OCTET_FIXTURES").unwrap_or_else(|_| folder.into());
        Params::read(&Path::new(&folder).join("mixtral-4x3")).unwrap()
    }

    fn w2(layer: usize, expert: usize) -> TensorName {
        TensorName::Layer(layer, LayerTensor::Expert(expert, ExpertMatrix::W2))
    }

    #[test]
    fn the_mean_square_of_each_column() {
        let mut importance = Importance::default();
        importance.input(0, LayerTensor::Wq, &[1.0, 2.0, 3.0, 4.0], 2);
        importance.input(0, LayerTensor::Wq, &[2.0, 0.0], 2);
        assert_eq!(importance.of(TensorName::Layer(0, LayerTensor::Wq)), Some(vec![14.0 / 3.0, 20.0 / 3.0]));
        assert_eq!(importance.of(TensorName::Layer(0, LayerTensor::Wk)), None);
    }

    #[test]
    fn experts_that_saw_little_get_the_mean_of_their_layer() {
        let params = params();
        let [_, cols] = params.shape(w2(0, 0));
        let mut importance = Importance::default();
        importance.add(w2(1, 0), &vec![1.0; 100 * cols], cols);
        importance.add(w2(1, 1), &vec![2.0; 300 * cols], cols);
        importance.add(w2(1, 2), &vec![3.0; cols], cols);
        let unseen = importance.lend_to_unseen(&params);
        assert!(unseen.contains(&(1, 2, 1)) && unseen.contains(&(1, 3, 0)) && unseen.contains(&(0, 0, 0)));
        assert_eq!(importance.of(w2(1, 0)), Some(vec![1.0; cols]));
        assert_eq!(importance.of(w2(1, 1)), Some(vec![4.0; cols]));
        let mean = (100.0 + 4.0 * 300.0 + 9.0) / 401.0;
        assert_eq!(importance.of(w2(1, 2)), Some(vec![mean; cols]));
        assert_eq!(importance.of(w2(1, 3)), Some(vec![mean; cols]));
        assert_eq!(importance.of(w2(0, 0)), None);
    }

    #[test]
    fn a_written_file_is_read_back() {
        let params = params();
        let [_, cols] = params.shape(w2(0, 0));
        let mut importance = Importance { datasets: vec!["text.txt".into()], ..Importance::default() };
        importance.add(w2(1, 2), &(0..2 * cols).map(|i| i as f32).collect::<Vec<_>>(), cols);
        importance.add(TensorName::Output, &vec![0.5; params.dim], params.dim);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("imatrix.gguf");
        let job = Job { out: out.clone(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
        job.run(&importance.plan(&params), &mut |_| {}).unwrap();
        let read = Importance::read(&out, &params).unwrap();
        assert_eq!(read.datasets, importance.datasets);
        assert_eq!(read.of(w2(1, 2)), importance.of(w2(1, 2)));
        assert_eq!(read.tokens(w2(1, 2)), 2);
        assert_eq!(read.of(w2(1, 0)), None);
        assert_eq!(read.of(TensorName::Output), Some(vec![0.25; params.dim]));
        let other = Params { dim: params.dim * 2, ..params };
        assert!(Importance::read(&out, &other).unwrap_err().to_string().contains("another model's"));
    }

    /// An entry of a `.dat`.
    fn entry(name: &str, n_calls: i32, values: &[f32]) -> Vec<u8> {
        let mut bytes = (name.len() as i32).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        bytes.extend([n_calls, values.len() as i32].into_iter().flat_map(i32::to_le_bytes));
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    #[test]
    fn the_older_format_is_read_with_either_naming_of_experts() {
        let params = params();
        let [_, cols] = params.shape(w2(0, 0));
        let merged: Vec<f32> = (0..4 * cols).map(|i| if i < cols { 7.0 } else { i as f32 }).collect();
        let single: Vec<f32> = (0..cols).map(|i| 2.0 * i as f32).collect();
        let entries = [entry("blk.0.ffn_down_exps.weight", 7, &merged), entry("blk.1.ffn_down.3.weight", 2, &single)];
        let mut bytes = 2i32.to_le_bytes().to_vec();
        entries.iter().for_each(|entry| bytes.extend(entry));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.dat");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Importance::read(&path, &params)
        };
        for end in [&[][..], &[9, 0, 0, 0, 4, 0, 0, 0, b't', b'e', b'x', b't']] {
            let read = read(&[&bytes, end].concat()).unwrap();
            let expected: Vec<f32> = (cols..2 * cols).map(|i| i as f32 / 7.0).collect();
            let got = read.of(w2(0, 1)).unwrap();
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * b), "{got:?}");
            assert_eq!(read.of(w2(0, 0)), None, "an expert whose columns are all alike saw nothing");
            assert_eq!(read.of(w2(1, 3)).unwrap()[5], 5.0);
            assert_eq!(read.datasets.first().map(String::as_str), (!end.is_empty()).then_some("text"));
        }
        for len in (0..bytes.len()).step_by(13) {
            let error = format!("{:#}", read(&bytes[..len]).unwrap_err());
            assert!(error.contains("imatrix.dat") && error.contains("ends within"), "{error}");
        }
        assert!(format!("{:#}", read(&[255; 64]).unwrap_err()).contains("negative"));
    }
}

//! From the checkpoint's bytes to packed matrices: each tensor is read once, packed by all threads, and its file pages are
//! let go, so that resident memory holds one copy of the weights. A large model whose file is in the page cache may answer
//! before that, and be packed while it works.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Tensor, TensorName};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::quantize::{fallback, quantize_row};
use octet_kernels::{PackedMatrix, RowSource, ThreadPool, Unsettled};

use crate::attention::Attention;
use crate::experts::ExpertWeights;
use crate::layer::Layer;
use crate::{Config, Error, LoadOptions, Packing};

/// Everything but the embedding table.
pub(crate) struct Weights {
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    pub(crate) output: PackedMatrix,
    /// Matrices that are to be packed while the model works.
    pub(crate) unsettled: Vec<Unsettled>,
}

/// From this size on a model is packed [while it works](Packing::Meanwhile) if its file is in the page cache: smaller ones
/// are packed in a second.
const LARGE_BYTES: u64 = 2 << 30;

/// Reads all weights, and packs them as the options say.
pub(crate) fn load(
    checkpoint: &Arc<Checkpoint>,
    config: &Config,
    pool: &ThreadPool,
    options: LoadOptions<'_>,
) -> Result<Weights, Error> {
    let mut loader = Loader::new(checkpoint, pool, options);
    let layers = (0..config.n_layers).map(|index| loader.layer(config, index)).collect::<Result<_, _>>()?;
    let norm = loader.vector(TensorName::OutputNorm)?;
    let output = loader.head()?;
    if loader.unsettled.is_empty() {
        // Once more for all: reading a tensor maps pages around it too, of neighbours that were let go before.
        forget_pages(checkpoint, Share::All);
    }
    Ok(Weights { layers, norm, output, unsettled: loader.unsettled })
}

/// Which tensors are meant, so that two threads can share them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    All,
    Even,
    Odd,
}

/// Lets go of the pages of tensors.
pub(crate) fn forget_pages(checkpoint: &Checkpoint, share: Share) {
    let tensors = checkpoint.params().tensors().filter_map(|name| checkpoint.find(name));
    let (first, step) = match share {
        Share::All => (0, 1),
        Share::Even => (0, 2),
        Share::Odd => (1, 2),
    };
    tensors.skip(first).step_by(step).for_each(|tensor| tensor.forget_pages());
}

/// A tensor whose rows are read when they are needed.
struct FileRows {
    checkpoint: Arc<Checkpoint>,
    name: TensorName,
}

impl FileRows {
    fn tensor(&self) -> Tensor<'_> {
        self.checkpoint.find(self.name).expect("it was found when the model was loaded")
    }
}

impl RowSource for FileRows {
    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) {
        self.tensor().read_rows(rows, out);
    }

    fn borrow_rows(&self, rows: Range<usize>) -> Option<&[u8]> {
        let tensor = self.tensor();
        Some(&tensor.borrow()?[rows.start * tensor.row_bytes()..rows.end * tensor.row_bytes()])
    }

    fn forget(&self) {
        self.tensor().forget_pages();
    }
}

fn bytes(tensor: &Tensor<'_>) -> u64 {
    tensor.rows() as u64 * tensor.row_bytes() as u64
}

/// Reads tensors one by one, and tells how far it is.
pub(crate) struct Loader<'a, 'p> {
    checkpoint: &'a Arc<Checkpoint>,
    pool: &'a ThreadPool,
    options: LoadOptions<'p>,
    /// Whether matrices are packed while the model works.
    meanwhile: bool,
    unsettled: Vec<Unsettled>,
    done: u64,
    total: u64,
}

impl<'a, 'p> Loader<'a, 'p> {
    pub(crate) fn new(
        checkpoint: &'a Arc<Checkpoint>,
        pool: &'a ThreadPool,
        options: LoadOptions<'p>,
    ) -> Loader<'a, 'p> {
        let total = checkpoint.params().tensors().filter_map(|name| checkpoint.find(name)).map(|t| bytes(&t)).sum();
        let meanwhile = match options.packing {
            Packing::AtOnce => false,
            Packing::Meanwhile => true,
            Packing::Auto => total >= LARGE_BYTES && checkpoint.is_in_page_cache(),
        };
        Loader { checkpoint, pool, options, meanwhile, unsettled: Vec::new(), done: 0, total }
    }

    fn layer(&mut self, config: &Config, index: usize) -> Result<Layer, Error> {
        let mut layer = self.layer_without_experts(config, index)?;
        layer.experts = (0..config.num_experts).map(|e| self.expert(index, e)).collect::<Result<_, Error>>()?;
        Ok(layer)
    }

    /// A layer's norms, attention and router.
    pub(crate) fn layer_without_experts(&mut self, config: &Config, index: usize) -> Result<Layer, Error> {
        use LayerTensor::*;
        let at = |tensor| TensorName::Layer(index, tensor);
        Ok(Layer {
            attention_norm: self.vector(at(AttentionNorm))?,
            attention: Attention {
                wq: self.matrix(at(Wq))?,
                wk: self.matrix(at(Wk))?,
                wv: self.matrix(at(Wv))?,
                wo: self.matrix(at(Wo))?,
            },
            ffn_norm: self.vector(at(FfnNorm))?,
            router: if config.routed { Some(self.router(at(Router))?) } else { None },
            experts: Vec::new(),
        })
    }

    pub(crate) fn expert(&mut self, layer: usize, expert: usize) -> Result<ExpertWeights, Error> {
        let mut matrix = |matrix| self.matrix(TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)));
        Ok(ExpertWeights {
            w1: matrix(ExpertMatrix::W1)?,
            w2: matrix(ExpertMatrix::W2)?,
            w3: matrix(ExpertMatrix::W3)?,
        })
    }

    /// The output head, be it the embedding's matrix too.
    pub(crate) fn head(&mut self) -> Result<PackedMatrix, Error> {
        match self.checkpoint.params().tied_embeddings {
            true => self.matrix(TensorName::TokenEmbedding),
            false => self.matrix(TensorName::Output),
        }
    }

    pub(crate) fn vector(&mut self, name: TensorName) -> Result<Vec<f32>, Error> {
        let tensor = self.checkpoint.tensor(name)?;
        let values = floats(&tensor, 0..1);
        self.count(&tensor);
        Ok(values)
    }

    /// The router runs in f32 whatever its file holds.
    fn router(&mut self, name: TensorName) -> Result<PackedMatrix, Error> {
        let tensor = self.checkpoint.tensor(name)?;
        let read = |rows: Range<usize>, out: &mut [u8]| {
            for (bytes, value) in out.chunks_exact_mut(4).zip(floats(&tensor, rows)) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        };
        let packed = PackedMatrix::pack(self.pool, ElementType::F32, tensor.rows(), tensor.cols(), &read);
        self.count(&tensor);
        Ok(packed)
    }

    fn matrix(&mut self, name: TensorName) -> Result<PackedMatrix, Error> {
        let tensor = self.checkpoint.tensor(name)?;
        let (kind, rows, cols) = (tensor.element_type(), tensor.rows(), tensor.cols());
        let source = FileRows { checkpoint: Arc::clone(self.checkpoint), name };
        let packed = match self.options.quantize {
            Some(asked) if !kind.is_quantized() => self.quantized(&tensor, fallback(asked, cols))?,
            // Rows that are scattered over the file are slow to read again and again.
            _ if self.meanwhile && tensor.has_whole_rows() => {
                let matrix = PackedMatrix::later(kind, rows, cols, Box::new(source));
                self.unsettled.extend(matrix.unsettled());
                return Ok(matrix);
            }
            _ => PackedMatrix::pack(self.pool, kind, rows, cols, &source),
        };
        self.count(&tensor);
        Ok(packed)
    }

    /// Quantizes a float tensor while it is packed: full precision is held for a few rows alone.
    fn quantized(&self, tensor: &Tensor<'_>, to: ElementType) -> Result<PackedMatrix, Error> {
        let failed = Mutex::new(None);
        let read = |rows: Range<usize>, out: &mut [u8]| {
            let row_bytes = out.len() / rows.len().max(1);
            let values = floats(tensor, rows);
            for (values, out) in values.chunks_exact(tensor.cols()).zip(out.chunks_exact_mut(row_bytes.max(1))) {
                if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(*value);
                }
                quantize_row(to, values, None, out);
            }
        };
        let packed = PackedMatrix::pack(self.pool, to, tensor.rows(), tensor.cols(), &read);
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(value) => Err(Error::NotFinite { tensor: tensor.stored_name().to_string(), value }),
            None => Ok(packed),
        }
    }

    fn count(&mut self, tensor: &Tensor<'_>) {
        tensor.forget_pages();
        self.done += bytes(tensor);
        if let Some(progress) = &mut self.options.progress {
            progress(self.done, self.total);
        }
    }
}

/// `rows` of a tensor as floats `[rows, cols]`, whatever type they are stored in.
pub fn floats(tensor: &Tensor<'_>, rows: Range<usize>) -> Vec<f32> {
    let mut bytes = vec![0; rows.len() * tensor.row_bytes()];
    let mut values = vec![0.0; rows.len() * tensor.cols()];
    tensor.read_rows(rows, &mut bytes);
    for (bytes, values) in bytes.chunks_exact(tensor.row_bytes()).zip(values.chunks_exact_mut(tensor.cols())) {
        dequantize_row(tensor.element_type(), bytes, values);
    }
    values
}

//! A model in training out of a checkpoint, and an adapter out of what was trained.

use std::sync::{Arc, Mutex};

use octet_checkpoint::{Checkpoint, ExpertMatrix, LayerTensor, Params, TensorName};
use octet_kernels::{Rope, ThreadPool};
use octet_model::{Adapter, Config, floats};

use super::sketch::Blank;

use super::{Model, Trained};
use crate::attention::Attention;
use crate::embedding::Embedding;
use crate::experts;
use crate::layer::Layer;
use crate::linear::{Frozen, Linear, LoraPlace, Weight};
use crate::norm::Norm;
use crate::{Error, Parameter, ParameterName, Parameters};

impl Model {
    /// Reads what is trained, and leaves the rest where it lies in the checkpoint. `threads` is at least 1.
    ///
    /// # Errors
    /// A tensor that cannot be read, a model that we do not run, or an adapter of another shape.
    pub fn new(checkpoint: Arc<Checkpoint>, threads: usize, trained: Trained) -> Result<Model, Error> {
        let mut model = Model::build(Source::Files(&checkpoint), threads, &trained)?;
        model.checkpoint = Some(checkpoint);
        Ok(model)
    }

    /// The same, wherever the numbers come from.
    pub(super) fn build(source: Source<'_>, threads: usize, trained: &Trained) -> Result<Model, Error> {
        let config = Config::new(source.params())?;
        let adapter = match trained {
            Trained::Adapter(adapter) => Some(adapter),
            Trained::All | Trained::Nothing => None,
        };
        if let Some(adapter) = adapter {
            adapter.check(source.params())?;
        }
        let all = *trained == Trained::All;
        let mut builder = Builder { source, adapter, all, parameters: Parameters::default() };
        let embedding = builder.weight(TensorName::TokenEmbedding)?;
        let layers = (0..config.n_layers).map(|index| builder.layer(&config, index)).collect::<Result<_, _>>()?;
        let norm = builder.norm(TensorName::OutputNorm, &config)?;
        let head = builder.head(&embedding)?;
        let parameters = builder.parameters;
        Ok(Model {
            rope: Rope::new(config.head_dim, config.rope_theta),
            pool: ThreadPool::new(threads),
            embedding: Embedding { weight: embedding, dim: config.dim },
            layers,
            norm,
            head,
            parameters,
            adapter: adapter.map(Adapter::without_numbers),
            buffers: Mutex::default(),
            checkpoint: None,
            config,
        })
    }

    /// The adapter as it has been trained so far; `None` if there is none.
    pub fn adapter(&self) -> Option<Adapter> {
        let mut adapter = self.adapter.clone()?;
        for parameter in self.parameters.iter() {
            let (ParameterName::LoraA(name) | ParameterName::LoraB(name)) = parameter.name else { continue };
            let change = adapter.matrices.get_mut(&name).expect("parameters were made of the adapter's matrices");
            let numbers = if matches!(parameter.name, ParameterName::LoraA(_)) { &mut change.a } else { &mut change.b };
            numbers.clone_from(&parameter.values);
        }
        Some(adapter)
    }
}

/// Where a model's numbers come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Files(&'a Checkpoint),
    Blank(&'a Blank<'a>),
}

impl<'a> Source<'a> {
    fn params(self) -> &'a Params {
        match self {
            Source::Files(checkpoint) => checkpoint.params(),
            Source::Blank(blank) => blank.params,
        }
    }

    fn frozen(self, name: TensorName) -> Result<Frozen, Error> {
        match self {
            Source::Files(checkpoint) => Frozen::new(checkpoint, name),
            Source::Blank(blank) => Ok(blank.frozen(name)),
        }
    }

    fn values(self, name: TensorName) -> Result<Vec<f32>, Error> {
        let Source::Files(checkpoint) = self else { return Ok(Blank::values(name, self.params().shape(name))) };
        let tensor = checkpoint.tensor(name)?;
        let values = floats(&tensor, 0..tensor.rows());
        tensor.forget_pages();
        Ok(values)
    }
}

struct Builder<'a> {
    source: Source<'a>,
    adapter: Option<&'a Adapter>,
    all: bool,
    parameters: Parameters,
}

impl Builder<'_> {
    fn weight(&mut self, name: TensorName) -> Result<Weight, Error> {
        if !self.all {
            return Ok(Weight::Frozen(self.source.frozen(name)?));
        }
        let (values, shape) = (self.source.values(name)?, self.source.params().shape(name));
        Ok(Weight::Trained(self.parameters.add(Parameter { name: ParameterName::Weight(name), shape, values })))
    }

    fn linear(&mut self, name: TensorName) -> Result<Linear, Error> {
        let weight = self.weight(name)?;
        Ok(self.with_lora(name, weight))
    }

    fn with_lora(&mut self, name: TensorName, weight: Weight) -> Linear {
        let [rows, cols] = self.source.params().shape(name);
        let change = self.adapter.and_then(|adapter| Some((adapter, adapter.matrices.get(&name)?)));
        let lora = change.map(|(adapter, change)| {
            let (rank, scale) = (change.rank, change.scale);
            let a = Parameter { name: ParameterName::LoraA(name), shape: [rank, cols], values: change.a.clone() };
            let b = Parameter { name: ParameterName::LoraB(name), shape: [rows, rank], values: change.b.clone() };
            let dropout = adapter.options.dropout;
            LoraPlace { a: self.parameters.add(a), b: self.parameters.add(b), rank, scale, dropout }
        });
        Linear { rows, cols, weight, lora }
    }

    /// A tied head shares the embedding's numbers, and their gradient.
    fn head(&mut self, embedding: &Weight) -> Result<Linear, Error> {
        if !self.source.params().tied_embeddings {
            return self.linear(TensorName::Output);
        }
        let weight = match embedding {
            Weight::Trained(index) => Weight::Trained(*index),
            Weight::Frozen(_) => Weight::Frozen(self.source.frozen(TensorName::TokenEmbedding)?),
        };
        Ok(self.with_lora(TensorName::Output, weight))
    }

    fn norm(&mut self, name: TensorName, config: &Config) -> Result<Norm, Error> {
        Ok(Norm { weight: self.weight(name)?, dim: config.dim, eps: config.norm_eps })
    }

    fn layer(&mut self, config: &Config, index: usize) -> Result<Layer, Error> {
        use LayerTensor::*;
        let at = |tensor| TensorName::Layer(index, tensor);
        Ok(Layer {
            attention_norm: self.norm(at(AttentionNorm), config)?,
            attention: Attention {
                wq: self.linear(at(Wq))?,
                wk: self.linear(at(Wk))?,
                wv: self.linear(at(Wv))?,
                wo: self.linear(at(Wo))?,
            },
            ffn_norm: self.norm(at(FfnNorm), config)?,
            router: if config.routed { Some(self.linear(at(Router))?) } else { None },
            experts: (0..config.num_experts)
                .map(|e| {
                    Ok(experts::Expert {
                        w1: self.linear(at(Expert(e, ExpertMatrix::W1)))?,
                        w2: self.linear(at(Expert(e, ExpertMatrix::W2)))?,
                        w3: self.linear(at(Expert(e, ExpertMatrix::W3)))?,
                    })
                })
                .collect::<Result<_, Error>>()?,
            per_token: config.num_experts_per_tok,
        })
    }
}

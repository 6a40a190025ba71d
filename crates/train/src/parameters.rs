//! What is trained: named arrays of f32, and gradients of the same shapes.

use std::fmt;

use octet_checkpoint::TensorName;

/// What a trained array is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParameterName {
    /// A tensor of the model.
    Weight(TensorName),
    /// `A [rank, cols]` of the low-rank change `scale · B A` of a matrix.
    LoraA(TensorName),
    /// `B [rows, rank]` of the same.
    LoraB(TensorName),
}

/// Mistral's name of the tensor, with `.lora_A` or `.lora_B` for the parts of its change. One name a parameter.
impl fmt::Display for ParameterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParameterName::Weight(name) => name.fmt(f),
            ParameterName::LoraA(name) => write!(f, "{name}.lora_A"),
            ParameterName::LoraB(name) => write!(f, "{name}.lora_B"),
        }
    }
}

/// A trained array.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// What it is.
    pub name: ParameterName,
    /// Rows and columns; a vector has one row. Rows stand in canonical order (see `octet_checkpoint::Tensor`).
    pub shape: [usize; 2],
    /// `[rows, cols]`.
    pub values: Vec<f32>,
}

impl Parameter {
    /// True for matrices, which weight decay shrinks; norms are left alone.
    pub fn decays(&self) -> bool {
        self.shape[0] > 1
    }
}

/// All trained arrays of a model, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(pub(crate) Vec<Parameter>);

impl Parameters {
    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.0.iter()
    }

    /// In order, to be changed by an optimizer.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Parameter> {
        self.0.iter_mut()
    }

    /// Trained numbers in all.
    pub fn n_values(&self) -> usize {
        self.0.iter().map(|p| p.values.len()).sum()
    }

    /// Gradients of zero for all of them.
    pub fn zero_gradients(&self) -> Gradients {
        Gradients(self.0.iter().map(|p| vec![0.0; p.values.len()]).collect())
    }

    pub(crate) fn add(&mut self, parameter: Parameter) -> usize {
        self.0.push(parameter);
        self.0.len() - 1
    }
}

/// A derivative of the loss for every number of [`Parameters`], in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients(pub(crate) Vec<Vec<f32>>);

impl Gradients {
    /// One array a parameter, in the parameters' order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.0.iter_mut().map(Vec::as_mut_slice)
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(|g| g.fill(0.0));
    }

    /// The length of all gradients as one vector.
    pub fn norm(&self) -> f64 {
        // Sums of 4096 squares in f32 keep six digits and let the compiler use wide instructions.
        let squares = |g: &[f32]| g.chunks(4096).map(|c| f64::from(c.iter().map(|x| x * x).sum::<f32>())).sum::<f64>();
        self.iter().map(squares).sum::<f64>().sqrt()
    }
}

//! The models that `train` trains: softmax regression, a linear SVM and a multi-layer perceptron. All parameters of a
//! model are in one flat buffer, and all gradients in another. Every tensor starts on a multiple of four elements, and
//! the padding between tensors is zero.

pub mod cpu;
pub mod gpu;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use clap::ValueEnum;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::memory;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelKind {
    /// Softmax regression: logits x W + b, mean cross-entropy.
    Softmax,
    /// Linear SVM, one against the rest: the squared hinge max(0, 1 - y s)², summed over classes, mean over rows.
    Svm,
    /// One hidden layer of ReLU units, then softmax regression.
    Mlp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    pub kind: ModelKind,
    pub features: usize,
    pub classes: usize,
    /// Number of hidden units, 0 for the linear models.
    pub hidden: usize,
}

/// Row-major matrix within the flat parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorShape {
    pub name: &'static str,
    pub offset: usize,
    /// Number of inputs of a weight matrix, 1 for a bias.
    pub rows: usize,
    pub cols: usize,
}

impl TensorShape {
    /// Returns the range of the tensor's elements in the flat parameters.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }

    pub fn range_bytes(&self) -> Range<u64> {
        let range = self.range();
        4 * range.start as u64..4 * range.end as u64
    }
}

/// Dense layer: weights (inputs x outputs) and bias in the flat parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    pub weights: TensorShape,
    pub bias: TensorShape,
}

/// Rows that an evaluation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Train,
    Test,
}

/// Result of an evaluation over a split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    pub loss: f64,
    /// Fraction of the rows whose largest output is that of their label alone. Rows with outputs that are not finite or
    /// equal have no class and are wrong, whatever the label.
    pub accuracy: f64,
    /// Number of rows with an output that is not finite.
    pub nonfinite_rows: usize,
}

/// Reason why a model cannot run on a device.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "{what} needs {bytes} bytes, but the device binds at most {limit}: use --backend cpu, fewer rows, or a smaller --batch or --hidden"
    )]
    TooLarge { what: &'static str, bytes: u64, limit: u64 },
    #[error(
        "kernel {what} needs {value} workgroups, but the device runs at most {limit} at once: use a smaller --batch or --hidden, or --backend cpu"
    )]
    Grid { what: &'static str, value: u64, limit: u64 },
    #[error(
        "a layer adds up {terms} terms, but a loop on a device may have at most {most}: use --backend cpu, or fewer features, a smaller --hidden or --batch"
    )]
    TooLong { terms: usize, most: usize },
    #[error("{model} {problem}: use a smaller --hidden or --batch, or data with fewer features")]
    Memory { model: String, problem: String },
    #[error(transparent)]
    Device(#[from] wgpu_optim::Error),
}

impl Model {
    /// Creates a model. `hidden` is only used for the MLP.
    pub fn new(kind: ModelKind, features: usize, classes: usize, hidden: usize) -> Self {
        Model { kind, features, classes, hidden: if kind == ModelKind::Mlp { hidden } else { 0 } }
    }

    /// Returns the dense layers, from the input on.
    pub fn layers(&self) -> Vec<Layer> {
        let shapes: &[(&'static str, &'static str, usize, usize)] = match self.kind {
            ModelKind::Softmax | ModelKind::Svm => &[("weights", "bias", self.features, self.classes)],
            ModelKind::Mlp => &[
                ("hidden.weights", "hidden.bias", self.features, self.hidden),
                ("output.weights", "output.bias", self.hidden, self.classes),
            ],
        };
        let mut offset = 0;
        let mut tensor = |name, rows, cols| {
            let shape = TensorShape { name, offset, rows, cols };
            offset = (offset + rows * cols).next_multiple_of(4);
            shape
        };
        let layer = |&(weights, bias, inputs, outputs): &(_, _, _, _)| {
            let weights = tensor(weights, inputs, outputs);
            Layer { weights, bias: tensor(bias, 1, outputs) }
        };
        shapes.iter().map(layer).collect()
    }

    /// Returns all tensors in the order of the flat parameters.
    pub fn tensors(&self) -> Vec<TensorShape> {
        self.layers().iter().flat_map(|layer| [layer.weights, layer.bias]).collect()
    }

    /// Returns the number of elements of the flat parameters, including padding.
    pub fn padded_len(&self) -> usize {
        self.tensors().last().map_or(0, |last| last.range().end.next_multiple_of(4))
    }

    /// Returns an error if training in batches of this many rows does not fit in memory. No memory is allocated.
    pub fn check_memory(&self, batch: usize) -> Result<(), ModelError> {
        // The estimate covers parameters, gradients and any optimizer, and the outputs of a batch and of an evaluation.
        let widths = self.features + 2 * self.hidden + self.classes;
        let elements = 8.0 * self.padded_len() as f64 + (batch.max(1024) * widths) as f64;
        let refused = |problem| ModelError::Memory { model: self.to_string(), problem };
        memory::check(4.0 * elements).map_err(refused)
    }

    /// Returns the initial parameters. Biases and linear models start at zero. The MLP's weights are normal with
    /// variance 2/inputs (He) before the ReLU and 1/inputs (LeCun) before the softmax.
    pub fn initial_parameters(&self, seed: u64) -> Vec<f32> {
        let mut parameters = vec![0.0; self.padded_len()];
        if self.kind != ModelKind::Mlp {
            return parameters;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (layer, gain) in self.layers().iter().zip([2.0f32, 1.0]) {
            let deviation = (gain / layer.weights.rows as f32).sqrt();
            // The normal distribution only needs a finite standard deviation above 0.
            if let Ok(normal) = Normal::new(0.0, deviation) {
                for weight in &mut parameters[layer.weights.range()] {
                    *weight = normal.sample(&mut rng);
                }
            }
        }
        parameters
    }
}

/// Formats as `MLP 64-128-10 (9610 parameters)`.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters: usize = self.tensors().iter().map(|tensor| tensor.range().len()).sum();
        let (name, hidden) = match self.kind {
            ModelKind::Softmax => ("softmax regression", String::new()),
            ModelKind::Svm => ("linear SVM", String::new()),
            ModelKind::Mlp => ("MLP", format!("{}-", self.hidden)),
        };
        write!(f, "{name} {}-{hidden}{} ({parameters} parameters)", self.features, self.classes)
    }
}

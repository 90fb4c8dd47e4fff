//! Forward and backward pass on the host, with `ndarray`.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, Slice};

use crate::model::{Evaluation, Layer, Model, ModelKind, TensorShape};

/// Number of rows evaluated at a time.
const EVALUATION_ROWS: usize = 1024;

/// Model on the host, with buffers for one batch.
pub struct CpuModel {
    model: Model,
    layers: Vec<Layer>,
    /// Rows of the batch (rows x features).
    input: Array2<f32>,
    /// Output of each layer (rows x outputs), replaced by its gradient in the backward pass.
    outputs: Vec<Array2<f32>>,
    labels: Vec<u32>,
}

fn matrix<'a>(flat: &'a [f32], tensor: &TensorShape) -> ArrayView2<'a, f32> {
    ArrayView2::from_shape((tensor.rows, tensor.cols), &flat[tensor.range()])
        .expect("a tensor's range has rows x cols elements")
}

fn matrix_mut<'a>(flat: &'a mut [f32], tensor: &TensorShape) -> ArrayViewMut2<'a, f32> {
    ArrayViewMut2::from_shape((tensor.rows, tensor.cols), &mut flat[tensor.range()])
        .expect("a tensor's range has rows x cols elements")
}

/// Returns the first rows of a buffer.
fn head(buffer: &Array2<f32>, rows: usize) -> ArrayView2<'_, f32> {
    buffer.slice_axis(Axis(0), Slice::from(..rows))
}

fn head_mut(buffer: &mut Array2<f32>, rows: usize) -> ArrayViewMut2<'_, f32> {
    buffer.slice_axis_mut(Axis(0), Slice::from(..rows))
}

impl CpuModel {
    /// Creates a model with buffers for `batch` rows.
    pub fn new(model: &Model, batch: usize) -> Self {
        let layers = model.layers();
        CpuModel {
            model: *model,
            input: Array2::zeros((batch, model.features)),
            outputs: layers.iter().map(|layer| Array2::zeros((batch, layer.weights.cols))).collect(),
            labels: vec![0; batch],
            layers,
        }
    }

    /// Computes the mean loss over the rows `rows` of the data (`x` is rows x features, `y` holds classes), and its
    /// gradient.
    pub fn loss_and_gradients(
        &mut self,
        parameters: &[f32],
        x: &[f32],
        y: &[u32],
        rows: &[u32],
        gradients: &mut [f32],
    ) -> f32 {
        let loss = self.loss(parameters, x, y, rows);
        self.backward(parameters, rows.len(), gradients);
        loss
    }

    /// Computes the mean loss over the rows `rows` of the data, without a backward pass.
    pub fn loss(&mut self, parameters: &[f32], x: &[f32], y: &[u32], rows: &[u32]) -> f32 {
        let features = self.model.features;
        for (at, &row) in rows.iter().enumerate() {
            let row = row as usize;
            self.input.row_mut(at).assign(&ArrayView1::from(&x[row * features..][..features]));
            self.labels[at] = y[row];
        }
        self.forward(parameters, rows.len());
        self.loss_gradient(rows.len())
    }

    fn forward(&mut self, parameters: &[f32], count: usize) {
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let (before, after) = self.outputs.split_at_mut(index);
            let input = match before.last() {
                Some(hidden) => head(hidden, count),
                None => head(&self.input, count),
            };
            let mut output = head_mut(&mut after[0], count);
            output.assign(&matrix(parameters, &layer.bias));
            general_mat_mul(1.0, &input, &matrix(parameters, &layer.weights), 1.0, &mut output);
            if index < last {
                // `f32::max` would drop a NaN.
                output.mapv_inplace(|x| if x < 0.0 { 0.0 } else { x });
            }
        }
    }

    /// Replaces the outputs by the gradient of the mean loss, and returns the mean loss.
    fn loss_gradient(&mut self, count: usize) -> f32 {
        let kind = self.model.kind;
        let Some(outputs) = self.outputs.last_mut() else {
            return 0.0;
        };
        let share = 1.0 / count as f32;
        let mut loss = 0.0;
        let rows = outputs.rows_mut().into_iter().take(count);
        for (mut row, &label) in rows.zip(&self.labels) {
            loss += row_loss(kind, row.view_mut(), label as usize);
            row *= share;
        }
        loss * share
    }

    fn backward(&mut self, parameters: &[f32], count: usize, gradients: &mut [f32]) {
        for index in (0..self.layers.len()).rev() {
            let layer = self.layers[index];
            let (before, after) = self.outputs.split_at_mut(index);
            let output_gradient = head(&after[0], count);
            matrix_mut(gradients, &layer.bias).row_mut(0).assign(&output_gradient.sum_axis(Axis(0)));
            let mut weight_gradient = matrix_mut(gradients, &layer.weights);
            let Some(hidden) = before.last_mut() else {
                let input = head(&self.input, count);
                general_mat_mul(1.0, &input.t(), &output_gradient, 0.0, &mut weight_gradient);
                continue;
            };
            let mut hidden = head_mut(hidden, count);
            general_mat_mul(1.0, &hidden.t(), &output_gradient, 0.0, &mut weight_gradient);
            let hidden_gradient = output_gradient.dot(&matrix(parameters, &layer.weights).t());
            hidden.zip_mut_with(&hidden_gradient, |h, &g| *h = if *h == 0.0 { 0.0 } else { g });
        }
    }

    /// Computes mean loss and accuracy over all rows of a split.
    pub fn evaluate(&mut self, parameters: &[f32], x: &[f32], y: &[u32]) -> Evaluation {
        let features = self.model.features;
        let mut evaluator = CpuModel::new(&self.model, EVALUATION_ROWS.min(y.len()));
        let (mut loss, mut correct, mut nonfinite_rows) = (0.0, 0usize, 0usize);
        for (x, y) in x.chunks(EVALUATION_ROWS * features).zip(y.chunks(EVALUATION_ROWS)) {
            let rows = ArrayView2::from_shape((y.len(), features), x).expect("a chunk holds whole rows");
            head_mut(&mut evaluator.input, y.len()).assign(&rows);
            evaluator.forward(parameters, y.len());
            let Some(outputs) = evaluator.outputs.last_mut() else {
                continue;
            };
            for (row, &label) in outputs.rows_mut().into_iter().zip(y) {
                correct += usize::from(is_right(row.view(), label as usize));
                nonfinite_rows += usize::from(row.iter().any(|output| !output.is_finite()));
                loss += f64::from(row_loss(self.model.kind, row, label as usize));
            }
        }
        Evaluation { loss: loss / y.len() as f64, accuracy: correct as f64 / y.len() as f64, nonfinite_rows }
    }
}

/// Returns true if the label's output is above every other one and all are finite. Equal outputs are not right.
fn is_right(row: ArrayView1<f32>, label: usize) -> bool {
    let mut others = row.iter().enumerate().filter(|&(class, _)| class != label);
    row[label].is_finite() && others.all(|(_, &other)| other.is_finite() && row[label] > other)
}

/// Returns the largest output that is not NaN.
fn largest(row: ArrayView1<f32>) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Returns the loss of one row, and replaces its outputs by the loss's gradient.
fn row_loss(kind: ModelKind, mut row: ArrayViewMut1<f32>, label: usize) -> f32 {
    match kind {
        ModelKind::Svm => {
            let mut loss = 0.0;
            for (class, score) in row.iter_mut().enumerate() {
                let y = if class == label { 1.0 } else { -1.0 };
                let margin = 1.0 - y * *score;
                let hinge = if margin < 0.0 { 0.0 } else { margin };
                loss += hinge * hinge;
                *score = -2.0 * y * hinge;
            }
            loss
        }
        ModelKind::Softmax | ModelKind::Mlp => {
            // Subtracting the largest output keeps the exponentials from overflowing.
            let shift = largest(row.view());
            let at_label = row[label] - shift;
            let mut sum = 0.0;
            for logit in row.iter_mut() {
                *logit = (*logit - shift).exp();
                sum += *logit;
            }
            for probability in row.iter_mut() {
                *probability /= sum;
            }
            row[label] -= 1.0;
            sum.ln() - at_label
        }
    }
}

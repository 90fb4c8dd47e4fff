//! The cap on the learning rate of normalised networks (Mehmeti-Göpel & Wand 2023, arXiv:2306.00700). Trains 20 dense
//! layers with batch normalisation on the digits with SGD, at rates from moderate to far too large, with and without
//! [`TrustRatio::cap`] on the weights before a normalisation. Prints the spread of their effective learning rates.
//! Figures are in docs/beyond.md.
//!
//! ```sh
//! cargo run --release -p wgpu-optim-cli --example normalised
//! ```

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use wgpu_optim::{CpuOptimizer, Error, Group, OptimizerBuilder, Regime, Rule, TensorRecord, TrustRatio};
use wgpu_optim_cli::data::{self, Dataset, Split};

const LAYERS: usize = 20;
const WIDTH: usize = 64;
const BATCH: usize = 64;
const EPOCHS: usize = 30;
const SEEDS: u64 = 5;
const EPSILON: f32 = 1e-5;
const RATES: [f32; 3] = [0.3, 1.0, 3.0];
/// Steps for which the spread is printed.
const STEPS: [usize; 4] = [1, 2, 3, 20];

/// Values of a layer that the gradient needs.
struct Normalised {
    input: Array2<f32>,
    values: Array2<f32>,
    deviation: Array1<f32>,
    output: Array2<f32>,
}

/// Mean and variance of each layer.
type Statistics = Vec<[Array1<f32>; 2]>;

/// Network. Its tensors are the weights of all layers (inputs x outputs), then a gain and a bias of each layer but the
/// last, then the last bias.
struct Network {
    tensors: Vec<Vec<f32>>,
    sizes: Vec<[usize; 2]>,
}

impl Network {
    fn new(features: usize, classes: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let size =
            |layer| [if layer == 0 { features } else { WIDTH }, if layer + 1 == LAYERS { classes } else { WIDTH }];
        let sizes: Vec<[usize; 2]> = (0..LAYERS).map(size).collect();
        // Initialization of He et al.
        let mut weights = |[inputs, outputs]: [usize; 2]| -> Vec<f32> {
            let spread = (2.0 / inputs as f32).sqrt();
            (0..inputs * outputs).map(|_| spread * Distribution::<f32>::sample(&StandardNormal, &mut rng)).collect()
        };
        let mut tensors: Vec<Vec<f32>> = sizes.iter().map(|&size| weights(size)).collect();
        tensors.extend((1..LAYERS).flat_map(|_| [vec![1.0; WIDTH], vec![0.0; WIDTH]]));
        tensors.push(vec![0.0; classes]);
        Network { tensors, sizes }
    }

    fn weights(&self, layer: usize) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape(self.sizes[layer], &self.tensors[layer]).expect("as many as the layer has")
    }

    fn vector(&self, index: usize) -> Array1<f32> {
        Array1::from_vec(self.tensors[index].clone())
    }

    /// Returns the layers and the logits. Without `statistics`, the statistics of the rows are used.
    fn forward(&self, x: Array2<f32>, statistics: Option<&Statistics>) -> (Vec<Normalised>, Array2<f32>) {
        let mut layers: Vec<Normalised> = Vec::new();
        let mut input = x;
        for layer in 0..LAYERS - 1 {
            let sums = input.dot(&self.weights(layer));
            let [mean, variance] = match statistics {
                Some(statistics) => statistics[layer].clone(),
                None => statistics_of(&sums),
            };
            let deviation = variance.mapv(|variance| (variance + EPSILON).sqrt());
            let values = (sums - mean) / &deviation;
            let [gain, bias] = [0, 1].map(|which| self.vector(LAYERS + 2 * layer + which));
            let output = (&values * &gain + bias).mapv(|x| x.max(0.0));
            layers.push(Normalised { input, values, deviation, output: output.clone() });
            input = output;
        }
        let logits = input.dot(&self.weights(LAYERS - 1)) + self.vector(3 * LAYERS - 2);
        (layers, logits)
    }

    /// Returns the gradient of the mean cross-entropy.
    fn gradients(&self, x: Array2<f32>, y: &[usize]) -> Vec<Vec<f32>> {
        let (layers, logits) = self.forward(x, None);
        let mut gradients: Vec<Vec<f32>> = self.tensors.iter().map(|tensor| vec![0.0; tensor.len()]).collect();
        let mut slope = softmax(logits);
        for (mut row, &class) in slope.rows_mut().into_iter().zip(y) {
            row[class] -= 1.0;
        }
        slope /= y.len() as f32;
        let last = layers.last().expect("layers");
        gradients[LAYERS - 1] = flat(last.output.t().dot(&slope));
        gradients[3 * LAYERS - 2] = slope.sum_axis(Axis(0)).to_vec();
        let mut slope = slope.dot(&self.weights(LAYERS - 1).t());
        for (layer, normalised) in layers.iter().enumerate().rev() {
            slope.zip_mut_with(&normalised.output, |slope, &output| *slope *= f32::from(u8::from(output > 0.0)));
            gradients[LAYERS + 2 * layer] = (&slope * &normalised.values).sum_axis(Axis(0)).to_vec();
            gradients[LAYERS + 2 * layer + 1] = slope.sum_axis(Axis(0)).to_vec();
            let of_values = slope * self.vector(LAYERS + 2 * layer);
            let [mean, product] = [of_values.clone(), &of_values * &normalised.values].map(|x| mean(&x));
            let of_sums = (of_values - mean - &normalised.values * &product) / &normalised.deviation;
            gradients[layer] = flat(normalised.input.t().dot(&of_sums));
            slope = of_sums.dot(&self.weights(layer).t());
        }
        gradients
    }

    /// Returns the test accuracy (0 to 1) with the statistics of the training rows.
    fn accuracy(&self, dataset: &Dataset) -> f64 {
        let all = |split: &Split| batch(split, dataset.features, &(0..split.rows()).collect::<Vec<_>>());
        let mut statistics = Statistics::new();
        for layer in self.forward(all(&dataset.train).0, None).0.iter().zip(0..) {
            statistics.push(statistics_of(&layer.0.input.dot(&self.weights(layer.1))));
        }
        let (x, y) = all(&dataset.test);
        let (_, logits) = self.forward(x, Some(&statistics));
        let found = logits.rows().into_iter().map(|row| {
            let largest = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            largest.map_or(usize::MAX, |(class, _)| class)
        });
        found.zip(&y).filter(|(found, class)| found == *class).count() as f64 / y.len() as f64
    }
}

fn mean(x: &Array2<f32>) -> Array1<f32> {
    x.sum_axis(Axis(0)) / x.nrows() as f32
}

fn statistics_of(sums: &Array2<f32>) -> [Array1<f32>; 2] {
    let mean_of_rows = mean(sums);
    let differences = sums - &mean_of_rows;
    [mean_of_rows, mean(&(&differences * &differences))]
}

fn softmax(mut logits: Array2<f32>) -> Array2<f32> {
    for mut row in logits.rows_mut() {
        let largest = row.fold(f32::MIN, |a, &b| a.max(b));
        row.mapv_inplace(|x| (x - largest).exp());
        let sum = row.sum();
        row /= sum;
    }
    logits
}

fn flat(x: Array2<f32>) -> Vec<f32> {
    // A product may be stored in column-major order.
    x.iter().copied().collect()
}

fn batch(split: &Split, features: usize, rows: &[usize]) -> (Array2<f32>, Vec<usize>) {
    let all = ArrayView2::from_shape([split.rows(), features], &split.x).expect("rows of features");
    (all.select(Axis(0), rows), rows.iter().map(|&row| split.y[row] as usize).collect())
}

fn optimizer(network: &Network, rate: f32, is_capped: bool) -> Result<CpuOptimizer, Error> {
    let tensors = network.tensors.iter().enumerate();
    let add = |group: Group<_>, (index, tensor): (usize, &Vec<f32>)| {
        group.tensor(format!("tensor {index}"), &tensor[..], &tensor[..])
    };
    let is_invariant = |(index, _): &(usize, &Vec<f32>)| *index < LAYERS - 1;
    let mut weights = tensors.clone().filter(is_invariant).fold(Group::new("scale-invariant"), add);
    if is_capped {
        weights = weights.per_tensor().trust_ratio(TrustRatio { coefficient: 0.5, cap: true, ..TrustRatio::default() });
    }
    let others = tensors.filter(|tensor| !is_invariant(tensor)).fold(Group::new("others"), add);
    let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(rate)).telemetry(true);
    builder.group(weights).group(others).build_cpu()
}

/// Returns the accuracy, and the spreads of the effective learning rates at [`STEPS`].
fn run(dataset: &Dataset, seed: u64, rate: f32, is_capped: bool) -> Result<(f64, [f64; 4]), Error> {
    let mut network = Network::new(dataset.features, dataset.classes, seed);
    let mut optimizer = optimizer(&network, rate, is_capped)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1000 + seed);
    let mut rows: Vec<usize> = (0..dataset.train.rows()).collect();
    let (mut step, mut spreads) = (0, [f64::NAN; 4]);
    for _ in 0..EPOCHS {
        rows.shuffle(&mut rng);
        for rows in rows.chunks_exact(BATCH) {
            let (x, y) = batch(&dataset.train, dataset.features, rows);
            let gradients = network.gradients(x, &y);
            let mut params: Vec<&mut [f32]> = network.tensors.iter_mut().map(Vec::as_mut_slice).collect();
            optimizer.step(&mut params, &gradients)?;
            let records = optimizer.drain_records().tensors;
            step += 1;
            if let Some(place) = STEPS.iter().position(|&at| at == step) {
                let invariant = records.iter().filter(|record| record.tensor < LAYERS - 1);
                spreads[place] = TensorRecord::relative_step_spread(invariant).unwrap_or(f64::NAN);
            }
        }
    }
    Ok((100.0 * network.accuracy(dataset), spreads))
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let dataset = data::load("digits")?;
    println!(
        "| rate | cap | test accuracy, mean (worst) | spread of relative steps at steps 1, 2, 3 and 20 |\n|---|---|---|---|"
    );
    for rate in RATES {
        for is_capped in [false, true] {
            let runs = (0..SEEDS).into_par_iter().map(|seed| run(&dataset, seed, rate, is_capped));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            let mean = runs.iter().map(|run| run.0).sum::<f64>() / runs.len() as f64;
            let worst = runs.iter().map(|run| run.0).fold(f64::INFINITY, f64::min);
            let spreads = [0, 1, 2, 3].map(|at| {
                let product: f64 = runs.iter().map(|run| run.1[at].ln()).sum();
                format!("{:.1}", (product / runs.len() as f64).exp())
            });
            let cap = if is_capped { "½" } else { "none" };
            println!("| {rate} | {cap} | {mean:.1} % ({worst:.1} %) | {} |", spreads.join(", "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slope of the loss along the gradient of each tensor is the gradient's length.
    #[test]
    fn gradients_are_difference_quotients() {
        let dataset = data::load("digits").expect("a built-in set");
        let mut network = Network::new(dataset.features, dataset.classes, 1);
        let (x, y) = batch(&dataset.train, dataset.features, &(0..32).collect::<Vec<_>>());
        let gradients = network.gradients(x.clone(), &y);
        let mut loss = |tensor: usize, moved: Vec<f32>| {
            let kept = std::mem::replace(&mut network.tensors[tensor], moved);
            let probabilities = softmax(network.forward(x.clone(), None).1);
            network.tensors[tensor] = kept.clone();
            let of_rows = y.iter().enumerate().map(|(row, &class)| -f64::from(probabilities[[row, class]]).ln());
            (of_rows.sum::<f64>() / y.len() as f64, kept)
        };
        for (tensor, gradient) in gradients.iter().enumerate() {
            let length = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            let (_, start) = loss(tensor, vec![0.0; gradient.len()]);
            // Kinks of the ReLUs make the difference quotient of a deep network inexact.
            let quotients = [3e-3, 1e-3, 3e-4, 1e-4].map(|by: f32| {
                let [up, down] = [by, -by]
                    .map(|by| loss(tensor, start.iter().zip(gradient).map(|(w, g)| w + by * g / length).collect()).0);
                (up - down) / f64::from(2.0 * by)
            });
            let off = quotients.map(|quotient| (quotient / f64::from(length) - 1.0).abs());
            let least = off.into_iter().fold(f64::INFINITY, f64::min);
            assert!(least < 0.05, "tensor {tensor}: {length}, quotients {quotients:?}");
        }
    }
}

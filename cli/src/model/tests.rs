use wgpu_optim::Gpu;

use super::cpu::CpuModel;
use super::gpu::GpuModel;
use super::*;
use crate::data::{Dataset, Split};

/// Returns reproducible uniform values in [-1, 1).
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn shapes() -> Vec<Model> {
    vec![
        Model::new(ModelKind::Softmax, 5, 3, 0),
        Model::new(ModelKind::Softmax, 1, 2, 0),
        Model::new(ModelKind::Svm, 7, 10, 0),
        Model::new(ModelKind::Mlp, 5, 3, 7),
        Model::new(ModelKind::Mlp, 64, 10, 33),
        Model::new(ModelKind::Mlp, 3, 2, 1),
        // All tensors of this model consist of whole quads.
        Model::new(ModelKind::Mlp, 64, 10, 32),
        Model::new(ModelKind::Softmax, 64, 4, 0),
    ]
}

fn split(model: &Model, rows: usize, seed: u64) -> Split {
    Split {
        x: values(rows * model.features, seed),
        y: (0..rows).map(|row| ((row * 7 + seed as usize) % model.classes) as u32).collect(),
    }
}

/// Returns a data set with the given numbers of training and test rows.
fn dataset(model: &Model, rows: [usize; 2]) -> Dataset {
    let [train, test] = [split(model, rows[0], 5), split(model, rows[1], 6)];
    Dataset { name: "test".to_owned(), features: model.features, classes: model.classes, train, test }
}

/// Returns parameters of ordinary size. The padding between tensors is zero.
fn parameters_of(model: &Model, seed: u64) -> Vec<f32> {
    let mut parameters = vec![0f32; model.padded_len()];
    for tensor in model.tensors() {
        parameters[tensor.range()].copy_from_slice(&values(tensor.range().len(), seed));
    }
    parameters
}

/// Computes the loss in f64 from its definition.
fn loss(model: &Model, parameters: &[f64], split: &Split, rows: &[u32]) -> f64 {
    let dense = |layer: &Layer, input: &[f64]| -> Vec<f64> {
        let TensorShape { offset, cols, .. } = layer.weights;
        let product = |j| input.iter().enumerate().map(|(k, x)| x * parameters[offset + k * cols + j]).sum::<f64>();
        (0..cols).map(|j| parameters[layer.bias.offset + j] + product(j)).collect()
    };
    let layers = model.layers();
    let loss_of = |&row: &u32| {
        let row = row as usize;
        let x = &split.x[row * model.features..][..model.features];
        let mut input: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for layer in &layers[..layers.len() - 1] {
            input = dense(layer, &input).into_iter().map(|x| x.max(0.0)).collect();
        }
        let outputs = dense(&layers[layers.len() - 1], &input);
        let label = split.y[row] as usize;
        let hinge = |(k, s): (usize, &f64)| (1.0 - if k == label { *s } else { -s }).max(0.0).powi(2);
        match model.kind {
            ModelKind::Svm => outputs.iter().enumerate().map(hinge).sum::<f64>(),
            _ => outputs.iter().map(|x| x.exp()).sum::<f64>().ln() - outputs[label],
        }
    };
    rows.iter().map(loss_of).sum::<f64>() / rows.len() as f64
}

#[test]
fn gradients_are_those_of_the_loss() {
    for model in shapes() {
        let data = split(&model, 9, 3);
        let rows = [4, 0, 8, 8, 2];
        let parameters = parameters_of(&model, 11);
        let mut gradients = vec![0f32; parameters.len()];
        let got = CpuModel::new(&model, 5).loss_and_gradients(&parameters, &data.x, &data.y, &rows, &mut gradients);
        let exact: Vec<f64> = parameters.iter().map(|&p| f64::from(p)).collect();
        let expected = loss(&model, &exact, &data, &rows);
        assert!((f64::from(got) - expected).abs() <= 1e-5 * expected, "{model}");
        let mut largest: f64 = 0.0;
        for index in 0..parameters.len() {
            let at = |shift: f64| {
                let mut moved = exact.clone();
                moved[index] += shift;
                loss(&model, &moved, &data, &rows)
            };
            // Central differences with step 1e-5 in f64 are accurate to about 1e-9.
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            largest = largest.max(slope.abs());
            let got = gradients[index];
            assert!((f64::from(got) - slope).abs() <= 2e-4, "{model}, parameter {index}: {got} against {slope}");
        }
        assert!(largest > 0.01, "{model}: nothing was compared");
    }
}

/// Returns every adapter. Having none is a failure.
fn devices() -> Vec<Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    assert!(!adapters.is_empty(), "no adapter to test");
    adapters.iter().map(|adapter| pollster::block_on(Gpu::open(adapter)).expect("opens")).collect()
}

/// Returns the gradients of the next batch.
fn run_batch(gpu: &Gpu, device: &GpuModel) -> Vec<f32> {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        device.encode_batch(&mut pass);
    }
    gpu.queue().submit([encoder.finish()]);
    pollster::block_on(gpu.read_buffer("gradients", device.gradients())).expect("reads")
}

#[test]
fn the_device_computes_what_the_host_computes() {
    for gpu in devices() {
        for model in shapes() {
            for batch in [1, 3, 17] {
                compare(&gpu, &model, batch);
            }
        }
    }
}

fn compare(gpu: &Gpu, model: &Model, batch: usize) {
    // With 20 rows the last batch is short for batch sizes 3 and 17.
    let dataset = dataset(model, [20, 300]);
    let parameters = parameters_of(model, 12);
    let device = GpuModel::new(gpu, model, &dataset, batch, dataset.train.rows()).expect("fits");
    device.write_parameters(&parameters);
    let order: Vec<u32> = (0..20).rev().collect();
    device.begin_epoch(&order, 0);
    let mut host = CpuModel::new(model, batch);
    let mut expected = vec![0f32; parameters.len()];
    let mut losses = Vec::new();
    for rows in order.chunks(batch) {
        losses.push(host.loss_and_gradients(&parameters, &dataset.train.x, &dataset.train.y, rows, &mut expected));
        let got = run_batch(gpu, &device);
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            // The sums have up to 64 products of order 1, in another order.
            let place = || format!("{}, {model}, batch {batch}, gradient {index}", gpu.describe());
            assert!((got - expected).abs() <= 2e-5, "{}: {got} against {expected}", place());
        }
    }
    for (got, expected) in device.read_losses(0..losses.len()).expect("reads").iter().zip(&losses) {
        assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0));
    }
    for (part, data) in [(Part::Train, &dataset.train), (Part::Test, &dataset.test)] {
        let got = device.evaluate(part).expect("evaluates");
        let expected = host.evaluate(&parameters, &data.x, &data.y);
        assert_eq!(got.accuracy, expected.accuracy, "{model}");
        assert!((got.loss - expected.loss).abs() <= 1e-5 * expected.loss);
        assert_eq!((got.nonfinite_rows, expected.nonfinite_rows), (0, 0));
    }
}

/// Outputs that are equal or not all finite select no class. No row is then right, not even those of class 0.
#[test]
fn no_answer_is_a_wrong_answer() {
    let gpus = devices();
    for kind in [ModelKind::Softmax, ModelKind::Svm] {
        let model = Model::new(kind, 2, 3, 0);
        let rows = 30;
        let y: Vec<u32> = (0..rows).map(|row| row % 3).collect();
        let split = Split { x: vec![1.0; 2 * rows as usize], y };
        let dataset =
            Dataset { name: "test".to_owned(), features: 2, classes: 3, train: split.clone(), test: split.clone() };
        let bias = model.tensors()[1].range();
        let with = |values: [f32; 3]| {
            let mut parameters = vec![0f32; model.padded_len()];
            parameters[bias.clone()].copy_from_slice(&values);
            parameters
        };
        let (nan, rows) = (f32::NAN, rows as usize);
        for (biases, right, nonfinite_rows) in [
            ([0.0, 0.0, 0.0], 0, 0),
            ([1.0, 1.0, 0.0], 0, 0),
            ([1.0, 0.0, 0.0], rows / 3, 0),
            ([0.0, -1.0, 2.0], rows / 3, 0),
            ([nan, nan, nan], 0, rows),
            ([nan, 0.0, 0.0], 0, rows),
            ([1.0, nan, 0.0], 0, rows),
            ([f32::INFINITY, 0.0, 0.0], 0, rows),
            ([1.0, f32::NEG_INFINITY, 0.0], 0, rows),
        ] {
            let parameters = with(biases);
            let host = CpuModel::new(&model, 4).evaluate(&parameters, &split.x, &split.y);
            let on_devices = gpus.iter().map(|gpu| {
                let device = GpuModel::new(gpu, &model, &dataset, 4, dataset.train.rows()).expect("fits");
                device.write_parameters(&parameters);
                device.evaluate(Part::Test).expect("evaluates")
            });
            for got in std::iter::once(host).chain(on_devices) {
                assert_eq!(got.accuracy, right as f64 / rows as f64, "{kind:?} {biases:?}");
                assert_eq!(got.nonfinite_rows, nonfinite_rows, "{kind:?} {biases:?}");
                // An output of minus infinity adds nothing to the loss.
                let is_costly = nonfinite_rows > 0 && biases[1] != f32::NEG_INFINITY;
                assert!(!is_costly || !got.loss.is_finite(), "{kind:?} {biases:?}");
                assert!(is_costly || nonfinite_rows > 0 || got.loss.is_finite());
            }
        }
    }
}

/// Some drivers stop a loop after 65,535 iterations. A sum over more features must still be complete.
#[test]
fn no_feature_is_lost_in_wide_rows() {
    let features = 70_001;
    let model = Model::new(ModelKind::Softmax, features, 2, 0);
    let dataset = dataset(&model, [4, 4]);
    // Only the last feature matters, so that a missing tail changes the answer.
    let mut parameters = vec![0f32; model.padded_len()];
    let weights = model.tensors()[0].range();
    parameters[weights][2 * (features - 1)] = 3.0;
    let expected = CpuModel::new(&model, 4).evaluate(&parameters, &dataset.test.x, &dataset.test.y);
    assert!((expected.loss - std::f64::consts::LN_2).abs() > 1e-3);
    for gpu in devices() {
        let device = GpuModel::new(&gpu, &model, &dataset, 4, dataset.train.rows()).expect("fits");
        device.write_parameters(&parameters);
        let got = device.evaluate(Part::Test).expect("evaluates");
        assert!((got.loss - expected.loss).abs() <= 1e-5, "{}: {got:?} against {expected:?}", gpu.describe());
    }
}

#[test]
fn loops_that_drivers_cut_short_are_refused() {
    let model = Model::new(ModelKind::Softmax, 262_144, 2, 0);
    let dataset = dataset(&model, [1, 1]);
    for gpu in devices() {
        let refused = GpuModel::new(&gpu, &model, &dataset, 1, dataset.train.rows());
        assert!(matches!(refused, Err(ModelError::TooLong { .. })));
    }
}

/// A NaN or an infinity in the parameters has the same effect as on the host.
#[test]
fn what_is_not_finite_flows_through() {
    let gpus = devices();
    for model in shapes() {
        let dataset = dataset(&model, [9, 9]);
        let rows: Vec<u32> = (0..9).collect();
        let on_devices: Vec<GpuModel> = gpus
            .iter()
            .map(|gpu| GpuModel::new(gpu, &model, &dataset, 9, dataset.train.rows()).expect("fits"))
            .collect();
        for tensor in model.tensors() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut parameters = parameters_of(&model, 12);
                parameters[tensor.range().end - 1] = value;
                let mut expected = vec![0f32; parameters.len()];
                let Split { x, y } = &dataset.train;
                let mut host = CpuModel::new(&model, 9);
                let loss = host.loss_and_gradients(&parameters, x, y, &rows, &mut expected);
                // A ReLU or a hinge may swallow minus infinity, but nothing swallows a NaN.
                assert!(loss.is_nan() || !value.is_nan(), "{model}, {}", tensor.name);
                for (gpu, device) in gpus.iter().zip(&on_devices) {
                    device.write_parameters(&parameters);
                    device.begin_epoch(&rows, 0);
                    let got = run_batch(gpu, device);
                    let place = format!("{}, {model}, {value} in {}", gpu.describe(), tensor.name);
                    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let is_alike = got.is_finite() == expected.is_finite();
                        assert!(is_alike, "{place}, gradient {index}: {got} against {expected}");
                    }
                    let got = device.read_losses(0..1).expect("reads")[0];
                    assert_eq!(got.is_finite(), loss.is_finite(), "{place}: {got}, {loss}");
                }
            }
        }
    }
}

#[test]
fn initial_weights_have_the_promised_spread() {
    let model = Model::new(ModelKind::Mlp, 784, 10, 128);
    let parameters = model.initial_parameters(7);
    assert_eq!(parameters, model.initial_parameters(7));
    assert_ne!(parameters, model.initial_parameters(8));
    for (layer, variance) in model.layers().iter().zip([2.0 / 784.0, 1.0 / 128.0]) {
        let weights = &parameters[layer.weights.range()];
        let measured = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
        assert!((measured / variance - 1.0).abs() < 0.15, "{measured}");
        assert!(parameters[layer.bias.range()].iter().all(|&b| b == 0.0));
    }
}

//! Tests of learned schedules: a policy's rate follows its formula in f64, on every path and over a long run. Policies that do not fit are refused by
//! name, and a loss that is not finite changes nothing.
//!
//! Each of these faults was introduced by hand once into the kernel and made some of these tests fail: gates in the order of the authors' training
//! program, γ computed anew in each step, a factor for the first group only, and a bad loss that changes the state.

use wgpu_optim::{
    CpuLearnedSchedule, ErrorKind, Gpu, LearnedSchedule, PolicyScale, Regime, Rule, SchedulePolicy, wgpu,
};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, devices, gpu_run_with, packed};
use wgpu_optim_conformance::{
    NOT_FINITE, Numbers, assert_close, assert_refused, limited_devices, noise, storage, submit, tensors,
};

/// The name, shape and values of each tensor.
type Weights = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Returns random weights with PyTorch's initial spread, and biases that make the gates move.
fn weights(seed: u64, [cell, from_loss, from_state]: [usize; 3]) -> Weights {
    let mut numbers = Numbers(seed);
    let mut layer = |name: &str, outputs: usize, inputs: usize| {
        let spread = 2.0 / (inputs as f32).sqrt();
        let mut tensor = |kind: &str, shape: Vec<usize>| {
            let values = numbers.vec(shape.iter().product()).iter().map(|x| spread * x).collect();
            (format!("{name}.{kind}"), shape, values)
        };
        [tensor("weight", vec![outputs, inputs]), tensor("bias", vec![outputs])]
    };
    let layers = [
        layer("layer1.fc_i2h.0", from_loss, 1),
        layer("layer1.fc_i2h.2", 4 * cell, from_loss),
        layer("layer1.fc_h2h.0", from_state, cell),
        layer("layer1.fc_h2h.2", 4 * cell, from_state),
        layer("layer3", 1, cell),
    ];
    layers.concat()
}

fn try_policy(scale: PolicyScale, weights: &Weights) -> Result<SchedulePolicy, wgpu_optim::Error> {
    SchedulePolicy::new(scale, weights.iter().map(|(name, shape, values)| (&name[..], &shape[..], &values[..])))
}

fn policy(scale: PolicyScale, weights: &Weights) -> SchedulePolicy {
    try_policy(scale, weights).expect("a policy")
}

const CLASSES: PolicyScale = PolicyScale::FirstLoss { classes: 10 };

/// The formula in f64, layer by layer as in the authors' program for new tasks.
struct Reference<'a> {
    weights: &'a Weights,
    h: Vec<f64>,
    c: Vec<f64>,
    scale: Option<f64>,
}

impl<'a> Reference<'a> {
    fn new(weights: &'a Weights) -> Self {
        let cell = weights[8].1[1];
        Reference { weights, h: vec![0.0; cell], c: vec![0.0; cell], scale: None }
    }

    fn linear(&self, layer: usize, inputs: &[f64]) -> Vec<f64> {
        let (weight, bias) = (&self.weights[2 * layer].2, &self.weights[2 * layer + 1].2);
        let rows = weight.chunks(inputs.len()).zip(bias);
        let dot = |row: &[f32]| row.iter().zip(inputs).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        rows.map(|(row, &bias)| dot(row) + f64::from(bias)).collect()
    }

    fn rate(&mut self, loss: f32) -> f64 {
        let loss = f64::from(loss);
        let scale =
            *self.scale.get_or_insert_with(|| (loss.sqrt() * (10.0 * loss).ln() / 10f64.powf(0.25) / 4.0).abs());
        let relu = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|x| x.max(0.0)).collect() };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let of_loss = self.linear(1, &relu(self.linear(0, &[loss])));
        let of_state = self.linear(3, &relu(self.linear(2, &self.h)));
        let gates: Vec<f64> = of_loss.iter().zip(&of_state).map(|(a, b)| a + b).collect();
        let [input, forget, candidate, output] = std::array::from_fn(|part| &gates[part * self.h.len()..]);
        for unit in 0..self.h.len() {
            self.c[unit] = sigmoid(forget[unit]) * self.c[unit] + sigmoid(input[unit]) * candidate[unit].tanh();
            self.h[unit] = sigmoid(output[unit]) * self.c[unit].tanh();
        }
        scale * sigmoid(self.linear(4, &self.h)[0])
    }
}

/// Returns losses that fall from 2.3 to about 0.02, with the noise of batches and with spikes.
fn losses(steps: usize) -> Vec<f32> {
    let mut numbers = Numbers(7);
    let fall = |t: usize| 2.3 * (-4.6 * t as f32 / steps as f32).exp();
    (0..steps).map(|t| fall(t) * (1.0 + 0.3 * numbers.next()) + if t % 97 == 96 { 5.0 } else { 0.0 }).collect()
}

/// Returns two groups, so that the tests show that the factor of each is set.
fn specs() -> [Spec; 2] {
    let spec = |seed, name: &str| Spec::new(Rule::sgd(), Regime::fixed(1.0), tensors(seed, &[5])).named(name);
    [spec(1, "first"), spec(2, "second")]
}

/// An optimizer on a device, its schedule, and a loss that is not at the start of its buffer.
struct OnDevice {
    run: GpuRun,
    schedule: LearnedSchedule,
    loss: wgpu::Buffer,
    gpu: Gpu,
}

const LOSS_AT: u64 = 68;

impl OnDevice {
    fn new(gpu: &Gpu, policy: &SchedulePolicy) -> Self {
        let specs = specs();
        let setup = Setup { record_steps: Some(1024), ..Setup::default() };
        let run = gpu_run_with(gpu, &specs, setup);
        let loss = storage(gpu, 128, wgpu::BufferUsages::COPY_DST);
        let slice = loss.slice(LOSS_AT..LOSS_AT + 4);
        let schedule = LearnedSchedule::new(&run.optimizer, policy, slice).expect("a schedule");
        OnDevice { run, schedule, loss, gpu: gpu.clone() }
    }

    /// Takes a step with each loss, all in one submit, and returns the rates of both groups.
    fn rates(&mut self, losses: &[f32]) -> Vec<f32> {
        self.run.write_grads(&noise(&specs(), 3));
        let all =
            storage(&self.gpu, 4 * losses.len() as u64, wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC);
        self.gpu.queue().write_buffer(&all, 0, wgpu_optim::bytemuck::cast_slice(losses));
        submit(&self.gpu, |encoder| {
            for t in 0..losses.len() as u64 {
                encoder.copy_buffer_to_buffer(&all, 4 * t, &self.loss, LOSS_AT, 4);
                self.schedule.encode_rate(encoder).expect("alive");
                self.run.optimizer.encode_step(encoder).expect("alive");
            }
        });
        self.run.records().records.iter().map(|record| record.learning_rate).collect()
    }

    fn state(&self) -> Vec<f32> {
        pollster::block_on(self.schedule.state()).expect("arrives")
    }
}

/// An optimizer on the host and its schedule.
struct OnHost(CpuRun, CpuLearnedSchedule);

impl OnHost {
    fn new(policy: &SchedulePolicy) -> Self {
        let setup = Setup { record_steps: Some(1024), ..Setup::default() };
        OnHost(CpuRun::with(&specs(), setup), CpuLearnedSchedule::new(policy.clone()))
    }

    fn rates(&mut self, losses: &[f32]) -> Vec<f32> {
        for &loss in losses {
            self.1.set_rate(&mut self.0.optimizer, loss).expect("a rate");
            self.0.step(&noise(&specs(), 3));
        }
        self.0.records().records.iter().map(|record| record.learning_rate).collect()
    }
}

/// Policies of several sizes follow the formula in f64: the published size, one unit of each kind, odd sizes, and the largest size.
#[test]
fn rates_are_those_of_the_formula() {
    for (sizes, steps) in [([50, 25, 25], 1000), ([1, 1, 1], 300), ([67, 3, 131], 300), ([256, 256, 256], 30)] {
        let weights = weights(11, sizes);
        let policy = policy(CLASSES, &weights);
        let losses = losses(steps);
        let mut reference = Reference::new(&weights);
        let expected: Vec<f64> = losses.iter().map(|&loss| reference.rate(loss)).collect();
        let spread =
            |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max) / rates.iter().copied().fold(1.0, f64::min);
        assert!(spread(&expected) > 1.01, "{sizes:?}: the rate hardly moves");
        let compare = |path: &str, rates: &[f32], state: &[f32]| {
            assert_eq!(rates.len(), 2 * steps, "{path}");
            for (t, (of_groups, &expected)) in rates.chunks(2).zip(&expected).enumerate() {
                assert_eq!(of_groups[0].to_bits(), of_groups[1].to_bits(), "{path}, {sizes:?}, step {t}");
                assert_close(format_args!("{path}, {sizes:?}, step {t}"), of_groups[0], expected, 3e-7);
            }
            let known = [&reference.h[..], &reference.c, &[reference.scale.expect("known")]].concat();
            assert_eq!(state.len(), known.len(), "{path}");
            for (&got, expected) in state.iter().zip(known) {
                assert_close(format_args!("{path}, {sizes:?}, the state"), got, expected, 3e-6);
            }
        };
        let mut host = OnHost::new(&policy);
        compare("CPU path", &host.rates(&losses), host.1.state());
        for gpu in &devices() {
            let mut device = OnDevice::new(gpu, &policy);
            let rates = device.rates(&losses);
            compare(&gpu.describe(), &rates, &device.state());
        }
    }
}

/// A loss that is not finite changes neither factor nor state, nor does one that is not above 0 before γ is known.
#[test]
fn a_loss_that_is_no_number_leaves_the_rate() {
    let policy = policy(CLASSES, &weights(3, [5, 4, 3]));
    let bad: Vec<f32> = NOT_FINITE.map(f32::from_bits).into();
    let no_start = [&bad[..], &[0.0, -0.0, -1.0, 1e-40]].concat();
    let later = [&[1.5][..], &bad, &[-2.0, 0.0, f32::MAX, f32::MIN]].concat();
    let check = |path: &str, before: &[f32], of_start: &[f32], rates: &[f32], state: &[f32]| {
        assert!(before.iter().all(|&rate| rate == 1.0), "{path}: {before:?}");
        assert!(of_start[..10].iter().all(|&x| x == 0.0) && of_start[10] < 0.0, "{path}: {of_start:?}");
        let first: Vec<f32> = rates.iter().step_by(2).copied().collect();
        assert!(first[0] > 0.0 && first[0] != 1.0, "{path}: {first:?}");
        assert!(first[..=bad.len()].iter().all(|rate| rate.to_bits() == first[0].to_bits()), "{path}: {first:?}");
        assert!(first[bad.len() + 1..].windows(2).all(|pair| pair[0] != pair[1]), "{path}: {first:?}");
        assert!(first.iter().chain(state).all(|x| x.is_finite()), "{path}: {first:?}, {state:?}");
        // γ follows from the first loss.
        let scale = f64::from(1.5f32).sqrt() * 15f64.ln() / 10f64.powf(0.25) / 4.0;
        assert_close(format_args!("{path}, γ"), state[10], scale, 1e-6);
    };
    let mut host = OnHost::new(&policy);
    let before = host.rates(&no_start);
    let of_start = host.1.state().to_vec();
    let rates = host.rates(&later);
    check("CPU path", &before, &of_start, &rates, host.1.state());
    for gpu in &devices() {
        let mut device = OnDevice::new(gpu, &policy);
        let (before, of_start) = (device.rates(&no_start), device.state());
        let rates = device.rates(&later);
        check(&gpu.describe(), &before, &of_start, &rates, &device.state());
    }
}

/// A state can be restored on every path, and an interrupted run has the bits of an uninterrupted one.
#[test]
fn a_state_is_restored_on_every_path() {
    let policy = policy(CLASSES, &weights(5, [6, 5, 4]));
    let losses = losses(40);
    let (first, rest) = losses.split_at(23);
    let mut host = OnHost::new(&policy);
    host.rates(first);
    let saved = host.1.state().to_vec();
    let of_host = host.rates(rest);
    let mut resumed = OnHost::new(&policy);
    resumed.1.restore(&saved).expect("its own state");
    assert_eq!(resumed.rates(rest), of_host);
    for gpu in &devices() {
        let mut device = OnDevice::new(gpu, &policy);
        device.rates(first);
        let of_device = device.state();
        let expected = device.rates(rest);
        let mut resumed = OnDevice::new(gpu, &policy);
        resumed.schedule.restore(&of_device).expect("its own state");
        assert_eq!(resumed.rates(rest), expected, "{}", gpu.describe());
        resumed.schedule.restore(&saved).expect("the host's state");
        for (got, &of_host) in resumed.rates(rest).into_iter().zip(&of_host) {
            assert_close(gpu.describe(), got, of_host, 1e-6);
        }
        for (state, words) in
            [(&saved[1..], "has 12 floats, but this policy's has 13"), (&[f32::NAN; 13], "contains NaN")]
        {
            assert_eq!(assert_refused(resumed.schedule.restore(state), &[words]).kind(), ErrorKind::Build);
            assert_refused(host.1.restore(state), &[words]);
        }
    }
}

/// Another policy continues with h and c, and computes γ from the next loss. A given γ is the scale itself.
#[test]
fn policies_change_within_a_run() {
    let sizes = [6, 5, 4];
    let all = [weights(5, sizes), weights(6, sizes)];
    let other = weights(6, [6, 5, 3]);
    let losses = losses(30);
    let mut reference = Reference::new(&all[0]);
    let mut expected: Vec<f64> = losses.iter().map(|&loss| reference.rate(loss)).collect();
    (reference.weights, reference.scale) = (&all[1], None);
    expected.extend(losses.iter().map(|&loss| reference.rate(loss)));
    reference.scale = Some(0.25);
    expected.extend(losses.iter().map(|&loss| reference.rate(loss)));
    let then = [policy(CLASSES, &all[1]), policy(PolicyScale::Given(0.25), &all[1])];
    let words = ["6 units and layers of 5 and 3", "6 units and layers of 5 and 4", "make a new schedule"];
    let mut host = OnHost::new(&policy(CLASSES, &all[0]));
    let mut rates = host.rates(&losses);
    for next in &then {
        host.1.switch_policy(next.clone()).expect("of the same sizes");
        rates.extend(host.rates(&losses));
    }
    assert_refused(host.1.switch_policy(policy(CLASSES, &other)), &words);
    let mut runs = vec![("CPU path".to_owned(), rates)];
    for gpu in &devices() {
        let mut device = OnDevice::new(gpu, &policy(CLASSES, &all[0]));
        let mut rates = device.rates(&losses);
        for next in &then {
            device.schedule.switch_policy(next).expect("of the same sizes");
            rates.extend(device.rates(&losses));
        }
        assert_refused(device.schedule.switch_policy(&policy(CLASSES, &other)), &words);
        runs.push((gpu.describe(), rates));
    }
    for (path, rates) in runs {
        for (t, (&rate, &expected)) in rates.iter().step_by(2).zip(&expected).enumerate() {
            assert_close(format_args!("{path}, step {t}"), rate, expected, 1e-6);
        }
    }
}

/// Weights that are no policy are refused with the tensor's name and the expected shape.
#[test]
fn what_is_no_policy_is_refused_by_name() {
    let good = weights(5, [6, 5, 4]);
    type Change = fn(&mut Weights);
    let changed = |change: Change| {
        let mut weights = good.clone();
        change(&mut weights);
        try_policy(CLASSES, &weights)
    };
    let cases: &[(Change, &[&str])] = &[
        (|w| w[4].1 = vec![4, 7], &["\"layer1.fc_h2h.0.weight\"", "[4, 7]", "must be [4, 6]"]),
        (|w| w[2].1 = vec![5, 24], &["\"layer1.fc_i2h.2.weight\"", "[5, 24]", "must be [24, 5]"]),
        (|w| w[7].2.truncate(23), &["\"layer1.fc_h2h.2.bias\"", "23 values", "[24] has 24"]),
        (|w| w[9].2[0] = f32::NAN, &["\"layer3.bias\"", "contains NaN", "finite"]),
        (|w| w[3].2[1] = f32::INFINITY, &["\"layer1.fc_i2h.2.bias\"", "contains inf"]),
        (|w| w[8].2[1] = -2e6, &["\"layer3.weight\"", "contains -2000000", "within ±1e6"]),
        (|w| drop(w.remove(1)), &["\"layer1.fc_i2h.0.bias\"", "is missing"]),
        (|w| w.push(w[3].clone()), &["\"layer1.fc_i2h.2.bias\"", "is given twice"]),
        (
            |w| w[0].0 = "layer2.0.fc_i2h.0.weight".to_owned(),
            &["\"layer2.0.fc_i2h.0.weight\"", "is not one of a policy"],
        ),
        (|w| w[8].1 = vec![6], &["\"layer3.weight\"", "[6]", "units of the cell"]),
        (|w| w[8].1 = vec![1, 0], &["\"layer3.weight\"", "[1, 0]", "between 1 and 256"]),
        (|w| w[0].1 = vec![257, 1], &["\"layer1.fc_i2h.0.weight\"", "[257, 1]", "between 1 and 256"]),
    ];
    for (change, words) in cases {
        assert_eq!(assert_refused(changed(*change), words).kind(), ErrorKind::Build);
    }
    for (scale, words) in [
        (PolicyScale::FirstLoss { classes: 1 }, ["classes is 1", "between 2"]),
        (PolicyScale::Given(0.0), ["scale is 0", "between 1e-30"]),
        (PolicyScale::Given(f32::NAN), ["scale is NaN", "between 1e-30"]),
    ] {
        assert_refused(try_policy(scale, &good), &words);
    }
    for gpu in limited_devices(|_| ()) {
        let specs = specs();
        let run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
        let policy = policy(CLASSES, &good);
        let buffer = storage(&gpu, 64, wgpu::BufferUsages::empty());
        let of = |slice| LearnedSchedule::new(&run.optimizer, &policy, slice);
        assert_refused(of(buffer.slice(..8)), &["length in bytes", "is 8", "exactly one f32"]);
        let uniform = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        assert_refused(of(uniform.slice(..)), &["\"loss\"", "STORAGE"]);
        let schedule = of(buffer.slice(..4)).expect("a schedule");
        gpu.device().destroy();
        gpu.mark_lost("destroyed by the test");
        assert_lost(&gpu, &schedule);
    }
}

/// Asserts that a lost device is an error.
fn assert_lost(gpu: &Gpu, schedule: &LearnedSchedule) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    assert_eq!(assert_refused(schedule.encode_rate(&mut encoder), &["lost"]).kind(), ErrorKind::DeviceLost);
    assert_refused(schedule.restore(&[0.0; 13]), &["lost"]);
}

/// A file contains the weights bit for bit. Other files are refused.
#[test]
fn policies_go_through_safetensors() {
    let good = policy(CLASSES, &weights(5, [6, 5, 4]));
    let bytes = good.to_safetensors().expect("writes");
    assert_eq!(SchedulePolicy::from_safetensors(CLASSES, &bytes).expect("reads"), good);
    let read = |bytes: &[u8]| SchedulePolicy::from_safetensors(CLASSES, bytes);
    assert_refused(read(&bytes[..bytes.len() - 1]), &["file cannot be read as safetensors"]);
    assert_refused(read(b"PK\x03\x04"), &["file cannot be read as safetensors"]);
    let halves: Vec<u8> = vec![0; 2];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![1], &halves).expect("a tensor");
    let file = safetensors::serialize([("layer3.bias", view)], None).expect("writes");
    assert_refused(read(&file), &["\"layer3.bias\"", "elements of F16", "f32"]);
}

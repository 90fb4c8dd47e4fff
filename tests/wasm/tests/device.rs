//! Compares the device path on `navigator.gpu` with the CPU path on the same page.
#![cfg(target_arch = "wasm32")]

use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use wgpu_optim::bytemuck::cast_slice;
use wgpu_optim::{
    Averaging, Checkpoint, CpuOptimizer, Gpu, GpuOptions, Group, Notes, Optimizer, OptimizerBuilder, Parameters,
    Regime, Rule, wgpu,
};

wasm_bindgen_test_configure!(run_in_browser);

const STEPS: usize = 6;
/// The tolerance in ulps of the largest parameter.
const ULPS: f32 = 4.0;
/// The tolerance for rules on matrices, as in `wgpu-optim check`.
const ULPS_OF_MATRICES: f32 = 24.0;

fn wave(length: usize, phase: f32) -> Vec<f32> {
    (0..length).map(|index| (0.37 * index as f32 + phase).sin()).collect()
}

async fn open() -> Gpu {
    let options = GpuOptions { allow_software: true, ..Default::default() };
    Gpu::request(&options).await.expect("navigator.gpu has an adapter")
}

/// A group on both paths.
struct Both {
    gpu: Gpu,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    device: Optimizer,
    host: CpuOptimizer,
    values: Vec<f32>,
    ulps: f32,
}

impl Both {
    fn new(gpu: &Gpu, rule: Rule, regime: Regime, averaging: Averaging, length: usize) -> Self {
        let buffer = |label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * length as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (params, grads) = (buffer("parameters"), buffer("gradients"));
        let values = wave(length, 0.0);
        gpu.queue().write_buffer(&params, 0, cast_slice(&values));
        // Rules on matrices need a shape.
        let shape = [length / 4, 4];
        let builder = OptimizerBuilder::new(rule).regime(regime).averaging(averaging);
        let group = Group::new("all").shaped_tensor("w", &shape, params.slice(..), grads.slice(..));
        let device = builder.group(group).build(gpu).expect("builds on the device");
        let builder = OptimizerBuilder::new(rule).regime(regime).averaging(averaging);
        let group = Group::new("all").shaped_tensor("w", &shape, &values[..], &values[..]);
        let host = builder.group(group).build_cpu().expect("builds on the CPU");
        // The two paths add up products of matrices in different orders.
        let ulps = if Rule::of_matrices().contains(&rule) { ULPS_OF_MATRICES } else { ULPS };
        Both { gpu: gpu.clone(), params, grads, device, host, values, ulps }
    }

    fn step(&mut self, number: usize) {
        let gradient = wave(self.values.len(), 0.5 + number as f32);
        self.gpu.queue().write_buffer(&self.grads, 0, cast_slice(&gradient));
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.device.encode_step(&mut encoder).expect("alive");
        self.gpu.queue().submit([encoder.finish()]);
        self.host.step(&mut [&mut self.values], &[&gradient]).expect("a step");
    }

    async fn compare(&mut self, what: &str) {
        let got: Vec<f32> = self.gpu.read_buffer("parameters", &self.params).await.expect("arrives");
        let largest = self.values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let unit = largest.log2().floor().exp2() * f32::EPSILON;
        for (got, expected) in got.iter().zip(&self.values) {
            assert!((got - expected).abs() <= self.ulps * unit, "{what}: {got} and not {expected}");
        }
        let rates: Vec<f32> = self.gpu.read_buffer("rates", self.device.learning_rates()).await.expect("arrives");
        let expected = self.host.learning_rates()[0];
        assert!(
            (rates[0] / expected - 1.0).abs() <= self.ulps * f32::EPSILON,
            "{what}: {} and not {expected}",
            rates[0]
        );
    }
}

#[wasm_bindgen_test]
async fn every_rule_takes_the_steps_of_the_cpu_path() {
    let gpu = open().await;
    for rule in Rule::all().into_iter().chain(Rule::of_matrices()) {
        // A small model takes one dispatch, and a larger one takes the passes.
        for length in [300, 40_000] {
            let mut both = Both::new(&gpu, rule, Regime::seesaw(), Averaging::Off, length);
            for number in 0..STEPS {
                both.step(number);
            }
            both.compare(&format!("{}, {length} parameters", rule.name())).await;
            let records = both.device.drain_records().await.expect("arrives").records;
            assert_eq!(records.len(), STEPS, "{}", rule.name());
            assert!(records[1].to_string().starts_with("step 1: η "), "{}", records[1]);
        }
    }
}

#[wasm_bindgen_test]
async fn averages_and_controls() {
    let gpu = open().await;
    let mut both = Both::new(&gpu, Rule::sgd(), Regime::seesaw(), Averaging::ScheduleFree, 300);
    for number in 0..STEPS {
        both.step(number);
    }
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    both.device.encode_swap_averages(&mut encoder).expect("has averages");
    gpu.queue().submit([encoder.finish()]);
    both.host.swap_averages(&mut [&mut both.values]).expect("has averages");
    both.compare("averages").await;

    let mut both = Both::new(&gpu, Rule::sgd(), Regime::seesaw(), Averaging::Off, 300);
    both.step(0);
    both.device.control_all(|controls| controls.learning_rate_factor = 0.5).expect("in range");
    both.host.control_all(|controls| controls.learning_rate_factor = 0.5).expect("in range");
    both.step(1);
    both.compare("controls").await;
}

#[wasm_bindgen_test]
async fn a_checkpoint_goes_from_one_path_to_the_other() {
    let gpu = open().await;
    let mut first = Both::new(&gpu, Rule::adamw(), Regime::seesaw(), Averaging::polynomial_decay(), 300);
    first.step(0);
    let bytes = first.device.checkpoint(Parameters::Included, &Notes::new()).await.expect("arrives").to_bytes();
    let checkpoint = Checkpoint::from_bytes(bytes).expect("is whole");
    let mut second = Both::new(&gpu, Rule::adamw(), Regime::seesaw(), Averaging::polynomial_decay(), 300);
    second.device.restore(&checkpoint, Parameters::Included).expect("fits");
    second.host.restore(&checkpoint, Some(&mut [&mut second.values])).expect("fits");
    second.step(1);
    second.compare("resumed").await;
}

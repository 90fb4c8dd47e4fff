//! Tests of zeroth-order optimizers. The directions are standard normal numbers that follow from the seed, and agree on every path to a few ulps. A
//! step is that of the papers. It needs only two losses and their seed: no gradient, no memory for each parameter and no readback. Parameters are
//! restored when a loss is not finite, and drift only by rounding.

mod draws;
mod oracle;
mod refusals;
mod steps;

use wgpu_optim::{
    CpuZerothOrder, Gpu, Regime, ZerothOrder, ZerothOrderBuilder, ZerothOrderMethod, ZerothOrderRecords, wgpu,
};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{download, submit, upload};

/// The tensors and the settings of an optimizer.
#[derive(Debug, Clone)]
pub struct Spec {
    pub method: ZerothOrderMethod,
    pub regime: Regime,
    pub epsilon: f32,
    pub seed: u32,
    pub decay: f32,
    /// The shapes, and the values in row-major order.
    pub tensors: Vec<(Vec<usize>, Vec<f32>)>,
}

impl Spec {
    /// Returns tensors whose values are all the same.
    pub fn filled(method: ZerothOrderMethod, shapes: &[&[usize]], value: f32) -> Self {
        let tensor = |shape: &&[usize]| (shape.to_vec(), vec![value; shape.iter().product()]);
        Spec {
            method,
            regime: Regime::fixed(1e-2),
            epsilon: 1e-3,
            seed: 1,
            decay: 0.0,
            tensors: shapes.iter().map(tensor).collect(),
        }
    }

    fn builder<T>(&self) -> ZerothOrderBuilder<T> {
        let builder = ZerothOrderBuilder::new(self.method, self.regime).epsilon(self.epsilon).seed(self.seed);
        builder.weight_decay(self.decay)
    }

    pub fn on_host(&self) -> OnHost {
        let mut builder = self.builder();
        for (index, (shape, values)) in self.tensors.iter().enumerate() {
            builder = builder.shaped_tensor(format!("tensor {index}"), shape, values);
        }
        let params = self.tensors.iter().map(|(_, values)| values.clone()).collect();
        OnHost { optimizer: builder.build_cpu().expect("builds"), params }
    }

    /// Returns an optimizer on the device. The tensors are in one buffer, from the fourth element on, each after a guard.
    pub fn on_device(&self, gpu: &Gpu) -> OnDevice {
        let mut values = vec![GUARD; 3];
        let mut places = Vec::new();
        for (_, tensor) in &self.tensors {
            values.push(GUARD);
            places.push(values.len()..values.len() + tensor.len());
            values.extend(tensor);
        }
        values.extend([GUARD; 5]);
        let buffer = upload(gpu, &values);
        let loss = upload(gpu, &[0.0; 8]);
        let mut builder = self.builder();
        for (index, ((shape, _), place)) in self.tensors.iter().zip(&places).enumerate() {
            let slice = buffer.slice(4 * place.start as u64..4 * place.end as u64);
            builder = builder.shaped_tensor(format!("tensor {index}"), shape, slice);
        }
        let optimizer = builder.build(gpu, loss.slice(LOSS_BYTE..LOSS_BYTE + 4)).expect("builds");
        OnDevice { gpu: gpu.clone(), optimizer, buffer, loss, places }
    }

    /// Returns the optimizer on the CPU path and on every adapter.
    pub fn everywhere(&self) -> Vec<Box<dyn Run>> {
        let host: Box<dyn Run> = Box::new(self.on_host());
        let on_devices = devices().into_iter().map(|gpu| Box::new(self.on_device(&gpu)) as Box<dyn Run>);
        std::iter::once(host).chain(on_devices).collect()
    }
}

/// The value between tensors, which no step may overwrite.
const GUARD: f32 = 12345.0;
/// Offset of the loss in its buffer. No binding may start there.
const LOSS_BYTE: u64 = 20;

/// An optimizer with its parameters.
pub trait Run {
    fn path(&self) -> String;
    fn perturb(&mut self);
    fn reverse(&mut self, loss: f32);
    fn step(&mut self, loss: f32);
    fn params(&self) -> Vec<Vec<f32>>;
    fn records(&mut self) -> ZerothOrderRecords;

    /// Takes a step with two given losses.
    fn take(&mut self, [above, below]: [f32; 2]) {
        self.perturb();
        self.reverse(above);
        self.step(below);
    }
}

pub struct OnHost {
    pub optimizer: CpuZerothOrder,
    pub params: Vec<Vec<f32>>,
}

impl Run for OnHost {
    fn path(&self) -> String {
        "CPU path".to_owned()
    }

    fn perturb(&mut self) {
        self.optimizer.perturb(&mut self.params).expect("perturbs");
    }

    fn reverse(&mut self, loss: f32) {
        self.optimizer.reverse(&mut self.params, loss).expect("reverses");
    }

    fn step(&mut self, loss: f32) {
        self.optimizer.step(&mut self.params, loss).expect("steps");
    }

    fn params(&self) -> Vec<Vec<f32>> {
        self.params.clone()
    }

    fn records(&mut self) -> ZerothOrderRecords {
        self.optimizer.drain_records()
    }
}

pub struct OnDevice {
    pub gpu: Gpu,
    pub optimizer: ZerothOrder,
    pub buffer: wgpu::Buffer,
    pub loss: wgpu::Buffer,
    places: Vec<std::ops::Range<usize>>,
}

impl OnDevice {
    fn call(&mut self, call: impl FnOnce(&mut ZerothOrder, &mut wgpu::CommandEncoder)) {
        submit(&self.gpu, |encoder| call(&mut self.optimizer, encoder));
    }

    /// Records steps with given losses into one encoder. A copy of a loss replaces the forward pass.
    pub fn take_all(&mut self, of_steps: &[f32]) {
        let losses = upload(&self.gpu, of_steps);
        let loss = self.loss.clone();
        self.call(|optimizer, encoder| {
            let forward = |encoder: &mut wgpu::CommandEncoder, at: usize| {
                encoder.copy_buffer_to_buffer(&losses, 4 * at as u64, &loss, LOSS_BYTE, 4);
            };
            for step in 0..of_steps.len() / 2 {
                optimizer.encode_perturb(encoder).expect("perturbs");
                forward(encoder, 2 * step);
                optimizer.encode_reverse(encoder).expect("reverses");
                forward(encoder, 2 * step + 1);
                optimizer.encode_step(encoder).expect("steps");
            }
        });
    }

    fn leave(&self, loss: f32) {
        self.gpu.queue().write_buffer(&self.loss, LOSS_BYTE, &loss.to_ne_bytes());
    }
}

impl Run for OnDevice {
    fn path(&self) -> String {
        self.gpu.describe()
    }

    fn perturb(&mut self) {
        self.call(|optimizer, encoder| optimizer.encode_perturb(encoder).expect("perturbs"));
    }

    fn reverse(&mut self, loss: f32) {
        self.leave(loss);
        self.call(|optimizer, encoder| optimizer.encode_reverse(encoder).expect("reverses"));
    }

    fn step(&mut self, loss: f32) {
        self.leave(loss);
        self.call(|optimizer, encoder| optimizer.encode_step(encoder).expect("steps"));
    }

    fn params(&self) -> Vec<Vec<f32>> {
        let end = self.places.last().map_or(8, |last| last.end + 5);
        let all = download(&self.gpu, &self.buffer, end);
        let guarded = |at: &usize| !self.places.iter().any(|place| place.contains(at));
        for at in (0..end).filter(guarded) {
            assert_eq!(all[at], GUARD, "{}: the guard at {at}", self.path());
        }
        self.places.iter().map(|place| all[place.clone()].to_vec()).collect()
    }

    fn records(&mut self) -> ZerothOrderRecords {
        pollster::block_on(self.optimizer.drain_records()).expect("arrives")
    }
}

/// Returns the two losses of a step, which are near 1.
pub fn losses(step: u64) -> [f32; 2] {
    let of = |n: u64| 1.0 + 1e-3 * (12.9898 * (n as f32 + 1.0)).sin();
    [of(2 * step), of(2 * step + 1)]
}

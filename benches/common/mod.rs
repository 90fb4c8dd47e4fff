//! What the benches share: every place a step can run, and a timed run of steps there.

use std::time::{Duration, Instant};

use wgpu_optim::gpu::Tensor;
use wgpu_optim::{CpuOptimizer, Gpu, Group, Optimizer, OptimizerBuilder, Regime, Rule, wgpu};

/// Steps recorded into one submit.
const STEPS_PER_SUBMIT: u64 = 64;

/// Where steps run.
pub enum Target {
    Cpu,
    Gpu(Gpu),
}

/// A prepared optimizer.
pub enum Steps {
    Cpu {
        optimizer: CpuOptimizer,
        params: Vec<Vec<f32>>,
        grads: Vec<Vec<f32>>,
    },
    Gpu {
        gpu: Gpu,
        optimizer: Optimizer,
    },
}

/// The CPU path and every adapter.
pub fn targets() -> Vec<(String, Target)> {
    let mut targets = vec![("CPU path".to_owned(), Target::Cpu)];
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens");
        targets.push((gpu.describe(), Target::Gpu(gpu)));
    }
    targets
}

fn values(elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|i| 1e-3 * ((i % 251) as f32 - 125.5))
        .collect()
}

impl Target {
    /// An optimizer over tensors of these sizes, side by side in one buffer.
    pub fn steps(&mut self, rule: Rule, regime: Regime, sizes: &[usize]) -> Steps {
        match self {
            Target::Cpu => {
                let params: Vec<Vec<f32>> = sizes.iter().map(|&size| values(size)).collect();
                let grads = params.clone();
                let mut group = Group::new("bench");
                for (index, (params, grads)) in params.iter().zip(&grads).enumerate() {
                    group = group.tensor(index.to_string(), params, grads);
                }
                Steps::Cpu {
                    optimizer: OptimizerBuilder::new(rule)
                        .regime(regime)
                        .group(group)
                        .build_cpu()
                        .expect("builds"),
                    params,
                    grads,
                }
            }
            Target::Gpu(gpu) => {
                let elements: usize = sizes.iter().sum();
                let [params, grads] = ["parameters", "gradients"].map(|label| {
                    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                        label: Some(label),
                        size: (elements as u64 * 4).next_multiple_of(16),
                        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    });
                    gpu.queue()
                        .write_buffer(&buffer, 0, bytemuck::cast_slice(&values(elements)));
                    buffer
                });
                let mut group: Group<Tensor> = Group::new("bench");
                let mut at = 0;
                for (index, size) in sizes.iter().enumerate() {
                    let bytes = at..at + 4 * *size as u64;
                    at = bytes.end;
                    group = group.tensor(
                        index.to_string(),
                        params.slice(bytes.clone()),
                        grads.slice(bytes),
                    );
                }
                Steps::Gpu {
                    gpu: gpu.clone(),
                    optimizer: OptimizerBuilder::new(rule)
                        .regime(regime)
                        .group(group)
                        .build(gpu)
                        .expect("builds"),
                }
            }
        }
    }
}

impl Steps {
    /// Wall-clock time of `count` steps, the wait for the device included.
    pub fn time(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        match self {
            Steps::Cpu {
                optimizer,
                params,
                grads,
            } => {
                let grads: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
                let mut params: Vec<&mut [f32]> =
                    params.iter_mut().map(Vec::as_mut_slice).collect();
                for _ in 0..count {
                    optimizer.step(&mut params, &grads).expect("steps");
                }
            }
            Steps::Gpu { gpu, optimizer } => {
                let mut left = count;
                while left > 0 {
                    let steps = left.min(STEPS_PER_SUBMIT);
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    for _ in 0..steps {
                        optimizer.encode_step(&mut encoder).expect("alive");
                    }
                    gpu.queue().submit([encoder.finish()]);
                    left -= steps;
                }
                gpu.device()
                    .poll(wgpu::PollType::wait_indefinitely())
                    .expect("polls");
            }
        }
        start.elapsed()
    }
}

//! What is measured, by `wgpu-optim bench` and by the benches alike: the work, memory on the host and on devices that it is done over, and how its time
//! is taken.

pub mod device;
pub mod host;
pub mod measure;
pub mod workload;

use std::time::Duration;

use wgpu_optim::{Gpu, wgpu};

use device::{Device, DeviceJob};
use host::{Host, HostJob};
use measure::Bench;
use workload::Spec;

/// Where steps run.
pub enum Target {
    /// On the host.
    Cpu,
    /// On a device.
    Gpu(Gpu),
}

/// The CPU path and every adapter, by name.
pub fn targets() -> Vec<(String, Target)> {
    let mut targets = vec![("CPU path".to_owned(), Target::Cpu)];
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens");
        targets.push((gpu.describe(), Target::Gpu(gpu)));
    }
    targets
}

/// Memory of one size, somewhere.
pub enum Memory {
    /// On the host.
    Host(Host),
    /// On a device.
    Device(Device),
}

/// A step over such memory.
pub enum Step {
    /// On the host.
    Host(HostJob),
    /// On a device.
    Device(DeviceJob),
}

impl Target {
    /// Software drivers take seconds where others take milliseconds.
    pub fn is_software(&self) -> bool {
        match self {
            Target::Cpu => false,
            Target::Gpu(gpu) => gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu,
        }
    }

    /// Memory of this size.
    pub fn memory(&self, elements: usize) -> Memory {
        match self {
            Target::Cpu => Memory::Host(Host::new(elements)),
            Target::Gpu(gpu) => Memory::Device(Device::new(gpu, elements).expect("room on the device")),
        }
    }
}

impl Memory {
    /// An optimizer over it.
    pub fn step(&mut self, spec: &Spec) -> Step {
        match self {
            Memory::Host(host) => Step::Host(host.step(spec).expect("builds")),
            Memory::Device(device) => Step::Device(device.step(spec).expect("builds")),
        }
    }

    /// Wall-clock time of so many steps, the wait for the device included.
    pub fn time(&mut self, step: &mut Step, count: u64) -> Duration {
        let count = count as usize;
        let times = match (self, step) {
            (Memory::Host(host), Step::Host(job)) => host.time(job, count),
            (Memory::Device(device), Step::Device(job)) => device.time(job, count),
            _ => unreachable!("a step runs where it was made"),
        };
        times.expect("the device lives").wall
    }

    /// Host time of recording so many steps; `None` where nothing is recorded.
    pub fn time_recording(&self, step: &Step, count: u64) -> Option<Duration> {
        let (Memory::Device(device), Step::Device(job)) = (self, step) else {
            return None;
        };
        let times = device.time_recording(job, count as usize).expect("the device lives")?;
        Some(times.encode + times.finish)
    }
}

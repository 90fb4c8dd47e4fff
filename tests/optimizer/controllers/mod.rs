//! Tests of controllers, which set the controls of an optimizer.

mod bi_level;
mod combined_gradients;
mod learned_schedule;
mod watchdog;

use wgpu_optim::{Gpu, wgpu};
use wgpu_optim_conformance::run::{GpuRun, Setup, Spec, devices, gpu_run_with};

/// Returns runs of a case on every adapter, on OpenGL with separate passes.
fn device_runs(specs: &[Spec]) -> Vec<GpuRun> {
    let on_opengl = |gpu: &Gpu| gpu.device().adapter_info().backend == wgpu::Backend::Gl;
    let run = |gpu| gpu_run_with(gpu, specs, Setup { separate_passes: on_opengl(gpu), ..Setup::default() });
    devices().iter().map(run).collect()
}

//! Tests of errors: every mistake is an `Err` that names on one line what is wrong, the number and the limit, and leaves everything unchanged. There
//! is no panic, no unexpected driver message and no half-done work. (`faults` tests lost devices.)

mod buffers;
mod calls;
mod devices;
mod settings;

use wgpu_optim::{Error, ErrorKind, Gpu, Group, OptimizerBuilder, Rule, wgpu};
use wgpu_optim_conformance::assert_refused;

type Device = OptimizerBuilder<wgpu_optim::gpu::Tensor>;
type Host = OptimizerBuilder<wgpu_optim::cpu::Tensor>;

/// The values of a tensor of four elements on the host.
const W: &[f32] = &[0.0; 4];

/// Asserts that the builder is refused on the device with these words, and returns the error.
#[track_caller]
fn build_error(builder: Device, gpu: &Gpu, words: &[&str]) -> Error {
    assert_refused(builder.build(gpu), words)
}

/// Asserts that the builder is refused on the host with these words, and returns the error.
#[track_caller]
fn host_error(builder: Host, words: &[&str]) -> Error {
    assert_refused(builder.build_cpu(), words)
}

/// Returns a builder with one tensor on the host.
fn on_host(rule: Rule) -> Host {
    OptimizerBuilder::new(rule).group(Group::new("all").tensor("w", W, W))
}

/// Returns a builder with one tensor on the device, in byte ranges of two buffers.
fn on_device(params: wgpu::BufferSlice, grads: wgpu::BufferSlice) -> Device {
    OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", params, grads))
}

/// Asserts that nine of something were needed where the device has eight.
fn assert_nine_of_eight(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains(" is 9, above 8: "), "{error}");
}

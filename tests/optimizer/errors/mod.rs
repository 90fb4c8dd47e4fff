//! Promise: whatever is wrong comes back as an `Err` whose one line names the culprit, the number and the limit, and nothing has
//! changed; no panic, no driver message out of the blue, no half-done work. (What a lost device does is in `faults`.)

mod buffers;
mod calls;
mod devices;
mod settings;

use wgpu_optim::{Error, ErrorKind, Gpu, Group, OptimizerBuilder, Rule, wgpu};
use wgpu_optim_conformance::assert_refused;

type Device = OptimizerBuilder<wgpu_optim::gpu::Tensor>;
type Host = OptimizerBuilder<wgpu_optim::cpu::Tensor>;

/// What a tensor of four elements is built from on the host.
const W: &[f32] = &[0.0; 4];

/// What must not be built on the device, for a reason that is told in these words.
#[track_caller]
fn build_error(builder: Device, gpu: &Gpu, words: &[&str]) -> Error {
    assert_refused(builder.build(gpu), words)
}

/// What must not be built on the host, for a reason that is told in these words.
#[track_caller]
fn host_error(builder: Host, words: &[&str]) -> Error {
    assert_refused(builder.build_cpu(), words)
}

/// One tensor of the host.
fn on_host(rule: Rule) -> Host {
    OptimizerBuilder::new(rule).group(Group::new("all").tensor("w", W, W))
}

/// One tensor of the device, from byte ranges of two buffers.
fn on_device(params: wgpu::BufferSlice, grads: wgpu::BufferSlice) -> Device {
    OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", params, grads))
}

/// Nine of something of which the device has eight.
fn assert_nine_of_eight(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains(" is 9, above 8: "), "{error}");
}

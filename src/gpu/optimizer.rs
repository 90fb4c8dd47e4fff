//! The optimizer on the device. `build` allocates all memory, and a step only records dispatches.

#[cfg(not(target_arch = "wasm32"))]
mod ahead;
mod averages;
pub(super) mod build;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod control;
mod look;
mod rebind;
mod records;
mod shard;
mod sweeps;

use crate::error::Error;
use crate::gpu::context::Gpu;
use crate::gpu::look as look_pass;
use crate::gpu::optimizer::rebind::Rebinding;
use crate::gpu::pass::{BoundGroup, CompiledKernel};
use crate::gpu::readback::Readback;
use crate::gpu::{
    finish_reduction, finish_update, learning_rate, reduce_gradient, swap_averages, update_parameters, whole_step,
};
use crate::group::GroupConfig;
use crate::plan::{Plan, TensorInfo};
use crate::record::{RecordCursor, Records};
use averages::WindowAverages;
pub(super) use sweeps::WindowMemory;

/// Pass of a step, or of another operation of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PassName {
    /// Pass 1.
    ReduceGradient,
    /// Pass 2.
    FinishReduction,
    /// Pass 3.
    LearningRate,
    /// Passes over gradients between passes 3 and 4: those that [`Muon`](crate::Muon) and [`Adafactor`](crate::Adafactor) own, and the one that marks
    /// rows with gradients for [`Group::lazy_rows`](crate::Group::lazy_rows).
    Prepare,
    /// The other passes of [`Muon`](crate::Muon): products of matrices.
    Orthogonalize,
    /// The other passes of [`Adafactor`](crate::Adafactor): second moments of rows and columns, and the limit of the direction.
    Factor,
    /// Pass 3 of a look ([`Optimizer::encode_look`]).
    Look,
    /// Pass 4.
    UpdateParameters,
    /// Pass 5, if a group has telemetry or a trust ratio.
    FinishUpdate,
    /// Exchanges parameters and averages ([`Optimizer::encode_swap_averages`]).
    SwapAverages,
    /// Passes 1 to 4 in one dispatch, for small models.
    WholeStep,
    /// A kernel of a controller ([`Watchdog`](crate::Watchdog)).
    Control,
    /// Passes of a zeroth-order optimizer ([`ZerothOrder`](crate::ZerothOrder)), except its pass 3.
    ZerothOrder,
}

impl PassName {
    /// Returns the pass's stem, which names its shader and files.
    pub fn name(self) -> &'static str {
        match self {
            PassName::ReduceGradient => reduce_gradient::STEM,
            PassName::FinishReduction => finish_reduction::STEM,
            PassName::LearningRate => learning_rate::STEM,
            PassName::Prepare => "prepare",
            PassName::Orthogonalize => "orthogonalize",
            PassName::Factor => "factor",
            PassName::Look => look_pass::STEM,
            PassName::UpdateParameters => update_parameters::STEM,
            PassName::FinishUpdate => finish_update::STEM,
            PassName::SwapAverages => swap_averages::STEM,
            PassName::WholeStep => whole_step::STEM,
            PassName::Control => "control",
            PassName::ZerothOrder => "zeroth_order",
        }
    }
}

/// One dispatch of a step, for callers that record it without [`Optimizer::encode_step`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Dispatch {
    /// Pass that the dispatch belongs to.
    pub pass: PassName,
    /// Pipeline of the dispatch.
    pub pipeline: CompiledKernel,
    /// Bind groups, by index.
    pub bind_groups: Vec<BoundGroup>,
    /// Number of workgroups along x. The numbers along y and z are 1.
    pub workgroups: u32,
}

impl Dispatch {
    /// Records the dispatch.
    pub fn encode(&self, pass: &mut wgpu::ComputePass) {
        self.encode_with(&self.pipeline, pass);
    }

    /// Records the dispatch with another kernel that has the same bindings.
    fn encode_with(&self, kernel: &CompiledKernel, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(kernel);
        for (index, bind_group) in self.bind_groups.iter().enumerate() {
            pass.set_bind_group(index as u32, &**bind_group, &[]);
        }
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

/// An optimizer on the device. Made by [`OptimizerBuilder::build`](crate::OptimizerBuilder::build).
///
/// A step is a few passes that the caller records when the gradients are ready. It allocates, submits, maps and polls nothing, and does
/// not write through the queue. All per-step state is on the device, so that two steps recorded into one submit are two steps.
#[derive(Debug)]
pub struct Optimizer {
    pub(super) gpu: Gpu,
    pub(crate) plan: Plan,
    /// The dispatches of a step.
    step: Vec<Dispatch>,
    /// Dispatches of a look, if a regime needs looks.
    looks: look::Looks,
    /// Averages of the windows that keep them.
    averages: Vec<WindowAverages>,
    averages_are_swapped: bool,
    pub(super) learning_rates: wgpu::Buffer,
    loss_scale: wgpu::Buffer,
    /// The groups' constants, with their controls.
    pub(super) groups: wgpu::Buffer,
    /// Groups and tensors that take part in a step.
    presence: control::Presence,
    pub(super) states: wgpu::Buffer,
    sums: wgpu::Buffer,
    records: wgpu::Buffer,
    tensor_records: wgpu::Buffer,
    readback: Readback,
    cursor: RecordCursor,
    /// Records that were fetched by a drain that then failed.
    undelivered: Records,
    /// Data for other layouts of the tensors, if their buffers may change.
    rebinding: Option<Rebinding>,
    /// Error with which training has halted, once a record has reported the halt.
    halted: Option<Error>,
    /// State of an optimizer over several ranks.
    sharded: Option<shard::Sharded>,
    pub(super) kept: Kept,
}

/// Buffers of an optimizer that only checkpoints and controllers need.
#[derive(Debug)]
pub(super) struct Kept {
    /// The caller's buffers.
    pub(super) buffers: Vec<wgpu::Buffer>,
    /// Memory of each window's parameters.
    pub(super) memories: Vec<WindowMemory>,
    pub(super) updates: wgpu::Buffer,
}

impl Optimizer {
    /// Records one step into the caller's encoder, in a compute pass of its own. The gradients must be complete when it runs.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) if the device is lost, because wgpu itself would silently do nothing.
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) between two [`encode_swap_averages`](Optimizer::encode_swap_averages), and for an
    /// optimizer over several ranks ([`sharded`](crate::OptimizerBuilder::sharded)).
    pub fn encode_step(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim step"),
            timestamp_writes: None,
        });
        self.encode_step_in(&mut pass)
    }

    /// Records one step into the caller's compute pass.
    ///
    /// # Errors
    /// See [`Optimizer::encode_step`].
    pub fn encode_step_in(&self, pass: &mut wgpu::ComputePass) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a step")?;
        self.check_alone("encode_step")?;
        for dispatch in self.dispatches() {
            dispatch.encode(pass);
        }
        self.looks.follow_step();
        Ok(())
    }

    /// Returns the dispatches of the next step, in order, for profilers and for callers with their own encoder. Record no step while
    /// [`averages_are_swapped`](Optimizer::averages_are_swapped) returns true. With several ranks the dispatches are a step with this rank's
    /// gradients alone.
    #[doc(hidden)]
    pub fn dispatches(&self) -> &[Dispatch] {
        &self.step
    }

    /// Returns the buffer of the learning rates: one f32 per group, in the order of declaration, then padding to 16 bytes. It can be a
    /// read-only storage buffer or the source of a copy. A rate is 0 until the first non-zero gradient, unless the regime was given a first
    /// rate. A step writes the rates and does not read them, so writes by the caller have no effect.
    pub fn learning_rates(&self) -> &wgpu::Buffer {
        &self.learning_rates
    }

    /// Returns the buffer of the loss scale by which the gradients of the next step must be multiplied: one f32, then padding to 16 bytes.
    /// It can be used like [`learning_rates`](Optimizer::learning_rates). The scale is a power of two, and 1 without a
    /// [`LossScaler`](crate::LossScaler).
    pub fn loss_scale(&self) -> &wgpu::Buffer {
        &self.loss_scale
    }

    /// Returns the settings of the groups, with every default filled in.
    pub fn groups(&self) -> &[GroupConfig] {
        &self.plan.configs
    }

    /// Returns the tensors, in the order of declaration. Tensors with another rule ([`Group::other_tensors`](crate::Group::other_tensors))
    /// follow the others of their group. [`NonFinite::tensor`](crate::NonFinite::tensor) is an index into this slice.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// Returns the device of this optimizer.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Returns true if parameters and gradients may move to other buffers.
    pub(super) fn is_rebindable(&self) -> bool {
        self.rebinding.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::buffers::zeroed;
    use crate::layout::GroupState;
    use crate::record::past_two_to_the_32::{RINGS, START, STEPS, check};
    use crate::{Averaging, ErrorKind, Group, OptimizerBuilder, Regime, Rule, faults};

    #[test]
    fn whichever_buffer_is_refused_nothing_is_written_and_the_next_build_works() {
        for adapter in pollster::block_on(Gpu::adapters(None)) {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let buffer = zeroed::<f32>(&gpu, "both", 36);
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&[0.5f32; 36]));
            let read = || pollster::block_on(gpu.read_buffer::<f32>("both", &buffer)).expect("arrives");
            for (rule, regime, averaging) in [
                (Rule::adamw(), Regime::adgd(), Averaging::polynomial_decay()),
                (Rule::sgd(), Regime::auto_sgd(), Averaging::Off),
                (Rule::sgd(), Regime::dog(), Averaging::ScheduleFree),
            ] {
                let group = || {
                    let group = Group::new("all").regime(regime).averaging(averaging);
                    group.tensor("w", buffer.slice(..64), buffer.slice(64..128))
                };
                let builder =
                    || OptimizerBuilder::new(rule).telemetry(true).loss(buffer.slice(128..132)).group(group());
                let refused = |request| faults::with_failing(request, || builder().build(&gpu));
                let requests = (0..).map_while(refused).inspect(|built| {
                    let error = built.as_ref().expect_err("refused");
                    assert_eq!(error.kind(), ErrorKind::DeviceRefused, "{error}");
                });
                assert!(requests.count() > 10);
                assert_eq!(read(), [0.5; 36], "{}", gpu.describe());
                let mut optimizer = builder().build(&gpu).expect("builds");
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                optimizer.encode_step(&mut encoder).expect("alive");
                gpu.queue().submit([encoder.finish()]);
                let drained = pollster::block_on(optimizer.drain_records()).expect("arrives");
                assert_eq!(drained.records.len(), 1, "{}", gpu.describe());
                gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&[0.5f32; 36]));
            }
        }
    }

    #[test]
    fn the_ring_is_whole_past_two_to_the_32_steps() {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter");
        for adapter in adapters {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            for ring in RINGS {
                for n in STEPS {
                    let buffer = zeroed::<f32>(&gpu, "both", 32);
                    let (w, g) = (buffer.slice(..64), buffer.slice(64..));
                    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
                        .record_steps(ring)
                        .group(Group::new("all").tensor("w", w, g))
                        .build(&gpu)
                        .expect("builds");
                    let at = std::mem::offset_of!(GroupState, steps_low) as u64;
                    let start = bytemuck::bytes_of(&START);
                    gpu.queue().write_buffer(&optimizer.states, at, start);
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    for _ in 0..n {
                        optimizer.encode_step(&mut encoder).expect("alive");
                    }
                    gpu.queue().submit([encoder.finish()]);
                    let drained = pollster::block_on(optimizer.drain_records()).expect("arrives");
                    check(ring, n, drained, &gpu.describe());
                }
            }
        }
    }

    /// Compares AdamW's bias corrections on every adapter with f64, in ulps, for counts of steps that no test could take.
    #[test]
    fn bias_corrections_are_right_after_any_number_of_steps() {
        for adapter in pollster::block_on(Gpu::adapters(None)) {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let buffer = zeroed::<f32>(&gpu, "both", 32);
            let (w, g) = (buffer.slice(..64), buffer.slice(64..));
            let (beta1, beta2) = (0.9, 0.999);
            let optimizer = OptimizerBuilder::new(Rule::adamw())
                .group(Group::new("all").tensor("w", w, g))
                .build(&gpu)
                .expect("builds");
            for taken in [0, 1, 2, 9, 99, 999, 9_999, (1 << 24) - 1, 1 << 24, u64::from(u32::MAX), 1 << 40] {
                let words = [taken as u32, (taken >> 32) as u32];
                let at = std::mem::offset_of!(GroupState, steps_low) as u64;
                let queue = gpu.queue();
                queue.write_buffer(&optimizer.states, at, bytemuck::cast_slice(&words));
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                optimizer.encode_step(&mut encoder).expect("alive");
                queue.submit([encoder.finish()]);
                let state = pollster::block_on(optimizer.read_states()).expect("arrives")[0];
                let less_power = |beta: f32| -(f64::from(beta).ln() * (taken + 1) as f64).exp_m1();
                for (got, exact) in [
                    (state.first_correction, 1.0 / less_power(beta1)),
                    (state.second_correction, 1.0 / less_power(beta2).sqrt()),
                ] {
                    let unit = f64::from(f32::EPSILON) * exact.log2().floor().exp2();
                    let ulps = (f64::from(got) - exact).abs() / unit;
                    // WGSL allows a quotient 2.5.
                    assert!(
                        ulps <= 5.0,
                        "{}, after {taken} steps: {got} instead of {exact}, {ulps:.1} ulps",
                        gpu.describe()
                    );
                }
            }
        }
    }
}

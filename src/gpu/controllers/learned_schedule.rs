//! Learned schedule on the device: `shaders/controllers/learned_schedule.wgsl`.

use bytemuck::{bytes_of, cast_slice};

use crate::controllers::learned_schedule::{PolicySettings, SchedulePolicy};
use crate::error::Error;
use crate::gpu::buffers::{filled, part, whole};
use crate::gpu::context::Gpu;
use crate::gpu::limits::binding_alignment;
use crate::gpu::optimizer::Optimizer;
use crate::gpu::pass::{Binding, BoundGroup, PassSource, Pipeline};
use crate::group::TensorSlice;
use crate::plan::Region;

const STEM: &str = "learned_schedule";

/// Learned schedule on the device, beside an [`Optimizer`]: before each step a small network reads the loss of the
/// batch and sets the [`learning_rate_factor`](crate::Controls::learning_rate_factor) of every group.
/// [`SchedulePolicy`] has the formula and its source.
///
/// It keeps nothing in proportion to the parameters: 47 KB of weights and 101 floats of state with the published
/// policies. Nothing returns to the host. With [`Regime::fixed(1.0)`](crate::Regime::fixed) the optimizer's rate is the
/// policy's. Around another regime it is a factor.
///
/// ```no_run
/// use wgpu_optim::{LearnedSchedule, Optimizer, SchedulePolicy, wgpu};
///
/// fn train(
///     optimizer: &Optimizer,
///     policy: &SchedulePolicy,
///     loss: &wgpu::Buffer,
///     encoder: &mut wgpu::CommandEncoder,
/// ) -> Result<(), wgpu_optim::Error> {
///     let schedule = LearnedSchedule::new(optimizer, policy, loss.slice(..4))?;
///     // In every step, after the kernels that write the loss and the gradients:
///     schedule.encode_rate(encoder)?;
///     optimizer.encode_step(encoder)
/// }
/// ```
#[derive(Debug)]
pub struct LearnedSchedule {
    gpu: Gpu,
    policy: SchedulePolicy,
    groups: u32,
    loss_at: u32,
    pipeline: Pipeline,
    bound: BoundGroup,
    settings: wgpu::Buffer,
    weights: wgpu::Buffer,
    memory: wgpu::Buffer,
}

impl LearnedSchedule {
    /// Creates a schedule that has seen no loss, for the groups of this optimizer. `loss` is a slice of one f32 in a
    /// buffer with `BufferUsages::STORAGE`, which holds the loss of the batch when [`LearnedSchedule::encode_rate`]
    /// runs.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) or [`ErrorKind::Limit`](crate::ErrorKind::Limit) for a
    /// slice of another length, [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn new(optimizer: &Optimizer, policy: &SchedulePolicy, loss: wgpu::BufferSlice) -> Result<Self, Error> {
        let gpu = optimizer.gpu();
        gpu.check_alive()?;
        let loss = loss.tensor();
        loss.check("loss", "loss")?;
        loss.check_scalar("loss")?;
        // A binding may only start at certain offsets.
        let alignment = binding_alignment(&gpu.device().limits()) / 4;
        let start = loss.start() / alignment * alignment;
        let region = Region { buffer: 0, element: loss.element, start, end: loss.start() + 1 };
        let loss_at = (loss.start() - start) as u32;
        let groups = optimizer.groups().len() as u32;
        gpu.scoped("a learned schedule", || {
            let source = PassSource {
                module: "controllers/learned_schedule",
                stem: STEM,
                features: &[],
                constants: &[],
                groups: &[&[Binding::Uniform, Binding::Read, Binding::Read, Binding::Write, Binding::Write]],
            };
            let pipeline = Pipeline::new(gpu, &source);
            let settings = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("settings of a learned schedule"),
                size: size_of::<PolicySettings>() as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let weights = filled(gpu, "weights of a learned schedule", &policy.packed());
            let memory = filled(gpu, "state of a learned schedule", &policy.first_state());
            let bindings = [
                whole(&settings),
                whole(&weights),
                part(&loss.buffer, region),
                whole(&memory),
                whole(optimizer.controls_buffer()),
            ];
            let bound = pipeline.bind(gpu.device(), 0, &bindings);
            let (gpu, policy) = (gpu.clone(), policy.clone());
            let schedule = LearnedSchedule { gpu, policy, groups, loss_at, pipeline, bound, settings, weights, memory };
            schedule.write_settings();
            Ok(schedule)
        })
    }

    fn write_settings(&self) {
        let widths = self.policy.widths;
        let (factor, ln_classes) = self.policy.scale.terms();
        let settings = PolicySettings {
            cell: widths.cell as u32,
            from_loss: widths.from_loss as u32,
            from_state: widths.from_state as u32,
            groups: self.groups,
            loss_at: self.loss_at,
            scale_is_given: ln_classes.is_none().into(),
            scale_factor: factor,
            ln_classes: ln_classes.unwrap_or(0.0),
        };
        self.gpu.queue().write_buffer(&self.settings, 0, bytes_of(&settings));
    }

    /// Records the policy's decision into the caller's encoder, in a compute pass of its own. Record it before every
    /// step. It is one workgroup of 64 invocations, with about 12,000 multiplications for the published policies and a
    /// model of any size.
    ///
    /// A loss that is not finite, or that is not above 0 before γ is known, changes neither the factor nor the policy's
    /// state.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_rate(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim learned schedule"),
            timestamp_writes: None,
        });
        self.encode_rate_in(&mut pass)
    }

    /// Records the policy's decision into the caller's compute pass.
    ///
    /// # Errors
    /// See [`LearnedSchedule::encode_rate`].
    pub fn encode_rate_in(&self, pass: &mut wgpu::ComputePass) -> Result<(), Error> {
        self.gpu.check_alive()?;
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &*self.bound, &[]);
        pass.dispatch_workgroups(1, 1, 1);
        Ok(())
    }

    /// Replaces the policy's weights from the next submit on, as the authors do after each third of a run. h and c stay. γ
    /// is computed anew from the next loss.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a policy with other numbers of units, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn switch_policy(&mut self, policy: &SchedulePolicy) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.policy.check_successor(policy)?;
        self.policy = policy.clone();
        let queue = self.gpu.queue();
        queue.write_buffer(&self.weights, 0, cast_slice(&policy.packed()));
        let unknown = policy.first_state();
        let at = 2 * policy.widths.cell;
        queue.write_buffer(&self.memory, 4 * at as u64, cast_slice(&unknown[at..]));
        self.write_settings();
        Ok(())
    }

    /// Reads the state that later rates depend on: h, c, and γ, which is negative before the first loss. The future
    /// waits for the device. A checkpoint of the optimizer does not contain it.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Readback`](crate::ErrorKind::Readback) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub async fn state(&self) -> Result<Vec<f32>, Error> {
        let mut state: Vec<f32> = self.gpu.read_buffer("the state of a learned schedule", &self.memory).await?;
        state.truncate(self.policy.widths.state());
        Ok(state)
    }

    /// Restores a state for the submits from here on. It may come from
    /// [`CpuLearnedSchedule::state`](crate::CpuLearnedSchedule::state).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for another number of floats and for floats that are not
    /// finite, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn restore(&self, state: &[f32]) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.policy.check_state(state)?;
        self.gpu.queue().write_buffer(&self.memory, 0, cast_slice(state));
        Ok(())
    }
}

//! Looks, which measure a second gradient of the same batch after the step.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Dispatch, Optimizer, PassName};
use crate::error::{CallError, Error};
use crate::gpu::context::Gpu;
use crate::gpu::look;
use crate::gpu::optimizer::sweeps::Passes;
use crate::gpu::pass::CompiledKernel;
#[cfg(feature = "checkpoint")]
use crate::layout::{GroupConstants, GroupState};
use crate::plan::{Plan, Window};
use crate::regime::Kernel;
#[cfg(feature = "checkpoint")]
use crate::regime::is_look_due;

/// Dispatches of a look, except pass 2, which the step has too.
#[derive(Debug)]
pub(super) struct Looks {
    /// Pass 1 of the windows with looks: the index of the step's dispatch, whose bind groups are used, and the kernel.
    reduce: Vec<(usize, CompiledKernel)>,
    /// Pass 3 for each regime.
    measure: Vec<Dispatch>,
    /// True if a step was recorded since the last look.
    is_due: AtomicBool,
}

impl Looks {
    pub(super) fn new(gpu: &Gpu, plan: &Plan, tables: &[wgpu::BufferBinding]) -> Self {
        let kernels = Kernel::all().iter().filter(|kernel| {
            let mut groups = plan.groups.iter().zip(&plan.configs);
            groups.any(|(group, config)| config.regime.needs_looks() && group.regime == kernel.number())
        });
        let measure = kernels.map(|kernel| {
            let pipeline = look::pipeline(gpu, kernel);
            Dispatch {
                pass: PassName::Look,
                bind_groups: vec![pipeline.bind(gpu.device(), 0, tables)],
                pipeline: pipeline.pipeline,
                workgroups: (plan.groups.len() as u32).div_ceil(crate::gpu::learning_rate::WORKGROUP),
            }
        });
        Looks { reduce: Self::reduce(gpu, &plan.windows), measure: measure.collect(), is_due: AtomicBool::new(false) }
    }

    /// Returns pass 1 of a look over these windows.
    fn reduce(gpu: &Gpu, windows: &[Window]) -> Vec<(usize, CompiledKernel)> {
        let passes = Passes { gpu, rebindable: false };
        let measured = windows.iter().filter(|window| window.kernel.is_measured);
        let reduce = measured.enumerate().filter_map(|(index, window)| {
            let kernel = window.kernel.of_look()?;
            Some((index, passes.reduce(kernel, window.access).pipeline))
        });
        reduce.collect()
    }

    /// Follows the step to other windows.
    pub(super) fn move_to(&mut self, gpu: &Gpu, windows: &[Window]) {
        if !self.measure.is_empty() {
            self.reduce = Self::reduce(gpu, windows);
        }
    }

    /// Notes that a step was recorded.
    pub(super) fn follow_step(&self) {
        self.is_due.store(true, Ordering::Relaxed);
    }

    /// Continues from restored states.
    #[cfg(feature = "checkpoint")]
    pub(super) fn go_on_from(&self, groups: &[GroupConstants], states: &[GroupState]) {
        let is_due = groups.iter().zip(states).any(|(group, state)| is_look_due(group, state));
        self.is_due.store(is_due, Ordering::Relaxed);
    }
}

impl Optimizer {
    /// Returns the dispatches of a look, in order. There are none without a regime that needs looks.
    #[doc(hidden)]
    pub fn look_dispatches(&self) -> Vec<Dispatch> {
        let of_look = |(index, kernel): &(usize, CompiledKernel)| Dispatch {
            pipeline: kernel.clone(),
            ..self.step[*index].clone()
        };
        let mut dispatches: Vec<Dispatch> = self.looks.reduce.iter().map(of_look).collect();
        if !self.looks.measure.is_empty() {
            let finish = self.step.iter().filter(|dispatch| dispatch.pass == PassName::FinishReduction);
            dispatches.extend(finish.chain(&self.looks.measure).cloned());
        }
        dispatches
    }

    /// Records a look into the caller's encoder, in a compute pass of its own. It is for regimes that measure the
    /// curvature of a step ([`Regime::needs_looks`](crate::Regime::needs_looks), [`Curvature`](crate::Curvature)). When
    /// it runs, the gradients must be those of the previous step's batch at the parameters after that step.
    ///
    /// ```no_run
    /// # fn f(optimizer: &wgpu_optim::Optimizer, encoder: &mut wgpu::CommandEncoder, encode_gradients: impl Fn(&mut wgpu::CommandEncoder)) -> Result<(), wgpu_optim::Error> {
    /// # use wgpu_optim::wgpu;
    /// encode_gradients(encoder);
    /// optimizer.encode_step(encoder)?;
    /// encode_gradients(encoder); // of the same batch
    /// optimizer.encode_look(encoder)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It changes neither parameters nor rates nor the step count, and writes no record. The next step derives its rate
    /// from the look and records the look's result ([`Record::look`](crate::Record::look)). A look reads the gradients,
    /// the last gradients and the momentum of the groups with such a regime only. Like a step it allocates nothing and
    /// reads nothing back.
    ///
    /// A look has no effect on a group that did not move in the previous step, because the step was skipped or left the
    /// group out. A look with non-finite gradients is ignored, and the rate is carried over as after a step without a
    /// look. With a [`LossScaler`](crate::LossScaler), multiply the loss by the scale that
    /// [`loss_scale`](Optimizer::loss_scale) has after the step.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if no group has such a regime, if no step was recorded since
    /// the last look, between two [`encode_swap_averages`](Optimizer::encode_swap_averages), and for an optimizer over
    /// several ranks ([`sharded`](crate::OptimizerBuilder::sharded)), which does not support looks. Returns
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) if the device is lost.
    pub fn encode_look(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim look"),
            timestamp_writes: None,
        });
        self.encode_look_in(&mut pass)
    }

    /// Records a look into the caller's compute pass.
    ///
    /// # Errors
    /// See [`Optimizer::encode_look`].
    pub fn encode_look_in(&self, pass: &mut wgpu::ComputePass) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a look")?;
        self.check_alone("encode_look")?;
        if self.looks.measure.is_empty() {
            return Err(Error::from(CallError::NoLooks { call: "encode_look" }));
        }
        if !self.looks.is_due.swap(false, Ordering::Relaxed) {
            return Err(Error::from(CallError::LookOutOfTurn { call: "encode_look" }));
        }
        for (index, kernel) in &self.looks.reduce {
            self.step[*index].encode_with(kernel, pass);
        }
        let finish = self.step.iter().filter(|dispatch| dispatch.pass == PassName::FinishReduction);
        finish.chain(&self.looks.measure).for_each(|dispatch| dispatch.encode(pass));
        Ok(())
    }
}

//! The bi-level controller on the device.

use super::kept_copy::KeptCopy;
use super::products::{Form, product, rows_of};
use super::{check_fixed, check_same, dispatch, parts_of, pipeline, record};
use crate::controllers::bi_level::{BiLevelConfig, BiLevelConstants, BiLevelRecord, BiLevelState, check_before};
use crate::controllers::watchdog::WatchdogState;
use crate::error::Error;
use crate::gpu::buffers::{filled, whole, zeroed};
use crate::gpu::optimizer::{Dispatch, Optimizer};
use crate::gpu::pass::Binding::{Read, Write};

/// Bi-level controller on the device. It adapts the weight decay and learning-rate factor of every group to lower a validation loss. See
/// [`BiLevelConfig`].
///
/// ```no_run
/// # fn f(optimizer: &wgpu_optim::Optimizer, encoder: &mut wgpu_optim::wgpu::CommandEncoder, gradients_of: impl Fn(&str, &mut wgpu_optim::wgpu::CommandEncoder)) -> Result<(), wgpu_optim::Error> {
/// use wgpu_optim::{BiLevel, BiLevelConfig};
///
/// let mut bi_level = BiLevel::new(optimizer, BiLevelConfig::weight_decay())?;
/// // Every step, or every few steps:
/// gradients_of("a training batch", encoder);
/// optimizer.encode_step(encoder)?;
/// gradients_of("a validation batch", encoder); // at the new parameters, into the same gradient buffers
/// bi_level.encode_validation(optimizer, encoder)?;
/// # Ok(())
/// # }
/// ```
///
/// The controls are written on the device, and the next step reads them. [`BiLevel::read`] returns them. The host's
/// [`Optimizer::controls`] does not include them. A validation reads gradients and parameters, which is 8 bytes per f32 parameter, and
/// keeps nothing. A controller that adapts the learning rate keeps a copy of the parameters, 4 bytes per f32 parameter, and reads and
/// writes 20 bytes instead of 8.
#[derive(Debug)]
pub struct BiLevel {
    config: BiLevelConfig,
    states: wgpu::Buffer,
    /// Copies the parameters before a step, if the rate moves.
    copies: Vec<Dispatch>,
    validation: Vec<Dispatch>,
    told: wgpu::Buffer,
    names: Vec<String>,
    /// True if the parameters before the last recorded step are kept.
    has_before: bool,
}

impl BiLevel {
    /// Creates a controller of an optimizer: allocates its buffers and compiles its kernels.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a setting outside its range. Returns
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) for a group without weight decay if the decay is to be adapted, for a group with
    /// schedule-free training if the rate is to be adapted, and for an optimizer of several ranks, with regime AutoSgd, or built with
    /// [`rebindable`](crate::OptimizerBuilder::rebindable). Returns [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) if the
    /// device lacks memory, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn new(optimizer: &Optimizer, config: BiLevelConfig) -> Result<Self, Error> {
        config.check(&optimizer.plan)?;
        check_fixed(optimizer, "a bi-level controller")?;
        optimizer
            .gpu
            .scoped("the buffers and kernels of a bi-level controller", || Ok(Self::allocate(optimizer, config)))
    }

    fn allocate(optimizer: &Optimizer, config: BiLevelConfig) -> Self {
        let plan = &optimizer.plan;
        let groups = plan.configs.len();
        let parts = |group: usize| {
            let tensors = plan.tensors.iter().zip(&plan.places).filter(move |(tensor, _)| tensor.group == group);
            tensors.flat_map(|(_, place)| parts_of(optimizer, place))
        };
        let mut constants: Vec<BiLevelConstants> = Vec::with_capacity(groups);
        let mut row = 0;
        for group in 0..groups {
            let count = parts(group).map(|part| rows_of(&part)).sum();
            constants.push(config.constants(row, count));
            row += count;
        }
        let gpu = &optimizer.gpu;
        let rows = zeroed::<[f32; 2]>(gpu, "rows of inner products", row.into());
        // Without a watchdog nothing is ever taken back.
        let watch = zeroed::<WatchdogState>(gpu, "no watchdog", 1);
        let mut copies = Vec::new();
        let mut validation = Vec::new();
        let mut row = 0;
        for part in (0..groups).flat_map(parts) {
            let form = if config.moves_rate() { Form::Along } else { Form::Product };
            let copy = config.moves_rate().then(|| KeptCopy::of_parameters(optimizer, &watch, &part));
            validation.push(product(optimizer, form, &part, copy.as_ref().map(|copy| &copy.kept), &rows, row));
            row += rows_of(&part);
            copies.extend(copy.map(|copy| copy.keep));
        }
        let told = zeroed::<BiLevelState>(gpu, "what a bi-level controller has set", groups as u64);
        let constants = filled(gpu, "constants of a bi-level controller", &constants);
        let kernel =
            pipeline(&optimizer.gpu, "controllers/bi_level", "bi_level", &[], &[], &[Read, Read, Write, Write]);
        let buffers = [whole(&rows), whole(&constants), whole(&optimizer.groups), whole(&told)];
        validation.push(dispatch(&optimizer.gpu, &kernel, &buffers, groups as u32));
        let names = plan.configs.iter().map(|config| config.name.clone()).collect();
        BiLevel { config, states: optimizer.states.clone(), copies, validation, told, names, has_before: false }
    }

    /// Records a copy of the parameters before a step. Only a controller that moves the learning rate needs this call.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for another optimizer than the one of [`BiLevel::new`], and while its averages are
    /// swapped in, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_before_step(
        &mut self,
        optimizer: &Optimizer,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<(), Error> {
        check_same(optimizer, &self.states, "BiLevel::encode_before_step")?;
        if self.config.moves_rate() {
            record(encoder, "wgpu-optim parameters before a step", &self.copies);
            self.has_before = true;
        }
        Ok(())
    }

    /// Records a change of the controls by the gradients of a validation loss. The gradients must be in the optimizer's gradient buffers when
    /// the commands run. Like a step it allocates nothing and reads nothing back.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) like [`BiLevel::encode_before_step`], and if that call is needed but was not made
    /// since the last validation. Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) if the device is lost.
    pub fn encode_validation(
        &mut self,
        optimizer: &Optimizer,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<(), Error> {
        check_same(optimizer, &self.states, "BiLevel::encode_validation")?;
        check_before(self.config, self.has_before, "BiLevel::encode_validation", "BiLevel::encode_before_step")?;
        record(encoder, "wgpu-optim validation", &self.validation);
        self.has_before = false;
        Ok(())
    }

    /// Reads the controls that the last validation has set and its measurements, group by group. Waits for the device. Before the first
    /// validation all numbers are 0.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    pub async fn read(&self, optimizer: &Optimizer) -> Result<Vec<BiLevelRecord>, Error> {
        let told = optimizer.gpu.read_buffer::<BiLevelState>("what a bi-level controller has set", &self.told).await?;
        let records = self.names.iter().zip(&told).map(|(name, state)| BiLevelRecord::of(name, &self.config, state));
        Ok(records.collect())
    }
}

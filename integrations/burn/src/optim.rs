//! The optimizer itself: a step for all parameters of a module at once.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::tensor::CubeTensor;
use wgpu_optim::{Averaging, Optimizer, Records, wgpu};

use crate::error::Error;
use crate::tensor::{Lease, check_dtype, close, lease, open};

/// A parameter that is trained.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) id: ParamId,
    /// Its path in the module.
    pub(crate) name: String,
    pub(crate) elements: usize,
}

/// Tensors that had to be copied on the device before a step could use them, since the optimizer was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copies {
    /// Parameters that somebody else had too (a clone of the module that is still there, say), that had gaps, or that lay where no
    /// binding can start. What is trained is then the copy, which is nobody else's.
    pub parameters: u64,
    /// Gradients that had gaps, as those of transposed weights have, or that lay where no binding can start.
    pub gradients: u64,
}

/// An optimizer for burn modules. Made by [`WgpuOptimConfig::init`](crate::WgpuOptimConfig::init).
///
/// A step writes into the parameters' own buffers, from the gradients' own buffers: nothing is copied, nothing returns to the host, and
/// no learning rate is given. Buffers that somebody else has too are never written: see [`Copies`].
pub struct WgpuOptim {
    optimizer: Optimizer,
    /// In the order of the optimizer's tensors.
    parameters: Vec<Parameter>,
    index: HashMap<ParamId, usize>,
    /// Where burn has the module.
    device: Device,
    client: Client,
    /// What a binding's start is a multiple of, in bytes.
    alignment: u64,
    loss: wgpu::Buffer,
    copies: Copies,
}

impl std::fmt::Debug for WgpuOptim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WgpuOptim")
            .field("optimizer", &self.optimizer)
            .field("parameters", &self.parameters)
            .field("device", &self.device)
            .field("copies", &self.copies)
            .finish_non_exhaustive()
    }
}

impl WgpuOptim {
    pub(crate) fn new(
        optimizer: Optimizer,
        parameters: Vec<Parameter>,
        device: Device,
        client: Client,
        loss: wgpu::Buffer,
    ) -> Self {
        let limits = optimizer.gpu().device().limits();
        let ids = parameters.iter().map(|parameter| parameter.id);
        WgpuOptim {
            index: ids.zip(0..).collect(),
            optimizer,
            parameters,
            device,
            client,
            alignment: u64::from(limits.min_storage_buffer_offset_alignment.max(16)),
            loss,
            copies: Copies::default(),
        }
    }

    /// One step, on the device's queue behind everything that burn has been asked for so far and ahead of everything that it will be.
    ///
    /// The module that comes back is the one that went in, with its parameters moved.
    ///
    /// # Errors
    /// [`Error::MissingGradient`], [`Error::ModuleDiffers`], [`Error::Unusable`] or [`Error::MissingLoss`] where module and gradients are
    /// not those of this optimizer; [`Error::Optimizer`], [`Error::Runtime`]. The module is gone then; [`WgpuOptim::try_step`] gives it
    /// back.
    pub fn step<M: Module>(&mut self, module: M, gradients: GradientsParams) -> Result<M, Error> {
        let (module, stepped) = self.try_step(module, gradients, None);
        stepped.map(|()| module)
    }

    /// As [`WgpuOptim::step`], for regimes that go by the loss: a tensor of one element.
    ///
    /// # Errors
    /// As [`WgpuOptim::step`].
    pub fn step_with_loss<M: Module>(
        &mut self,
        module: M,
        gradients: GradientsParams,
        loss: &Tensor<1>,
    ) -> Result<M, Error> {
        let (module, stepped) = self.try_step(module, gradients, Some(loss));
        stepped.map(|()| module)
    }

    /// As [`WgpuOptim::step`] or [`WgpuOptim::step_with_loss`], but the module comes back in any case: after an error with the values
    /// that it had.
    pub fn try_step<M: Module>(
        &mut self,
        module: M,
        mut gradients: GradientsParams,
        loss: Option<&Tensor<1>>,
    ) -> (M, Result<(), Error>) {
        let loss = match self.lease_loss(loss) {
            Ok(loss) => loss,
            Err(error) => return (module, Err(error)),
        };
        let mut leases = Leases {
            device: &self.device,
            path: Vec::new(),
            parameters: &self.parameters,
            index: &self.index,
            alignment: self.alignment,
            gradients: &mut gradients,
            leased: self.parameters.iter().map(|_| None).collect(),
            copies: self.copies,
            problem: None,
        };
        let module = module.map(&mut leases);
        let (leased, copies, problem) = (leases.leased, leases.copies, leases.problem);
        self.copies = copies;
        let stepped = match problem {
            Some(problem) => Err(problem),
            None => self.submit(leased, loss),
        };
        (module, stepped)
    }

    /// The loss, where a regime goes by it.
    fn lease_loss(&self, loss: Option<&Tensor<1>>) -> Result<Option<Lease>, Error> {
        let mut groups = self.optimizer.groups().iter();
        let Some(group) = groups.find(|group| group.regime.needs_loss()) else {
            return Ok(None);
        };
        let Some(loss) = loss else {
            return Err(Error::MissingLoss { group: group.name.clone(), regime: group.regime.name() });
        };
        let unusable = |reason| Error::Unusable { parameter: "the loss".to_owned(), reason };
        let value = loss.clone().inner();
        check_dtype(&value).map_err(unusable)?;
        let elements = value.shape().num_elements();
        if elements != 1 {
            return Err(unusable(format!("it has {elements} elements instead of 1")));
        }
        let opened = open(value).map_err(unusable)?;
        Lease::of(&opened, 1).map(Some)
    }

    fn submit(&mut self, leased: Vec<Option<(Lease, Lease)>>, loss: Option<Lease>) -> Result<(), Error> {
        let mut slices = Vec::with_capacity(leased.len());
        for (parameter, leases) in self.parameters.iter().zip(&leased) {
            let Some((params, grads)) = leases else {
                return Err(Error::ModuleDiffers {
                    parameter: parameter.name.clone(),
                    expected: parameter.elements,
                    actual: 0,
                });
            };
            slices.push((params.slice(), grads.slice()));
        }
        self.optimizer.rebind(&slices)?;
        // What burn has recorded so far, the gradients above all, comes first.
        self.client.flush().map_err(|error| Error::Runtime(error.to_string()))?;
        let gpu = self.optimizer.gpu();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        if let Some(loss) = &loss {
            let from = loss.slice();
            encoder.copy_buffer_to_buffer(from.buffer(), from.offset(), &self.loss, 0, 4);
        }
        self.optimizer.encode_step(&mut encoder)?;
        gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// What had to be copied so far.
    pub fn copies(&self) -> Copies {
        self.copies
    }

    /// The optimizer underneath: its tensors by name, its groups, the learning rates on the device.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The records of all steps so far that were not drained before; waits for the device.
    /// [`NonFinite::tensor`](wgpu_optim::NonFinite::tensor) and [`TensorRecord::tensor`](wgpu_optim::TensorRecord::tensor) are indices into
    /// [`WgpuOptim::name`].
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    pub fn drain_records(&mut self) -> Result<Records, Error> {
        Ok(pollster::block_on(self.optimizer.drain_records())?)
    }

    /// As [`WgpuOptim::drain_records`], but waits for nothing: see [`Optimizer::try_drain_records`].
    ///
    /// # Errors
    /// As [`Optimizer::try_drain_records`].
    pub fn try_drain_records(&mut self) -> Result<Option<Records>, Error> {
        Ok(self.optimizer.try_drain_records()?)
    }

    /// The path in the module of the tensor of this index.
    pub fn name(&self, tensor: usize) -> Option<&str> {
        let parameter = self.parameters.get(tensor)?;
        Some(&parameter.name)
    }

    /// Lets training go on after [`wgpu_optim::ErrorKind::Halted`]: see [`Optimizer::resume`].
    ///
    /// # Errors
    /// As [`Optimizer::resume`].
    pub fn resume(&mut self) -> Result<(), Error> {
        Ok(pollster::block_on(self.optimizer.resume())?)
    }

    /// A copy of the module with the averages of its parameters, to be evaluated or kept; where a group keeps none, or none yet, with the
    /// parameters as they are. For a module that this optimizer has stepped.
    ///
    /// # Errors
    /// [`Error::ModuleDiffers`] where the module is another; [`Error::Optimizer`], [`Error::Runtime`].
    pub fn averaged<M: Module>(&mut self, module: &M) -> Result<M, Error> {
        let mut copier = Copier { index: &self.index, alignment: self.alignment, copied: Vec::new(), problem: None };
        let copy = module.clone().map(&mut copier);
        let (copied, problem) = (copier.copied, copier.problem);
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.client.flush().map_err(|error| Error::Runtime(error.to_string()))?;
        let gpu = self.optimizer.gpu();
        let (groups, tensors) = (self.optimizer.groups(), self.optimizer.tensors());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (tensor, lease) in &copied {
            if groups[tensors[*tensor].group].averaging != Averaging::Off {
                self.optimizer.encode_copy_averages(&mut encoder, *tensor, lease.slice())?;
            }
        }
        gpu.queue().submit([encoder.finish()]);
        Ok(copy)
    }
}

#[cfg(feature = "checkpoint")]
impl WgpuOptim {
    /// Writes what the optimizer remembers to a file (see [`Optimizer::save`]); the parameters are burn's to save, with
    /// [`Module::save_file`]. Waits for the device.
    ///
    /// # Errors
    /// As [`Optimizer::save`].
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<(), Error> {
        let saved = self.optimizer.save(path, wgpu_optim::Parameters::Excluded);
        Ok(pollster::block_on(saved)?)
    }

    /// Goes on from such a file, with a module that has the parameters of the same step: the steps that follow have the bits of a run that
    /// was not interrupted. The step it was saved after comes back.
    ///
    /// # Errors
    /// As [`Optimizer::load`]; nothing has changed then.
    pub fn load(&mut self, path: impl AsRef<std::path::Path>) -> Result<u64, Error> {
        let loaded = self.optimizer.load(path, wgpu_optim::Parameters::Excluded)?;
        Ok(loaded.step())
    }
}

/// Takes every parameter and its gradient out of burn's hands for a step; the module that comes of it has the same values.
struct Leases<'a> {
    device: &'a Device,
    parameters: &'a [Parameter],
    index: &'a HashMap<ParamId, usize>,
    path: Vec<String>,
    alignment: u64,
    gradients: &'a mut GradientsParams,
    leased: Vec<Option<(Lease, Lease)>>,
    copies: Copies,
    problem: Option<Error>,
}

impl Leases<'_> {
    fn gradient<const D: usize>(&mut self, parameter: &Parameter) -> Result<Lease, Error> {
        let unusable = |reason: String| Error::Unusable {
            parameter: parameter.name.clone(),
            reason: format!("its gradient: {reason}"),
        };
        let gradient = self.gradients.remove::<D>(parameter.id);
        let gradient = gradient.ok_or_else(|| Error::MissingGradient { parameter: parameter.name.clone() })?;
        check_dtype(&gradient).map_err(unusable)?;
        let elements = gradient.shape().num_elements();
        if elements != parameter.elements {
            return Err(unusable(format!("it has {elements} elements instead of {}", parameter.elements)));
        }
        let opened = open(gradient).map_err(unusable)?;
        let (_, leased) = lease(opened, false, self.alignment);
        let (lease, copied) = leased?;
        self.copies.gradients += u64::from(copied);
        Ok(lease)
    }

    /// Refuses a parameter that is not as it was when the optimizer was made.
    fn check<const D: usize>(&self, parameter: &Parameter, value: &Tensor<D>) -> Result<(), Error> {
        let actual = value.shape().num_elements();
        if actual != parameter.elements {
            return Err(Error::ModuleDiffers {
                parameter: parameter.name.clone(),
                expected: parameter.elements,
                actual,
            });
        }
        let device = value.device();
        let checked = if device == *self.device {
            check_dtype(value)
        } else {
            let place = self.device;
            Err(format!(
                "it is on {device:?}, but the optimizer on {place:?}: move the module (Module::to_device), or make an optimizer there"
            ))
        };
        checked.map_err(|reason| Error::Unusable { parameter: parameter.name.clone(), reason })
    }

    /// What a step needs of a parameter before it is taken out of the module.
    fn prepare<const D: usize>(&mut self, param: &Param<Tensor<D>>) -> Result<Option<(usize, Lease)>, Error> {
        let value = param.base();
        let Some(&index) = self.index.get(&param.id) else {
            return if value.is_require_grad() {
                Err(Error::UnknownParameter { parameter: self.path.join(".") })
            } else {
                Ok(None)
            };
        };
        let parameters = self.parameters;
        self.check(&parameters[index], &value)?;
        let gradient = self.gradient::<D>(&parameters[index])?;
        Ok(Some((index, gradient)))
    }
}

impl ModuleMapper for Leases<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.problem.is_some() {
            return param;
        }
        let (index, gradient) = match self.prepare(&param) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return param,
            Err(problem) => {
                self.problem = Some(problem);
                return param;
            }
        };
        let alignment = self.alignment;
        let mut leased = None;
        let param = remake(param, |tensor| {
            let (tensor, lease) = lease(tensor, true, alignment);
            leased = Some(lease);
            tensor
        });
        match leased {
            Some(Ok((parameter, copied))) => {
                self.copies.parameters += u64::from(copied);
                self.leased[index] = Some((parameter, gradient));
            }
            Some(Err(problem)) => self.problem = Some(problem),
            None => {}
        }
        param
    }
}

/// Copies every parameter, for averages to be written to.
struct Copier<'a> {
    index: &'a HashMap<ParamId, usize>,
    alignment: u64,
    copied: Vec<(usize, Lease)>,
    problem: Option<Error>,
}

impl ModuleMapper for Copier<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(&index) = self.index.get(&param.id) else {
            return param;
        };
        let alignment = self.alignment;
        remake(param, |tensor| {
            // The module that was cloned still has it.
            let (tensor, lease) = lease(tensor, true, alignment);
            match lease {
                Ok((lease, _)) => self.copied.push((index, lease)),
                Err(problem) => self.problem = Some(problem),
            }
            tensor
        })
    }
}

/// The same parameter of another tensor, which is on the same device as that which it had.
fn remake<const D: usize>(
    param: Param<Tensor<D>>,
    exchange: impl FnOnce(CubeTensor) -> CubeTensor,
) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    let (trained, distributed) = (tensor.is_require_grad(), tensor.is_distributed());
    let checkpointing = tensor.gradient_checkpointing_strategy();
    let lifted = tensor.is_autodiff();
    let tensor = if lifted { tensor.inner() } else { tensor };
    let opened = open(tensor).expect("the device is the optimizer's, and so is the backend");
    let mut tensor = close(exchange(opened));
    if lifted {
        tensor = Tensor::from_inner(tensor);
    }
    if let Some(strategy) = checkpointing {
        tensor = tensor.with_gradient_checkpointing_strategy(strategy);
    }
    if trained {
        tensor = tensor.require_grad();
    }
    if distributed {
        tensor = tensor.set_distributed(id);
    }
    Param::from_mapped_value(id, tensor, mapper)
}

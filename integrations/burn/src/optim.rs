//! The optimizer itself: a step for all parameters of a module at once.

use std::any::Any;
use std::collections::{HashMap, VecDeque};

use burn::backend::Cube;
use burn::module::{Module, ModuleMapper, Param, ParamId, ParamMapper};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, GradientCheckpointingStrategy, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use wgpu_optim::{Averaging, Controls, Element, Optimizer, Records, wgpu};

use crate::error::Error;
use crate::tensor::{Buffers, Held, Lease, Pending, Primitive, close, element_of, hold, open};

/// A parameter that is trained.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) id: ParamId,
    /// Its path in the module.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: usize,
    pub(crate) element: Element,
}

/// Number of tensors that were copied on the device before a step could use them, since the optimizer was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copies {
    /// Parameters whose buffer was shared (with a clone of the module, for example), that were strided, or that were not aligned for a
    /// binding. The copy is trained from then on, and its buffer is not shared.
    pub parameters: u64,
    /// Gradients that were strided, as those of transposed weights are, or that were not aligned for a binding.
    pub gradients: u64,
}

/// Optimizer for burn modules, created by [`WgpuOptimConfig::init`](crate::WgpuOptimConfig::init).
///
/// A step reads the gradients' buffers and writes the parameters' buffers. It copies nothing, reads nothing back to the host, and takes no
/// learning rate. A buffer that other tensors share is copied first and never written: see [`Copies`].
pub struct WgpuOptim {
    optimizer: Optimizer,
    /// In the order of the optimizer's tensors.
    parameters: Vec<Parameter>,
    index: HashMap<ParamId, usize>,
    /// Indices of the optimizer's tensors in the order of the module.
    order: Vec<usize>,
    /// Device of the module.
    device: Device,
    place: CubeDevice,
    /// Alignment of a binding's start in bytes.
    alignment: u64,
    loss: wgpu::Buffer,
    copies: Copies,
}

/// Buffers of a tensor's parameters and gradients.
pub(crate) struct Site {
    /// Index of the parameter.
    index: usize,
    params: Held,
    /// Gradients, or `None` if the step has no gradient for the parameter.
    grads: Option<Held>,
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
        order: &[ParamId],
        device: Device,
        place: CubeDevice,
        loss: wgpu::Buffer,
    ) -> Self {
        let limits = optimizer.gpu().device().limits();
        let ids = parameters.iter().map(|parameter| parameter.id);
        let index: HashMap<ParamId, usize> = ids.zip(0..).collect();
        WgpuOptim {
            order: order.iter().map(|id| index[id]).collect(),
            index,
            optimizer,
            parameters,
            device,
            place,
            alignment: u64::from(limits.min_storage_buffer_offset_alignment.max(16)),
            loss,
            copies: Copies::default(),
        }
    }

    /// Takes one step and returns the module with updated parameters. The step is submitted to the device's queue after all operations that
    /// burn has recorded so far.
    ///
    /// A parameter without a gradient in `gradients` is not changed, as in PyTorch and burn, and does not contribute to the norm: see
    /// [`Optimizer::encode_step_without`].
    ///
    /// # Errors
    /// - [`Error::UnknownParameter`], [`Error::ModuleDiffers`], [`Error::Tied`], [`Error::Unusable`] or [`Error::MissingLoss`] if the module
    ///   or the gradients do not fit the optimizer.
    /// - [`Error::Failed`], [`Error::Optimizer`] or [`Error::Runtime`] if the step failed.
    ///
    /// The module is dropped after an error. [`WgpuOptim::try_step`] returns it.
    pub fn step<M: Module>(&mut self, module: M, gradients: GradientsParams) -> Result<M, Error> {
        let (module, stepped) = self.try_step(module, gradients, None);
        stepped.map(|()| module)
    }

    /// Takes one step as [`WgpuOptim::step`] does, for regimes that use the loss. The loss has one element.
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

    /// Takes one step as [`WgpuOptim::step`] or [`WgpuOptim::step_with_loss`] do, and returns the module in any case. After an error the
    /// parameters have their former values. The exception is [`Error::Failed`] with burn's `fusion`: burn could not run the operations that compute
    /// the inputs of the step, and its parameters cannot be read.
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
        let mut collector = Collector {
            optim: self,
            path: Vec::new(),
            gradients: &mut gradients,
            seen: vec![false; self.parameters.len()],
            taken: Vec::with_capacity(self.parameters.len()),
            problem: None,
        };
        let module = module.map(&mut collector);
        let problem = collector.problem.take().or_else(|| collector.missing());
        let taken = collector.taken;
        let mut shells = VecDeque::with_capacity(taken.len());
        let mut pairs = Vec::with_capacity(taken.len());
        for Taken { index, params, grads, shell } in taken {
            shells.push_back(shell);
            pairs.push((index, params, grads));
        }
        let (tensors, sites) = match &problem {
            // The tensors go back as they came.
            Some(_) => (pairs.into_iter().map(|(_, params, _)| params).collect(), Pending::new()),
            None => self.exchange(pairs),
        };
        let mut returner = Returner { index: &self.index, shells, tensors: tensors.into_iter() };
        let module = module.map(&mut returner);
        let stepped = match problem {
            Some(problem) => Err(problem),
            None => self.finish(vec![sites], loss),
        };
        (module, stepped)
    }

    /// Returns the loss if a regime uses it.
    pub(crate) fn lease_loss(&self, loss: Option<&Tensor<1>>) -> Result<Option<Pending<Held>>, Error> {
        let mut groups = self.optimizer.groups().iter();
        let Some(group) = groups.find(|group| group.regime.needs_loss()) else {
            return Ok(None);
        };
        let Some(loss) = loss else {
            return Err(Error::MissingLoss { group: group.name.clone(), regime: group.regime.name() });
        };
        let unusable = |reason| Error::Unusable { parameter: "the loss".to_owned(), reason };
        let value = loss.clone().inner().cast(DType::F32);
        let elements = value.shape().num_elements();
        if elements != 1 {
            return Err(unusable(format!("it has {elements} elements instead of 1")));
        }
        let held = Pending::new();
        let pending = held.share();
        let work = move |mut tensors: Vec<CubeTensor>| {
            // Copies start at any word.
            let (tensor, loss) = hold(tensors.swap_remove(0), Element::F32, false, 4);
            pending.set(loss);
            vec![tensor]
        };
        drop(Cube::with_buffers(vec![open(value).map_err(unusable)?], 1, Box::new(work)));
        Ok(Some(held))
    }

    /// Gets the buffers of parameters and gradients for a step in one operation of burn. Each parameter comes with its index. Returns tensors with
    /// the same values that replace the parameters.
    pub(crate) fn exchange(
        &self,
        pairs: Vec<(usize, Primitive, Option<Primitive>)>,
    ) -> (Vec<Primitive>, Pending<Vec<Site>>) {
        let (mut params, mut grads) = (Vec::with_capacity(2 * pairs.len()), Vec::with_capacity(pairs.len()));
        let mut kinds = Vec::with_capacity(pairs.len());
        for (index, param, grad) in pairs {
            kinds.push((index, self.parameters[index].element, grad.is_some()));
            params.push(param);
            grads.extend(grad);
        }
        let (sites, replaced) = (Pending::new(), params.len());
        let (pending, alignment) = (sites.share(), self.alignment);
        let work = move |tensors: Vec<CubeTensor>| {
            let mut params = tensors;
            let mut grads = params.split_off(kinds.len()).into_iter();
            let mut sites = Vec::with_capacity(kinds.len());
            let outputs = kinds.iter().zip(params).map(|(&(index, element, has_gradient), tensor)| {
                let (tensor, params) = hold(tensor, element, has_gradient, alignment);
                let gradient = if has_gradient { grads.next() } else { None };
                let grads = gradient.map(|gradient| hold(gradient, element, false, alignment).1);
                sites.push(Site { index, params, grads });
                tensor
            });
            let outputs = outputs.collect();
            pending.set(sites);
            outputs
        };
        params.append(&mut grads);
        (Cube::with_buffers(params, replaced, Box::new(work)), sites)
    }

    /// Returns a tensor with the same f32 values whose buffer is not shared, and the buffer.
    fn room(&self, tensor: Primitive) -> (Primitive, Pending<Held>) {
        let held = Pending::new();
        let (pending, alignment) = (held.share(), self.alignment);
        let work = move |mut tensors: Vec<CubeTensor>| {
            let (tensor, held) = hold(tensors.swap_remove(0), Element::F32, true, alignment);
            pending.set(held);
            vec![tensor]
        };
        let mut copies = Cube::with_buffers(vec![tensor], 1, Box::new(work));
        (copies.swap_remove(0), held)
    }

    /// Takes the step with the buffers of all tensors.
    pub(crate) fn finish(&mut self, sites: Vec<Pending<Vec<Site>>>, loss: Option<Pending<Held>>) -> Result<(), Error> {
        // The operations that burn has recorded, which compute the gradients, run first.
        Cube::submit(&self.place)?;
        let client = self.place.client();
        let mut places: Vec<Option<Site>> = self.parameters.iter().map(|_| None).collect();
        for site in sites.iter().filter_map(Pending::take).flatten() {
            let index = site.index;
            places[index] = Some(site);
        }
        // An operation for all parameters fails as a whole, and does not say which of its inputs failed.
        let what =
            |name: &str| if sites.len() < self.parameters.len() { "one of the parameters" } else { name }.to_owned();
        let mut held = Vec::with_capacity(2 * places.len() + 1);
        let mut absent = Vec::new();
        for (tensor, (parameter, site)) in self.parameters.iter().zip(places).enumerate() {
            let Site { params, grads, .. } = site.ok_or_else(|| Error::Failed { what: what(&parameter.name) })?;
            self.copies.parameters += u64::from(params.copied);
            held.push(params);
            held.push(grads.unwrap_or_else(|| {
                absent.push(tensor);
                // A buffer to bind, which no kernel reads.
                Held::scratch(&client, parameter.element, parameter.elements)
            }));
            self.copies.gradients += held.last().map_or(0, |grads| u64::from(grads.copied));
        }
        if let Some(loss) = loss {
            held.push(loss.take().ok_or_else(|| Error::Failed { what: "the loss".to_owned() })?);
        }
        let leases = Lease::all(&client, held)?;
        let (tensors, loss) = leases.split_at(2 * self.parameters.len());
        let slices: Vec<_> = tensors.chunks_exact(2).map(|pair| (pair[0].elements(), pair[1].elements())).collect();
        self.optimizer.rebind(&slices)?;
        let gpu = self.optimizer.gpu().clone();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        if let [loss] = loss {
            let from = loss.slice();
            encoder.copy_buffer_to_buffer(from.buffer(), from.offset(), &self.loss, 0, 4);
        }
        if absent.is_empty() {
            self.optimizer.encode_step(&mut encoder)?;
        } else {
            self.optimizer.encode_step_without(&mut encoder, &absent)?;
        }
        gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Changes settings of a group between steps: a factor of its learning rate, weight decay, clip, micro-batches, or whether it is frozen.
    /// See [`Optimizer::control`].
    ///
    /// # Errors
    /// As [`Optimizer::control`].
    pub fn control(&mut self, group: &str, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        Ok(self.optimizer.control(group, change)?)
    }

    /// As [`WgpuOptim::control`], for all groups.
    ///
    /// # Errors
    /// As [`Optimizer::control_all`].
    pub fn control_all(&mut self, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        Ok(self.optimizer.control_all(change)?)
    }

    /// Returns the number of tensors that were copied so far.
    pub fn copies(&self) -> Copies {
        self.copies
    }

    /// Returns the underlying optimizer, which has the tensors by name, the groups, and the learning rates on the device.
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
    /// [`Error::Failed`], [`Error::Optimizer`], [`Error::Runtime`].
    pub fn averaged<M: Module>(&mut self, module: &M) -> Result<M, Error> {
        let mut copier = Copier { optim: self, dtypes: HashMap::new(), copied: Vec::new() };
        let copy = module.clone().map(&mut copier);
        let (dtypes, copied) = (copier.dtypes, copier.copied);
        Cube::submit(&self.place)?;
        let gpu = self.optimizer.gpu();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let held = copied.iter().map(|(tensor, held)| {
            held.take().ok_or_else(|| Error::Failed { what: self.parameters[*tensor].name.clone() })
        });
        let leases = Lease::all(&self.place.client(), held.collect::<Result<_, _>>()?)?;
        for ((tensor, _), lease) in copied.iter().zip(&leases) {
            self.optimizer.encode_copy_averages(&mut encoder, *tensor, lease.slice())?;
        }
        gpu.queue().submit([encoder.finish()]);
        // Averages are f32.
        Ok(copy.map(&mut Converter { dtypes }))
    }
}

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

    /// As [`WgpuOptim::load`], of a checkpoint in memory. [`WgpuOptim::optimizer`] makes one:
    /// [`Optimizer::checkpoint`].
    ///
    /// # Errors
    /// As [`Optimizer::restore`]; nothing has changed then.
    pub fn restore(&mut self, checkpoint: &wgpu_optim::Checkpoint) -> Result<(), Error> {
        Ok(self.optimizer.restore(checkpoint, wgpu_optim::Parameters::Excluded)?)
    }
}

/// Mapper that takes every parameter and its gradient out of a module for a step. [`Returner`] puts the parameters back.
struct Collector<'a> {
    optim: &'a WgpuOptim,
    path: Vec<String>,
    gradients: &'a mut GradientsParams,
    /// For each parameter, true if the module has it.
    seen: Vec<bool>,
    taken: Vec<Taken>,
    problem: Option<Error>,
}

/// Parameter that was taken out of its module.
struct Taken {
    index: usize,
    params: Primitive,
    grads: Option<Primitive>,
    /// [`Shell`] with the parameter's number of dimensions.
    shell: Box<dyn Any>,
}

impl WgpuOptim {
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns an error if a parameter differs from the one that the optimizer was made for.
    pub(crate) fn check<const D: usize>(&self, parameter: &Parameter, value: &Tensor<D>) -> Result<(), Error> {
        let actual = value.shape().num_elements();
        if actual != parameter.elements {
            return Err(Error::ModuleDiffers {
                parameter: parameter.name.clone(),
                expected: parameter.elements,
                actual,
            });
        }
        self.check_kind(parameter, value)
            .map_err(|reason| Error::Unusable { parameter: parameter.name.clone(), reason })
    }

    /// Returns an error if a gradient differs from its parameter in device, length or element type.
    pub(crate) fn check_gradient<const D: usize>(
        &self,
        parameter: &Parameter,
        gradient: &Tensor<D>,
    ) -> Result<(), Error> {
        let elements = gradient.shape().num_elements();
        let checked = if elements == parameter.elements {
            self.check_kind(parameter, gradient)
        } else {
            Err(format!("it has {elements} elements instead of {}", parameter.elements))
        };
        checked.map_err(|reason| Error::Unusable {
            parameter: parameter.name.clone(),
            reason: format!("its gradient: {reason}"),
        })
    }

    fn check_kind<const D: usize>(&self, parameter: &Parameter, value: &Tensor<D>) -> Result<(), String> {
        let (device, place) = (value.device(), &self.device);
        if device != *place {
            return Err(format!(
                "it is on {device:?}, but the optimizer on {place:?}: move the module (Module::to_device), or make an optimizer there"
            ));
        }
        let (element, expected) = (element_of(value.dtype())?, parameter.element);
        if element == expected {
            return Ok(());
        }
        Err(format!(
            "it is {}, but the parameter was {} when the optimizer was made: convert it back, or make a new optimizer",
            element.name(),
            expected.name()
        ))
    }
}

impl Collector<'_> {
    /// Checks a parameter and its gradient. Returns the parameter's index and its gradient if there is one, or `None` for a parameter that
    /// the optimizer does not have.
    fn prepare<const D: usize>(
        &mut self,
        param: &Param<Tensor<D>>,
    ) -> Result<Option<(usize, Option<Primitive>)>, Error> {
        let value = param.base();
        let Some(&index) = self.optim.index.get(&param.id) else {
            return if value.is_require_grad() {
                Err(Error::UnknownParameter { parameter: self.path.join(".") })
            } else {
                Ok(None)
            };
        };
        let parameter = &self.optim.parameters[index];
        if std::mem::replace(&mut self.seen[index], true) {
            return Err(Error::Tied { first: parameter.name.clone(), second: self.path.join(".") });
        }
        self.optim.check(parameter, &value)?;
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return Ok(Some((index, None)));
        };
        self.optim.check_gradient(parameter, &gradient)?;
        let unusable = |reason| Error::Unusable { parameter: parameter.name.clone(), reason };
        Ok(Some((index, Some(open(gradient).map_err(unusable)?))))
    }

    /// Returns an error if the module lacks one of the parameters.
    fn missing(&self) -> Option<Error> {
        let missing = self.seen.iter().position(|&seen| !seen)?;
        let parameter = &self.optim.parameters[missing];
        Some(Error::ModuleDiffers { parameter: parameter.name.clone(), expected: parameter.elements, actual: 0 })
    }
}

impl ModuleMapper for Collector<'_> {
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
        match self.prepare(&param) {
            Ok(Some((index, grads))) => {
                let (shell, tensor) = Shell::of(param);
                let (id, device, trained, shape) = (shell.id, tensor.device(), shell.trained, tensor.shape());
                self.taken.push(Taken { index, params: opened(tensor), grads, shell: Box::new(shell) });
                Param::uninitialized(
                    id,
                    |_, _| unreachable!("the step puts the parameter back"),
                    device,
                    trained,
                    shape,
                )
            }
            Ok(None) => param,
            Err(problem) => {
                self.problem = Some(problem);
                param
            }
        }
    }
}

/// Mapper that puts the parameters back into the module that a [`Collector`] took them from.
struct Returner<'a> {
    index: &'a HashMap<ParamId, usize>,
    shells: VecDeque<Box<dyn Any>>,
    tensors: std::vec::IntoIter<Primitive>,
}

impl ModuleMapper for Returner<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.index.contains_key(&param.id) {
            return param;
        }
        match (self.shells.pop_front(), self.tensors.next()) {
            (Some(shell), Some(tensor)) => {
                let shell = shell.downcast::<Shell<D>>().expect("a module is mapped in the same order each time");
                shell.put(close(tensor))
            }
            // Parameters after one that was refused were not taken.
            _ => param,
        }
    }
}

/// Allocates a tensor for the averages of every parameter that has averages.
struct Copier<'a> {
    optim: &'a WgpuOptim,
    /// Element types of the parameters.
    dtypes: HashMap<ParamId, DType>,
    copied: Vec<(usize, Pending<Held>)>,
}

impl ModuleMapper for Copier<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let optimizer = &self.optim.optimizer;
        let Some(&index) = self.optim.index.get(&param.id) else {
            return param;
        };
        if optimizer.groups()[optimizer.tensors()[index].group].averaging == Averaging::Off {
            return param;
        }
        let dtype = param.base().dtype();
        self.dtypes.insert(param.id, dtype);
        remake(param, |tensor| {
            // The module that was cloned still has the tensor, so that it is copied: into f32, which averages are.
            let (tensor, held) = self.optim.room(opened(tensor.cast(DType::F32)));
            self.copied.push((index, held));
            close(tensor)
        })
    }
}

/// Converts parameters to their former element types.
struct Converter {
    dtypes: HashMap<ParamId, DType>,
}

impl ModuleMapper for Converter {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.dtypes.get(&param.id) {
            Some(&dtype) if dtype != DType::F32 => remake(param, |tensor| tensor.cast(dtype)),
            _ => param,
        }
    }
}

/// Replaces a parameter's tensor with another one on the same device.
fn remake<const D: usize>(param: Param<Tensor<D>>, exchange: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Param<Tensor<D>> {
    let (shell, tensor) = Shell::of(param);
    shell.put(exchange(tensor))
}

/// Settings of a parameter, without its tensor.
struct Shell<const D: usize> {
    id: ParamId,
    mapper: ParamMapper<Tensor<D>>,
    trained: bool,
    distributed: bool,
    lifted: bool,
    checkpointing: Option<GradientCheckpointingStrategy>,
}

impl<const D: usize> Shell<D> {
    /// Splits a parameter into its settings and its tensor, which is detached from autodiff.
    fn of(param: Param<Tensor<D>>) -> (Self, Tensor<D>) {
        let (id, tensor, mapper) = param.consume();
        let shell = Shell {
            id,
            mapper,
            trained: tensor.is_require_grad(),
            distributed: tensor.is_distributed(),
            lifted: tensor.is_autodiff(),
            checkpointing: tensor.gradient_checkpointing_strategy(),
        };
        let tensor = if shell.lifted { tensor.inner() } else { tensor };
        (shell, tensor)
    }

    /// Creates the parameter from a tensor.
    fn put(self, mut tensor: Tensor<D>) -> Param<Tensor<D>> {
        if self.lifted {
            tensor = Tensor::from_inner(tensor);
        }
        if let Some(strategy) = self.checkpointing {
            tensor = tensor.with_gradient_checkpointing_strategy(strategy);
        }
        if self.trained {
            tensor = tensor.require_grad();
        }
        if self.distributed {
            tensor = tensor.set_distributed(self.id);
        }
        Param::from_mapped_value(self.id, tensor, self.mapper)
    }
}

/// Returns the primitive of a tensor that was checked.
fn opened<const D: usize>(tensor: Tensor<D>) -> Primitive {
    open(tensor).expect("the device is the optimizer's, and so is the backend")
}

//! Settings of an optimizer for a burn module, and the groups of its parameters.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::{Device, Tensor};
use burn_cubecl::CubeDevice;
use wgpu_optim::{Gpu, Group, OptimizerBuilder, gpu, wgpu};

use crate::error::Error;
use crate::optim::{Parameter, WgpuOptim};
use crate::tensor::{Held, Lease, element_of, open, place_of};

/// Name of the group of all parameters that are in no other group.
pub const DEFAULT_GROUP: &str = "all";

/// Settings of a [`WgpuOptim`]: an [`OptimizerBuilder`] without tensors, and groups of parameters by their paths in the module.
///
/// ```
/// use burn::module::ParamGroup;
/// use wgpu_optim_burn::WgpuOptimConfig;
/// use wgpu_optim_burn::wgpu_optim::{Group, OptimizerBuilder, Rule};
///
/// // One norm over all parameters; biases without the weight decay of the rest; the head with a rate for each of its tensors.
/// let settings = OptimizerBuilder::new(Rule::sgdm(0.9)).weight_decay(1e-4).global_norm();
/// let config = WgpuOptimConfig::new(settings)
///     .with_group(ParamGroup::from_regex(r"\.bias$")?, Group::new("biases").weight_decay(0.0))
///     .with_group(ParamGroup::from_predicate("head."), Group::new("head").share_norm("head"));
/// # let _ = config;
/// # Ok::<(), burn::module::ParamGroupError>(())
/// ```
#[derive(Debug, Clone)]
pub struct WgpuOptimConfig {
    builder: OptimizerBuilder<gpu::Tensor>,
    default: Group<gpu::Tensor>,
    groups: Vec<(ParamGroup, Group<gpu::Tensor>)>,
}

impl WgpuOptimConfig {
    /// Uses the builder's settings for every parameter. Every setting of an [`OptimizerBuilder`] applies except its
    /// [`loss`](OptimizerBuilder::loss), which is replaced: see [`WgpuOptim::step_with_loss`].
    pub fn new(builder: OptimizerBuilder<gpu::Tensor>) -> Self {
        WgpuOptimConfig { builder, default: Group::new(DEFAULT_GROUP), groups: Vec::new() }
    }

    /// Sets the group of the parameters that no group added with [`with_group`](Self::with_group) matches. By default it is named
    /// [`DEFAULT_GROUP`] and has the builder's settings.
    pub fn with_default_group(mut self, group: Group<gpu::Tensor>) -> Self {
        self.default = group;
        self
    }

    /// Adds a group with its own settings for the parameters of a burn [`ParamGroup`], which matches paths, parts of paths, regular expressions or
    /// ids. If several groups match a parameter, the last one applies, as in burn.
    pub fn with_group(mut self, parameters: ParamGroup, group: Group<gpu::Tensor>) -> Self {
        self.groups.push((parameters, group));
        self
    }

    /// Creates the optimizer for all parameters of a module that require a gradient.
    ///
    /// Tensors are named by their paths (`conv1.weight`) in records, messages and checkpoints. Until the first step, memory of the size of
    /// the parameters and gradients is taken from burn's pool, in addition to what [`OptimizerBuilder::build`] allocates.
    ///
    /// # Errors
    /// [`Error::NoParameters`], [`Error::Tied`], [`Error::EmptyGroup`] or [`Error::Unusable`] if the module does not fit the settings,
    /// [`Error::Optimizer`] with the errors of [`OptimizerBuilder::build`], or [`Error::Runtime`].
    pub fn init<M: Module>(&self, module: &M, gpu: &Gpu) -> Result<WgpuOptim, Error> {
        let mut found = Found::default();
        module.visit(&mut found);
        if let Some(problem) = found.problem {
            return Err(problem);
        }
        let Some((device, place)) = found.place else {
            return Err(Error::NoParameters);
        };
        let client = place.client();

        // The default group comes first, then the others in their order. Parameters are in the order of the module.
        let mut members: Vec<Vec<Parameter>> = vec![Vec::new(); self.groups.len() + 1];
        let names = found.parameters.iter().map(|one| format!("\"{}\"", one.name));
        let names = names.collect::<Vec<_>>().join(", ");
        let order: Vec<ParamId> = found.parameters.iter().map(|parameter| parameter.id).collect();
        for parameter in found.parameters {
            let path = Some(parameter.name.as_str());
            let matches = |(own, _): &(ParamGroup, _)| own.matches(&parameter.id, path);
            let group = self.groups.iter().rposition(matches);
            members[group.map_or(0, |index| index + 1)].push(parameter);
        }
        let loss = gpu.scoped("the loss", || {
            Ok::<_, Error>(gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("the loss"),
                size: 16,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }))
        })?;
        let mut builder = self.builder.clone().rebindable().loss(loss.slice(..4));
        // The optimizer is built with scratch memory of the right lengths. Each step binds the actual buffers.
        let scratch =
            |parameter: &Parameter| [(); 2].map(|()| Held::scratch(&client, parameter.element, parameter.elements));
        let held = Lease::all(&client, members.iter().flatten().flat_map(scratch).collect())?;
        let mut places = held.chunks_exact(2);
        let templates = std::iter::once(&self.default).chain(self.groups.iter().map(|(_, group)| group));
        for (index, (template, members)) in templates.zip(&members).enumerate() {
            if members.is_empty() {
                if index == 0 {
                    continue;
                }
                return Err(Error::EmptyGroup { group: template.name().to_owned(), parameters: names });
            }
            let mut group = template.clone();
            for (parameter, place) in members.iter().zip(&mut places) {
                let (name, shape) = (parameter.name.clone(), &parameter.shape);
                group = group.shaped_tensor(name, shape, place[0].elements(), place[1].elements());
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build(gpu)?;
        // The optimizer's order differs if a group's rule leaves tensors to another rule (`OptimizerBuilder::other_tensors`).
        let tensors = optimizer.tensors().iter().zip(0..);
        let indices: HashMap<&str, usize> = tensors.map(|(tensor, index)| (tensor.name.as_str(), index)).collect();
        let mut parameters: Vec<Parameter> = members.into_iter().flatten().collect();
        parameters.sort_by_key(|parameter| indices.get(parameter.name.as_str()));
        Ok(WgpuOptim::new(optimizer, parameters, &order, device, place, loss))
    }
}

/// Visitor that collects the parameters of a module that can be trained.
#[derive(Default)]
struct Found {
    path: Vec<String>,
    parameters: Vec<Parameter>,
    known: HashMap<ParamId, usize>,
    /// Device of the first parameter.
    place: Option<(Device, CubeDevice)>,
    problem: Option<Error>,
}

impl ModuleVisitor for Found {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        if self.problem.is_some() || !value.is_require_grad() {
            return;
        }
        let name = self.path.join(".");
        if let Some(&first) = self.known.get(&param.id) {
            self.problem = Some(Error::Tied { first: self.parameters[first].name.clone(), second: name });
            return;
        }
        let (shape, device) = (value.shape(), value.device());
        let opened = check_device(&device, self.place.as_ref()).and_then(|()| {
            let element = element_of(value.dtype())?;
            Ok((element, place_of(&open(value.inner())?)))
        });
        match opened {
            Ok((element, place)) => {
                self.place.get_or_insert((device, place));
                self.known.insert(param.id, self.parameters.len());
                let elements = shape.num_elements();
                self.parameters.push(Parameter { id: param.id, name, shape: shape.to_vec(), elements, element });
            }
            Err(reason) => {
                self.problem = Some(Error::Unusable { parameter: name, reason });
            }
        }
    }
}

fn check_device(device: &Device, first: Option<&(Device, CubeDevice)>) -> Result<(), String> {
    match first {
        Some((first, _)) if first != device => Err(format!(
            "it is on {device:?}, but the parameters before it on {first:?}: one optimizer steps one device"
        )),
        _ => Ok(()),
    }
}

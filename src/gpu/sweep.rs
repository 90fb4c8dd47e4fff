//! What the passes over a window's elements are compiled from, in so far as they share it.

use std::borrow::Cow;

use crate::element::Element;
use crate::gpu::pass::{Binding, flag, shared};
use crate::gpu::tuning::{Partials, Tuning};
use crate::plan::{Access, Alignment, Encoding, Kernel};

/// Files and constants of what parameters and gradients are stored as.
#[derive(Default)]
pub(crate) struct Elements {
    pub(crate) files: Vec<Cow<'static, str>>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Elements {
    /// What loads the parameters.
    pub(crate) fn load_parameters(&mut self, kernel: Kernel, access: Access) {
        self.push(of_parameters(load(access, kernel.params)));
        if kernel.params.is_half() {
            self.use_halves();
            self.push(if kernel.has_remainders() {
                shared::HALF_MASTERS.into()
            } else {
                of_parameters(shared::HALF_GRADIENTS)
            });
            self.constants
                .push(("PARAMETERS_ARE", code_of(kernel.params)));
        }
    }

    /// What loads the gradients.
    pub(crate) fn load_gradients(&mut self, kernel: Kernel, access: Access) {
        self.push(load(access, kernel.grads).into());
        if kernel.grads.is_half() {
            self.use_halves();
            self.push(shared::HALF_GRADIENTS.into());
            self.constants
                .push(("GRADIENTS_ARE", code_of(kernel.grads)));
        }
    }

    /// What stores new parameters; where that is [at random](Encoding::Stochastic), beside the file of random bits.
    pub(crate) fn store_parameters(&mut self, kernel: Kernel, access: Access) {
        self.push(store(access, kernel.params).into());
        match kernel.encoding {
            Encoding::Exact => {}
            Encoding::Masters => self.push(shared::STORE_MASTERS.into()),
            Encoding::Nearest => self.push(shared::STORE_NEAREST.into()),
            Encoding::Stochastic => self.push(shared::STORE_STOCHASTIC.into()),
        }
    }

    /// What stores new parameters in the place of the gradients. Both are f32.
    pub(crate) fn store_over_gradients(&mut self, access: Access) {
        let store = store(access, Element::F32)
            .replace("parameters[", "gradients[")
            .replace("params_start", "grads_start");
        self.push(store.into());
    }

    /// What clears the gradients, or does not.
    pub(crate) fn clear_gradients(&mut self, kernel: Kernel, access: Access) {
        if !kernel.clears_gradients {
            return self.push(shared::LEAVE_GRADIENTS.into());
        }
        let store = store(access, kernel.grads)
            .replace("parameters", "gradients")
            .replace("params_start", "grads_start");
        self.push(store.into());
        self.push(if kernel.grads.is_half() {
            shared::CLEAR_HALF_GRADIENTS.into()
        } else {
            shared::CLEAR_GRADIENTS.into()
        });
    }

    /// Whether the files that were added hold the remainders of 16-bit parameters.
    pub(crate) fn remainders(kernel: Kernel) -> Binding {
        if kernel.has_remainders() {
            Binding::Write
        } else {
            Binding::Absent
        }
    }

    fn use_halves(&mut self) {
        if !self.files.iter().any(|file| file == shared::HALF) {
            self.push(shared::HALF.into());
        }
    }

    fn push(&mut self, file: Cow<'static, str>) {
        self.files.push(file);
    }
}

fn load(access: Access, element: Element) -> &'static str {
    match (access, element.is_half()) {
        (Access::Quads, false) => shared::LOAD_QUADS,
        (Access::Scalars, false) => shared::LOAD_SCALARS,
        (Access::Quads, true) => shared::LOAD_HALF_QUADS,
        (Access::Scalars, true) => shared::LOAD_HALF_SCALARS,
    }
}

fn store(access: Access, element: Element) -> &'static str {
    match (access, element.is_half()) {
        (Access::Quads, false) => shared::STORE_QUADS,
        (Access::Scalars, false) => shared::STORE_SCALARS,
        (Access::Quads, true) => shared::STORE_HALF_QUADS,
        (Access::Scalars, true) => shared::STORE_HALF_SCALARS,
    }
}

/// A file that loads gradients, made to load parameters.
fn of_parameters(load: &str) -> Cow<'static, str> {
    load.replace("gradients", "parameters")
        .replace("grads_start", "params_start")
        .replace("GradientLane", "ParameterLane")
        .replace("GRADIENTS_ARE", "PARAMETERS_ARE")
        .into()
}

/// The elements' number in shaders/shared/half.wgsl.
fn code_of(element: Element) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::F16 => 1.0,
        Element::Bf16 => 2.0,
    }
}

/// Storage buffers that the sweep of two passes with most of them binds: the device has a limit for each.
pub(crate) fn most_storage_buffers(kernel: Kernel) -> u32 {
    // Tables; blocks, parameters, gradients.
    let (in_measuring, in_updating, own) = (3, 1, 3 + u32::from(kernel.has_remainders()));
    let measuring = match kernel.alignment {
        Alignment::LastGradient => 2,
        _ => 1,
    };
    let updating = 2 + u32::from(kernel.averages) + u32::from(kernel.step_sums);
    own + (in_measuring + measuring).max(in_updating + updating)
}

/// The file that averages new parameters, and the bind group for the averages, if there is one. In schedule-free training the bind group is
/// that of z, and the files of [`moving`] compute the average.
pub(crate) fn average(kernel: Kernel) -> (&'static str, Option<&'static [Binding]>) {
    let file = if kernel.averages && !kernel.schedule_free {
        shared::AVERAGE
    } else {
        shared::NO_AVERAGE
    };
    (
        file,
        kernel.averages.then_some(&[Binding::Write] as &[Binding]),
    )
}

/// The files that move the parameters in pass 4.
pub(crate) fn moving(kernel: Kernel) -> &'static [&'static str] {
    if kernel.schedule_free {
        &[shared::SCHEDULE_FREE, shared::MOVE_SCHEDULE_FREE]
    } else {
        &[shared::MOVE_PARAMETERS]
    }
}

/// The shader's source and the access to its buffer `name`, which it only reads. Where parameters and gradients lie in `one_buffer`,
/// one of them is written, and wgpu wants both bindings to have the same access.
pub(crate) fn read_beside_written(source: &str, name: &str, one_buffer: bool) -> (String, Binding) {
    if one_buffer {
        let read = format!("var<storage, read> {name}:");
        let written = format!("var<storage, read_write> {name}:");
        (source.replace(&read, &written), Binding::Write)
    } else {
        (source.to_owned(), Binding::Read)
    }
}

/// A measuring pass's shader, with an argument more where its invocations work in subgroups. naga's writer of HLSL makes up for the
/// subgroup built-ins that Direct3D lacks, but only where an argument of the entry point is one, and not a member of its struct alone:
/// without this DXC stops with "Semantic must be defined for all parameters of an entry function" (docs/upstream-naga.md).
pub(crate) fn with_subgroup_argument(source: &str, partials: Partials) -> Cow<'_, str> {
    match partials {
        Partials::Subgroup => source
            .replace(
                "(invocation: Invocation)",
                "(invocation: Invocation, @builtin(subgroup_size) subgroup_size: u32)",
            )
            .into(),
        _ => source.into(),
    }
}

/// Files and constants of a pass that measures.
pub(crate) struct Measuring {
    /// To come first in the module.
    pub(crate) files: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Measuring {
    /// `partials` is the number of partials of all scopes.
    pub(crate) fn new(
        device: &wgpu::Device,
        tuning: &Tuning,
        kernel: Kernel,
        partials: u32,
    ) -> Self {
        let mut constants = vec![
            ("WORKGROUP", f64::from(tuning.workgroup_size)),
            ("PARTIALS", f64::from(partials)),
            flag("COUPLED_DECAY", kernel.coupled_decay),
            flag("LOSS_SCALE", kernel.loss_scale),
            flag("INITIAL_NORM", kernel.initial_norm),
            flag("MOMENTUM", kernel.reads_momentum()),
            // Secant and distance need no more sums than the counters.
            flag("COUNTERS", kernel.measures_memory()),
        ];
        let mut files = match tuning.partials {
            Partials::PerInvocation => vec![shared::EMIT_PER_INVOCATION],
            Partials::PerWorkgroup => vec![shared::TREE, shared::EMIT_PER_WORKGROUP],
            Partials::Subgroup => {
                let subgroups = tuning.subgroups(&device.adapter_info());
                constants.push(("SUBGROUPS", f64::from(subgroups)));
                vec![shared::ENABLE_SUBGROUPS, shared::EMIT_PER_SUBGROUP]
            }
        };
        files.extend([
            shared::LAYOUT,
            shared::SCALED,
            shared::TOTALS,
            shared::COUNTERS,
            shared::ALIGNMENT,
            shared::SCALED_SQUARES,
            shared::SWEEP_AGAIN,
            shared::PARTIALS,
        ]);
        Measuring { files, constants }
    }
}

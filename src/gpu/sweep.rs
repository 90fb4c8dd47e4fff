//! WGSL files that the passes over a window's elements share: loads and stores for each element type.

use std::borrow::Cow;

use crate::element::Element;
use crate::gpu::pass::{Binding, shared};
use crate::plan::{Access, Alignment, Encoding, Kernel};

/// Files and constants of what parameters and gradients are stored as.
#[derive(Default)]
pub(crate) struct Elements {
    pub(crate) files: Vec<Cow<'static, str>>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Elements {
    /// Adds the files that load parameters.
    pub(crate) fn load_parameters(&mut self, kernel: Kernel, access: Access) {
        self.push(of_parameters(load(access, kernel.params)));
        if kernel.params.is_half() {
            self.use_halves();
            self.push(if kernel.has_remainders() {
                shared::HALF_MASTERS.into()
            } else {
                of_parameters(shared::HALF_GRADIENTS)
            });
            self.constants.push(("PARAMETERS_ARE", code_of(kernel.params)));
        }
    }

    /// Adds the files that load gradients.
    pub(crate) fn load_gradients(&mut self, kernel: Kernel, access: Access) {
        self.push(load(access, kernel.grads).into());
        if kernel.grads.is_half() {
            self.use_halves();
            self.push(shared::HALF_GRADIENTS.into());
            self.constants.push(("GRADIENTS_ARE", code_of(kernel.grads)));
        }
    }

    /// Adds the files that store new parameters. [`Encoding::Stochastic`] also needs the file of random bits.
    pub(crate) fn store_parameters(&mut self, kernel: Kernel, access: Access) {
        self.push(store(access, kernel.params).into());
        match kernel.encoding {
            Encoding::Exact => {}
            Encoding::Masters => self.push(shared::STORE_MASTERS.into()),
            Encoding::Nearest => self.push(shared::STORE_NEAREST.into()),
            Encoding::Stochastic => self.push(shared::STORE_STOCHASTIC.into()),
        }
    }

    /// Adds the files that clear the gradients, or those that leave them.
    pub(crate) fn clear_gradients(&mut self, kernel: Kernel, access: Access) {
        if !kernel.clears_gradients {
            return self.push(shared::LEAVE_GRADIENTS.into());
        }
        let store =
            store(access, kernel.grads).replace("parameters", "gradients").replace("params_start", "grads_start");
        self.push(store.into());
        self.push(if kernel.grads.is_half() {
            shared::CLEAR_HALF_GRADIENTS.into()
        } else {
            shared::CLEAR_GRADIENTS.into()
        });
    }

    /// Returns the binding of the remainders of 16-bit parameters, which is absent without master weights.
    pub(crate) fn remainders(kernel: Kernel) -> Binding {
        if kernel.has_remainders() { Binding::Write } else { Binding::Absent }
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

/// Storage buffers that the one of passes 1 and 4 with more of them binds: the device has a limit for each.
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

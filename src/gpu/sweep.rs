//! Features and constants of the kernels over a window's elements, for `shaders/elements/`.

use crate::element::Element;
use crate::gpu::context::Gpu;
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::plan::{Access, Alignment, Encoding, Kernel, RateAxis};

/// Features and constants for the element types of parameters and gradients.
#[derive(Default)]
pub(crate) struct Elements {
    pub(crate) features: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, f64)>,
}

impl Elements {
    /// Returns the features and constants of a kernel that loads parameters.
    pub(crate) fn parameters(kernel: Kernel, access: Access) -> Self {
        let mut elements = Elements::default();
        elements.when(access == Access::Scalars, "scalars");
        if kernel.params.is_half() {
            elements.when(true, "half_parameters");
            elements.when(kernel.has_remainders(), "masters");
            elements.when(kernel.has_short_remainders(), "short_masters");
            elements.when(kernel.encoding == Encoding::Nearest, "nearest");
            elements.when(kernel.encoding == Encoding::Stochastic, "stochastic");
            elements.constants.push(("PARAMETERS_ARE", code_of(kernel.params)));
        }
        elements
    }

    /// Adds those of a kernel that also loads gradients.
    pub(crate) fn and_gradients(mut self, kernel: Kernel) -> Self {
        if kernel.grads.is_half() {
            self.when(true, "half_gradients");
            self.constants.push(("GRADIENTS_ARE", code_of(kernel.grads)));
        }
        self
    }

    /// Adds a feature if a condition holds.
    pub(crate) fn when(&mut self, condition: bool, feature: &'static str) {
        if condition {
            self.features.push(feature);
        }
    }

    /// Compiles the kernel of a pass over elements. `stem` is its entry point and label.
    pub(crate) fn pipeline(
        &self,
        gpu: &Gpu,
        module: &'static str,
        stem: &'static str,
        groups: &[&[Binding]],
    ) -> Pipeline {
        let Elements { features, constants } = self;
        Pipeline::new(gpu, &PassSource { module, stem, features, constants, groups })
    }

    /// Returns the binding of the remainders of 16-bit parameters, which is absent without master weights.
    pub(crate) fn remainders(kernel: Kernel) -> Binding {
        if kernel.has_remainders() { Binding::Write } else { Binding::Absent }
    }
}

/// Returns the number of an element type in shaders/elements/half.wgsl.
pub(crate) fn code_of(element: Element) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::F16 => 1.0,
        Element::Bf16 => 2.0,
    }
}

/// Returns the features of a kernel that concern rows and columns.
pub(crate) fn row_features(kernel: Kernel) -> impl Iterator<Item = &'static str> {
    let all = [
        (kernel.rates.is_some(), "rates"),
        (kernel.rates == Some(RateAxis::Rows), "row_rates"),
        (kernel.rates == Some(RateAxis::Columns), "column_rates"),
        (kernel.lazy_rows, "lazy_rows"),
    ];
    all.into_iter().filter_map(|(is_there, feature)| is_there.then_some(feature))
}

/// Returns the larger of the numbers of storage buffers that passes 1 and 4 bind. Devices limit the number for each pass.
pub(crate) fn most_storage_buffers(kernel: Kernel) -> u32 {
    // Tables of pass 1, tables of pass 4, and both passes' blocks, parameters and gradients.
    let (in_measuring, in_updating, own) = (3, 1, 3 + u32::from(kernel.has_remainders()));
    let measuring = match kernel.alignment {
        Alignment::None | Alignment::Streams => 0,
        Alignment::LastGradient | Alignment::NextLook | Alignment::Look => 2,
        _ => 1,
    };
    let traits = kernel.rule.traits();
    // The last buffer holds the sums of the step, or the records.
    let updating = u32::from(traits.momentum || traits.squares || traits.factored)
        + u32::from(traits.owns_passes())
        + u32::from(kernel.has_rows())
        + u32::from(kernel.has_memory())
        + u32::from(kernel.averages)
        + 1;
    own + (in_measuring + measuring).max(in_updating + updating)
}

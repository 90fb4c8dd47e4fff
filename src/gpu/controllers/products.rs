//! Inner products over tensors on the device: `shaders/controllers/products.wgsl`.

use super::{Part, dispatch, pipeline, uniform};
use crate::controllers::products::{PRODUCT_ROW, ProductPart};
use crate::gpu::buffers::whole;
use crate::gpu::optimizer::{Dispatch, Optimizer};
use crate::gpu::pass::Binding::{Absent, Read, Uniform, Write};
use crate::gpu::sweep::code_of;

/// Products that are added up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The square of the distance between parameters and their copy.
    Distance,
    /// Gradients times parameters.
    Product,
    /// Gradients times parameters, and gradients times the difference between the parameters and the copy.
    Along,
}

/// Number of rows of a part.
pub(super) fn rows_of(part: &Part) -> u32 {
    part.elements.div_ceil(PRODUCT_ROW.into()) as u32
}

/// Returns the dispatch that adds up a part into `rows`, from row `row` on. `copy` is the part's own copy of the parameters.
pub(super) fn product(
    optimizer: &Optimizer,
    form: Form,
    part: &Part,
    copy: Option<&wgpu::Buffer>,
    rows: &wgpu::Buffer,
    row: u32,
) -> Dispatch {
    let feature = match form {
        Form::Distance => "distance",
        Form::Product => "product",
        Form::Along => "along",
    };
    let copies = if form == Form::Product { Absent } else { Read };
    let gradients = if form == Form::Distance { Absent } else { Read };
    let kernel = pipeline(
        &optimizer.gpu,
        "controllers/products",
        "products",
        &[feature],
        &[("X_IS", code_of(part.place.params)), ("G_IS", code_of(part.place.grads))],
        &[Write, Uniform, Read, copies, gradients],
    );
    let (parameters, parameters_word) = part.bind(optimizer, false);
    let (gradients, gradients_word) = part.bind(optimizer, true);
    let elements = part.elements as u32;
    let about =
        uniform(&optimizer.gpu, "a product's part", &ProductPart { parameters_word, gradients_word, elements, row });
    let copy = copy.map_or(parameters.clone(), whole);
    dispatch(&optimizer.gpu, &kernel, &[whole(rows), whole(&about), parameters, copy, gradients], rows_of(part))
}

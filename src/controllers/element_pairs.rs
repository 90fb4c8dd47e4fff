//! Code of the controllers that combine two slices of every tensor element by element.

use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::element::Element;
use crate::error::{CallError, Error, require};
use crate::layout::shared_structs;
use crate::plan::Plan;

shared_structs! {
    /// Two slices of one tensor in their bindings, for the kernels of controllers that go over elements.
    pub struct ElementPair {
        /// First element of the slice that is written.
        pub first: u32,
        /// First element of the other slice.
        pub second: u32,
        /// Number of elements of both.
        pub elements: u32,
        /// The tensor's group.
        pub group: u32,
    }
}

/// Returns an error for an optimizer with elements that are not f32.
pub(crate) fn check_elements(plan: &Plan, what: &'static str) -> Result<(), Error> {
    for (tensor, place) in plan.tensors.iter().zip(&plan.places) {
        for element in [place.params, place.grads] {
            require(
                element == Element::F32,
                || format!("{what} for tensor \"{}\"", tensor.name),
                "element",
                element.name(),
                "f32, for parameters and for gradients",
            )?;
        }
    }
    Ok(())
}

/// Returns an error unless a call has as many slices as there are tensors.
pub(crate) fn check_count(plan: &Plan, role: &'static str, actual: usize) -> Result<(), Error> {
    let expected = plan.tensors.len();
    if actual == expected { Ok(()) } else { Err(Error::from(CallError::StepTensors { role, expected, actual })) }
}

/// Returns an error unless a slice has the elements of its tensor.
pub(crate) fn check_length(plan: &Plan, tensor: usize, role: &'static str, actual: u64) -> Result<(), Error> {
    let info = &plan.tensors[tensor];
    if actual == info.elements {
        return Ok(());
    }
    let (expected, actual) = (info.elements as usize, actual as usize);
    Err(Error::from(CallError::StepLength { tensor: info.name.clone(), role, expected, actual }))
}

fn check_element(plan: &Plan, tensor: usize, role: &'static str, slice: Slice) -> Result<(), Error> {
    check_length(plan, tensor, role, slice.len() as u64)?;
    let (expected, actual) = (Element::F32, slice.element());
    if actual == expected {
        return Ok(());
    }
    let tensor = plan.tensors[tensor].name.clone();
    Err(Error::from(CallError::StepElement { tensor, role, expected, actual }))
}

/// Returns the slices of a call, one for each tensor.
pub(crate) fn slices<'a>(plan: &Plan, role: &'static str, slices: &'a [impl Values]) -> Result<Vec<&'a [f32]>, Error> {
    check_count(plan, role, slices.len())?;
    let mut found = Vec::with_capacity(slices.len());
    for (tensor, values) in slices.iter().enumerate() {
        check_element(plan, tensor, role, values.values())?;
        if let Slice::F32(values) = values.values() {
            found.push(values);
        }
    }
    Ok(found)
}

/// Returns the slices of a call that are changed, one for each tensor.
pub(crate) fn slices_mut<'a>(
    plan: &Plan,
    role: &'static str,
    slices: &'a mut [impl ValuesMut],
) -> Result<Vec<&'a mut [f32]>, Error> {
    check_count(plan, role, slices.len())?;
    let mut found = Vec::with_capacity(slices.len());
    for (tensor, values) in slices.iter_mut().enumerate() {
        check_element(plan, tensor, role, values.values())?;
        if let SliceMut::F32(values) = values.values_mut() {
            found.push(values);
        }
    }
    Ok(found)
}

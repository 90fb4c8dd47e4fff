//! Contents of a checkpoint, and a checkpoint that is being filled.

use std::collections::HashMap;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::about::About;
use super::tables::Table;
use crate::cpu::Values;
use crate::cpu::half::Remainders;
use crate::cpu::schedule_free::average_of;
use crate::element::Element;
use crate::error::{CheckpointError, Error};
use crate::layout::{GroupState, Update};
use crate::plan::{MemoryKind, Plan};

const _: () = assert!(cfg!(target_endian = "little"), "safetensors are little-endian, and so is everything here");
use super::*;

/// Part of a checkpoint. Tensors are given by their index in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Table(Table),
    Memory(usize, MemoryKind),
    Parameters(usize),
    /// The average of schedule-free training. It is computed from the parameters and never restored.
    Average(usize),
}

/// A slot's entry in the file.
pub(super) struct Item {
    pub(super) slot: Slot,
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

pub(super) fn parameters_name(tensor: &str) -> String {
    format!("parameters/{tensor}")
}

/// Returns the name of a tensor's average, the same as for averages that are stored.
pub(super) fn average_name(tensor: &str) -> String {
    memory_name(MemoryKind::Averages, tensor)
}

pub(super) fn memory_name(kind: MemoryKind, tensor: &str) -> String {
    format!("{}/{tensor}", kind.name())
}

/// Returns the type of a memory's elements in the file.
pub(super) fn dtype_of(kind: MemoryKind) -> Dtype {
    match kind.element_bytes() {
        _ if kind == MemoryKind::Scales => Dtype::U32,
        _ if matches!(kind, MemoryKind::MomentumCodes | MemoryKind::RemainderCodes) => Dtype::I8,
        1 => Dtype::U8,
        2 => Dtype::I16,
        _ => Dtype::F32,
    }
}

/// Returns the type of parameters in the file.
pub(super) fn params_dtype(params: Element) -> Dtype {
    match params {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
    }
}

/// Returns all entries of a checkpoint of a plan, in the order of the file.
pub(super) fn items(plan: &Plan, parameters: bool) -> Vec<Item> {
    let tables = Table::all(plan).map(|table| Item {
        slot: Slot::Table(table),
        name: table.name().to_owned(),
        dtype: Dtype::U32,
        shape: vec![table.rows(plan), table.words()],
    });
    let tensors = plan.tensors.iter().enumerate();
    let memories = tensors.clone().flat_map(|(index, tensor)| {
        let kinds = plan.kernel_of(index).memories();
        kinds.map(move |kind| Item {
            slot: Slot::Memory(index, kind),
            name: memory_name(kind, &tensor.name),
            dtype: dtype_of(kind),
            shape: kind.shape(tensor),
        })
    });
    let averages = tensors.clone().filter(|_| parameters);
    let averages =
        averages.filter(|(index, _)| plan.kernel_of(*index).keeps(MemoryKind::BaseIterates)).map(|(index, tensor)| {
            Item {
                slot: Slot::Average(index),
                name: average_name(&tensor.name),
                dtype: Dtype::F32,
                shape: vec![tensor.elements as usize],
            }
        });
    let parameters = tensors.filter(|_| parameters).map(|(index, tensor)| Item {
        slot: Slot::Parameters(index),
        name: parameters_name(&tensor.name),
        dtype: params_dtype(plan.places[index].params),
        shape: vec![tensor.elements as usize],
    });
    let kept = parameters.chain(averages).chain(memories);
    let mut items: Vec<Item> = kept.chain(tables).collect();
    // This order aligns each entry in the file.
    items.sort_by_key(|item| std::cmp::Reverse(item.dtype));
    items
}

/// Returns the master weights. For 16-bit parameters they include the remainders, from the bytes of [`MemoryKind::Remainders`] and of
/// [`MemoryKind::RemainderCodes`], which may be empty.
pub(super) fn masters(params: Element, stored: &[u8], [long, short]: [&[u8]; 2]) -> Vec<f32> {
    let (long, short): (Vec<i16>, Vec<i8>) = (bytemuck::pod_collect_to_vec(long), bytemuck::pod_collect_to_vec(short));
    let remainders = Remainders { long: &long, short: &short };
    let decoded = |stored: &dyn Values| {
        let stored = stored.values();
        let mut masters = vec![0.0; stored.len()];
        stored.decode_parameters(remainders, &mut masters);
        masters
    };
    match params {
        Element::F32 => bytemuck::pod_collect_to_vec(stored),
        Element::F16 => decoded(&bytemuck::pod_collect_to_vec::<_, f16>(stored)),
        Element::Bf16 => decoded(&bytemuck::pod_collect_to_vec::<_, bf16>(stored)),
    }
}

/// A checkpoint that is being filled.
pub(crate) struct Draft {
    pub(super) about: About,
    pub(super) metadata: Metadata,
    pub(super) slots: HashMap<Slot, Range<usize>>,
    pub(super) data: Vec<u8>,
}

impl Draft {
    /// Returns a checkpoint of zeros.
    pub(crate) fn new(plan: &Plan, parameters: Parameters, notes: &Notes) -> Result<Self, Error> {
        let parameters = parameters == Parameters::Included;
        let mut about = About::of(plan, parameters);
        about.notes = notes.clone();
        let mut slots = HashMap::new();
        let mut infos = Vec::new();
        let mut end = 0;
        for item in items(plan, parameters) {
            let elements: usize = item.shape.iter().product();
            let range = end..end + elements * item.dtype.bitsize() / 8;
            end = range.end;
            infos.push((
                item.name,
                TensorInfo { dtype: item.dtype, shape: item.shape, data_offsets: (range.start, range.end) },
            ));
            slots.insert(item.slot, range);
        }
        let refused = |message: String| {
            Error::from(CheckpointError::File { path: "in memory".to_owned(), action: "made", message, source: None })
        };
        Ok(Draft {
            about,
            metadata: Metadata::new(None, infos).map_err(|error| refused(error.to_string()))?,
            slots,
            data: sized(end).map_err(refused)?,
        })
    }

    /// Returns the destination of a slot's bytes. It is empty if there is no such slot.
    pub(crate) fn bytes(&mut self, slot: Slot) -> &mut [u8] {
        match self.slots.get(&slot) {
            Some(range) => &mut self.data[range.clone()],
            None => &mut [],
        }
    }

    /// Computes the averages of schedule-free training from the parameters. Every other slot must have been filled.
    pub(crate) fn fill_averages(&mut self, plan: &Plan) {
        let rows = self.bytes(Slot::Table(Table::Updates));
        let updates: Vec<Update> = bytemuck::pod_collect_to_vec(rows);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            if !self.slots.contains_key(&Slot::Average(index)) {
                continue;
            }
            let base = self.bytes(Slot::Memory(index, MemoryKind::BaseIterates));
            let base: Vec<f32> = bytemuck::pod_collect_to_vec(base);
            // With an average, remainders always have 16 bits.
            let remainders = self.bytes(Slot::Memory(index, MemoryKind::Remainders)).to_vec();
            let stored = self.bytes(Slot::Parameters(index));
            let mut average = masters(plan.places[index].params, stored, [&remainders, &[]]);
            // Before the first rate the parameters are their average.
            if updates[tensor.group].average_weight > 0.0 {
                for (y, &z) in average.iter_mut().zip(&base) {
                    *y = average_of(*y, z);
                }
            }
            let slot = self.bytes(Slot::Average(index));
            slot.copy_from_slice(bytemuck::cast_slice(&average));
        }
    }

    /// Returns the checkpoint. Every slot must have been filled.
    pub(crate) fn finish(mut self) -> Checkpoint {
        let states = self.bytes(Slot::Table(Table::States));
        // Every group counts the same steps.
        let first = &states[..size_of::<GroupState>()];
        self.about.step = steps_of(&bytemuck::pod_read_unaligned(first));
        Checkpoint { origin: NO_FILE.to_owned(), about: self.about, metadata: self.metadata, data: self.data }
    }
}

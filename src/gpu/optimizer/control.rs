//! Settings that the caller changes between steps: the groups' controls, and tensors without gradients.

use std::mem::offset_of;

use super::Optimizer;
use crate::controls::Controls;
use crate::error::{CallError, Error};
use crate::gpu::buffers::filled;
use crate::gpu::context::Gpu;
use crate::layout::{Block, GroupConstants, GroupControls};
use crate::plan::Plan;

/// Location of a word that tells whether a tensor has gradients.
#[derive(Debug)]
struct Lead {
    tensor: usize,
    window: usize,
    /// Offset of the word in bytes within the window's blocks.
    at: u64,
    /// True if the word belongs to this tensor alone.
    alone: bool,
}

/// Words that tell which groups and tensors take part in a step.
#[derive(Debug)]
pub(super) struct Presence {
    /// Words in the order of their tensors.
    leads: Vec<Lead>,
    /// Buffer of the blocks of each window.
    blocks: Vec<wgpu::Buffer>,
    /// Buffer with one word of value 1.
    one: wgpu::Buffer,
    /// For each tensor, true if the step that is being recorded leaves it out.
    absent: Vec<bool>,
}

impl Presence {
    pub(super) fn new(gpu: &Gpu, plan: &Plan, blocks: Vec<wgpu::Buffer>) -> Self {
        let leads = Self::leads(plan);
        Presence { leads, blocks, one: filled(gpu, "one", &[1u32]), absent: vec![false; plan.tensors.len()] }
    }

    /// Follows the blocks to other windows.
    pub(super) fn move_to(&mut self, plan: &Plan, blocks: Vec<wgpu::Buffer>) {
        self.leads = Self::leads(plan);
        self.blocks = blocks;
    }

    fn leads(plan: &Plan) -> Vec<Lead> {
        let mut leads = Vec::new();
        for (window, of_window) in plan.windows.iter().enumerate() {
            for of_lead in of_window.blocks.chunk_by(|a, b| a.lead == b.lead) {
                let (Some(first), Some(last)) = (of_lead.first(), of_lead.last()) else { continue };
                let start = u64::from(first.first_element);
                let end = u64::from(last.first_element) + u64::from(last.elements);
                let before = plan.tensors.partition_point(|tensor| tensor.first_element + tensor.elements <= start);
                let tensors = plan.tensors.iter().enumerate().skip(before);
                let tensors = tensors.take_while(|(_, tensor)| tensor.first_element < end);
                let tensors: Vec<_> = tensors.filter(|(_, tensor)| tensor.elements > 0).collect();
                let at = u64::from(first.lead) * size_of::<Block>() as u64 + offset_of!(Block, present) as u64;
                let alone = tensors.len() == 1;
                leads.extend(tensors.iter().map(|&(tensor, _)| Lead { tensor, window, at, alone }));
            }
        }
        leads.sort_by_key(|lead| lead.tensor);
        leads
    }

    fn leads_of(&self, tensor: usize) -> &[Lead] {
        let start = self.leads.partition_point(|lead| lead.tensor < tensor);
        let length = self.leads[start..].partition_point(|lead| lead.tensor == tensor);
        &self.leads[start..][..length]
    }
}

/// Returns the offset in bytes of a group's controls within the groups' constants.
pub(super) fn controls_at(group: usize) -> u64 {
    (group * size_of::<GroupConstants>() + offset_of!(GroupConstants, controls)) as u64
}

impl Optimizer {
    /// Changes the settings of a group that may change between steps: the factor of its learning rate, decay, clip,
    /// whether it is frozen, and the number of micro-batches. `group` is the name of a group, or of a group that
    /// [`per_tensor`](crate::Group::per_tensor) has divided. The change then applies to all its parts.
    ///
    /// The change is written through the device's queue. It applies to all steps whose commands are submitted after
    /// this call, until the next change. It costs a few bytes and does not wait. All steps within one submit have the
    /// same controls, unless a kernel of the caller changes them ([`controls_buffer`](Optimizer::controls_buffer)).
    /// Only settings that differ from those the host has set last are written, so that a kernel may write the others.
    ///
    /// ```no_run
    /// # fn f(optimizer: &mut wgpu_optim::Optimizer) -> Result<(), wgpu_optim::Error> {
    /// optimizer.control("backbone", |group| group.frozen = true)?;
    /// optimizer.control("head", |group| group.learning_rate_factor = 0.1)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist,
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) for a value outside its range, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). After an error nothing has changed.
    pub fn control(&mut self, group: &str, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.change(Some(group), change)
    }

    /// Changes the controls of every group, like [`Optimizer::control`].
    ///
    /// # Errors
    /// See [`Optimizer::control`].
    pub fn control_all(&mut self, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.change(None, change)
    }

    fn change(&mut self, group: Option<&str>, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.gpu.check_alive()?;
        let (queue, groups) = (self.gpu.queue(), &self.groups);
        self.plan.control(group, change, |group, before, after| {
            let words: [&[u32]; 2] = [before, after].map(|words| bytemuck::cast_slice(std::slice::from_ref(words)));
            for (word, (before, after)) in (0u64..).zip(words[0].iter().zip(words[1])) {
                if before != after {
                    queue.write_buffer(groups, controls_at(group) + 4 * word, bytemuck::bytes_of(after));
                }
            }
        })
    }

    /// Returns the controls that the host has set last for a group. Values written by kernels of the caller are not
    /// included.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist.
    pub fn controls(&self, group: &str) -> Result<Controls, Error> {
        self.plan.controls(group)
    }

    /// Returns the buffer of the groups' controls on the device, for kernels of the caller that write them. It is an
    /// array with one `GroupControls` for each of [`groups`](Optimizer::groups); its WGSL is
    /// [`CONTROLS_WGSL`](crate::gpu::CONTROLS_WGSL). The buffer has the usages `STORAGE`, `COPY_SRC` and `COPY_DST`. A
    /// step reads the controls when it runs on the device.
    ///
    /// The bytes between the controls of two groups belong to the optimizer. Kernels and copies must not change them.
    pub fn controls_buffer(&self) -> &wgpu::Buffer {
        &self.groups
    }

    /// Records a step like [`Optimizer::encode_step`] in which some tensors have no gradients (`None` in PyTorch, masks
    /// in optax). `tensors` are indices into [`tensors`](Optimizer::tensors). Their gradients are not read, may have
    /// any value, and do not enter the norm. Their parameters, momentum, averages and memory keep their bits. If a
    /// group has no gradients at all, its regime's state stays unchanged too, unless the group shares its norm, and its
    /// record has the flag [`absent`](crate::Flags::absent).
    ///
    /// The bias corrections of AdamW count the steps of the group. PyTorch counts those of each tensor.
    ///
    /// In addition to the step it records two small copies for each of these tensors. It allocates nothing.
    ///
    /// # Errors
    /// Returns the errors of [`Optimizer::encode_step`]. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a
    /// tensor that does not exist, with regime AutoSgd, and for a tensor that is adjacent to another in a buffer,
    /// unless the optimizer was built with [`absent_gradients`](crate::OptimizerBuilder::absent_gradients).
    pub fn encode_step_without(&mut self, encoder: &mut wgpu::CommandEncoder, tensors: &[usize]) -> Result<(), Error> {
        self.encode_without(encoder, tensors, Optimizer::encode_step)
    }

    /// Records a look like [`Optimizer::encode_look`] at a step that
    /// [`encode_step_without`](Optimizer::encode_step_without) recorded, without the same tensors. Their gradients are
    /// not read.
    ///
    /// # Errors
    /// See [`Optimizer::encode_look`] and [`Optimizer::encode_step_without`].
    pub fn encode_look_without(&mut self, encoder: &mut wgpu::CommandEncoder, tensors: &[usize]) -> Result<(), Error> {
        self.encode_without(encoder, tensors, Optimizer::encode_look)
    }

    fn encode_without(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        tensors: &[usize],
        record: impl FnOnce(&Self, &mut wgpu::CommandEncoder) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let plan = &self.plan;
        let presence = &mut self.presence;
        plan.mark_absent(tensors, &mut presence.absent)?;
        for (tensor, _) in presence.absent.iter().enumerate().filter(|(_, absent)| **absent) {
            let group = plan.tensors[tensor].group;
            if !plan.is_absent(group, &presence.absent) && !presence.leads_of(tensor).iter().all(|lead| lead.alone) {
                return Err(Error::from(CallError::NotAlone {
                    tensor: plan.tensors[tensor].name.clone(),
                    way_out: "it lies next to another tensor of its group, and they share blocks: build the optimizer with OptimizerBuilder::absent_gradients",
                }));
            }
        }
        self.encode_words(encoder, |encoder, buffer, at, _| encoder.clear_buffer(buffer, at, Some(4)));
        let recorded = record(self, encoder);
        self.encode_words(encoder, |encoder, buffer, at, one| {
            encoder.copy_buffer_to_buffer(one, 0, buffer, at, 4);
        });
        recorded
    }

    /// Calls `each` for every presence word of the absent tensors and groups.
    fn encode_words(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        mut each: impl FnMut(&mut wgpu::CommandEncoder, &wgpu::Buffer, u64, &wgpu::Buffer),
    ) {
        let Presence { blocks, one, absent, .. } = &self.presence;
        let mut last = None;
        for (tensor, _) in absent.iter().enumerate().filter(|(_, absent)| **absent) {
            let group = self.plan.tensors[tensor].group;
            if self.plan.is_absent(group, absent) {
                // A group's word is recorded once.
                if last.replace(group) != Some(group) {
                    let present = offset_of!(GroupControls, present) as u64;
                    each(encoder, &self.groups, controls_at(group) + present, one);
                }
            } else {
                for lead in self.presence.leads_of(tensor) {
                    each(encoder, &blocks[lead.window], lead.at, one);
                }
            }
        }
    }
}

//! What the caller changes from step to step: the groups' controls, and tensors without gradients.

use std::mem::offset_of;

use super::Optimizer;
use crate::controls::Controls;
use crate::error::{CallError, Error};
use crate::gpu::buffers::filled;
use crate::gpu::context::Gpu;
use crate::layout::{Block, GroupConstants, GroupControls};
use crate::plan::Plan;

/// Where a word says whether a tensor has gradients.
#[derive(Debug)]
struct Lead {
    tensor: usize,
    window: usize,
    /// Its first byte among the window's blocks.
    at: u64,
    /// True if the word is about this tensor alone.
    alone: bool,
}

/// The words that say what takes part in a step.
#[derive(Debug)]
pub(super) struct Presence {
    /// By tensor.
    leads: Vec<Lead>,
    /// The blocks of each window.
    blocks: Vec<wgpu::Buffer>,
    /// A word of 1.
    one: wgpu::Buffer,
    /// Which tensors the step that is being recorded leaves out.
    absent: Vec<bool>,
}

impl Presence {
    pub(super) fn new(gpu: &Gpu, plan: &Plan, blocks: Vec<wgpu::Buffer>) -> Self {
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
        Presence { leads, blocks, one: filled(gpu, "one", &[1u32]), absent: vec![false; plan.tensors.len()] }
    }

    fn leads_of(&self, tensor: usize) -> &[Lead] {
        let start = self.leads.partition_point(|lead| lead.tensor < tensor);
        let length = self.leads[start..].partition_point(|lead| lead.tensor == tensor);
        &self.leads[start..][..length]
    }
}

/// The place of a group's controls among the groups' constants.
pub(super) fn controls_at(group: usize) -> u64 {
    (group * size_of::<GroupConstants>() + offset_of!(GroupConstants, controls)) as u64
}

impl Optimizer {
    /// Changes what may change of a group between steps: the factor of its learning rate, decay, clip, whether it is frozen, and the number
    /// of micro-batches. `group` is the name of a group, or of one that [`per_tensor`](crate::Group::per_tensor) has divided, and then of all
    /// its parts.
    ///
    /// The change is written through the device's queue. It holds for all steps whose commands are submitted after this call, until the
    /// next change, and costs a few bytes and no wait. All steps within one submit have the same controls, unless a kernel of the caller
    /// changes them ([`controls_buffer`](Optimizer::controls_buffer)). Only the settings that differ from what the host has set last are
    /// written, so that a kernel can have the others.
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
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist; [`ErrorKind::Build`](crate::ErrorKind::Build) for a value
    /// outside its range; [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). Nothing has changed then.
    pub fn control(&mut self, group: &str, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.change(Some(group), change)
    }

    /// Changes the controls of every group, like [`Optimizer::control`].
    ///
    /// # Errors
    /// As [`Optimizer::control`].
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

    /// Returns the controls of a group as the host has set them last. What kernels of the caller have written is not among them.
    ///
    /// # Errors
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist.
    pub fn controls(&self, group: &str) -> Result<Controls, Error> {
        self.plan.controls(group)
    }

    /// Returns the buffer of the groups' controls on the device, for kernels of the caller that set them: an array of `GroupControls`, whose
    /// WGSL is [`CONTROLS_WGSL`](crate::gpu::CONTROLS_WGSL), one for each of [`groups`](Optimizer::groups). It has the usages `STORAGE`,
    /// `COPY_SRC` and `COPY_DST`. A step reads what is there when it runs.
    ///
    /// What lies between the controls of two groups belongs to the optimizer: kernels must leave it as it is, and so must copies.
    pub fn controls_buffer(&self) -> &wgpu::Buffer {
        &self.groups
    }

    /// Records a step like [`Optimizer::encode_step`], for which some tensors have no gradients: PyTorch's `None`, optax's masks. `tensors`
    /// are indices into [`tensors`](Optimizer::tensors). Their gradients are not read, and may be anything. They do not enter the norm. Their
    /// parameters, momentum, averages and memory keep their bits. Of a group without any gradients the regime's state stays as well, unless
    /// its norm is shared, and the record says [`absent`](crate::Flags::absent).
    ///
    /// The bias corrections of AdamW go by the steps of the group, where PyTorch counts those of each tensor.
    ///
    /// It records two small copies for each of these tensors beside the step, and allocates nothing.
    ///
    /// # Errors
    /// As [`Optimizer::encode_step`]; [`ErrorKind::Call`](crate::ErrorKind::Call) for a tensor that does not exist, for one that lies next to
    /// another in a buffer, unless the optimizer was built with [`absent_gradients`](crate::OptimizerBuilder::absent_gradients), and with
    /// regime AutoSgd.
    pub fn encode_step_without(&mut self, encoder: &mut wgpu::CommandEncoder, tensors: &[usize]) -> Result<(), Error> {
        self.encode_without(encoder, tensors, Optimizer::encode_step)
    }

    /// Records a look like [`Optimizer::encode_look`] at a step that [`encode_step_without`](Optimizer::encode_step_without) recorded, without
    /// the same tensors: their gradients are not read.
    ///
    /// # Errors
    /// As [`Optimizer::encode_look`] and [`Optimizer::encode_step_without`].
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

    /// Records something for every word that says whether what is absent is present.
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
                // Once for the group.
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

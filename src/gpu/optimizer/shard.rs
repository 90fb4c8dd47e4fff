//! Step over several ranks on the device. See [`ShardSums`].

use std::mem::offset_of;

use super::{Optimizer, PassName};
use crate::error::{CallError, Error};
use crate::gpu::buffers::filled;
use crate::gpu::context::Gpu;
use crate::gpu::readback::{Readback, Source};
use crate::layout::{GroupConstants, GroupState, ScopeSums};
use crate::plan::Plan;
use crate::shard::{CombinedSums, ShardSums, Stage};

/// State of an optimizer over several ranks.
#[derive(Debug)]
pub(super) struct Sharded {
    /// Copy of the measured sums: the step's number in two words, then the sums.
    measured: wgpu::Buffer,
    readback: Readback,
    stage: Stage,
    /// Number of steps that were applied.
    step: u64,
    /// True if `encode_apply` recorded a step that the device has not confirmed.
    is_applied: bool,
    /// True if a step was taken back although the device may have taken it.
    may_be_ahead: bool,
}

/// Size of the step's number in bytes.
const STEP_BYTES: u64 = 8;

impl Sharded {
    pub(super) fn new(gpu: &Gpu, plan: &Plan) -> Option<Self> {
        plan.shard.as_ref()?;
        let bytes = STEP_BYTES + (plan.scopes.len() * size_of::<ScopeSums>()) as u64;
        // No step has this number, so that it marks sums that were never measured.
        let measured = filled(gpu, "measured sums", &vec![u32::MAX; bytes as usize / 4]);
        Some(Sharded {
            readback: Readback::new(gpu.device(), "measured sums", measured.size()),
            measured,
            stage: Stage::Idle,
            step: 0,
            is_applied: false,
            may_be_ahead: false,
        })
    }
}

impl Optimizer {
    /// Records passes 1 and 2 over this rank's gradients into the caller's encoder, in a compute pass of their own.
    /// They change no state and may be repeated. After the submit, [`read_shard_sums`](Optimizer::read_shard_sums)
    /// returns the result.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for an optimizer that was built without
    /// [`sharded`](crate::OptimizerBuilder::sharded), and [`ErrorKind::Call`](crate::ErrorKind::Call) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) as for a step.
    pub fn encode_measure(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a step")?;
        let (measure, _) = self.halves();
        let Some(sharded) = &self.sharded else {
            return Err(not_sharded("encode_measure"));
        };
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim measure"),
            timestamp_writes: None,
        });
        for dispatch in measure {
            dispatch.encode(&mut pass);
        }
        drop(pass);
        let step = std::mem::offset_of!(GroupState, steps_low) as u64;
        let to = &sharded.measured;
        encoder.copy_buffer_to_buffer(&self.states, step, to, 0, STEP_BYTES);
        let bytes = (self.plan.scopes.len() * size_of::<ScopeSums>()) as u64;
        encoder.copy_buffer_to_buffer(&self.sums, 0, to, STEP_BYTES, bytes);
        self.enter(Stage::Measured);
        Ok(())
    }

    /// Reads back this rank's sums, to be sent to every rank (see [`ShardSums`]). It copies 8 bytes and 52 for every
    /// norm, and waits for the device. No other mode of this crate waits in a step.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if [`encode_measure`](Optimizer::encode_measure) was not
    /// called or its commands were not submitted, [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    pub async fn read_shard_sums(&mut self) -> Result<ShardSums, Error> {
        let Some(sharded) = &mut self.sharded else {
            return Err(not_sharded("read_shard_sums"));
        };
        if sharded.stage == Stage::Idle {
            return Err(Error::from(CallError::OutOfTurn {
                call: "read_shard_sums",
                way_out: "record encode_measure first, and submit it",
            }));
        }
        // An earlier readback that was not awaited returns older sums.
        if sharded.readback.is_in_flight() {
            sharded.readback.wait(&self.gpu, |_| ()).await?;
        }
        let source = Source::whole(&sharded.measured);
        sharded.readback.start(&self.gpu, &[source])?;
        let scopes = self.plan.scopes.len();
        let (step, sums) = sharded
            .readback
            .wait(&self.gpu, |bytes| {
                let (step, sums) = bytes.split_at(STEP_BYTES as usize);
                let [low, high]: [u32; 2] = bytemuck::pod_read_unaligned(step);
                let sums: Vec<ScopeSums> =
                    sums.chunks_exact(size_of::<ScopeSums>()).take(scopes).map(bytemuck::pod_read_unaligned).collect();
                (u64::from(high) << 32 | u64::from(low), sums)
            })
            .await?;
        if step == sharded.step + 1 && sharded.may_be_ahead {
            // The commands that take_back_apply assumed lost were submitted after all.
            sharded.step = step;
        }
        if step != sharded.step {
            return Err(Error::from(CallError::OutOfTurn {
                call: "read_shard_sums",
                way_out: "submit what encode_apply recorded for the step before, then what encode_measure recorded; if the commands of encode_apply are gone, call take_back_apply, then measure again",
            }));
        }
        sharded.is_applied = false;
        self.enter(Stage::Read);
        let shard = self.plan.shard.as_ref();
        shard.map(|shard| ShardSums::new(shard, step, &sums)).ok_or_else(|| not_sharded("read_shard_sums"))
    }

    /// Records passes 3 and 4 of the measured step with the combined sums of all ranks. The sums are written through
    /// the device's queue ahead of the next submit. Record no other commands of this optimizer before that submit.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) before [`read_shard_sums`](Optimizer::read_shard_sums),
    /// without [`sharded`](crate::OptimizerBuilder::sharded), and for sums of another optimizer or another step.
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost)
    /// as for a step. After an error nothing has changed.
    pub fn encode_apply(&mut self, encoder: &mut wgpu::CommandEncoder, combined: &CombinedSums) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a step")?;
        let (Some(sharded), Some(shard)) = (&mut self.sharded, &mut self.plan.shard) else {
            return Err(not_sharded("encode_apply"));
        };
        if sharded.stage != Stage::Read {
            return Err(Error::from(CallError::OutOfTurn {
                call: "encode_apply",
                way_out: "submit encode_measure and call read_shard_sums first, and combine what all ranks have measured",
            }));
        }
        combined.check(shard, sharded.step)?;
        let queue = self.gpu.queue();
        if combined.teach(&mut self.plan.groups, shard) {
            // The write spares the controls, which a kernel of the caller may have written.
            for (index, group) in self.plan.groups.iter().enumerate() {
                let at = index * size_of::<GroupConstants>() + offset_of!(GroupConstants, direction_length);
                queue.write_buffer(&self.groups, at as u64, bytemuck::bytes_of(&group.direction_length));
            }
        }
        queue.write_buffer(&self.sums, 0, bytemuck::cast_slice(combined.sums()));
        sharded.step += 1;
        sharded.is_applied = true;
        sharded.may_be_ahead = false;
        self.enter(Stage::Idle);
        let (_, apply) = self.halves();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim apply"),
            timestamp_writes: None,
        });
        for dispatch in apply {
            dispatch.encode(&mut pass);
        }
        drop(pass);
        Ok(())
    }

    /// Takes back the step that [`encode_apply`](Optimizer::encode_apply) recorded last. Call it if its commands will
    /// never be submitted, for example because the encoder was dropped. Otherwise
    /// [`read_shard_sums`](Optimizer::read_shard_sums) would wait for that step forever. Measure again afterwards. If
    /// the commands do reach the device, the step counts.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if no step was recorded since the last sums were read.
    pub fn take_back_apply(&mut self) -> Result<(), Error> {
        let Some(sharded) = &mut self.sharded else {
            return Err(not_sharded("take_back_apply"));
        };
        if !std::mem::take(&mut sharded.is_applied) {
            return Err(Error::from(CallError::OutOfTurn {
                call: "take_back_apply",
                way_out: "there is no recorded step to take back: call it after encode_apply and before the next read_shard_sums succeeds",
            }));
        }
        sharded.step -= 1;
        sharded.stage = Stage::Idle;
        sharded.may_be_ahead = true;
        Ok(())
    }

    /// Returns a step's dispatches up to pass 2, and from pass 3 on.
    fn halves(&self) -> (&[super::Dispatch], &[super::Dispatch]) {
        let dispatches = self.dispatches();
        let measure = dispatches.iter().position(|dispatch| dispatch.pass == PassName::LearningRate);
        dispatches.split_at(measure.unwrap_or(dispatches.len()))
    }

    fn enter(&mut self, stage: Stage) {
        if let Some(sharded) = &mut self.sharded {
            sharded.stage = stage;
        }
    }

    /// Continues from a checkpoint of this step.
    #[cfg(feature = "checkpoint")]
    pub(super) fn go_on_from(&mut self, step: u64) {
        if let Some(sharded) = &mut self.sharded {
            sharded.step = step;
            sharded.stage = Stage::Idle;
            sharded.is_applied = false;
            sharded.may_be_ahead = false;
            // Sums that were measured before belong to no later step.
            let never = bytemuck::bytes_of(&[u32::MAX; 2]);
            let queue = self.gpu.queue();
            queue.write_buffer(&sharded.measured, 0, never);
        }
    }

    /// Returns an error for a step that leaves out the other ranks.
    pub(super) fn check_alone(&self, call: &'static str) -> Result<(), Error> {
        match self.plan.shard {
            None => Ok(()),
            Some(_) => Err(Error::from(CallError::OutOfTurn {
                call,
                way_out: "other ranks have other parameters: call encode_measure and read_shard_sums, combine what all ranks have measured, and call encode_apply",
            })),
        }
    }
}

fn not_sharded(call: &'static str) -> Error {
    Error::from(CallError::OutOfTurn {
        call,
        way_out: "the optimizer has all the parameters: call encode_step, or build it with OptimizerBuilder::sharded",
    })
}

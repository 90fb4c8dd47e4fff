//! The zeroth-order optimizer on the device. `build` allocates all memory, and the calls only record dispatches. Its
//! kernels are those in `shaders/zeroth_order/` and pass 3 of the other optimizers.

mod build;

use crate::error::Error;
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::Dispatch;
use crate::gpu::readback::{Readback, Source};
use crate::plan::{Plan, TensorInfo};
use crate::record::RecordCursor;
use crate::zeroth_order::Stage;
use crate::zeroth_order::record::{ZerothOrderRecords, read};

/// Names of the calls, by the stage that each leaves.
const CALLS: [&str; 3] = ["encode_perturb", "encode_reverse", "encode_step"];

/// A zeroth-order optimizer on the device. Made by [`ZerothOrderBuilder::build`](crate::ZerothOrderBuilder::build).
///
/// A step is three calls, with the caller's forward pass after each of the first two. Each forward pass writes its loss
/// to the same slot, a buffer slice of one f32. The whole step can be recorded into one encoder, because nothing is
/// read back:
///
/// ```no_run
/// # use wgpu_optim::{Error, Gpu, GpuOptions, Regime, ZerothOrderBuilder, ZerothOrderMethod, wgpu};
/// # fn forward(_: &mut wgpu::CommandEncoder) {}
/// # async fn train(gpu: &Gpu, weights: &wgpu::Buffer, bias: &wgpu::Buffer, loss: &wgpu::Buffer) -> Result<(), Error> {
/// let mut optimizer = ZerothOrderBuilder::new(ZerothOrderMethod::lozo(), Regime::fixed(1e-3))
///     .shaped_tensor("weights", &[64, 32], weights.slice(..))
///     .tensor("bias", bias.slice(..))
///     .build(gpu, loss.slice(..4))?;
/// for _ in 0..1000 {
///     let mut encoder = gpu.device().create_command_encoder(&Default::default());
///     optimizer.encode_perturb(&mut encoder)?; // w + εz
///     forward(&mut encoder); // reads the parameters, writes the loss
///     optimizer.encode_reverse(&mut encoder)?; // w - εz
///     forward(&mut encoder); // of the same batch
///     optimizer.encode_step(&mut encoder)?; // w - ηcz
///     gpu.queue().submit([encoder.finish()]);
/// }
/// for record in optimizer.drain_records().await?.records {
///     println!("{record}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// Submit all recorded commands, in the order in which they were recorded, because the parameters are w + εz or w - εz
/// between the calls. If a forward pass fails, write NaN to the slot and complete the step, which restores the
/// parameters.
#[derive(Debug)]
pub struct ZerothOrder {
    gpu: Gpu,
    plan: Plan,
    /// The dispatches of the three calls.
    calls: [Vec<Dispatch>; 3],
    records: wgpu::Buffer,
    probe_records: wgpu::Buffer,
    readback: Readback,
    cursor: RecordCursor,
    /// Records that were fetched by a drain that then failed.
    undelivered: ZerothOrderRecords,
    stage: Stage,
}

impl ZerothOrder {
    /// Records the next direction `z` and the move to `w + εz`.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the calls are out of order, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). After an error nothing has been recorded.
    pub fn encode_perturb(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.encode(encoder, 0)
    }

    /// Records a copy of the loss at `w + εz`, and the move to `w - εz`.
    ///
    /// # Errors
    /// See [`ZerothOrder::encode_perturb`].
    pub fn encode_reverse(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.encode(encoder, 1)
    }

    /// Records the slope, the rate, and the pass that restores the parameters and takes the step: `w + (ε - ηc) z` from
    /// `w - εz`. If one of the losses is not finite when it runs, the pass restores the parameters and the record is
    /// that of a skipped step.
    ///
    /// # Errors
    /// See [`ZerothOrder::encode_perturb`].
    pub fn encode_step(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.encode(encoder, 2)
    }

    fn encode(&mut self, encoder: &mut wgpu::CommandEncoder, call: usize) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.stage.go_on(CALLS[call], CALLS)?;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim zeroth order"),
            timestamp_writes: None,
        });
        self.calls[call].iter().for_each(|dispatch| dispatch.encode(&mut pass));
        Ok(())
    }

    /// Fetches the records of all submitted steps that were not drained before. Waits for the device, but does not
    /// delay steps.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback). No record is lost by an error: the next successful drain
    /// returns it.
    pub async fn drain_records(&mut self) -> Result<ZerothOrderRecords, Error> {
        if self.readback.is_in_flight() {
            self.finish_drain().await?;
        }
        let rings = [&self.records, &self.probe_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)?;
        self.finish_drain().await?;
        Ok(std::mem::take(&mut self.undelivered))
    }

    async fn finish_drain(&mut self) -> Result<(), Error> {
        let (plan, cursor, middle) = (&self.plan, &mut self.cursor, self.records.size() as usize);
        let read = self.readback.wait(&self.gpu, |bytes| read(cursor, bytes.split_at(middle), plan)).await?;
        self.undelivered.append(read);
        Ok(())
    }

    /// Returns the tensors, in the order of declaration.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// Returns the device of this optimizer.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Returns the dispatches of the three calls, for tests of the kernels.
    #[doc(hidden)]
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        self.calls.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use crate::gpu::buffers::zeroed;
    use crate::{ErrorKind, Gpu, Regime, ZerothOrderBuilder, ZerothOrderMethod, faults};

    #[test]
    fn whichever_buffer_is_refused_nothing_is_written_and_the_next_build_works() {
        for adapter in pollster::block_on(Gpu::adapters(None)) {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let buffer = zeroed::<f32>(&gpu, "parameters and loss", 36);
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&[0.5f32; 36]));
            let build = || {
                let builder = ZerothOrderBuilder::new(ZerothOrderMethod::lozo_m(), Regime::norm_ratio());
                builder.shaped_tensor("w", &[4, 8], buffer.slice(..128)).build(&gpu, buffer.slice(128..132))
            };
            let refused = |request| faults::with_failing(request, build);
            let requests = (0..).map_while(refused).inspect(|built| {
                let error = built.as_ref().expect_err("refused");
                assert_eq!(error.kind(), ErrorKind::DeviceRefused, "{error}");
            });
            assert!(requests.count() > 15, "{}", gpu.describe());
            let read = || pollster::block_on(gpu.read_buffer::<f32>("parameters", &buffer)).expect("arrives");
            assert_eq!(read(), [0.5; 36], "{}", gpu.describe());
            let mut optimizer = build().expect("builds");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            optimizer.encode_perturb(&mut encoder).expect("perturbs");
            gpu.queue().submit([encoder.finish()]);
            assert_ne!(read(), [0.5; 36], "{}", gpu.describe());
            // From here on the device counts as lost.
            gpu.mark_lost("a test");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let error = optimizer.encode_reverse(&mut encoder).expect_err("lost");
            assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error}");
        }
    }
}

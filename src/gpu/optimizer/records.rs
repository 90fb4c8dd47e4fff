//! Reading what the device has recorded.

use super::*;
use crate::error::Error;
use crate::gpu::readback::Source;
use crate::layout::{GroupState, ScopeSums};
use crate::record::Records;

impl Optimizer {
    /// Fetches the records of all steps submitted so far and not drained before. Waits for the device, but holds up no step.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](crate::ErrorKind::Readback); [`ErrorKind::Halted`](crate::ErrorKind::Halted) by [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), again
    /// and again until [`resume`](Optimizer::resume) is called. No record is lost by an error: the next drain that succeeds brings it.
    pub async fn drain_records(&mut self) -> Result<Records, Error> {
        self.check_halted()?;
        self.fetch_records().await?;
        self.check_halted()?;
        Ok(std::mem::take(&mut self.undelivered))
    }

    pub(super) async fn fetch_records(&mut self) -> Result<(), Error> {
        if self.readback.is_in_flight() {
            self.finish_drain().await?;
        }
        let rings = [&self.records, &self.tensor_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)?;
        self.finish_drain().await
    }

    pub(super) async fn finish_drain(&mut self) -> Result<(), Error> {
        let (plan, cursor) = (&self.plan, &mut self.cursor);
        let middle = self.records.size() as usize;
        let records = self.readback.wait(&self.gpu, |bytes| cursor.read(bytes.split_at(middle), plan)).await?;
        self.keep(records);
        Ok(())
    }

    pub(super) fn keep(&mut self, records: Records) {
        // The last one tells how things stood when the copy was made.
        if let Some(last) = records.records.last() {
            self.halted = self.plan.halted(last);
        }
        self.undelivered.append(records);
    }

    pub(super) fn check_halted(&self) -> Result<(), Error> {
        self.halted.clone().map_or(Ok(()), Err)
    }

    /// Lets training go on after [`ErrorKind::Halted`](crate::ErrorKind::Halted), from where it was before the steps that were skipped; the count of skips in a row
    /// starts anew. Steps submitted before this call stay skipped, those submitted later are taken. Waits for the device, and does no harm
    /// where nothing has halted.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](crate::ErrorKind::Readback); training stays halted then.
    pub async fn resume(&mut self) -> Result<(), Error> {
        // Whatever of it tells of the halt has been read afterwards.
        self.fetch_records().await?;
        for group in 0..self.plan.groups.len() {
            for field in [
                std::mem::offset_of!(GroupState, skips_in_row),
                std::mem::offset_of!(GroupState, overflows_in_row),
                std::mem::offset_of!(GroupState, halted),
            ] {
                let at = group * std::mem::size_of::<GroupState>() + field;
                let queue = self.gpu.queue();
                queue.write_buffer(&self.states, at as u64, bytemuck::bytes_of(&0u32));
            }
        }
        self.halted = None;
        Ok(())
    }

    /// Fetches records without ever waiting: starts a copy, or hands over what an earlier call started if it has arrived.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    pub fn try_drain_records(&mut self) -> Result<Option<Records>, Error> {
        self.check_halted()?;
        let (plan, cursor) = (&self.plan, &mut self.cursor);
        let middle = self.records.size() as usize;
        let arrived = self.readback.try_finish(&self.gpu, |bytes| cursor.read(bytes.split_at(middle), plan))?;
        let any = arrived.is_some();
        self.keep(arrived.unwrap_or_default());
        self.check_halted()?;
        let rings = [&self.records, &self.tensor_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)?;
        Ok(any.then(|| std::mem::take(&mut self.undelivered)))
    }

    /// The state of every group, for tests and for the curious. Waits for the device.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    #[doc(hidden)]
    pub async fn read_states(&self) -> Result<Vec<GroupState>, Error> {
        self.gpu.read_buffer("states", &self.states).await
    }

    /// What the last step's reduction measured, per scope; zeros where a step is one dispatch. Waits for the device.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    #[doc(hidden)]
    pub async fn read_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        self.gpu.read_buffer("sums", &self.sums).await
    }
}

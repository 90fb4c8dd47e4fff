//! Reading records and states from the device.

use super::*;
use crate::error::Error;
use crate::gpu::readback::Source;
use crate::layout::{GroupState, ScopeSums};
use crate::record::Records;

impl Optimizer {
    /// Fetches the records of all submitted steps that were not drained before. Waits for the device, but does not
    /// delay steps.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost),
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback) or, with
    /// [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), [`ErrorKind::Halted`](crate::ErrorKind::Halted) until
    /// [`resume`](Optimizer::resume) is called. No record is lost by an error: the next successful drain returns it.
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

    /// Starts a copy of the records, if none is in flight. [`Optimizer::try_finish_drain`] returns them. In contrast to
    /// [`Optimizer::drain_records`], the optimizer is not borrowed while the copy is made, as some event loops require.
    #[doc(hidden)]
    pub fn start_drain(&mut self) -> Result<(), Error> {
        self.check_halted()?;
        let rings = [&self.records, &self.tensor_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)
    }

    /// Returns the records of a copy that has arrived, without waiting.
    #[doc(hidden)]
    pub fn try_finish_drain(&mut self) -> Result<Option<Records>, Error> {
        let any = self.keep_arrived()?;
        Ok(any.then(|| std::mem::take(&mut self.undelivered)))
    }

    /// Keeps the records of a copy that has arrived, and returns true if there is one.
    fn keep_arrived(&mut self) -> Result<bool, Error> {
        let (plan, cursor) = (&self.plan, &mut self.cursor);
        let middle = self.records.size() as usize;
        let arrived = self.readback.try_finish(&self.gpu, |bytes| cursor.read(bytes.split_at(middle), plan))?;
        let any = arrived.is_some();
        self.keep(arrived.unwrap_or_default());
        self.check_halted()?;
        Ok(any)
    }

    pub(super) fn keep(&mut self, records: Records) {
        // The last record has the state when the copy was made.
        if let Some(last) = records.records.last() {
            self.halted = self.plan.halted(last);
        }
        self.undelivered.append(records);
    }

    pub(super) fn check_halted(&self) -> Result<(), Error> {
        self.halted.clone().map_or(Ok(()), Err)
    }

    /// Continues training after [`ErrorKind::Halted`](crate::ErrorKind::Halted), from the state before the skipped
    /// steps. The count of consecutive skips is reset. Steps submitted before this call stay skipped; those submitted
    /// later are taken. Waits for the device. It has no effect if training has not halted.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback). Training then stays halted.
    pub async fn resume(&mut self) -> Result<(), Error> {
        // All records about the halt have been read after this.
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

    /// Fetches records without waiting. It starts a copy, or returns the records of a copy that an earlier call
    /// started, if it has arrived.
    ///
    /// # Errors
    /// See [`Optimizer::drain_records`].
    pub fn try_drain_records(&mut self) -> Result<Option<Records>, Error> {
        self.check_halted()?;
        let any = self.keep_arrived()?;
        self.start_drain()?;
        Ok(any.then(|| std::mem::take(&mut self.undelivered)))
    }

    /// Reads the state of every group, mainly for tests. Waits for the device.
    ///
    /// # Errors
    /// See [`Optimizer::drain_records`].
    #[doc(hidden)]
    pub async fn read_states(&self) -> Result<Vec<GroupState>, Error> {
        self.gpu.read_buffer("states", &self.states).await
    }

    /// Reads the last step's sums of each scope. They are zeros if a step is one dispatch. Waits for the device.
    ///
    /// # Errors
    /// See [`Optimizer::drain_records`].
    #[doc(hidden)]
    pub async fn read_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        self.gpu.read_buffer("sums", &self.sums).await
    }
}

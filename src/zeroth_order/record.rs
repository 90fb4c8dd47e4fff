//! Records of a zeroth-order optimizer.

use std::fmt;

use super::tables::RawProbeRecord;
use crate::layout::{RawRecord, record_flags};
use crate::plan::Plan;
use crate::record::{Record, RecordCursor};

/// One step of a zeroth-order optimizer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ZerothOrderRecord {
    /// The step's number, its rate, why the rate moved, and whether it was skipped. [`Record::norm`] is `|c| √E‖z‖²`
    /// here.
    pub record: Record,
    /// ℓ₊ and ℓ₋, the losses at `w + εz` and at `w - εz`.
    pub losses: [f32; 2],
    /// `c = (ℓ₊ - ℓ₋) / (2ε)`, the slope of the loss along `z`. It is NaN in a step that was skipped.
    pub slope: f32,
}

/// Formats the record as a sentence: `step 9: η 2.0000e-1, +0.0 %; slope c = -3.1250e-2, from the losses 0.41 at w + εz
/// and 0.42 at w - εz`.
impl fmt::Display for ZerothOrderRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [above, below] = self.losses;
        if self.record.flags.skipped() {
            return write!(
                f,
                "step {}: skipped, the parameters were restored: no slope from the losses {above} at w + εz and {below} at w - εz",
                self.record.step
            );
        }
        write!(
            f,
            "{}; slope c = {:.4e}, from the losses {above} at w + εz and {below} at w - εz",
            self.record, self.slope
        )
    }
}

/// Records that draining a ring returns.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct ZerothOrderRecords {
    /// Records that were not drained before, in the order of the steps.
    pub records: Vec<ZerothOrderRecord>,
    /// Number of steps whose records were overwritten before they were drained. The ring holds 1024 steps.
    pub lost_steps: u64,
}

impl ZerothOrderRecords {
    /// Appends later records.
    #[cfg(feature = "gpu")]
    pub(crate) fn append(&mut self, mut later: ZerothOrderRecords) {
        self.records.append(&mut later.records);
        self.lost_steps += later.lost_steps;
    }
}

/// Reads the records of both rings that were not read before. The slots of a step are the same in both.
pub(crate) fn read(cursor: &mut RecordCursor, rings: (&[u8], &[u8]), plan: &Plan) -> ZerothOrderRecords {
    let steps = rings.0.chunks_exact(size_of::<RawRecord>()).map(bytemuck::pod_read_unaligned::<RawRecord>);
    let probes = rings.1.chunks_exact(size_of::<RawProbeRecord>()).map(bytemuck::pod_read_unaligned::<RawProbeRecord>);
    let mut probes: Vec<(u64, RawProbeRecord)> = steps
        .zip(probes)
        .filter(|(raw, _)| raw.flags & record_flags::WRITTEN != 0)
        .map(|(raw, probe)| (u64::from(raw.step_high) << 32 | u64::from(raw.step_low), probe))
        .collect();
    probes.sort_unstable_by_key(|(step, _)| *step);
    let records = cursor.read((rings.0, &[]), plan);
    let after = probes.len() - records.records.len();
    let paired = records.records.into_iter().zip(&probes[after..]).map(|(record, (_, probe))| ZerothOrderRecord {
        losses: probe.losses.map(f32::from_bits),
        slope: if record.flags.skipped() { f32::NAN } else { probe.slope },
        record,
    });
    ZerothOrderRecords { records: paired.collect(), lost_steps: records.lost_steps }
}

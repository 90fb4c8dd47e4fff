//! Placement of the factors of schedule tables.

use std::sync::Arc;

use super::Schedule;
use crate::error::{BuildError, Error};
use crate::layout::TABLE_FACTORS;

/// Tables of all groups, concatenated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// Each table with the index of its first factor.
    placed: Vec<(Arc<[f32]>, u32)>,
    pub(crate) factors: Vec<f32>,
}

impl Tables {
    /// Returns the index of the schedule's first factor, or `None` if it has no table. Equal tables are stored once.
    pub(crate) fn place(&mut self, schedule: &Schedule) -> Result<Option<u32>, Error> {
        let Schedule::Table { factors, .. } = schedule else {
            return Ok(None);
        };
        // The tensors of one group share the table's pointer, so that its numbers need not be compared.
        let same = |other: &Arc<[f32]>| Arc::ptr_eq(other, factors) || other == factors;
        if let Some((_, first)) = self.placed.iter().find(|(other, _)| same(other)) {
            return Ok(Some(*first));
        }
        let first = self.factors.len();
        let count = first + factors.len();
        if count > TABLE_FACTORS as usize {
            return Err(Error::from(BuildError::Limit {
                what: "the number of factors in the tables of all schedules".to_owned(),
                value: count as u64,
                limit: TABLE_FACTORS.into(),
                way_out: "let a factor hold for more steps (every), let groups have the same table, or use several optimizers",
            }));
        }
        self.factors.extend_from_slice(factors);
        self.placed.push((Arc::clone(factors), first as u32));
        Ok(Some(first as u32))
    }
}

/// Writes the number of factors and a hash of their bits. The factors themselves would dominate a checkpoint's header
/// and the messages about differences.
#[cfg(feature = "checkpoint")]
pub(crate) fn serialize<S: serde::Serializer>(factors: &[f32], to: S) -> Result<S::Ok, S::Error> {
    let bytes = bytemuck::cast_slice::<f32, u8>(factors);
    to.collect_str(&format_args!("{} factors with hash {:016x}", factors.len(), crate::shard::fnv1a(bytes)))
}

//! [`wgpu_optim`] over the ranks of an MPI program, with one collective: each rank sends 32 bytes, and 56 for every norm.
//!
//! ```no_run
//! # fn step(
//! #     world: &mpi::topology::SimpleCommunicator,
//! #     optimizer: &mut wgpu_optim::CpuOptimizer,
//! #     w: &mut [f32],
//! #     g: &[f32],
//! # ) -> Result<(), wgpu_optim::Error> {
//! // `optimizer` was built with OptimizerBuilder::sharded(world.rank(), world.size()) from this rank's shard of the parameters.
//! let measured = optimizer.measure(&[&*w], &[g])?;
//! let combined = wgpu_optim_mpi::combine(world, &measured)?;
//! optimizer.apply(&mut [w], &[g], &combined)
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use mpi::traits::CommunicatorCollectives;
use wgpu_optim::{CombinedSums, Error, ShardSums};

/// Combines the sums of all ranks. Every rank calls it and gets the same bits.
///
/// # Errors
/// As [`ShardSums::combine`], and the same on all ranks. (If ranks have different numbers of norms, they send different numbers of bytes, and
/// MPI itself ends the program.)
pub fn combine(world: &impl CommunicatorCollectives, measured: &ShardSums) -> Result<CombinedSums, Error> {
    let own = measured.to_bytes();
    let mut all = vec![0u8; own.len() * world.size() as usize];
    world.all_gather_into(&own[..], &mut all[..]);
    ShardSums::combine_bytes(&all)
}

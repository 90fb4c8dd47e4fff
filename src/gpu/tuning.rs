//! The kernels' geometry: how many invocations, how much work each, how partial sums are left.

use crate::error::{Error, require};
use crate::plan::QUAD;

/// How pass 1 leaves its partial sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partials {
    /// One per invocation, without a barrier: for software drivers, where a barrier costs more than a few stores.
    PerInvocation,
    /// One per workgroup, added up in a tree in workgroup memory.
    PerWorkgroup,
}

/// Geometry of the passes; reaches the shaders as `override` constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations per workgroup of passes 1 and 4; a power of two.
    pub workgroup_size: u32,
    /// Quads (four elements) each invocation of passes 1 and 4 takes.
    pub quads_per_invocation: u32,
    /// How pass 1 leaves its partial sums.
    pub partials: Partials,
    /// Invocations of the one workgroup that finishes a scope in pass 2; a power of two.
    pub finish_workgroup_size: u32,
}

impl Tuning {
    /// The preset for an adapter: workgroups of 8 without barriers on software drivers, of 256 with a tree elsewhere.
    pub fn for_adapter(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Self {
        let most = most_invocations(limits);
        match info.device_type {
            wgpu::DeviceType::Cpu => Tuning {
                workgroup_size: 8.min(most),
                quads_per_invocation: 256,
                partials: Partials::PerInvocation,
                finish_workgroup_size: 64.min(most),
            },
            _ => Tuning {
                workgroup_size: 256.min(most),
                quads_per_invocation: 4,
                partials: Partials::PerWorkgroup,
                finish_workgroup_size: 256.min(most),
            },
        }
    }

    /// Elements of a full block.
    pub fn block_elements(&self) -> u32 {
        self.workgroup_size
            .saturating_mul(self.quads_per_invocation)
            .saturating_mul(QUAD)
    }

    /// Partials each block leaves.
    pub fn partials_per_block(&self) -> u32 {
        match self.partials {
            Partials::PerInvocation => self.workgroup_size,
            Partials::PerWorkgroup => 1,
        }
    }

    /// Refuses a geometry the device or the shaders cannot have.
    pub(crate) fn validate(&self, limits: &wgpu::Limits) -> Result<(), Error> {
        let owner = || "tuning".to_owned();
        let most = most_invocations(limits);
        for (field, size) in [
            ("workgroup_size", self.workgroup_size),
            ("finish_workgroup_size", self.finish_workgroup_size),
        ] {
            require(
                size.is_power_of_two() && size <= most,
                owner,
                field,
                size,
                "a power of two within the device's limits of invocations and of workgroup memory",
            )?;
        }
        require(
            (1..=MOST_QUADS_PER_INVOCATION).contains(&self.quads_per_invocation),
            owner,
            "quads_per_invocation",
            self.quads_per_invocation,
            "between 1 and 4096",
        )
    }
}

/// Some drivers stop an invocation in silence after 65,535 loop trips, summed over all its loops; pass 1 makes at most 14 per quad,
/// where it sweeps again for small numbers and counts what is not finite.
const MOST_QUADS_PER_INVOCATION: u32 = 4096;

fn most_invocations(limits: &wgpu::Limits) -> u32 {
    let totals_bytes = std::mem::size_of::<crate::layout::ScopeSums>() as u32;
    let most = limits
        .max_compute_invocations_per_workgroup
        .min(limits.max_compute_workgroup_size_x)
        .min(limits.max_compute_workgroup_storage_size / totals_bytes)
        .max(1);
    // The largest power of two that is not above.
    1 << most.ilog2()
}

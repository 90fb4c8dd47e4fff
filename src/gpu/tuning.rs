//! Geometry of the kernels: number of invocations, work per invocation, and the way partial sums are combined.

use crate::error::{Error, require};
use crate::gpu::limits::{MOST_TRIPS, largest_binding};
use crate::layout::PARTIAL_WORDS;
use crate::plan::QUAD;

/// Way in which the first pass combines partial sums within a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partials {
    /// One per invocation, without a barrier: for software drivers, where a barrier costs more than a few stores.
    PerInvocation,
    /// One per workgroup, added up in a tree in workgroup memory.
    PerWorkgroup,
    /// One per workgroup: `subgroupAdd` first, then the subgroups meet in workgroup memory at one barrier. Needs
    /// [`wgpu::Features::SUBGROUP`].
    Subgroup,
}

impl Partials {
    /// All kinds.
    #[doc(hidden)]
    pub const ALL: [Partials; 3] = [Partials::PerInvocation, Partials::PerWorkgroup, Partials::Subgroup];

    /// Returns the name that tables and files use.
    #[doc(hidden)]
    pub fn name(self) -> &'static str {
        match self {
            Partials::PerInvocation => "per-invocation",
            Partials::PerWorkgroup => "per-workgroup",
            Partials::Subgroup => "subgroup",
        }
    }

    /// Returns true if a device with these features supports it.
    #[doc(hidden)]
    pub fn is_supported(self, features: wgpu::Features) -> bool {
        self != Partials::Subgroup || features.contains(wgpu::Features::SUBGROUP)
    }
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
    /// The preset for a device on an adapter, by its kind and its subgroups; `features` are the device's.
    /// [`Gpu::tune`](crate::Gpu::tune) finds out whether another geometry does better.
    #[doc(hidden)]
    pub fn for_adapter(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, features: wgpu::Features) -> Self {
        let most = most_invocations(limits);
        // In browsers the shader is not tested, and asks for what older ones lack (`subgroup_id`): only who wants it has it there.
        let subgroups = features.contains(wgpu::Features::SUBGROUP) && cfg!(not(target_arch = "wasm32"));
        let (workgroup_size, quads_per_invocation, partials, finish_workgroup_size) = match info.device_type {
            // A workgroup is a loop on one core and a barrier cuts it in two: few lanes (one vector register), long stretches.
            wgpu::DeviceType::Cpu => (8, 256, Partials::PerInvocation, 64),
            // Narrow subgroups are those of small GPUs, which hide latency better with more and smaller workgroups per core.
            wgpu::DeviceType::IntegratedGpu if subgroups && info.subgroup_min_size <= 16 => {
                (128, 4, Partials::Subgroup, 128)
            }
            // 256 invocations fit every GPU, and a few quads each leave blocks enough for all its cores; registers and one
            // barrier instead of a tree of eight.
            _ if subgroups => (256, 4, Partials::Subgroup, 256),
            // The same where lanes can only meet in workgroup memory.
            _ => (256, 4, Partials::PerWorkgroup, 256),
        };
        Tuning {
            workgroup_size: most.min(workgroup_size),
            quads_per_invocation,
            partials,
            finish_workgroup_size: most.min(finish_workgroup_size),
        }
    }

    /// The preset for an open device.
    pub(crate) fn for_device(device: &wgpu::Device) -> Self {
        Self::for_adapter(&device.adapter_info(), &device.limits(), device.features())
    }

    /// Elements of a full block.
    #[doc(hidden)]
    pub fn block_elements(&self) -> u32 {
        self.workgroup_size.saturating_mul(self.quads_per_invocation).saturating_mul(QUAD)
    }

    /// Partials each block leaves.
    #[doc(hidden)]
    pub fn partials_per_block(&self) -> u32 {
        match self.partials {
            Partials::PerInvocation => self.workgroup_size,
            Partials::PerWorkgroup | Partials::Subgroup => 1,
        }
    }

    /// The most subgroups that a workgroup of passes 1 and 4 can have on this adapter.
    pub(crate) fn subgroups(&self, info: &wgpu::AdapterInfo) -> u32 {
        // WebGPU has none below 4; a driver that does not know says 0.
        let narrowest = info.subgroup_min_size.max(wgpu::MINIMUM_SUBGROUP_MIN_SIZE);
        self.workgroup_size.div_ceil(narrowest)
    }

    /// Whether pass 2 can add up the partials of an optimizer of this size, with room for the heads and tails of thousands of tensors.
    /// What was measured or read must not refuse an optimizer that the preset can build.
    pub(crate) fn suits(&self, elements: u64, limits: &wgpu::Limits) -> bool {
        const SPARE_BLOCKS: u64 = 1 << 15;
        let blocks =
            elements.div_ceil(self.block_elements().max(1).into()).saturating_mul(4).saturating_add(SPARE_BLOCKS);
        let partials = blocks.saturating_mul(self.partials_per_block().into());
        let bytes = partials.saturating_mul(4 * u64::from(PARTIAL_WORDS));
        partials <= MOST_TRIPS * u64::from(self.finish_workgroup_size) && bytes <= largest_binding(limits)
    }

    /// Refuses a geometry the device or the shaders cannot have.
    pub(crate) fn validate(&self, device: &wgpu::Device) -> Result<(), Error> {
        let owner = || "tuning".to_owned();
        let most = most_invocations(&device.limits());
        for (field, size) in
            [("workgroup_size", self.workgroup_size), ("finish_workgroup_size", self.finish_workgroup_size)]
        {
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
        )?;
        require(
            self.partials.is_supported(device.features()),
            owner,
            "partials",
            self.partials.name(),
            "per-invocation or per-workgroup on a device without Features::SUBGROUP: request it with the device, where the adapter has it",
        )
    }
}

/// Some drivers stop an invocation in silence after 65,535 loop trips, summed over all its loops; pass 1 makes at most 14 per quad,
/// where it sweeps again for small numbers and counts what is not finite.
pub(crate) const MOST_QUADS_PER_INVOCATION: u32 = 4096;

pub(crate) fn most_invocations(limits: &wgpu::Limits) -> u32 {
    let totals_bytes = std::mem::size_of::<crate::layout::ScopeSums>() as u32;
    let most = limits
        .max_compute_invocations_per_workgroup
        .min(limits.max_compute_workgroup_size_x)
        .min(limits.max_compute_workgroup_storage_size / totals_bytes)
        .max(1);
    // The largest power of two that is not above.
    1 << most.ilog2()
}

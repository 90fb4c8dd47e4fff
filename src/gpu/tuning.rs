//! Geometry of the kernels: number of invocations, work per invocation, and the way partial sums are combined.

use crate::error::{Error, require};
use crate::gpu::limits::{MOST_TRIPS, largest_binding};
use crate::layout::PARTIAL_WORDS;
use crate::plan::QUAD;

/// Method by which pass 1 combines partial sums within a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partials {
    /// One partial sum per invocation, without a barrier. It is for software drivers, where a barrier costs more than a
    /// few stores.
    PerInvocation,
    /// One partial sum per workgroup, added in a tree in workgroup memory.
    PerWorkgroup,
    /// One partial sum per workgroup: `subgroupAdd`, then one barrier and workgroup memory to combine the subgroups. It
    /// needs [`wgpu::Features::SUBGROUP`].
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

/// Geometry of the passes. The shaders receive it as `override` constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations per workgroup of passes 1 and 4, a power of two.
    pub workgroup_size: u32,
    /// Number of quads (four elements) that each invocation of passes 1 and 4 processes.
    pub quads_per_invocation: u32,
    /// Method by which pass 1 combines its partial sums.
    pub partials: Partials,
    /// Invocations of the one workgroup that finishes a scope in pass 2, a power of two.
    pub finish_workgroup_size: u32,
}

impl Tuning {
    /// Returns the preset for a device, by the type of its adapter and its subgroups. `features` are the device's.
    /// [`Gpu::tune`](crate::Gpu::tune) measures whether another geometry is faster.
    #[doc(hidden)]
    pub fn for_adapter(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, features: wgpu::Features) -> Self {
        let most = most_invocations(limits);
        // The subgroup shader is untested in browsers, and older ones lack its `subgroup_id`. It must be chosen
        // explicitly there.
        let subgroups = features.contains(wgpu::Features::SUBGROUP) && cfg!(not(target_arch = "wasm32"));
        let (workgroup_size, quads_per_invocation, partials, finish_workgroup_size) = match info.device_type {
            // A workgroup is a loop on one core, and a barrier splits the loop. Few lanes (one vector register) with
            // long loops are fastest.
            wgpu::DeviceType::Cpu => (8, 256, Partials::PerInvocation, 64),
            // Small GPUs have narrow subgroups. They hide latency better with more and smaller workgroups per core.
            wgpu::DeviceType::IntegratedGpu if subgroups && info.subgroup_min_size <= 16 => {
                (128, 4, Partials::Subgroup, 128)
            }
            // 256 invocations fit every GPU, and a few quads each leave enough blocks for all its cores. Subgroups use
            // registers and one barrier instead of a tree of eight.
            _ if subgroups => (256, 4, Partials::Subgroup, 256),
            // The same geometry for devices whose lanes can only exchange data through workgroup memory.
            _ => (256, 4, Partials::PerWorkgroup, 256),
        };
        Tuning {
            workgroup_size: most.min(workgroup_size),
            quads_per_invocation,
            partials,
            finish_workgroup_size: most.min(finish_workgroup_size),
        }
    }

    /// Returns the preset for an open device.
    pub(crate) fn for_device(device: &wgpu::Device) -> Self {
        Self::for_adapter(&device.adapter_info(), &device.limits(), device.features())
    }

    /// Returns the number of elements of a full block.
    #[doc(hidden)]
    pub fn block_elements(&self) -> u32 {
        self.workgroup_size.saturating_mul(self.quads_per_invocation).saturating_mul(QUAD)
    }

    /// Returns the number of partial sums of each block.
    #[doc(hidden)]
    pub fn partials_per_block(&self) -> u32 {
        match self.partials {
            Partials::PerInvocation => self.workgroup_size,
            Partials::PerWorkgroup | Partials::Subgroup => 1,
        }
    }

    /// Returns the largest number of subgroups in a workgroup of passes 1 and 4 on this adapter.
    pub(crate) fn subgroups(&self, info: &wgpu::AdapterInfo) -> u32 {
        // WebGPU's smallest subgroup size is 4. A driver that does not know its size reports 0.
        let narrowest = info.subgroup_min_size.max(wgpu::MINIMUM_SUBGROUP_MIN_SIZE);
        self.workgroup_size.div_ceil(narrowest)
    }

    /// Returns true if pass 2 can add the partial sums of an optimizer of this size, with room for the heads and tails
    /// of thousands of tensors. A measured or cached geometry must not refuse an optimizer that the preset can build.
    pub(crate) fn suits(&self, elements: u64, limits: &wgpu::Limits) -> bool {
        const SPARE_BLOCKS: u64 = 1 << 15;
        let blocks =
            elements.div_ceil(self.block_elements().max(1).into()).saturating_mul(4).saturating_add(SPARE_BLOCKS);
        let partials = blocks.saturating_mul(self.partials_per_block().into());
        let bytes = partials.saturating_mul(4 * u64::from(PARTIAL_WORDS));
        partials <= MOST_TRIPS * u64::from(self.finish_workgroup_size) && bytes <= largest_binding(limits)
    }

    /// Returns an error if the device or the shaders do not support the geometry.
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
            "per-invocation or per-workgroup on a device without Features::SUBGROUP: request it with the device if the adapter has it",
        )
    }
}

/// Largest number of quads per invocation. Some drivers silently stop an invocation after 65,535 loop iterations,
/// summed over all its loops. Pass 1 makes at most 14 per quad, if it sweeps again for small numbers and counts
/// non-finite elements.
pub(crate) const MOST_QUADS_PER_INVOCATION: u32 = 4096;

pub(crate) fn most_invocations(limits: &wgpu::Limits) -> u32 {
    let totals_bytes = std::mem::size_of::<crate::layout::ScopeSums>() as u32;
    let most = limits
        .max_compute_invocations_per_workgroup
        .min(limits.max_compute_workgroup_size_x)
        .min(limits.max_compute_workgroup_storage_size / totals_bytes)
        .max(1);
    // Rounds down to a power of two.
    1 << most.ilog2()
}

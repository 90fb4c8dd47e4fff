//! `wgpu-optim devices`: lists every adapter with its limits and features, and the one that `auto` takes.

use serde::Serialize;
use wgpu_optim::gpu::{Tuning, TuningCache};
use wgpu_optim::{Gpu, wgpu};

use crate::CliError;
use crate::table::{Columns, say};
use crate::target::{Backend, Geometry, Target, TargetArgs, check_environment, driver_in_words, size_in_words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Device {
    name: String,
    backend: &'static str,
    kind: &'static str,
    driver: String,
    max_binding_bytes: u64,
    max_buffer_bytes: u64,
    max_workgroup_invocations: u32,
    storage_offset_alignment: u32,
    storage_buffers_per_stage: u32,
    subgroup_sizes: Option<[u32; 2]>,
    f16: bool,
    timestamps: bool,
    preset: Geometry,
    /// Tunings that `tune` stored in the cache.
    tuned: Vec<Tuned>,
}

#[derive(Serialize)]
struct Tuned {
    elements: u64,
    geometry: Geometry,
}

pub fn run(args: &Args) -> Result<(), CliError> {
    check_environment()?;
    let devices: Vec<Device> = pollster::block_on(Gpu::adapters(None)).iter().map(describe).collect();
    let target = TargetArgs { backend: Backend::Auto, adapter: None }.find()?;
    let auto = match &target {
        Target::Gpu(gpu) => gpu.describe(),
        Target::Cpu { reason } => format!("the CPU path ({})", reason.as_deref().unwrap_or("as asked")),
    };
    if args.json {
        return say(serde_json::json!({ "devices": devices, "auto": auto }));
    }
    for device in &devices {
        let mut table = Columns::without_header(usize::MAX);
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let subgroups = match device.subgroup_sizes {
            Some([min, max]) if min == max => min.to_string(),
            Some([min, max]) => format!("{min} to {max}"),
            None => "no subgroup operations".to_owned(),
        };
        for (name, value) in [
            ("adapter", device.name.clone()),
            ("backend", device.backend.to_owned()),
            ("kind", device.kind.to_owned()),
            ("driver", device.driver.clone()),
            ("largest binding", mib(device.max_binding_bytes)),
            ("largest buffer", mib(device.max_buffer_bytes)),
            ("invocations per workgroup", device.max_workgroup_invocations.to_string()),
            ("storage offset alignment", format!("{} bytes", device.storage_offset_alignment)),
            ("storage buffers per stage", device.storage_buffers_per_stage.to_string()),
            ("subgroup size", subgroups),
            ("f16 in shaders", yes(device.f16)),
            ("timestamps", yes(device.timestamps)),
            ("preset", device.preset.to_string()),
        ] {
            table.row([name.to_owned(), value]);
        }
        for Tuned { elements, geometry } in &device.tuned {
            table.row([format!("tuned for {}", size_in_words(*elements)), geometry.to_string()]);
        }
        table.print_narrow()?;
    }
    if devices.is_empty() {
        say("no adapter with compute shaders (Debian: mesa-vulkan-drivers has a software one)")?;
    }
    say(format!("`--backend auto` takes {auto}"))
}

fn describe(adapter: &wgpu::Adapter) -> Device {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let subgroups = [info.subgroup_min_size, info.subgroup_max_size];
    Device {
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        storage_offset_alignment: limits.min_storage_buffer_offset_alignment,
        storage_buffers_per_stage: limits.max_storage_buffers_per_shader_stage,
        subgroup_sizes: features.contains(wgpu::Features::SUBGROUP).then_some(subgroups),
        f16: features.contains(wgpu::Features::SHADER_F16),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        preset: Tuning::for_adapter(&info, &limits, features).into(),
        tuned: tuned(adapter),
        driver: driver_in_words(&info),
        name: info.name,
        backend: info.backend.to_str(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        },
    }
}

/// Returns the cached tunings for the adapter. An adapter that cannot be opened has none.
fn tuned(adapter: &wgpu::Adapter) -> Vec<Tuned> {
    let (Some(cache), Ok(gpu)) = (TuningCache::from_env(), pollster::block_on(Gpu::open(adapter))) else {
        return Vec::new();
    };
    let entries = cache.entries(&gpu).into_iter();
    entries.map(|(elements, tuning)| Tuned { elements, geometry: tuning.into() }).collect()
}

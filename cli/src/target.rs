//! Target of a command: a device, or the CPU path with the reason.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;
use wgpu_optim::gpu::{Tuning, TuningCache};
use wgpu_optim::{ErrorKind, Gpu, GpuOptions, wgpu};

use crate::table::tell;
use crate::words::quoted;
use crate::{CliError, in_options};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A hardware GPU if there is one, else the CPU path.
    Auto,
    /// The CPU path.
    Cpu,
    /// Vulkan, software drivers included.
    Vulkan,
    /// Metal.
    Metal,
    /// DirectX 12.
    Dx12,
    /// OpenGL.
    Gl,
}

/// Options of every command that runs on a target.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "auto", help_heading = "Device")]
    pub backend: Backend,
    /// Part of the name of the adapter to run on (see `wgpu-optim devices`)
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    pub adapter: Option<String>,
}

pub const ENVIRONMENT: &str = "\
Environment:
  WGPU_OPTIM_TUNING_CACHE  file that `tune` writes and train, bench, check and devices read; empty for none
                           [default: wgpu-optim/tuning.json in the system's cache directory]
  RAYON_NUM_THREADS        threads of the CPU path [default: all cores]
  WGPU_BACKEND             backends to look at, where --backend names none
  WGPU_ADAPTER_NAME        part of the adapter's name, where --adapter names none";

/// Source of the kernels' geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TuningSource {
    /// The preset for the adapter.
    Preset,
    /// An earlier `wgpu-optim tune`.
    Cached,
    /// No geometry, because the target is the CPU path.
    None,
}

/// Geometry in the form of `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Geometry {
    workgroup_size: u32,
    quads_per_invocation: u32,
    partials: &'static str,
    finish_workgroup_size: u32,
    block_elements: u32,
}

impl From<Tuning> for Geometry {
    fn from(tuning: Tuning) -> Self {
        Geometry {
            workgroup_size: tuning.workgroup_size,
            quads_per_invocation: tuning.quads_per_invocation,
            partials: tuning.partials.name(),
            finish_workgroup_size: tuning.finish_workgroup_size,
            block_elements: tuning.block_elements(),
        }
    }
}

/// Formats the geometry as text.
impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry { workgroup_size, quads_per_invocation: quads, partials, finish_workgroup_size, .. } = self;
        write!(
            f,
            "workgroups of {workgroup_size}, {quads} quads each, partials {partials}, finished by {finish_workgroup_size}"
        )
    }
}

/// Returns `2^22`, or the number if it is not a large power of two.
pub fn size_in_words(elements: u64) -> String {
    if elements.is_power_of_two() && elements >= 1 << 7 {
        format!("2^{}", elements.trailing_zeros())
    } else {
        elements.to_string()
    }
}

#[derive(Debug, Clone)]
pub enum Target {
    /// The CPU path, with the reason unless the user asked for it.
    Cpu {
        reason: Option<String>,
    },
    Gpu(Gpu),
}

/// Returns an error for names in `WGPU_BACKEND` that wgpu would ignore, because the devices would then seem to be
/// missing.
pub fn check_environment() -> Result<(), CliError> {
    const VARIABLE: &str = "WGPU_BACKEND";
    let named = std::env::var(VARIABLE).unwrap_or_default();
    let mut names = named.split(',').map(str::trim).filter(|name| !name.is_empty());
    match names.find(|name| wgpu::Backends::from_comma_list(name).is_empty()) {
        None => Ok(()),
        Some(name) => CliError::usage(format!(
            "{VARIABLE} has {}, which is not a backend: name some of vulkan, metal, dx12 and gl, separated by commas, or unset it",
            quoted(name)
        )),
    }
}

impl TargetArgs {
    /// Returns an error for a backend that this system cannot have, whatever is installed.
    fn check_system(&self) -> Result<(), CliError> {
        let (name, home) = match self.backend {
            Backend::Metal if !cfg!(target_vendor = "apple") => ("metal", "Apple's systems"),
            Backend::Dx12 if !cfg!(windows) => ("dx12", "Windows"),
            _ => return Ok(()),
        };
        CliError::usage(format!("--backend {name} is only for {home}: name vulkan, gl or cpu, or leave it out"))
    }

    pub fn find(&self) -> Result<Target, CliError> {
        check_environment()?;
        let request = |backends, allow_software| {
            let adapter_name = self.adapter.clone();
            pollster::block_on(Gpu::request(&GpuOptions { backends, adapter_name, allow_software })).map(Target::Gpu)
        };
        self.check_system()?;
        let backends = match (self.backend, &self.adapter) {
            (Backend::Cpu, None) => return Ok(Target::Cpu { reason: None }),
            (Backend::Cpu, Some(name)) => {
                return CliError::usage(format!(
                    "--adapter \"{name}\" goes with a device, not with --backend cpu: leave one of them out"
                ));
            }
            (Backend::Auto, name) => {
                // An adapter that the user names is used even if it is a software driver.
                return match request(None, name.is_some()) {
                    Err(error) if error.kind() == ErrorKind::NoAdapter => {
                        Ok(Target::Cpu { reason: Some(in_options(&error)) })
                    }
                    found => Ok(found?),
                };
            }
            (Backend::Vulkan, _) => wgpu::Backends::VULKAN,
            (Backend::Metal, _) => wgpu::Backends::METAL,
            (Backend::Dx12, _) => wgpu::Backends::DX12,
            (Backend::Gl, _) => wgpu::Backends::GL,
        };
        Ok(request(Some(backends), true)?)
    }
}

impl Target {
    /// Returns the target to use after the devices of these adapters were lost: another adapter, else the CPU path. A
    /// software driver is only used to replace another one, because the CPU path is faster.
    pub fn instead_of(lost: &[wgpu::AdapterInfo]) -> Self {
        let is_software = |info: &wgpu::AdapterInfo| info.device_type == wgpu::DeviceType::Cpu;
        let mut others = pollster::block_on(Gpu::adapters(None));
        others.retain(|adapter| {
            let info = adapter.get_info();
            let is_lost = lost.iter().any(|lost| (lost.backend, &lost.name) == (info.backend, &info.name));
            !is_lost && (!is_software(&info) || lost.iter().all(is_software))
        });
        others.sort_by_key(|adapter| is_software(&adapter.get_info()));
        let opened = others.iter().find_map(|adapter| pollster::block_on(Gpu::open(adapter)).ok());
        opened.map_or(Target::Cpu { reason: None }, Target::Gpu)
    }

    /// Returns the target with the cached geometry for about this many parameters, and reports it on standard error.
    /// Without a cached geometry the target is unchanged.
    pub fn tuned_for(self, elements: usize) -> (Self, TuningSource) {
        let Target::Gpu(gpu) = self else {
            return (self, TuningSource::None);
        };
        let cached = TuningCache::from_env().and_then(|cache| {
            let tuning = cache.get(&gpu, elements as u64)?;
            Some((gpu.clone().with_tuning(tuning).ok()?, cache))
        });
        let Some((gpu, cache)) = cached else {
            return (Target::Gpu(gpu), TuningSource::Preset);
        };
        tell(format!(
            "{} parameters in the geometry that `wgpu-optim tune` left in {}: {}",
            size_in_words(elements as u64),
            cache.path().display(),
            Geometry::from(gpu.tuning())
        ));
        (Target::Gpu(gpu), TuningSource::Cached)
    }

    /// Returns the name of the backend in `--json`.
    pub fn backend(&self) -> String {
        match self {
            Target::Cpu { .. } => "cpu".to_owned(),
            Target::Gpu(gpu) => gpu.device().adapter_info().backend.to_str().to_owned(),
        }
    }

    /// Returns the adapter, or the number of threads of the CPU path.
    pub fn adapter(&self) -> String {
        match self {
            Target::Cpu { .. } => {
                let threads = rayon::current_num_threads();
                format!("CPU path, {threads} thread{}", if threads == 1 { "" } else { "s" })
            }
            Target::Gpu(gpu) => gpu.describe(),
        }
    }

    /// Returns `the CPU path`, or the adapter.
    pub fn in_words(&self) -> String {
        match self {
            Target::Cpu { .. } => "the CPU path".to_owned(),
            Target::Gpu(gpu) => gpu.describe(),
        }
    }

    /// Reports on standard error why the CPU path was taken, unless the user asked for it.
    pub fn explain(&self) {
        if let Target::Cpu { reason: Some(reason) } = self {
            // The list of software drivers is long.
            let reason = match reason.contains("only software drivers") {
                true => "there is no hardware GPU, and software drivers are slower (`wgpu-optim devices` lists them)",
                false => reason,
            };
            tell(format!("running on the CPU path: {reason}"));
        }
    }
}

/// Returns an adapter's driver with its version, as far as they are known.
pub fn driver_in_words(info: &wgpu::AdapterInfo) -> String {
    let texts = [info.driver.as_str(), info.driver_info.as_str()];
    texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

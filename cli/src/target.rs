//! Where a command runs: a device, or the CPU path and why.

use clap::ValueEnum;
use serde::Serialize;
use wgpu_optim::gpu::{Tuning, TuningCache};
use wgpu_optim::{Error, Gpu, GpuOptions, wgpu};

use crate::CliError;

/// `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A hardware GPU, else the CPU path.
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

/// The options every command that runs somewhere has.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// Part of the name of the adapter to run on (see `wgpu-optim devices`)
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
}

/// The foot of `--help`.
pub const ENVIRONMENT: &str = "\
Environment:
  WGPU_OPTIM_TUNING_CACHE  file that `tune` writes and train, bench, check and devices read; empty for none
                           [default: wgpu-optim/tuning.json in the system's cache directory]
  WGPU_BACKEND             backends to look at, where --backend names none
  WGPU_ADAPTER_NAME        part of the adapter's name, where --adapter names none";

/// Where the kernels' geometry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TuningSource {
    /// The adapter's preset.
    Preset,
    /// An earlier `wgpu-optim tune`.
    Cached,
    /// The CPU path has none.
    None,
}

/// A geometry as `--json` has it.
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

/// A geometry in words.
pub fn geometry_in_words(tuning: Tuning) -> String {
    format!(
        "workgroups of {}, {} quads each, partials {}, finished by {}",
        tuning.workgroup_size,
        tuning.quads_per_invocation,
        tuning.partials.name(),
        tuning.finish_workgroup_size
    )
}

/// `2^22`, or the number where it is no large power of two.
pub fn size_in_words(elements: u64) -> String {
    if elements.is_power_of_two() && elements >= 1 << 7 {
        format!("2^{}", elements.trailing_zeros())
    } else {
        elements.to_string()
    }
}

/// Where a command runs.
#[derive(Debug, Clone)]
pub enum Target {
    /// On the host, and why, unless it was asked for.
    Cpu {
        /// Why not on a device.
        reason: Option<String>,
    },
    /// On a device.
    Gpu(Gpu),
}

impl TargetArgs {
    /// Finds the device.
    pub fn find(&self) -> Result<Target, CliError> {
        let request = |backends, allow_software| {
            pollster::block_on(Gpu::request(&GpuOptions {
                backends,
                adapter_name: self.adapter.clone(),
                allow_software,
            }))
        };
        let backends = match self.backend {
            Backend::Cpu => {
                return match &self.adapter {
                    None => Ok(Target::Cpu { reason: None }),
                    Some(name) => CliError::usage(format!(
                        "--adapter \"{name}\" goes with a device, not with --backend cpu: leave one of them out"
                    )),
                };
            }
            Backend::Auto => {
                // Who names an adapter means it, software or not.
                return match request(None, self.adapter.is_some()) {
                    Ok(gpu) => Ok(Target::Gpu(gpu)),
                    Err(Error::NoAdapter(reason)) => Ok(Target::Cpu { reason: Some(reason) }),
                    Err(error) => Err(error.into()),
                };
            }
            Backend::Vulkan => wgpu::Backends::VULKAN,
            Backend::Metal => wgpu::Backends::METAL,
            Backend::Dx12 => wgpu::Backends::DX12,
            Backend::Gl => wgpu::Backends::GL,
        };
        Ok(Target::Gpu(request(Some(backends), true)?))
    }
}

impl Target {
    /// Where to go on after the devices of these adapters were lost: on another adapter, else on the CPU path. A software driver will
    /// only do after other software, the CPU path is faster.
    pub fn instead_of(lost: &[wgpu::AdapterInfo]) -> Self {
        let is_software = |info: &wgpu::AdapterInfo| info.device_type == wgpu::DeviceType::Cpu;
        let is_lost =
            |info: &wgpu::AdapterInfo| lost.iter().any(|lost| (lost.backend, &lost.name) == (info.backend, &info.name));
        let mut others = pollster::block_on(Gpu::adapters(None));
        others.retain(|adapter| {
            let info = adapter.get_info();
            !is_lost(&info) && (!is_software(&info) || lost.iter().all(is_software))
        });
        others.sort_by_key(|adapter| is_software(&adapter.get_info()));
        let opened = others.iter().find_map(|adapter| pollster::block_on(Gpu::open(adapter)).ok());
        match opened {
            Some(gpu) => Target::Gpu(gpu),
            None => Target::Cpu { reason: None },
        }
    }

    /// The target in the geometry that is cached for about this many parameters, which it then says on standard error; as it is
    /// where there is none.
    pub fn tuned_for(self, elements: usize) -> (Self, TuningSource) {
        let Target::Gpu(gpu) = self else {
            return (self, TuningSource::None);
        };
        let cached = TuningCache::from_env().and_then(|cache| {
            let tuning = cache.get(&gpu, elements as u64)?;
            Some((gpu.clone().with_tuning(tuning).ok()?, cache))
        });
        match cached {
            Some((gpu, cache)) => {
                eprintln!(
                    "{} parameters in the geometry that `wgpu-optim tune` left in {}: {}",
                    size_in_words(elements as u64),
                    cache.path().display(),
                    geometry_in_words(gpu.tuning())
                );
                (Target::Gpu(gpu), TuningSource::Cached)
            }
            None => (Target::Gpu(gpu), TuningSource::Preset),
        }
    }

    /// The backend as `--json` names it.
    pub fn backend(&self) -> String {
        match self {
            Target::Cpu { .. } => "cpu".to_owned(),
            Target::Gpu(gpu) => gpu.device().adapter_info().backend.to_str().to_owned(),
        }
    }

    /// The adapter, or the number of threads of the CPU path.
    pub fn adapter(&self) -> String {
        match self {
            Target::Cpu { .. } => {
                let threads = rayon::current_num_threads();
                format!("CPU path, {threads} thread{}", if threads == 1 { "" } else { "s" })
            }
            Target::Gpu(gpu) => gpu.describe(),
        }
    }

    /// `the CPU path`, or the adapter.
    pub fn in_words(&self) -> String {
        match self {
            Target::Cpu { .. } => "the CPU path".to_owned(),
            Target::Gpu(gpu) => gpu.describe(),
        }
    }

    /// Says on standard error why the CPU path was taken, where nobody asked for it.
    pub fn explain(&self) {
        if let Target::Cpu { reason: Some(reason) } = self {
            eprintln!("running on the CPU path: {reason}");
        }
    }
}

/// An adapter's driver with its version, as far as it tells.
pub fn driver_in_words(info: &wgpu::AdapterInfo) -> String {
    let texts = [info.driver.as_str(), info.driver_info.as_str()];
    texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

//! Where a command runs: a device, or the CPU path and why.

use clap::ValueEnum;
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
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// Part of the name of the adapter to run on (see `wgpu-optim devices`)
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
}

/// Where a command runs.
#[derive(Debug)]
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
                    Some(name) => Err(CliError::Usage(format!(
                        "--adapter \"{name}\" goes with a device, not with --backend cpu: leave one of them out"
                    ))),
                };
            }
            Backend::Auto => {
                // Who names an adapter means it, software or not.
                return match request(None, self.adapter.is_some()) {
                    Ok(gpu) => Ok(Target::Gpu(gpu)),
                    Err(Error::NoAdapter(reason)) => Ok(Target::Cpu {
                        reason: Some(reason),
                    }),
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
                format!(
                    "CPU path, {threads} thread{}",
                    if threads == 1 { "" } else { "s" }
                )
            }
            Target::Gpu(gpu) => gpu.describe(),
        }
    }

    /// Says on standard error why the CPU path was taken, where nobody asked for it.
    pub fn explain(&self) {
        if let Target::Cpu {
            reason: Some(reason),
        } = self
        {
            eprintln!("running on the CPU path: {reason}");
        }
    }
}

/// An adapter's driver with its version, as far as it tells.
pub fn driver_in_words(info: &wgpu::AdapterInfo) -> String {
    let texts = [info.driver.as_str(), info.driver_info.as_str()];
    texts
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

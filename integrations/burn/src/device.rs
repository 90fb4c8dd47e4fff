//! Sharing one wgpu device between burn and the optimizer.

use burn::tensor::Device;
use burn::tensor::wgpu::wgpu::{Adapter, Features, Instance};
use burn::tensor::wgpu::{WgpuOptions, WgpuSetup};
use wgpu_optim::Gpu;

use crate::error::Error;

/// Creates burn's device and shares it, so that burn's tensors and the optimizer use the same device and queue.
///
/// ```no_run
/// use burn::tensor::Device;
///
/// let (device, gpu) = wgpu_optim_burn::share_burns(Device::wgpu_options())?;
/// let device = device.autodiff();
/// # Ok::<(), wgpu_optim_burn::Error>(())
/// ```
///
/// # Errors
/// [`Error::Device`] with burn's reason. burn can create a device of one kind only once in a process.
pub fn share_burns(options: WgpuOptions) -> Result<(Device, Gpu), Error> {
    let (device, setup) = options.init_with_setup()?;
    Ok((device, Gpu::from_parts(setup.device, setup.queue)))
}

/// Returns the features that a device needs for [`share_ours`], in addition to all limits of its adapter.
pub fn features(adapter: &Adapter) -> Features {
    // burn tests the adapter for these features, and assumes that the device has them.
    let asked = Features::SHADER_INT64
        | Features::SHADER_F64
        | Features::SHADER_F16
        | Features::SHADER_FLOAT32_ATOMIC
        | Features::SUBGROUP
        | Features::TIMESTAMP_QUERY;
    adapter.features() & asked
}

/// Uses a device that the caller opened for burn. Call it once for each device, because each call creates another runtime in burn.
///
/// # Errors
/// [`Error::MissingFeatures`] if the device was opened without some of [`features`], or [`Error::Device`] with burn's reason.
pub fn share_ours(gpu: &Gpu, instance: Instance, adapter: Adapter) -> Result<Device, Error> {
    let missing = features(&adapter) - gpu.device().features();
    if !missing.is_empty() {
        return Err(Error::MissingFeatures { missing });
    }
    let setup = WgpuSetup {
        backend: adapter.get_info().backend,
        instance,
        adapter,
        device: gpu.device().clone(),
        queue: gpu.queue().clone(),
    };
    Ok(Device::wgpu_options().setup(setup).init()?)
}

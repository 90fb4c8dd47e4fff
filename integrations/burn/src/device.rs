//! One device for both: burn's for us, or ours for burn.

use burn::tensor::Device;
use burn::tensor::wgpu::wgpu::{Adapter, Features, Instance};
use burn::tensor::wgpu::{WgpuOptions, WgpuSetup};
use wgpu_optim::Gpu;

use crate::error::Error;

/// Brings up a device of burn's, and shares it: burn's tensors and the optimizer then use the same device and queue.
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
/// [`Error::Device`] with burn's reason; it can bring up a device of one kind only once in a process.
pub fn share_burns(options: WgpuOptions) -> Result<(Device, Gpu), Error> {
    let (device, setup) = options.init_with_setup()?;
    Ok((device, Gpu::from_parts(setup.device, setup.queue)))
}

/// What a device must be opened with, beside all limits of its adapter, so that [`share_ours`] can hand it to burn.
pub fn features(adapter: &Adapter) -> Features {
    // burn asks the adapter for these, and takes it that the device has them.
    let asked = Features::SHADER_INT64
        | Features::SHADER_F64
        | Features::SHADER_F16
        | Features::SHADER_FLOAT32_ATOMIC
        | Features::SUBGROUP
        | Features::TIMESTAMP_QUERY;
    adapter.features() & asked
}

/// Hands a device that the caller opened to burn. To be called once for a device: each call makes another runtime in burn.
///
/// # Errors
/// [`Error::MissingFeatures`] where the device was opened with less than [`features`]; [`Error::Device`] with burn's reason.
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

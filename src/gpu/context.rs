//! `Gpu`: a device with its queue, either the caller's or one opened by this crate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{DeviceError, Error};
use crate::gpu::pass::Pipelines;
use crate::gpu::tuning::Tuning;

/// Device with its queue, the geometry of its kernels, and the pipelines compiled for it. It is cheap to clone. Clones
/// share the pipelines, so that a second optimizer of the same kind compiles nothing.
#[derive(Debug, Clone)]
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    tuning: Tuning,
    pipelines: Pipelines,
    readback_timeout: Duration,
    lost: Arc<Mutex<Option<String>>>,
}

/// Default of [`Gpu::with_readback_timeout`], 30 seconds. It is longer than any driver lets a kernel run before it
/// resets the device.
const DEFAULT_READBACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of [`Gpu::request`].
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Backends to search. `None` uses the environment variable `WGPU_BACKEND` or, if that is not set, all backends.
    pub backends: Option<wgpu::Backends>,
    /// Part of the adapter's name, in upper or lower case. `None` uses the environment variable `WGPU_ADAPTER_NAME` or,
    /// if that is not set, any adapter.
    pub adapter_name: Option<String>,
    /// True to accept software drivers, such as lavapipe, SwiftShader and WARP.
    pub allow_software: bool,
}

impl Gpu {
    /// Uses the caller's device and queue.
    ///
    /// Create the device with the adapter's own limits, because wgpu's default limits allow bindings of at most 128
    /// MiB. Also request [`wgpu::Features::SUBGROUP`] if the adapter has it, which makes sums faster.
    ///
    /// No device-lost callback is installed on the caller's device. Call [`Gpu::mark_lost`] from your own callback.
    /// Otherwise the loss is only detected at the next readback or build. Until then steps are recorded and have no
    /// effect.
    pub fn from_parts(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let tuning = Tuning::for_device(&device);
        Gpu {
            device,
            queue,
            tuning,
            pipelines: Pipelines::default(),
            readback_timeout: DEFAULT_READBACK_TIMEOUT,
            lost: Arc::default(),
        }
    }

    /// Finds an adapter and opens a device with all its limits. Hardware is preferred to software, and discrete to
    /// integrated GPUs.
    ///
    /// Natively, wgpu loads drivers and opens devices on the thread that polls the future, which may block it for
    /// seconds. Only browsers do this asynchronously. The same holds for [`Gpu::adapters`] and [`Gpu::open`].
    ///
    /// # Errors
    /// Returns [`ErrorKind::NoAdapter`](crate::ErrorKind::NoAdapter) with the adapters that were found and why they
    /// cannot be used, or [`ErrorKind::UnknownAdapter`](crate::ErrorKind::UnknownAdapter) with the available names.
    pub async fn request(options: &GpuOptions) -> Result<Self, Error> {
        let mut found = Self::adapters(options.backends).await;
        let wanted = options.adapter_name.clone().or_else(|| std::env::var("WGPU_ADAPTER_NAME").ok());
        let names: Vec<String> = found.iter().map(|adapter| describe(&adapter.get_info())).collect();
        if found.is_empty() {
            if let (None, Ok(value), Some(backends)) =
                (options.backends, std::env::var("WGPU_BACKEND"), wgpu::Backends::from_env())
                && backends.is_empty()
            {
                return Err(Error::from(DeviceError::NoAdapter(format!(
                    "WGPU_BACKEND is {value:?}, which is not a backend: set it to vulkan, metal, dx12, gl or webgpu, or unset it"
                ))));
            }
            return Err(Error::from(DeviceError::NoAdapter(format!(
                "no graphics driver answers for {}; install one (Debian: mesa-vulkan-drivers for the software driver lavapipe)",
                backends_in_words(options.backends)
            ))));
        }
        let seen = names.join(", ");
        if let Some(wanted) = &wanted {
            let lower = wanted.to_lowercase();
            found.retain(|adapter| adapter.get_info().name.to_lowercase().contains(&lower));
            if found.is_empty() {
                return Err(Error::from(DeviceError::UnknownAdapter { wanted: wanted.clone(), seen }));
            }
        }
        if !options.allow_software {
            found.retain(|adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu);
            if found.is_empty() {
                return Err(Error::from(DeviceError::NoAdapter(format!(
                    "only software drivers, which are slower than the CPU path: {seen}; set GpuOptions::allow_software to use one, or build with OptimizerBuilder::build_cpu"
                ))));
            }
        }
        found.sort_by_key(|adapter| rank(adapter.get_info().device_type));
        match found.first() {
            Some(best) => Self::open(best).await,
            None => Err(Error::from(DeviceError::NoAdapter(seen))),
        }
    }

    /// Returns every adapter with compute shaders on the given backends. `None` uses the environment variable
    /// `WGPU_BACKEND` or, if that is not set, all backends.
    pub async fn adapters(backends: Option<wgpu::Backends>) -> Vec<wgpu::Adapter> {
        let backends = backends.or_else(wgpu::Backends::from_env).unwrap_or_default();
        let mut adapters = instance().enumerate_adapters(backends - wgpu::Backends::GL).await;
        if backends.contains(wgpu::Backends::GL) {
            adapters.extend(new_instance(wgpu::Backends::GL).enumerate_adapters(wgpu::Backends::GL).await);
        }
        adapters.retain(|adapter| {
            adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        });
        adapters
    }

    /// Opens a device on an adapter, with all the adapter's limits.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) with the driver's reason.
    pub async fn open(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        // Timestamps are for timing the passes, subgroups for sums without barriers, and f16 for Muon.
        let wanted = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("wgpu-optim"),
                required_features: adapter.features() & wanted,
                required_limits: adapter.limits(),
                ..Default::default()
            })
            .await
            .map_err(|error| {
                Error::from(DeviceError::Failed {
                    what: format!("a device on {}", describe(&adapter.get_info())),
                    message: one_line(&error.to_string()),
                })
            })?;
        let gpu = Self::from_parts(device, queue);
        let lost = Arc::clone(&gpu.lost);
        gpu.device.set_device_lost_callback(move |reason, message| {
            set_lost(&lost, format!("{reason:?}: {}", one_line(&message)));
        });
        Ok(gpu)
    }

    /// Returns the same device with another geometry of the kernels.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) if the device does not support the geometry.
    pub fn with_tuning(mut self, tuning: Tuning) -> Result<Self, Error> {
        tuning.validate(&self.device)?;
        self.tuning = tuning;
        Ok(self)
    }

    /// Returns the same device with another time limit for readbacks (records, states, sums, [`Gpu::read_buffer`]). The
    /// default is 30 seconds. A readback that takes longer returns [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    /// It follows all commands that were submitted before, so the limit must leave time for them. Browsers do not
    /// support the limit: a readback there waits as long as it needs.
    pub fn with_readback_timeout(mut self, timeout: Duration) -> Self {
        self.readback_timeout = timeout;
        self
    }

    /// Returns how long a readback waits for the device.
    #[doc(hidden)]
    pub fn readback_timeout(&self) -> Duration {
        self.readback_timeout
    }

    pub(crate) fn pipelines(&self) -> &Pipelines {
        &self.pipelines
    }

    /// Returns the device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Returns the queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Runs a closure that creates buffers and pipelines inside error scopes. A refusal by the device, most often for
    /// lack of memory, is then an `Err` instead of a panic. `what` names the object in the message. The device remains
    /// usable after an error.
    ///
    /// # Errors
    /// Returns the error of the closure, [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    #[doc(hidden)]
    pub fn scoped<T, E: From<Error>>(&self, what: &str, set_up: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let (result, problem) = self.catching(set_up);
        self.probe();
        self.check_alive()?;
        match problem {
            Some(message) => Err(E::from(Error::from(DeviceError::Failed { what: what.to_owned(), message }))),
            None => result,
        }
    }

    /// Runs wgpu calls and returns the errors that wgpu reports. Otherwise wgpu would panic or call the caller's error
    /// handler. Browsers report errors asynchronously, so that they go to the caller's handler there.
    pub(crate) fn catching<T>(&self, calls: impl FnOnce() -> T) -> (T, Option<String>) {
        if cfg!(target_arch = "wasm32") {
            return (calls(), None);
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let result = calls();
        let errors = [
            pollster::block_on(internal.pop()),
            pollster::block_on(validation.pop()),
            pollster::block_on(memory.pop()),
        ];
        // An out-of-memory error comes last. It explains the validation errors about the invalid buffer.
        let problem = errors.into_iter().flatten().last();
        if problem.is_some() {
            self.pipelines.clear();
        }
        (result, problem.map(|error| one_line(&error.to_string())))
    }

    /// Detects a lost device when the device-lost callback has not fired. On a lost device wgpu creates buffers without
    /// an error, but they cannot be mapped. This method therefore tries to map one.
    pub(crate) fn probe(&self) {
        let (is_mapped, problem) = self.catching(|| {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("is the device alive?"),
                size: wgpu::MAP_ALIGNMENT,
                usage: wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            });
            buffer.get_mapped_range(..).is_ok()
        });
        // An error that wgpu reports, such as lack of memory, has another cause.
        if !is_mapped && problem.is_none() {
            self.mark_lost("it takes no more work");
        }
    }

    /// Returns the geometry of the kernels.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Returns a description of the adapter, such as `llvmpipe (Vulkan, software)`.
    pub fn describe(&self) -> String {
        describe(&self.device.adapter_info())
    }

    /// Marks the device as lost for every optimizer on this `Gpu`. Call it from your device-lost callback.
    pub fn mark_lost(&self, reason: impl Into<String>) {
        set_lost(&self.lost, reason.into());
    }

    /// Returns an error if the device is known to be lost. wgpu itself would ignore further commands silently.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) with the reason.
    pub fn check_alive(&self) -> Result<(), Error> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(reason) => Err(Error::from(DeviceError::Lost(reason.clone()))),
        }
    }
}

/// Returns the instance of all adapters that this crate finds in a process, except OpenGL adapters. With one instance
/// per call, buffers of different devices would have the same identifiers and wgpu could not distinguish them.
///
/// OpenGL adapters still have one instance per call. Adapters of one instance share a context there, and wgpu 30 does
/// not guard it against use by two threads.
#[cfg(not(target_arch = "wasm32"))]
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: std::sync::OnceLock<wgpu::Instance> = std::sync::OnceLock::new();
    INSTANCE.get_or_init(|| new_instance(wgpu::Backends::all() - wgpu::Backends::GL))
}

/// Returns a new instance for each call. In browsers all instances have the same adapters, and wgpu's custom backends
/// (feature `custom`) must not be shared by threads there.
#[cfg(target_arch = "wasm32")]
fn instance() -> wgpu::Instance {
    new_instance(wgpu::Backends::all() - wgpu::Backends::GL)
}

fn new_instance(backends: wgpu::Backends) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = backends;
    wgpu::Instance::new(descriptor)
}

fn set_lost(lost: &Mutex<Option<String>>, reason: String) {
    lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
}

/// Returns the preference for a type of device. Lower numbers are taken first.
fn rank(kind: wgpu::DeviceType) -> u32 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    let kind = match info.device_type {
        wgpu::DeviceType::Cpu => ", software",
        _ => "",
    };
    format!("{} ({}{kind})", info.name, info.backend)
}

fn backends_in_words(backends: Option<wgpu::Backends>) -> String {
    match backends {
        Some(backends) => backends.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>().join(", "),
        None => "any backend".to_owned(),
    }
}

/// Joins the lines of a message, because drivers and wgpu write several.
pub(crate) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

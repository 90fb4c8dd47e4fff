//! [burn](https://burn.dev) modules trained by [`wgpu_optim`]: SGD, momentum and SIGNSGD whose learning rate is computed on the device from
//! the gradients, with nothing to tune and no readback in the step.
//!
//! Three lines of a burn training loop change:
//!
//! ```no_run
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::GradientsParams;
//! use burn::tensor::{Device, Distribution, Tensor};
//! use wgpu_optim_burn::WgpuOptimConfig;
//! use wgpu_optim_burn::wgpu_optim::{OptimizerBuilder, Rule};
//!
//! // 1. The device, which the optimizer shares.
//! let (device, gpu) = wgpu_optim_burn::share_burns(Device::wgpu_options())?;
//! let device = device.autodiff();
//! let mut model: Linear = LinearConfig::new(8, 1).init(&device);
//! // 2. The optimizer.
//! let mut optim = WgpuOptimConfig::new(OptimizerBuilder::new(Rule::sgdm(0.9))).init(&model, &gpu)?;
//! for _ in 0..100 {
//!     let input = Tensor::<2>::random([16, 8], Distribution::Default, &device);
//!     let loss = (model.forward(input) - 1.0).square().mean();
//!     let gradients = GradientsParams::from_grads(loss.backward(), &model);
//!     // 3. The step, without a learning rate.
//!     model = optim.step(model, gradients)?;
//! }
//! println!("{}", optim.drain_records()?.records[3]); // step 3: η …, because …
//! # Ok::<(), wgpu_optim_burn::Error>(())
//! ```
//!
//! # What happens in a step
//! The kernels read the gradients and write the parameters in burn's own buffers ([`Optimizer::rebind`](wgpu_optim::Optimizer::rebind)). A
//! step first submits the operations that burn has recorded. Operations that burn records later run after the step, because there is one
//! queue. A buffer that other tensors share, such as those of a clone of the module, is never written: the parameter is copied first, and
//! [`WgpuOptim::copies`] counts it.
//!
//! The norm is computed over all parameters of a group that have a gradient in the step, or over all groups with
//! [`OptimizerBuilder::global_norm`](wgpu_optim::OptimizerBuilder). Parameters without a gradient are not changed.
//!
//! # Fusion
//! With burn's feature `fusion` a tensor has no buffer until burn runs the operations that compute it. A step registers one operation in burn's
//! stream, whose inputs are all parameters and gradients. burn runs it after the operations that compute its inputs. It gets their buffers
//! and returns the parameters' buffers as its outputs. It copies nothing and does not wait for the device. A step runs all operations in the
//! stream, so that burn cannot fuse operations across it.
//!
//! This crate has no feature for fusion. It uses the backend that the program's features of `burn` select.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod config;
mod device;
mod error;
mod optim;
mod shared;
mod tensor;

pub use config::{DEFAULT_GROUP, WgpuOptimConfig};
pub use device::{features, share_burns, share_ours};
pub use error::Error;
pub use optim::{Copies, WgpuOptim};
pub use shared::{Shared, SharedGuard, SharedState};
pub use wgpu_optim;

/// The README's code, compiled as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

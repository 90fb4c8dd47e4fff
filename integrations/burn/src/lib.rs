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
//! The kernels read burn's gradients and write burn's parameters where they lie in burn's pooled buffers
//! ([`Optimizer::rebind`](wgpu_optim::Optimizer::rebind)). Whatever burn was asked for before is flushed first; what it is asked for later
//! runs later, since there is one queue. A buffer that somebody else has too, as the clone of a module does, is never written: that
//! parameter is copied first, and [`WgpuOptim::copies`] counts it.
//!
//! A norm is taken over all parameters of a group, or of all groups ([`OptimizerBuilder::global_norm`](wgpu_optim::OptimizerBuilder)), that
//! have a gradient in the step. The others are left as they are.
//!
//! # Fusion
//! With burn's feature `fusion` a tensor is a promise of operations that have not been chosen yet, and has no buffer. A step hands all
//! parameters and their gradients to burn's stream as the inputs of one operation, which runs where all that leads to them has run,
//! takes their buffers, and hands the parameters' buffers back as its outputs. Nothing is copied, and nothing waits for the device. The
//! stream is drained at a step, so that burn fuses no operation before a step with one behind it.
//!
//! This crate has no feature for it: it works with whatever backend the features of the program's own `burn` make.
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

//! GPU optimizers on wgpu whose learning rate is computed on the device from the gradients.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod cpu;
mod error;
pub mod gpu;
mod group;
pub mod layout;
mod plan;
mod record;
mod regime;
mod rule;

pub use cpu::CpuOptimizer;
pub use error::Error;
pub use gpu::{Gpu, GpuOptions, Optimizer};
pub use group::{DEFAULT_RECORD_STEPS, Group, GroupConfig, OptimizerBuilder, TensorPair};
pub use plan::TensorInfo;
pub use record::{Flags, NonFinite, Record, Records};
pub use regime::{Hypergradient, MAX_CHANGE, NormRatio, RATE_MAX, RATE_MIN, Regime, Seesaw};
pub use rule::{Rule, WeightDecay};
pub use wgpu;

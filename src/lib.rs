//! Optimizers on [wgpu] whose **learning rate is computed on the device from the gradients**, with no readback in the step and no learning
//! rate to tune. A record of every step says why the rate moved.
//!
//! The [`guide`] has the pages for users: how to embed the optimizer, which rule and regime to choose, what corresponds to PyTorch, optax and
//! burn, troubleshooting, the formulas, and what was measured.
//!
//! - [`OptimizerBuilder`] and [`Group`] describe the optimizer: tensors, a [`Rule`] that turns gradients into a direction, and a [`Regime`]
//!   that chooses the learning rate.
//! - [`Optimizer`] runs on a [`Gpu`], yours or one that is found, and records its step into your command encoder.
//! - [`CpuOptimizer`] takes the same steps over slices on the host. The device is tested against it.
//! - [`Record`] explains a step: terms that add up to the change of ln η, in numbers and in words.
//! - [`Element`] selects f32, f16 or bf16 for a tensor, and [`Rounding`] how steps get into 16-bit parameters.
//! - `Checkpoint` (feature `checkpoint`) saves the optimizer's whole state to a file. A run that resumes from it has the same bits.
//!
//! A step is four compute passes, which small models do in one dispatch. Nothing returns to the host:
//!
//! ```text
//! gradients ─▶ reduce_gradient ─▶ partials ─▶ finish_reduction ─▶ sums ─▶ learning_rate ─▶ η, record
//!                                                                                  │
//! parameters, momentum, direction memory ◀─▶ update_parameters ◀─ gradients ◀──────┘
//! ```
//!
//! Controllers set the learning rate or the weight decay of an optimizer from outside: [`WatchdogConfig`], [`BiLevelConfig`].
//!
//! Several ranks can share one optimizer and exchange their sums after the second pass ([`ShardSums`]).
//!
//! Only the first and the last pass touch memory in proportion to the parameters. SGD with a rate from the norm moves 16 bytes per parameter:
//! it reads g, then reads w and g and writes w.
//!
//! # Example
//! On the CPU. The [`guide`] has code for a device.
//! ```
//! use wgpu_optim::{Group, OptimizerBuilder, Rule};
//!
//! // Minimise ½ ‖w - 1‖², whose gradient is w - 1. No learning rate anywhere.
//! let mut w = vec![5.0f32; 100];
//! let mut g = vec![0.0f32; 100];
//! let mut optimizer = OptimizerBuilder::new(Rule::sgd())
//!     .schedule_free()
//!     .group(Group::new("all").tensor("w", &w, &g))
//!     .build_cpu()?;
//! for _ in 0..200 {
//!     for (g, w) in g.iter_mut().zip(&w) {
//!         *g = w - 1.0;
//!     }
//!     optimizer.step(&mut [&mut w], &[&g])?;
//! }
//! // The answer is the average, not the point where gradients were taken.
//! optimizer.swap_averages(&mut [&mut w])?;
//! assert!(w.iter().all(|w| (w - 1.0).abs() < 1e-2));
//! let records = optimizer.drain_records().records;
//! println!("{}", records[3]); // step 3: η …, +… %: norm fell (+… %), steps agree (+… %)
//! # Ok::<(), wgpu_optim::Error>(())
//! ```
//!
//! # Where the idea comes from
//! Z. Yang, *Explainable Learning Rate Regimes for Stochastic Optimization*, arXiv:2508.13639: a learning rate that rises as the norm of the
//! stochastic gradient falls and falls as the norm rises, by second-order reasoning, with nothing to tune, for SGD, SGD with momentum and
//! SIGNSGD. The formula here ([`Seesaw`]) is this project's own derivation from the secant equation, not the paper's.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "gpu"),
    allow(dead_code, unused_imports, reason = "much of the vocabulary describes kernels")
)]

#[cfg(any(feature = "checkpoint", feature = "tuning-cache"))]
#[doc(hidden)]
pub mod atomic_file;
mod averaging;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod controllers;
mod controls;
pub mod cpu;
mod element;
mod error;
#[cfg(test)]
mod faults;
#[cfg(feature = "gpu")]
pub mod gpu;
mod group;
pub mod guide;
mod layout;
mod plan;
mod rates;
mod record;
mod reference;
mod regime;
mod rule;
mod safeguards;
mod scaled;
mod schedule;
mod shard;
mod state;
mod trust;
mod warning;
mod zeroth_order;

pub use averaging::Averaging;
#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, Difference, Differences, Notes, Parameters};
pub use controllers::bi_level::{BiLevelConfig, BiLevelRecord, CpuBiLevel};
pub use controllers::extragradient::CpuExtragradient;
pub use controllers::learned_schedule::{CpuLearnedSchedule, PolicyScale, SchedulePolicy};
pub use controllers::variance_reduction::CpuVarianceReduction;
pub use controllers::watchdog::{CpuWatchdog, EpochOutcome, EpochVerdict, WatchdogConfig};
pub use controls::Controls;
pub use cpu::optimizer::CpuOptimizer;
pub use cpu::zeroth_order::CpuZerothOrder;
pub use element::{Element, Rounding};
pub use error::{Error, ErrorKind};
#[cfg(feature = "gpu")]
pub use gpu::context::{Gpu, GpuOptions};
#[cfg(feature = "gpu")]
pub use gpu::controllers::bi_level::BiLevel;
#[cfg(feature = "gpu")]
pub use gpu::controllers::extragradient::Extragradient;
#[cfg(feature = "gpu")]
pub use gpu::controllers::learned_schedule::LearnedSchedule;
#[cfg(feature = "gpu")]
pub use gpu::controllers::variance_reduction::VarianceReduction;
#[cfg(feature = "gpu")]
pub use gpu::controllers::watchdog::Watchdog;
#[cfg(feature = "gpu")]
pub use gpu::optimizer::Optimizer;
#[cfg(feature = "gpu")]
pub use gpu::zeroth_order::ZerothOrder;
pub use group::{Group, GroupConfig, OptimizerBuilder, TensorSlice};
pub use plan::TensorInfo;
pub use rates::RateFactors;
pub use record::{Flags, NonFinite, RankNonFinite, Record, Records, TensorRecord, Term};
pub use regime::table::*;
pub use regime::{CurvatureForm, Estimate, Look, Outcome, Regime, SecantForm, Stream};
pub use rule::table::*;
pub use rule::{MuonPrecision, MuonScale, Rule, WeightDecay};
pub use safeguards::{LossScaler, NonFinitePolicy, NormOutliers};
pub use schedule::{DecayShape, Schedule};
pub use shard::{CombinedSums, ShardSums};
pub use state::State;
pub use trust::TrustRatio;
pub use warning::Warning;
pub use zeroth_order::ZerothOrderBuilder;
pub use zeroth_order::method::ZerothOrderMethod;
pub use zeroth_order::record::{ZerothOrderRecord, ZerothOrderRecords};

/// Kernels, their bindings and the data that is passed to them, for the tests and tools of this repository. Nothing here, and no other hidden item of
/// this crate, is part of its public interface. It may change without notice in any version.
#[doc(hidden)]
pub mod internals {
    pub use crate::cpu::values::{Slice, SliceMut};
    #[cfg(feature = "gpu")]
    pub use crate::gpu::optimizer::{Dispatch, PassName};
    #[cfg(feature = "gpu")]
    pub use crate::gpu::pass::{BoundBuffer, BoundGroup, CompiledKernel, KernelSource};
    #[cfg(feature = "gpu")]
    pub use crate::gpu::shader::link;
    #[cfg(feature = "gpu")]
    pub use crate::gpu::timestamps::Timestamps;
    #[cfg(feature = "tuning-cache")]
    pub use crate::gpu::tuning_cache::CACHE_VARIABLE;
    #[cfg(feature = "gpu")]
    pub use crate::gpu::whole_step::{
        MOST_BLOCKS as WHOLE_STEP_BLOCKS, MOST_ELEMENTS as WHOLE_STEP_ELEMENTS, uses_fxc,
    };
    pub use crate::regime::MAX_CHANGE;

    /// Schedules without an optimizer.
    pub mod schedule {
        pub use crate::cpu::schedule::schedule_factor;
        use crate::layout::GroupConstants;
        use crate::schedule::Schedule;

        /// Returns the constants of a group in which only those of this schedule are set. A table begins at factor 0.
        pub fn constants(schedule: &Schedule) -> GroupConstants {
            let mut constants = bytemuck::Zeroable::zeroed();
            schedule.write_to(&mut constants);
            constants
        }
    }

    pub mod layout {
        pub use crate::layout::*;
    }

    pub mod reference {
        pub use crate::reference::*;
    }
}

// Types of these crates are part of the public interface.
pub use bytemuck;
pub use half;
#[cfg(feature = "gpu")]
pub use wgpu;

/// The README's code, compiled and run as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Types that must remain `Send` and `Sync`. In a browser wgpu's types stay on their thread.
#[cfg(not(target_arch = "wasm32"))]
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    #[cfg(feature = "gpu")]
    shared::<Optimizer>();
    shared::<CpuOptimizer>();
    #[cfg(feature = "gpu")]
    shared::<Watchdog>();
    #[cfg(feature = "gpu")]
    shared::<BiLevel>();
    shared::<CpuWatchdog>();
    shared::<CpuBiLevel>();
    #[cfg(feature = "gpu")]
    shared::<ZerothOrder>();
    shared::<CpuZerothOrder>();
    #[cfg(feature = "gpu")]
    shared::<Gpu>();
    #[cfg(feature = "gpu")]
    shared::<OptimizerBuilder<gpu::Tensor>>();
    shared::<OptimizerBuilder<cpu::Tensor>>();
    shared::<Record>();
    shared::<Error>();
};

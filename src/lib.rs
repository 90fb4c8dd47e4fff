//! Optimizers on [wgpu] whose **learning rate is computed on the device from the gradients themselves**, with no readback in the
//! step, nothing to tune, and a record that says why the rate is what it is.
//!
//! - [`OptimizerBuilder`] and [`Group`] say what is to be optimized: a [`Rule`] (which way), a [`Regime`] (how far), tensors.
//! - [`Optimizer`] runs on a [`Gpu`], the caller's or one that is found; it records its step into the caller's encoder.
//! - [`CpuOptimizer`] does the same over slices. The device is checked against it, and it runs where there is no device.
//! - `Checkpoint` (feature `checkpoint`) is all that an optimizer remembers, in a file from which a run goes on bit for bit.
//! - [`Element`] says what a tensor is stored as, 16 bits included, and [`Rounding`] how steps get into those.
//! - [`Record`] explains a step: terms that add up to the change of ln η, in numbers and in words.
//!
//! A step is four passes, and nothing of it returns to the host:
//!
//! ```text
//! gradients ─▶ reduce_gradient ─▶ partials ─▶ finish_reduction ─▶ sums ─▶ learning_rate ─▶ η, record
//!                                                                                  │
//! parameters, momentum, direction memory ◀─▶ update_parameters ◀─ gradients ◀──────┘
//! ```
//!
//! Several ranks can share one optimizer, with what they have measured exchanged after pass 2 ([`ShardSums`]).
//!
//! Pass 1 and pass 4 are the only ones that touch memory in proportion to the parameters: SGD with a rate from the norm moves 16
//! bytes per parameter (g; then w, g, w).
//!
//! # Example
//! On the CPU; the README has the same on a device.
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
//! Z. Yang, *Explainable Learning Rate Regimes for Stochastic Optimization*, arXiv:2508.13639: a rate that rises as the norm of the
//! stochastic gradient falls and falls as it rises, from second-order reasoning, with nothing to tune, for SGD, SGD with momentum and
//! SIGNSGD. The formula here ([`Seesaw`]) is this project's own derivation from the secant equation, not the paper's.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(any(feature = "checkpoint", feature = "tuning-cache"))]
mod atomic_file;
mod averaging;
#[cfg(feature = "checkpoint")]
mod checkpoint;
pub mod cpu;
mod element;
mod error;
pub mod gpu;
mod group;
pub mod layout;
mod plan;
mod record;
mod regime;
mod rule;
mod safeguards;
mod schedule;
mod shard;
mod trust;
mod warning;

pub use averaging::Averaging;
#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, Notes, Parameters};
pub use cpu::CpuOptimizer;
pub use element::{Element, Rounding};
pub use error::Error;
pub use gpu::{Gpu, GpuOptions, Optimizer};
pub use group::{DEFAULT_RECORD_STEPS, Group, GroupConfig, OptimizerBuilder, TensorPair};
pub use plan::TensorInfo;
pub use record::{
    Flags, NonFinite, Outcome, RankNonFinite, Record, Records, Stream, TensorRecord, Term,
};
pub use regime::{
    AdGd, AdaGradNorm, AutoSgd, BarzilaiBorwein, DoG, DoWG, Hypergradient, MAX_CHANGE, Ngn,
    NormRatio, Polyak, RATE_MAX, RATE_MIN, Regime, SecantForm, Seesaw,
};
pub use rule::{Rule, WeightDecay};
pub use safeguards::{LossScaler, NonFinitePolicy};
pub use schedule::Schedule;
pub use shard::{CombinedSums, ShardSums};
pub use trust::TrustRatio;
pub use warning::Warning;
// Whose types are in the interface.
pub use half;
pub use wgpu;

/// The README's code, compiled and run as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

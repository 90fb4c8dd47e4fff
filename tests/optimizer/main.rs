//! Promises of the library, on the CPU path and on every adapter there is.

#[path = "../common/mod.rs"]
mod common;

mod auto_sgd;
mod averaging;
mod checkpoint;
mod encoding;
mod errors;
mod faults;
mod finish_reduction;
mod golden_trace;
mod groups;
mod halt;
mod halves;
mod learning_rate;
mod loss_scale;
mod low_rank;
mod parity;
mod properties;
mod random_plans;
mod rebind;
mod reduce_gradient;
mod regimes;
mod safeguards;
mod schedule_free;
mod shards;
mod steps;
mod telemetry;
mod threads;
mod update_parameters;

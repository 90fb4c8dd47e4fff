//! Controllers, which act on an optimizer from outside, once per step or once per epoch. Most of them set its [`Controls`](crate::Controls). Each has
//! a file here for its settings and its CPU path, and a file of the same name in `src/gpu/controllers/` for the device.

pub(crate) mod bi_level;
pub(crate) mod element_pairs;
pub(crate) mod extragradient;
pub(crate) mod learned_schedule;
pub(crate) mod products;
pub(crate) mod variance_reduction;
pub(crate) mod watchdog;

use crate::error::{CallError, Error};
use crate::plan::Plan;

impl Plan {
    /// Returns an error for optimizers that no controller can work with.
    pub(crate) fn check_controllable(&self, call: &'static str) -> Result<(), Error> {
        let refused = |problem: String, way_out: &str| {
            Err(Error::from(CallError::Controller { call, problem, way_out: way_out.to_owned() }))
        };
        if self.shard.is_some() {
            return refused(
                "cannot work with an optimizer of several ranks, each of which knows its own parameters alone"
                    .to_owned(),
                "set the controls of all ranks from the host with Optimizer::control",
            );
        }
        match self.configs.iter().find(|config| config.regime.needs_streams()) {
            Some(config) => refused(
                format!(
                    "cannot work with group \"{}\", whose regime auto-sgd has three streams of parameters",
                    config.name
                ),
                "use another regime, since auto-sgd compares rates and takes back by itself",
            ),
            None => Ok(()),
        }
    }
}

//! Trust ratios, with what passes 4 and 5 measure of the step.

use wgpu_optim::{Regime, Rule, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Cases, Subject};
use super::scenario::{Scenario, group};

const STEPS: usize = 8;

pub fn cases(_: &Subject) -> Cases {
    let of_rule = |rule| {
        let specs = [Regime::seesaw(), Regime::fixed(0.5)].map(|regime| {
            let (trust, decay) = (Some(0.02), WeightDecay::Coupled(0.01));
            Spec { trust, telemetry: true, decay, ..group(regime.name(), rule, regime, &[130, 5, 10_007]) }
        });
        Scenario::new("trust ratios", STEPS, specs.into()).boxed()
    };
    [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()].map(of_rule).into()
}

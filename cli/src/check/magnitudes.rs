//! Numbers of every size: 1e38, 1e-38, denormals, and all of them mixed; zeros of either sign.

use wgpu_optim::{Lion, Regime, Rule};

use super::case::{Cases, Subject};
use super::scenario::{Gradients, Part, Scenario, group};

const STEPS: usize = 3;

/// Two blocks of the usual geometry of software drivers would take most of the time; a row and a few elements see every path.
const LENGTHS: [usize; 2] = [77, 1030];

/// Magnitudes of gradients whose momentum and whose step stay within the range of f32.
const FINITE: [(&str, &[f32]); 10] = [
    ("zero", &[0.0]),
    ("1e37", &[1e37]),
    ("1e30", &[1e30]),
    ("1e-30", &[1e-30]),
    ("1e-37", &[1e-37]),
    ("1e30 and 1e-30", &[1e30, 1e-30]),
    ("1, 1e30, 1e-37", &[1.0, 1e30, 1e-37]),
    // Where plain sums of squares begin to be scaled, from both sides.
    ("2^-40 from both sides", &[9.094_947e-13, 1.9e-12]),
    ("2^40 from both sides", &[1.099_511_6e12, 2.2e12]),
    ("1e-13, 1, 1e13", &[1e-13, 1.0, 1e13]),
];

/// Each element's square, or the whole sum, is beyond the range of f32. Without momentum, which would be as well.
const LARGEST: [(&str, &[f32]); 2] = [("3e38", &[3e38]), ("3e38 and 1e-38", &[3e38, 1.2e-38])];

/// Numbers that a device may take for zeros, some of them or all.
const DENORMAL: [(&str, &[f32]); 4] =
    [("1e-38", &[2e-38]), ("1e-39", &[1e-39]), ("the least f32", &[3e-45]), ("1 and 1e-40", &[1.0, 1e-40])];

pub fn cases(_: &Subject) -> Cases {
    let plain = vec![Rule::sgd(), Rule::sign_sgd()];
    let lion = Rule::Lion(Lion { beta1: 0.5, beta2: 0.75 });
    let with_momentum = [Rule::sgdm(0.5), Rule::signum(0.5), Rule::adamw(), lion];
    let all = [&plain[..], &with_momentum].concat();
    let mut cases = Vec::new();
    for regime in [Regime::seesaw(), Regime::norm_ratio()] {
        // All in one optimizer, whose kernels are compiled once.
        let mut parts = Vec::new();
        for (rules, magnitudes) in [(&all, &FINITE[..]), (&plain, &LARGEST[..]), (&plain, &DENORMAL[..])] {
            for &rule in rules {
                for &(name, magnitudes) in magnitudes {
                    let spec = group(format!("{} at {name}", rule.name()), rule, regime, &LENGTHS);
                    parts.push(Part { spec, gradients: Gradients::Magnitudes(name, magnitudes) });
                }
            }
        }
        cases.push(Scenario { parts, denormals: true, ..Scenario::new("magnitudes", STEPS, Vec::new()) }.boxed());
    }
    cases
}

//! Tensors over many binding windows, at odd offsets, many small ones, and parameters and gradients in one buffer.

use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Subject};
use super::scenario::{Layout, Scenario, with_lengths};

/// The device can bind so many bytes at once: several windows are cheap to have then.
const BINDING_BYTES: u64 = 64 << 10;

const STEPS: usize = 3;

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let window = BINDING_BYTES as usize / 4;
    // Over one window by one element, and over several; a small tensor between the two.
    let large = [window + 1, 8, 2 * window + window / 2 + 3];
    let small: Vec<usize> = (0..40).map(|i| [1, 7, 64, 130, 3][i % 5] + i).collect();
    let mut cases = Vec::new();
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::adamw()] {
        let scenario = |what, lengths: &[usize]| {
            let spec = Spec::new(rule, Regime::seesaw(), Vec::new()).named(rule.name());
            Scenario::new(what, STEPS, vec![with_lengths(spec, lengths)])
        };
        for (start, gap) in [(0, 0), (3, 2)] {
            cases.push(
                Scenario {
                    layout: Layout::Packed { start, gap },
                    binding_bytes: Some(BINDING_BYTES),
                    ..scenario("windows", &large)
                }
                .boxed(),
            );
        }
        cases.push(
            Scenario {
                layout: Layout::OneBuffer { gap: 1 },
                ..scenario("one buffer", &[&large[..2], &small].concat())
            }
            .boxed(),
        );
        cases.push(
            Scenario { layout: Layout::Packed { start: 1, gap: 3 }, ..scenario("many small tensors", &small) }.boxed(),
        );
    }
    cases
}

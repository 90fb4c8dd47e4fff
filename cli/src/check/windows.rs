//! Tensors over many binding windows, at odd offsets, many small ones, and parameters and gradients in one buffer.

use wgpu_optim::{Regime, Rule};

use super::case::{Cases, Subject};
use super::scenario::{Layout, Scenario, group};

/// The device can bind so many bytes at once: several windows are cheap to have then.
const BINDING_BYTES: u64 = 64 << 10;

const STEPS: usize = 3;

pub fn cases(_: &Subject) -> Cases {
    let window = BINDING_BYTES as usize / 4;
    // Over one window by one element, and over several; a small tensor between the two.
    let large = [window + 1, 8, 2 * window + window / 2 + 3];
    let small: Vec<usize> = (0..40).map(|i| [1, 7, 64, 130, 3][i % 5] + i).collect();
    let mixed = [&large[..2], &small].concat();
    let mut cases = Vec::new();
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::adamw()] {
        for (what, lengths, binding_bytes, layout) in [
            ("windows", &large[..], Some(BINDING_BYTES), Layout::Packed { start: 0, gap: 0 }),
            ("windows", &large, Some(BINDING_BYTES), Layout::Packed { start: 3, gap: 2 }),
            ("one buffer", &mixed, None, Layout::OneBuffer { gap: 1 }),
            ("many small tensors", &small, None, Layout::Packed { start: 1, gap: 3 }),
        ] {
            let specs = vec![group(rule.name(), rule, Regime::seesaw(), lengths)];
            cases.push(Scenario { layout, binding_bytes, ..Scenario::new(what, STEPS, specs) }.boxed());
        }
    }
    cases
}

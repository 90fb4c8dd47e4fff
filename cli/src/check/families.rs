//! Families whose cases differ only in their groups: steps on the device and on the CPU path, compared with the
//! reference.

use wgpu_optim::{Averaging, Lion, Regime, Rule, WeightDecay};
use wgpu_optim_conformance::schedule::schedules;
use wgpu_optim_conformance::spec::Spec;

use super::case::{Cases, Subject};
use super::scenario::{Gradients, Layout, Part, Scenario, group};

const STEPS: usize = 8;

/// Lengths of a tensor with several blocks, and of small ones.
const LENGTHS: [usize; 3] = [130, 5, 10_007];

/// Returns one rule for each kind of memory.
fn rules() -> [Rule; 4] {
    [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()]
}

fn boxed(what: &'static str, optimizers: impl IntoIterator<Item = Vec<Spec>>) -> Cases {
    optimizers.into_iter().map(|specs| Scenario::new(what, STEPS, specs).boxed()).collect()
}

/// Returns cases of averages of every kind, which start at the first step and later, and of schedule-free training.
pub fn averages(_: &Subject) -> Cases {
    let kinds = [
        Averaging::Running { start: 0 },
        Averaging::Exponential { decay: 0.75, start: 2 },
        Averaging::PolynomialDecay { eta: 8.0, start: 1 },
        Averaging::Off,
    ];
    let averaged = |averaging, rule, name| Spec { averaging, ..group(name, rule, Regime::seesaw(), &LENGTHS) };
    let of_rule = |rule| kinds.map(|averaging| averaged(averaging, rule, averaging.name())).into();
    // Schedule-free training is part of the training, and is for rules without momentum.
    let free = [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()];
    let free = free.map(|rule| averaged(Averaging::ScheduleFree, rule, rule.name()));
    boxed("averages", rules().map(of_rule).into_iter().chain([free.into()]))
}

/// Returns cases of the settings of groups: decay, clip, maximize, schedules, a rate per tensor and a shared norm, side
/// by side in one optimizer.
pub fn groups(_: &Subject) -> Cases {
    boxed("groups", rules().map(groups_of))
}

fn groups_of(rule: Rule) -> Vec<Spec> {
    let of = |name: &str, regime| group(name, rule, regime, &[130, 5, 1001]);
    let seesaw = |name: &str| of(name, Regime::seesaw());
    let mut groups = Vec::new();
    for (name, decay, clip) in [
        ("coupled", WeightDecay::Coupled(0.1), f32::INFINITY),
        ("coupled, clipped", WeightDecay::Coupled(0.1), 0.5),
        ("decoupled", WeightDecay::Decoupled(0.1), f32::INFINITY),
        ("decoupled, clipped", WeightDecay::Decoupled(0.1), 0.5),
    ] {
        groups.push(Spec { decay, clip, ..seesaw(name) });
    }
    groups.push(Spec { maximize: true, ..seesaw("climbing") });
    for (index, schedule) in schedules(7).into_iter().enumerate() {
        let name = format!("{} {index}", schedule.name());
        groups.push(Spec { schedule: schedule.clone(), ..of(&name, Regime::fixed(0.01)) });
        groups.push(Spec { schedule, ..of(&format!("{name} under Seesaw"), Regime::seesaw()) });
    }
    groups.push(Spec { per_tensor: true, ..seesaw("per tensor") });
    groups.extend(["first of two that share", "second of two that share"].map(|name| seesaw(name).sharing("both")));
    groups
}

/// Returns cases with controls that change in every step: factors of the rate, decay, clip, and groups that are frozen
/// at times.
pub fn controls(_: &Subject) -> Cases {
    let of_rule = |rule| {
        let of = |name, regime, decay, clip| Spec { decay, clip, ..group(name, rule, regime, &[130, 5, 1001]) };
        let (coupled, decoupled) = (WeightDecay::Coupled(0.1), WeightDecay::Decoupled(0.1));
        let specs = vec![
            of("plain", Regime::seesaw(), WeightDecay::Coupled(0.0), f32::INFINITY),
            of("decayed", Regime::norm_ratio(), decoupled, 0.5),
            of("coupled", Regime::fixed(0.01), coupled, 0.25),
            of("clipped", Regime::seesaw(), coupled, 1.0),
        ];
        Scenario { controlled: true, ..Scenario::new("controls", STEPS, specs) }.boxed()
    };
    rules().map(of_rule).into()
}

/// Returns cases of trust ratios, which use the measurements of passes 4 and 5.
pub fn trust(_: &Subject) -> Cases {
    let of_rule = |rule| {
        let of_regime = |regime: Regime| {
            let (trust, decay) = (Some(0.02), WeightDecay::Coupled(0.01));
            Spec { trust, telemetry: true, decay, ..group(regime.name(), rule, regime, &LENGTHS) }
        };
        [Regime::seesaw(), Regime::fixed(0.5)].map(of_regime).into()
    };
    boxed("trust ratios", rules().map(of_rule))
}

/// Size of a binding in bytes. It is small, so that several windows need little memory.
const BINDING_BYTES: u64 = 64 << 10;

/// Returns cases of tensors over many binding windows, at odd offsets, many small ones, and parameters and gradients in
/// one buffer.
pub fn windows(_: &Subject) -> Cases {
    let window = BINDING_BYTES as usize / 4;
    // One tensor exceeds a window by one element, another fills several. A small tensor lies between them.
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
            cases.push(Scenario { layout, binding_bytes, ..Scenario::new(what, 3, specs) }.boxed());
        }
        // The step of these is one dispatch unless that is forbidden.
        let few = vec![group(rule.name(), rule, Regime::seesaw(), &small[..20])];
        let one = Scenario::new("a small model", STEPS, few);
        let four = Scenario { what: "a small model in four dispatches", separate_passes: true, ..one.clone() };
        cases.extend([one, four].map(Scenario::boxed));
    }
    cases
}

/// Lengths for the magnitudes. Blocks of the usual geometry of software drivers would take most of the time, and a row
/// with a few elements covers every path.
const MAGNITUDE_LENGTHS: [usize; 2] = [77, 1030];

/// Magnitudes of gradients whose momentum and step stay within the range of f32.
const FINITE: [(&str, &[f32]); 10] = [
    ("zero", &[0.0]),
    ("1e37", &[1e37]),
    ("1e30", &[1e30]),
    ("1e-30", &[1e-30]),
    ("1e-37", &[1e-37]),
    ("1e30 and 1e-30", &[1e30, 1e-30]),
    ("1, 1e30, 1e-37", &[1.0, 1e30, 1e-37]),
    // The limits beyond which plain sums of squares are scaled, from both sides.
    ("2^-40 from both sides", &[9.094_947e-13, 1.9e-12]),
    ("2^40 from both sides", &[1.099_511_6e12, 2.2e12]),
    ("1e-13, 1, 1e13", &[1e-13, 1.0, 1e13]),
];

/// Magnitudes where each element's square, or the whole sum, overflows f32. A momentum would overflow as well, so that
/// they are only for rules without one.
const LARGEST: [(&str, &[f32]); 2] = [("3e38", &[3e38]), ("3e38 and 1e-38", &[3e38, 1.2e-38])];

/// Numbers that a device may flush to zero, in part or all.
const DENORMAL: [(&str, &[f32]); 4] =
    [("1e-38", &[2e-38]), ("1e-39", &[1e-39]), ("the least f32", &[3e-45]), ("1 and 1e-40", &[1.0, 1e-40])];

/// Returns cases with numbers of every size: 1e38, 1e-38, denormals, all of them mixed, and zeros of either sign.
pub fn magnitudes(_: &Subject) -> Cases {
    let plain = vec![Rule::sgd(), Rule::sign_sgd()];
    let lion = Rule::Lion(Lion { beta1: 0.5, beta2: 0.75 });
    let with_momentum = [Rule::sgdm(0.5), Rule::signum(0.5), Rule::adamw(), lion];
    let all = [&plain[..], &with_momentum].concat();
    let mut cases = Vec::new();
    for regime in [Regime::seesaw(), Regime::norm_ratio()] {
        // All groups are in one optimizer, whose kernels are compiled once.
        let mut parts = Vec::new();
        for (rules, magnitudes) in [(&all, &FINITE[..]), (&plain, &LARGEST[..]), (&plain, &DENORMAL[..])] {
            for &rule in rules {
                for &(name, magnitudes) in magnitudes {
                    let spec = group(format!("{} at {name}", rule.name()), rule, regime, &MAGNITUDE_LENGTHS);
                    parts.push(Part { spec, gradients: Gradients::Magnitudes(name, magnitudes) });
                }
            }
        }
        cases.push(Scenario { parts, denormals: true, ..Scenario::new("magnitudes", 3, Vec::new()) }.boxed());
    }
    cases
}

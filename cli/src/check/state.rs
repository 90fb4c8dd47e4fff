//! 8-bit state: every supported rule under regimes that read the state in different ways, with parameters of every
//! type. The codes are compared with the reference's moments step by step. In steps without rounding they must be those
//! of the CPU path.

use wgpu_optim::{AdamW, Averaging, Element, NAdamW, Regime, RmsProp, Rounding, Rule, State, WeightDecay};
use wgpu_optim_conformance::codes::Moment;
use wgpu_optim_conformance::run::Run;
use wgpu_optim_conformance::spec::{Spec, regimes};

use super::case::{Cases, Outcome, Path, Subject};
use super::scenario::{Gradients, LONG_ULPS, Layout, Part, Scenario, Tolerance, group, loss_of};
use crate::CliError;

const STEPS: usize = 6;

/// Lengths around the boundaries of quads, of blocks of 32, and of the plan's blocks.
const LENGTHS: [usize; 9] = [1, 3, 4, 31, 32, 33, 64, 130, 4099];

/// Size of a binding in bytes, so that a group has several windows.
const BINDING_BYTES: u64 = 64 << 10;

fn in_8_bits(spec: Spec) -> Spec {
    Spec { state: State::Bits8, ..spec }
}

fn rules() -> Vec<Rule> {
    let all = Rule::all().into_iter().filter(|rule| rule.fits_8_bits() && rule.vectors() > 0);
    all.chain([Rule::nesterov(0.9), Rule::adamw_without_momentum()]).collect()
}

/// Returns the regimes whose steps follow exactly from the decoded moments. Regimes that compute the last step from the
/// moments only know it to within a code.
fn exact_regimes(rule: &Rule) -> Vec<Regime> {
    let fits = |regime: &Regime| regime.fits(rule) && !regime.needs_last_gradient() && !regime.needs_schedule_free();
    regimes().filter(fits).collect()
}

pub fn cases(_: &Subject) -> Cases {
    let mut cases = Vec::new();
    for rule in rules() {
        let spec = |regime: Regime| in_8_bits(group(regime.name(), rule, regime, &LENGTHS));
        let specs = exact_regimes(&rule).into_iter().map(spec).collect();
        // As for the family of rules and regimes, some rates depend on small differences of parameters.
        let tolerance = Tolerance::OfLargest(LONG_ULPS);
        cases.push(Scenario { tolerance, ..Scenario::new("rules in 8 bits", STEPS, specs) });
    }
    let adamw = || in_8_bits(group("adamw", Rule::adamw(), Regime::seesaw(), &LENGTHS));
    let sgdm = || in_8_bits(group("sgdm", Rule::sgdm(0.9), Regime::seesaw(), &LENGTHS));
    let decay = WeightDecay::Coupled(0.05);
    let mut settings = vec![
        Spec { clip: 0.5, ..adamw() },
        Spec { decay, clip: 0.5, ..sgdm() }.named("decayed"),
        Spec { trust: Some(0.02), telemetry: true, ..sgdm() }.named("trust"),
        Spec { averaging: Averaging::Running { start: 2 }, ..adamw() }.named("averaged"),
        Spec { per_tensor: true, maximize: true, ..adamw() }.named("per tensor"),
        // Groups with memory in f32, next to the 8-bit ones.
        group("floats", Rule::adamw(), Regime::seesaw(), &LENGTHS),
    ];
    let free = in_8_bits(group("free", Rule::adamw_without_momentum(), Regime::schedule_free_plus(), &LENGTHS));
    settings.push(Spec { averaging: Averaging::ScheduleFree, ..free });
    for layout in
        [Layout::Packed { start: 0, gap: 0 }, Layout::Packed { start: 3, gap: 2 }, Layout::OneBuffer { gap: 1 }]
    {
        cases.push(Scenario { layout, ..Scenario::new("8-bit state", STEPS, settings.clone()) });
    }
    let controlled = vec![Spec { decay, clip: 0.25, ..sgdm() }, adamw()];
    cases.push(Scenario { controlled: true, ..Scenario::new("8-bit state, controls", STEPS, controlled) });
    for (params, rounding) in [
        (Element::Bf16, Rounding::Masters),
        (Element::F16, Rounding::Masters),
        (Element::Bf16, Rounding::Stochastic { seed: 5 }),
    ] {
        let specs = vec![in_8_bits(group("sgdm", Rule::sgdm(0.9), Regime::norm_ratio(), &LENGTHS)), adamw()];
        let specs = specs.into_iter().map(|spec| spec.stored(params, params, rounding)).collect();
        let layout = Layout::Packed { start: 2, gap: 1 };
        cases.push(Scenario { layout, ..Scenario::new("8-bit state, halves", STEPS, specs) });
    }
    let long = BINDING_BYTES as usize / 4;
    for layout in [Layout::Packed { start: 0, gap: 0 }, Layout::Packed { start: 3, gap: 2 }] {
        let specs = vec![in_8_bits(group("windows", Rule::adamw(), Regime::seesaw(), &[long + 1, 8, 2 * long + 36]))];
        let binding_bytes = Some(BINDING_BYTES);
        cases.push(Scenario { layout, binding_bytes, ..Scenario::new("8-bit state, windows", 3, specs) });
    }
    cases.push(magnitudes());
    let mut all: Cases = cases.into_iter().map(Scenario::boxed).collect();
    all.extend(
        [Layout::Packed { start: 0, gap: 0 }, Layout::Packed { start: 1, gap: 1 }].map(|layout| exact(layout).boxed()),
    );
    all
}

/// Returns moments that differ by many powers of ten within a block, and that are near the limits of f32.
fn magnitudes() -> Scenario {
    let mut parts = Vec::new();
    for rule in [Rule::sgdm(0.5), Rule::adamw()] {
        for (name, magnitudes) in [
            ("1e30", &[1e30][..]),
            ("1e-30", &[1e-30]),
            ("1, 1e-3, 1e-6", &[1.0, 1e-3, 1e-6]),
            ("1, 1e30, 1e-30", &[1.0, 1e30, 1e-30]),
            ("zero and 1", &[0.0, 1.0]),
            ("zero", &[0.0]),
        ] {
            // Gradients beyond 1.8e19 are clamped before they are squared, which the reference does not do.
            if rule.has_second_moment() && magnitudes.contains(&1e30) {
                continue;
            }
            let spec = group(format!("{} at {name}", rule.name()), rule, Regime::norm_ratio(), &[130, 33]);
            parts.push(Part { spec: in_8_bits(spec), gradients: Gradients::Magnitudes(name, magnitudes) });
        }
    }
    Scenario { parts, ..Scenario::new("8-bit state, magnitudes", 4, Vec::new()) }
}

/// Returns steps without rounding in f32, for which every path must find the same codes.
fn exact(layout: Layout) -> Scenario {
    let rate = Regime::fixed(2f32.powi(-12));
    let adamw = Rule::AdamW(AdamW { beta1: 0.5, beta2: 0.5, ..AdamW::default() });
    let momentum = |name| in_8_bits(group(name, Rule::sgdm(0.5), rate, &LENGTHS));
    let nothing = in_8_bits(group("no momentum, f16", Rule::sgd(), rate, &LENGTHS));
    // Parameters of 16 bits first, which then end before the others begin.
    let specs = vec![
        momentum("momentum, bf16").stored(Element::Bf16, Element::F32, Rounding::Masters),
        momentum("momentum, f16").stored(Element::F16, Element::F32, Rounding::Masters),
        nothing.stored(Element::F16, Element::F32, Rounding::Masters),
        momentum("momentum"),
        in_8_bits(group("both", adamw, rate, &LENGTHS)),
        in_8_bits(group("squares", Rule::RmsProp(RmsProp { alpha: 0.5, ..RmsProp::default() }), rate, &LENGTHS)),
        in_8_bits(group("ahead", Rule::NAdamW(NAdamW { beta1: 0.5, beta2: 0.5, ..NAdamW::default() }), rate, &LENGTHS)),
    ];
    Scenario { layout, judge: same_codes, ..Scenario::new("codes", 24, specs).dyadic() }
}

/// Compares the codes of device and CPU path.
fn same_codes(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let (mut device, mut host) = scenario.runs(subject, &subject.gpu)?;
    for step in 1..=scenario.steps {
        let gradients = scenario.gradients(step);
        device.step(&gradients, loss_of(step))?;
        host.step(&gradients, loss_of(step))?;
        let [on_device, on_host] = [device.run.checkpoint(), host.run.checkpoint()];
        for name in on_device.names() {
            let of_state = Moment::ALL.iter().any(|moment| name.starts_with(moment.entry()));
            if of_state || name.starts_with("state_scales") || name.starts_with("remainder_codes") {
                let what = || format!("{name} after step {step}");
                outcome.same(Path::Device, what, on_device.entry(&name), on_host.entry(&name));
            }
        }
        // Only the steps of rules with momentum alone, or without memory, are exact.
        let [device, host] = [device.parameters()?, host.parameters()?].map(|all| all[..4 * LENGTHS.len()].to_vec());
        outcome.same_tensors(Path::Device, &format!("parameters after step {step}"), &device, &host);
    }
    device.compare_surroundings(&mut outcome)?;
    Ok(outcome)
}

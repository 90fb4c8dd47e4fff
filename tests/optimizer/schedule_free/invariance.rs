//! Changes that alter no bit, and AdamW without momentum.

use super::{STEPS, few_cases, free, gradients};
use wgpu_optim::{AdamW, Averaging, Group, LossScaler, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance::run::{Setup, Spec};
use wgpu_optim_conformance::{filled, tensors, times, ulps};

use crate::helpers::{assert_alike, assert_same_bits, bytes_of, pairs, pairs_with};

/// Scaling the loss by a power of two scales the rate by the inverse, and changes nothing else, however much the sum of weights changes.
#[test]
fn a_rescaled_loss_changes_no_bit() {
    let spec = |regime: Regime| free(Rule::sgd(), regime, tensors(8, &[65])).named(regime.name());
    let specs = [Regime::seesaw(), Regime::norm_ratio()].map(spec);
    for exponent in [-60i32, -7, 1, 60] {
        let alike = assert_alike(format_args!("2^{exponent}"), pairs(&specs, &specs), STEPS, |step, run| {
            let grads = gradients(&run.params(), step);
            [grads.clone(), times(2f32.powi(exponent), &grads)]
        });
        for (state, rescaled) in alike.iter().flat_map(|(a, b)| a.states().into_iter().zip(b.states())) {
            assert_eq!(state.weight_sum.mantissa, rescaled.weight_sum.mantissa);
            assert_eq!(state.weight_sum.exponent, rescaled.weight_sum.exponent + 2 * exponent);
        }
    }
}

/// ScheduleFree+ also uses the loss, which is scaled like the gradients.
#[test]
fn a_rescaled_loss_changes_no_bit_of_schedule_free_plus() {
    let specs = [Rule::sgd(), Rule::sign_sgd()]
        .map(|rule| free(rule, Regime::schedule_free_plus(), tensors(8, &[65])).named(rule.name()));
    for exponent in [-60i32, -7, 1, 60] {
        let factor = 2f32.powi(exponent);
        for (mut plain, mut rescaled) in pairs(&specs, &specs) {
            for step in 0..STEPS {
                let grads = gradients(&plain.params(), step);
                // The loss ends below 0, where the rate falls by its limit.
                let loss = 3.0 - 0.1 * step as f32;
                plain.set_loss(loss);
                rescaled.set_loss(factor * loss);
                plain.step(&grads);
                rescaled.step(&times(factor, &grads));
            }
            assert_same_bits(&*plain, &*rescaled, format_args!("2^{exponent}"));
        }
    }
}

/// Maximizing the negative is minimizing, and a clip above every norm has no effect.
#[test]
fn climbing_is_descending_and_a_wide_clip_is_none() {
    let down = free(Rule::sgd(), Regime::seesaw(), tensors(6, &[33]));
    for (other, factor) in [(Spec { maximize: true, ..down.clone() }, -1.0), (Spec { clip: 1e6, ..down.clone() }, 1.0)]
    {
        let what = format!("{other:?}");
        assert_alike(what, pairs(std::slice::from_ref(&down), &[other]), STEPS, |step, run| {
            let grads = gradients(&run.params(), step);
            [grads.clone(), times(factor, &grads)]
        });
    }
}

/// The gradients are divided by the loss scale first, and a gradient that overflows because of the scale skips the step.
#[test]
fn a_loss_scaler_changes_no_bit() {
    let specs = few_cases(&[9]);
    let setup = Setup { scaler: Some(LossScaler::default()), ..Setup::default() };
    for (mut plain, mut scaled) in pairs_with((&specs, Setup::default()), (&specs, setup)) {
        for step in 0..20 {
            let grads = gradients(&plain.params(), step);
            if step == 5 {
                scaled.step(&filled(&specs, f32::INFINITY));
            }
            scaled.step(&times(scaled.loss_scale(), &grads));
            plain.step(&grads);
        }
        assert_same_bits(&*scaled, &*plain, "with a loss scaler");
    }
}

/// AdamW with β₁ = 0 keeps only v, and takes the steps of AdamW with a negligible β₁.
#[test]
fn adamw_without_momentum_keeps_one_vector() {
    let rule = Rule::adamw_without_momentum();
    assert!(!rule.has_momentum() && rule.has_second_moment() && rule.is_scale_free());
    let with = |beta1| Rule::AdamW(AdamW { beta1, beta2: 0.999, epsilon: 1e-8 });
    for regime in [Regime::fixed(0.01), Regime::adgd(), Regime::norm_ratio()] {
        let specs = |rule| [Spec::new(rule, regime, tensors(12, &[37, 5]))];
        for (mut without, mut with) in pairs(&specs(rule), &specs(with(1e-30))) {
            for step in 0..20 {
                let grads = gradients(&with.params(), step);
                without.step(&grads);
                with.step(&grads);
            }
            for (a, b) in without.params().concat().into_iter().zip(with.params().concat()) {
                assert!(ulps(a, b.into()) <= 16.0, "{}: {a} {b}", with.path());
            }
            let names = without.checkpoint().names();
            assert!(!names.iter().any(|name| name.starts_with("momentum/")));
            assert!(names.iter().any(|name| name.starts_with("second_moment/")));
        }
    }
}

/// Averages take a known number of bytes beside v, the momentum and the direction memory, according to the allocator. A running average takes one
/// number per parameter, and so does z. Under Seesaw AdamW keeps a byte of direction memory, and schedule-free SGD and SIGNSGD use y - z instead.
#[test]
fn averages_take_four_bytes_per_parameter() {
    let (fixed, seesaw) = (Regime::fixed(0.1), Regime::seesaw());
    let (running, free) = (Averaging::Running { start: 0 }, Averaging::ScheduleFree);
    let adamw = Rule::adamw_without_momentum();
    for elements in [0usize, 5, 1 << 20] {
        let values = vec![0.0f32; elements];
        let bytes = |rule: Rule, averaging: Averaging, regime: Regime| {
            bytes_of(|| {
                let builder = OptimizerBuilder::new(rule).averaging(averaging).regime(regime);
                builder.group(Group::new("all").tensor("w", &values, &values)).build_cpu().expect("builds")
            })
        };
        for (rule, regime, averaging, plain, more) in [
            (adamw, fixed, free, 4, 4),
            (adamw, seesaw, free, 5, 4),
            (Rule::sgd(), fixed, free, 0, 4),
            (Rule::sgd(), seesaw, free, 1, 3),
            (Rule::sgd(), Regime::hypergradient(), free, 1, 3),
            (Rule::sign_sgd(), seesaw, free, 1, 3),
            (Rule::sgd(), seesaw, running, 1, 4),
        ] {
            let what = format!("{elements}: {rule:?}, {regime:?}, {averaging:?}");
            let off = bytes(rule, Averaging::Off, regime);
            assert_eq!(bytes(rule, averaging, regime) - off, more * elements as i64, "{what}");
            // With more than one block, the direction memory is a whole number of words.
            if elements % 4 == 0 {
                assert_eq!(off - bytes(Rule::sgd(), Averaging::Off, fixed), plain * elements as i64, "{what}");
            }
        }
    }
}

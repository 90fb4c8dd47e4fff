//! Changes that alter no bit, and sums of terms.

use super::{assert_terms_add_up, every_rule, group_per_rule, repeated, scale_free_rules, seesaw};
use wgpu_optim::gpu::Partials;
use wgpu_optim::{AdamW, Gpu, Record, Regime, Rule};
use wgpu_optim_conformance::run::{CpuRun, Run, bits, devices, every_path, every_path_and_kind};
use wgpu_optim_conformance::{Numbers, tensors, times, ulps};

use crate::helpers::{assert_alike, pairs};

/// Returns gradients of a noisy loss that depend only on the step, so that runs can be compared.
fn noisy_gradients(lengths: &[usize], steps: usize, seed: u64) -> Vec<Vec<Vec<f32>>> {
    let mut numbers = Numbers(seed);
    (0..steps)
        .map(|t| {
            let scale = (2.0 * numbers.next()).exp();
            lengths
                .iter()
                .map(|&len| (0..len).map(|i| scale * (0.5 * ((i + t) as f32).sin() + numbers.next())).collect())
                .collect()
        })
        .collect()
}

/// Asserts that multiplying the gradients by each power of two changes no bit of any step, for all rules and on every path.
fn assert_rescaling_changes_no_bit(powers: &[i32]) {
    let lengths = [2000, 77];
    let specs = group_per_rule(&scale_free_rules(), Regime::seesaw(), &tensors(6, &lengths));
    let steps = noisy_gradients(&lengths, 8, 7);
    for &power in powers {
        assert_alike(format_args!("2^{power}"), pairs(&specs, &specs), 8, |step, _| {
            let grads = &steps[step as usize];
            [repeated(grads, specs.len()), repeated(&times(2f32.powi(power), grads), specs.len())]
        });
    }
    // A factor that is no power of two rounds, and is detected.
    let [one, other] = [1.0, 1.1].map(|factor| {
        let mut run = CpuRun::new(&specs);
        steps.iter().for_each(|grads| run.step(&repeated(&times(factor, grads), specs.len())));
        bits(&run.params())
    });
    assert!(one != other);
}

/// Scaling the loss by a power of two changes no bit of any step, for any rule.
#[test]
fn rescaling_the_loss_by_powers_of_two_changes_no_bit() {
    assert_rescaling_changes_no_bit(&[-60, -20, -1, 20, 60]);
}

#[test]
fn rescaling_across_the_border_of_a_range_changes_no_bit() {
    assert_rescaling_changes_no_bit(&[-42, -41, -40, -39, -38, 38, 39, 40, 41, 42]);
}

/// AdamW's ε has a scale. If it is far below the gradients, scaling them changes nothing. With its usual value, 1e-8, scaling changes the steps, but
/// no bit of the rates.
#[test]
fn rescaling_changes_of_adamw_what_epsilon_adds() {
    let with = |epsilon| Rule::AdamW(AdamW { beta1: 0.9, beta2: 0.999, epsilon });
    let specs = group_per_rule(&[with(1e-30), with(1e-8)], Regime::seesaw(), &tensors(6, &[500]));
    for power in [-16, 30] {
        for (mut run, mut other) in pairs(&specs, &specs) {
            for grads in &noisy_gradients(&[500], 8, 7) {
                run.step(&repeated(grads, specs.len()));
                other.step(&repeated(&times(2f32.powi(power), grads), specs.len()));
                let what = format!("{}, 2^{power}", run.path());
                assert_eq!(bits(&[run.rates()]), bits(&[other.rates()]), "{what}");
                let (a, b) = (bits(&run.params()), bits(&other.params()));
                assert!(a[0] == b[0], "{what}");
                assert!(a[1] != b[1], "{what}: ε has no size");
            }
        }
    }
}

#[test]
fn the_terms_add_up_to_the_change_of_ln_eta() {
    let steep = seesaw(|s| (s.gain, s.exponent) = (2.0, 3.0));
    for regime in [Regime::seesaw(), Regime::norm_ratio(), Regime::hypergradient(), steep] {
        let specs = group_per_rule(&every_rule(), regime, &tensors(8, &[65]));
        for mut run in every_path(&specs) {
            for grads in noisy_gradients(&[65], 60, 9) {
                run.step(&repeated(&grads, specs.len()));
            }
            let records = run.records().records;
            for group in 0..specs.len() {
                let of_group: Vec<Record> = records.iter().filter(|record| record.group == group).cloned().collect();
                assert_eq!(of_group.len(), 60);
                assert!(of_group[0].flags.first() && of_group[0].change() == 0.0);
                assert_terms_add_up(&format!("{}, group {group}", run.path()), &of_group, 1e-6);
                for record in &of_group[1..] {
                    assert!(ulps(record.learning_rate, record.ln_rate.exp()) <= 4.0, "η and ln η agree");
                }
                let moved: f64 = of_group.windows(2).map(|pair| (pair[1].ln_rate - pair[0].ln_rate).abs()).sum();
                assert!(moved > 0.02, "a run in which nothing changes proves nothing");
            }
        }
    }
}

/// The order of additions depends on the adapter and its tuning, but is always the same.
#[test]
fn repeats_have_the_same_bits() {
    let with_subgroups = |gpu: &Gpu| Partials::Subgroup.is_supported(gpu.device().features());
    assert!(devices().iter().any(with_subgroups), "no adapter with subgroups: a part of this is not tested");
    let lengths = [9000, 31];
    let specs = group_per_rule(&every_rule(), Regime::seesaw(), &tensors(10, &lengths));
    let steps = noisy_gradients(&lengths, 5, 11);
    let twice = every_path_and_kind(&specs).into_iter().zip(every_path_and_kind(&specs));
    let alike =
        assert_alike("a repeat", twice, 5, |step, _| [(); 2].map(|()| repeated(&steps[step as usize], specs.len())));
    for (mut first, mut second) in alike {
        let of = |run: &mut Box<dyn Run>| (run.states(), run.sums(), run.records());
        assert_eq!(of(&mut first), of(&mut second), "{}", first.path());
    }
}

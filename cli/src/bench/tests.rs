//! Tests of the measurements and their rows.

use std::time::Duration;

use super::rows::{Selection, bytes_of};
use wgpu_optim::internals::Timestamps;
use wgpu_optim::{Element, Regime, Rule};
use wgpu_optim_conformance::bench::workload::*;

#[test]
fn nonsense_timestamps_are_not_believed() {
    let wall = Duration::from_millis(10);
    for (device_us, believed) in [(0, false), (1, false), (9_000, true), (20_000, false)] {
        let device = Duration::from_micros(device_us);
        assert_eq!(Timestamps::plausible(device, wall), believed.then_some(device));
    }
}

#[test]
fn the_byte_model_is_the_documented_one() {
    let [fixed, norm_ratio, seesaw] = regimes();
    for (mode, [sgd, sgd_seesaw, sgdm, sgdm_seesaw, adamw, adamw_seesaw]) in [
        ("f32", [16.0, 19.0, 24.0, 28.0, 32.0, 36.0]),
        ("bf16", [12.0, 15.0, 20.0, 24.0, 28.0, 32.0]),
        ("f16", [12.0, 15.0, 20.0, 24.0, 28.0, 32.0]),
        ("bf16-stochastic", [8.0, 11.0, 16.0, 20.0, 24.0, 28.0]),
        // Only SGD has this mode. With Seesaw, pass 1 reads y and z, and no counters are kept.
        ("unchecked", [12.0, 0.0, 20.0, 0.0, 28.0, 0.0]),
        ("schedule-free", [24.0, 32.0, 0.0, 0.0, 0.0, 0.0]),
    ] {
        let mode = mode_of(mode);
        for (rule, regime, bytes) in [
            (Rule::sgd(), fixed, sgd),
            (Rule::sgd(), norm_ratio, sgd),
            (Rule::sgd(), seesaw, sgd_seesaw),
            (Rule::sgdm(0.9), fixed, sgdm),
            (Rule::sgdm(0.9), norm_ratio, sgdm),
            (Rule::sgdm(0.9), seesaw, sgdm_seesaw),
            (Rule::lion(), norm_ratio, sgdm),
            (Rule::lion(), seesaw, sgdm_seesaw),
            (Rule::adamw(), fixed, adamw),
            (Rule::adamw(), norm_ratio, adamw),
            (Rule::adamw(), seesaw, adamw_seesaw),
            (Rule::amsgrad(), norm_ratio, adamw + 8.0),
        ] {
            let (rule_name, regime_name) = (rule.name(), regime.name());
            if mode.rule(rule) != Some(rule) || !mode.fits(rule, regime) {
                continue;
            }
            let modelled = mode.bytes_per_param(rule, regime);
            assert_eq!(modelled, bytes, "{rule_name}, {regime_name}, {}", mode.name);
        }
    }
}

/// z replaces the average, and v is the only moment.
#[test]
fn schedule_free_adamw_moves_no_momentum() {
    let [fixed, _, seesaw] = regimes();
    let mode = mode_of("schedule-free");
    assert_eq!(mode.rule(Rule::sgdm(0.9)), None);
    assert_eq!(mode.rule(Rule::sgd()), Some(Rule::sgd()));
    let rule = mode.rule(Rule::adamw()).expect("without momentum");
    assert_eq!(rule, Rule::adamw_without_momentum());
    assert_eq!(mode.bytes_per_param(rule, fixed), 32.0);
    // This regime keeps direction counters.
    assert_eq!(mode.bytes_per_param(rule, seesaw), 35.0);
    assert_eq!(mode.state_bytes_per_param(rule, seesaw), 5.0);
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        assert_eq!(mode.bytes_per_param(rule, seesaw), 32.0);
        assert_eq!(mode.state_bytes_per_param(rule, seesaw), 0.0);
        assert_eq!(mode_of("f32").state_bytes_per_param(rule, seesaw), 1.0);
    }
}

fn mode_of(name: &str) -> Mode {
    *MODES.iter().find(|mode| mode.name == name).expect(name)
}

/// Copy and triad need three arrays of f32, and another element type needs two arrays. The optimizer's memory is added.
#[test]
fn the_memory_that_is_asked_for_is_what_is_kept() {
    let [_, _, seesaw] = regimes();
    for (modes, bytes) in [
        (&["f32"][..], 12.0 + 4.0),
        (&["bf16"], 12.0 + 4.0 + 6.0),
        (&["bf16-stochastic"], 12.0 + 4.0 + 4.0),
        (&["bf16", "bf16-stochastic"], 12.0 + 4.0 + 6.0 + 4.0),
        (&["bf16", "f16"], 12.0 + 4.0 + 4.0 + 6.0 + 6.0),
    ] {
        let modes: Vec<Mode> = modes.iter().copied().map(mode_of).collect();
        let selection = Selection { rules: vec![Rule::lion()], regimes: vec![seesaw], modes };
        // The number of elements is too small for the rows with many tensors.
        assert_eq!(bytes_of(100, &selection.entries(100)), 100.0 * bytes, "{:?}", selection.modes);
    }
}

#[test]
fn tensors_lie_side_by_side_and_those_of_16_bits_start_with_words() {
    let elements = 1 << 10;
    for &mode in MODES {
        let tensors = many_tensors(elements, true).expect("large enough");
        let spec = Spec { mode, tensors, ..Spec::new(Rule::sgd(), Regime::norm_ratio(), elements) };
        let ranges = spec.ranges();
        let lengths: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
        assert_eq!(lengths, spec.tensors.concat());
        let word = if mode.element == Element::F32 { 1 } else { 2 };
        assert_eq!(ranges[0].start, 0);
        for pair in ranges.windows(2) {
            assert!(pair[1].start.is_multiple_of(word));
            assert!((0..word).contains(&(pair[1].start - pair[0].end)));
        }
        assert!(ranges[MANY - 1].end <= room(mode.element, elements));
    }
}

#[test]
fn many_tensors_fill_the_size_and_mix_lengths() {
    assert_eq!(many_tensors(4 * MANY - 1, false), None);
    for elements in [4 * MANY, 1 << 10, 1 << 20] {
        for odd in [false, true] {
            let tensors = many_tensors(elements, odd).expect("large enough");
            assert_eq!(tensors.len(), MANY_GROUPS);
            let lengths = tensors.concat();
            assert_eq!(lengths.len(), MANY);
            assert_eq!(lengths.iter().sum::<usize>(), elements);
            let odd_lengths = lengths[..MANY - 1].iter().filter(|&length| length % 2 == 1).count();
            assert_eq!(odd_lengths, if odd { MANY - 1 } else { 0 });
        }
    }
    let lengths = many_tensors(1 << 20, false).expect("large enough").concat();
    assert!(lengths.iter().max() > lengths.iter().min().map(|min| min * 32).as_ref());
}

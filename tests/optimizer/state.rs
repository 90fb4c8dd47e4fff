//! Tests of 8-bit state, on the CPU path and on every adapter: it takes the documented number of bytes. The same steps give the same codes on every
//! path and wherever tensors lie, and means stay right. Elements without a step keep their bits. A run that is resumed from a checkpoint has the same
//! bits, and a checkpoint of other state is converted where that is accepted. (`wgpu-optim check --family state` compares the codes with the f64
//! reference.)

use wgpu_optim::gpu::Tuning;
use wgpu_optim::{
    AdamW, Averaging, CurvatureForm, Differences, Element, ErrorKind, Group, NAdamW, OptimizerBuilder, Regime, RmsProp,
    Rounding, Rule, SecantForm, State, WeightDecay,
};
use wgpu_optim_conformance::codes::{Moment, decoded, short_masters};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path, every_path_with, packed,
};
use wgpu_optim_conformance::stored::half_ulp;
use wgpu_optim_conformance::{Numbers, assert_close, assert_refused, filled, noise, tensors, times};

use crate::halves::masters;
use crate::helpers::{at_odd_places, bytes_of, raw_tensor};

/// Lengths around multiples of four, of the blocks of 32, and of the plan's blocks.
const LENGTHS: [usize; 8] = [1, 4, 31, 32, 33, 0, 100, 4129];

fn in_8_bits(spec: Spec) -> Spec {
    Spec { state: State::Bits8, ..spec }
}

/// Returns rules with either moment and with both, whose steps are exact in f32.
fn exact() -> Vec<Spec> {
    let rate = Regime::fixed(2f32.powi(-10));
    let rules = [
        ("momentum", Rule::sgdm(0.5)),
        ("both", Rule::AdamW(AdamW { beta1: 0.5, beta2: 0.5, ..AdamW::default() })),
        ("squares", Rule::RmsProp(RmsProp { alpha: 0.5, ..RmsProp::default() })),
        ("ahead", Rule::NAdamW(NAdamW { beta1: 0.5, beta2: 0.5, ..NAdamW::default() })),
    ];
    let spec = |(name, rule)| in_8_bits(Spec::new(rule, rate, tensors(5, &LENGTHS)).named(name));
    rules.map(spec).into()
}

/// Returns gradients that are multiples of 1/8 up to 1, whose squares are exact too.
fn exact_gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    let mut all = noise(specs, 77 + step);
    all.iter_mut().flatten().for_each(|g| *g = (*g * 8.0).round() / 8.0);
    all
}

/// Returns runs on every path, with tensors at odd places, and with small tunings.
fn everywhere(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    let mut runs = every_path(specs);
    runs.extend(at_odd_places(specs));
    for gpu in &devices() {
        // Blocks with one and with five quads per invocation.
        for (workgroup_size, quads_per_invocation) in [(8, 1), (16, 5)] {
            let tuning = Tuning { workgroup_size, quads_per_invocation, ..gpu.tuning() };
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            runs.push(Box::new(GpuRun::new(&gpu, specs, packed(specs, 0, 0))));
        }
    }
    runs
}

/// Returns the codes and scales in a run's checkpoint, with their names.
fn codes(run: &dyn Run) -> Vec<(String, Vec<u8>)> {
    let checkpoint = run.checkpoint();
    let is_code = |name: &String| name.contains("_codes/") || name.starts_with("state_scales/");
    let names = checkpoint.names().into_iter().filter(is_code);
    names.map(|name| (name.clone(), checkpoint.entry(&name).expect("an entry").to_vec())).collect()
}

#[test]
fn state_takes_the_bytes_that_are_documented() {
    let elements = 1 << 16;
    let w = vec![half::bf16::ONE; elements];
    let floats = vec![1.0f32; elements];
    let (off, average) = (Averaging::Off, Averaging::Running { start: 0 });
    let of = |rule, state, is_half: bool, averaging| {
        let group = Group::new("all").averaging(averaging);
        let group = if is_half { group.tensor("w", &w, &w) } else { group.tensor("w", &floats, &floats) };
        let builder = OptimizerBuilder::new(rule).regime(Regime::fixed(0.1)).state(state).group(group);
        bytes_of(|| builder.build_cpu().expect("builds")) as f64 / elements as f64
    };
    for (rule, is_half, averaging, f32_bytes, bytes) in [
        (Rule::adamw(), false, off, 8.0, 2.125),
        (Rule::sgdm(0.9), false, off, 4.0, 1.125),
        // The remainders take 2 bytes more in f32 state, and 1 byte more in 8 bits.
        (Rule::adamw(), true, off, 10.0, 3.125),
        (Rule::sgd(), true, off, 2.0, 1.0),
        // With an average the remainders take 2 bytes in 8-bit state too.
        (Rule::adamw(), true, average, 14.0, 8.125),
        (Rule::sgd(), false, off, 0.0, 0.0),
    ] {
        // The records take 4 bytes per parameter here.
        let base = of(Rule::sgd(), State::F32, false, off);
        assert_close(rule.name(), of(rule, State::F32, is_half, averaging) - base, f32_bytes, 0.02);
        assert_close(rule.name(), of(rule, State::Bits8, is_half, averaging) - base, bytes, 0.02);
    }
}

#[test]
fn every_path_finds_the_same_codes_wherever_tensors_lie() {
    let specs = exact();
    let mut runs = everywhere(&specs);
    for step in 0..20 {
        let grads = exact_gradients(&specs, step);
        runs.iter_mut().for_each(|run| run.step(&grads));
        let expected = codes(&*runs[0]);
        assert_eq!(expected.len(), LENGTHS.len() * (2 + 3 + 2 + 3));
        for run in &runs[1..] {
            assert!(codes(&**run) == expected, "{}, step {step}", run.path());
        }
    }
    // The parameters of a rule with only a momentum are exact too.
    let expected = bits(&runs[0].params()[..LENGTHS.len()]);
    for run in &runs[1..] {
        assert!(bits(&run.params()[..LENGTHS.len()]) == expected, "{}", run.path());
    }
}

/// Returns groups with 24-bit masters whose steps f32 rounds only once, for rules with a momentum and without state. The parameters include denormal
/// f16 numbers, and powers of two, below which the unit is smaller.
fn with_short_masters() -> Vec<Spec> {
    let tiny: Vec<f32> = (0..4129).map(|i| (i % 97) as f32 * 2f32.powi(-24) - 2f32.powi(-18)).collect();
    let powers: Vec<f32> = (0..700).map(|i| 2f32.powi(i % 16 - 12) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    let spec = |rule, rate, tensors, name: &str, element| {
        let spec = in_8_bits(Spec::new(rule, Regime::fixed(rate), tensors).named(name));
        spec.stored(element, Element::F32, Rounding::Masters)
    };
    let (small, smaller) = (2f32.powi(-15), 2f32.powi(-33));
    vec![
        spec(Rule::sgdm(0.5), small, tensors(5, &LENGTHS), "momentum, bf16", Element::Bf16),
        spec(Rule::sgdm(0.5), small, tensors(6, &LENGTHS), "momentum, f16", Element::F16),
        spec(Rule::sgd(), small, vec![powers.clone()], "nothing, bf16", Element::Bf16),
        spec(Rule::sgd(), small, vec![powers], "nothing, f16", Element::F16),
        spec(Rule::sgd(), smaller, vec![tiny], "tiny, f16", Element::F16),
    ]
}

/// Returns the unit of a tensor's masters at this magnitude.
fn short_unit(element: Element, size: f64) -> f64 {
    half_ulp(element, size) / 128.0
}

#[test]
fn short_masters_have_the_same_bits_on_every_path() {
    let specs = with_short_masters();
    let mut runs = everywhere(&specs);
    for step in 0..20 {
        let grads = exact_gradients(&specs, step);
        runs.iter_mut().for_each(|run| run.step(&grads));
        let (params, expected) = (bits(&runs[0].params()), codes(&*runs[0]));
        for run in &runs[1..] {
            assert!(bits(&run.params()) == params, "{}, step {step}: parameters", run.path());
            assert!(codes(&**run) == expected, "{}, step {step}: codes", run.path());
        }
    }
    // For rules without a momentum, a gradient of zero changes nothing.
    let (params, before) = (bits(&runs[0].params()), codes(&*runs[0]));
    let is_still = |(name, _): &&(String, Vec<u8>)| name.starts_with("remainder_codes/") && !name.contains("momentum");
    let still = |all: &[(String, Vec<u8>)]| all.iter().filter(is_still).cloned().collect::<Vec<_>>();
    assert_eq!(still(&before).len(), 3);
    for run in &mut runs {
        run.step(&filled(&specs, 0.0));
        assert!(bits(&run.params())[2 * LENGTHS.len()..] == params[2 * LENGTHS.len()..], "{}", run.path());
        assert!(still(&codes(&**run)) == still(&before), "{}", run.path());
    }
}

/// Each step is that of an exact master up to one unit. The stored parameter is the nearest to the master, with ties away from 0.
#[test]
fn short_masters_take_steps_to_within_a_unit() {
    let specs = with_short_masters();
    for mut run in every_path(&specs) {
        let names: Vec<(String, Element)> =
            specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|i| (spec.tensor_name(i), spec.params))).collect();
        let masters = |run: &dyn Run| -> Vec<Vec<f64>> {
            let checkpoint = run.checkpoint();
            names.iter().map(|(name, element)| short_masters(&checkpoint, *element, name).expect("masters")).collect()
        };
        let mut before = masters(&*run);
        for step in 0..10 {
            let grads = exact_gradients(&specs, 40 + step);
            run.step(&grads);
            let (after, stored) = (masters(&*run), run.params());
            let momentum = |tensor: usize| decoded(&run.checkpoint(), Moment::First, &names[tensor].0);
            for (tensor, (name, element)) in names.iter().enumerate() {
                let rate = if name.starts_with("tiny") { 2f64.powi(-33) } else { 2f64.powi(-15) };
                // The expected step has no momentum, so that the tolerance includes its part.
                let allowed = if momentum(tensor).is_some() { 2.5 * rate } else { 0.0 };
                for (i, &after) in after[tensor].iter().enumerate() {
                    let expected = before[tensor][i] - rate * f64::from(grads[tensor][i]);
                    let unit = short_unit(*element, expected.abs().max(after.abs()));
                    let what = format!("{}, {name}, element {i}, step {step}", run.path());
                    assert_close(&what, after, expected, allowed + unit);
                    let half = half_ulp(*element, after);
                    let nearest = (after.abs() / (2.0 * half) + 0.5).floor() * 2.0 * half;
                    assert!(f64::from(stored[tensor][i].abs()) == nearest, "{what}: {} of {after}", stored[tensor][i]);
                }
            }
            before = after;
        }
    }
}

/// AdamW moves down to one minimum and up to another, in steps of a 32nd (bf16) or a quarter (f16) of the masters' unit, far enough for parameters to
/// change. On average they move as far as in f32, in both directions and across the boundary between two parameters.
#[test]
fn steps_smaller_than_the_unit_of_a_short_master_arrive_on_average() {
    const STEPS: u32 = 6000;
    let starts: Vec<f32> = (0..2048).map(|i| 1.25 + (i % 64) as f32 / 128.0).collect();
    for element in [Element::Bf16, Element::F16] {
        let unit = short_unit(element, 1.5);
        let rate = 2f32.powi(-20);
        let spec = Spec::new(Rule::adamw(), Regime::fixed(rate), vec![starts.clone()]);
        let of = |element| in_8_bits(spec.clone()).stored(element, Element::F32, Rounding::Masters);
        let (mut run, mut float) = (CpuRun::new(&[of(element)]), CpuRun::new(&[of(Element::F32)]));
        for step in 0..STEPS {
            for run in [&mut run, &mut float] {
                // Quadratics around 0 and 4, with noise.
                let mut numbers = Numbers(u64::from(step) + 1);
                let w = run.params().remove(0);
                let gradient = |(i, w): (usize, &f32)| w - 4.0 * (i % 2) as f32 + 0.25 * numbers.next();
                run.step(&[w.iter().enumerate().map(gradient).collect()]);
            }
        }
        let masters = short_masters(&run.checkpoint(), element, "group/0").expect("masters");
        let [stored, exact] = [&run, &float].map(|run| run.params().remove(0));
        for side in 0..2 {
            let of_side = |i: &usize| i % 2 == side;
            let count = (starts.len() / 2) as f64;
            let off = |i: usize| (masters[i] - f64::from(exact[i])) / unit;
            let mean_way =
                (0..starts.len()).filter(of_side).map(|i| f64::from((exact[i] - starts[i]).abs())).sum::<f64>();
            assert!(mean_way / count >= 100.0 * unit, "{element:?}: {} units", mean_way / count / unit);
            let mean = (0..starts.len()).filter(of_side).map(off).sum::<f64>() / count;
            // In each step a master moves by one unit with a probability of the rate divided by the unit.
            let deviation = (f64::from(STEPS) * f64::from(rate) / unit).sqrt();
            assert_close(format_args!("{element:?}, side {side}"), mean, 0.0, 5.0 * deviation / count.sqrt());
            let moved = (0..starts.len()).filter(of_side).filter(|&i| stored[i] != starts[i]).count();
            assert!(20 * moved >= 9 * starts.len(), "{element:?}, side {side}: {moved} parameters moved");
        }
    }
}

/// All codes, and the first and the last parameter, are those of the trace of `tests/golden/make_state.py`, which implements the definition.
#[test]
fn codes_and_steps_are_those_of_the_definition() {
    let rows = include_str!("../golden/state.csv").lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
    let rows: Vec<Vec<&str>> = rows.collect();
    for (name, rule) in [("adamw", Rule::adamw()), ("sgdm", Rule::sgdm(0.9))] {
        let w = (0..70).map(|i| f64::from(i).cos() as f32).collect();
        let spec = in_8_bits(Spec::new(rule, Regime::fixed(0.01), vec![w]));
        for mut run in every_path(std::slice::from_ref(&spec)) {
            let rows: Vec<_> = rows.iter().filter(|row| row[0] == name).collect();
            assert_eq!(rows.len(), 12);
            for (step, row) in rows.into_iter().enumerate() {
                let gradient = |i: usize| {
                    let angle = 0.7 * i as f64 + 1.3 * step as f64 * (1 + i % 3) as f64;
                    ((64.0 * angle.cos()).round_ties_even() / 64.0 / f64::from(1 << (i % 7))) as f32
                };
                run.step(&[(0..70).map(gradient).collect()]);
                let w = run.params().remove(0);
                for (at, field) in [(0, 2), (69, 3)] {
                    let expected: f64 = row[field].parse().expect("a number");
                    assert_close(format_args!("{}, {name}, step {step}", run.path()), w[at], expected, 1e-6);
                }
                let bytes = run.checkpoint().to_bytes();
                let entry = |kind: &str| raw_tensor(&bytes, &format!("{kind}/{}", spec.tensor_name(0))).2;
                let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                let scales: Vec<u32> = bytemuck::pod_collect_to_vec(&entry("state_scales"));
                let of = |shift: u32| {
                    let halves = scales.iter().map(|word| (word >> shift & 0xffff).to_string());
                    halves.collect::<Vec<_>>().join(" ")
                };
                let what = format!("{}, {name}, step {step}", run.path());
                assert_eq!((hex(&entry("momentum_codes")).as_str(), of(0).as_str()), (row[4], row[5]), "{what}");
                if name == "adamw" {
                    let squares = hex(&entry("second_moment_codes"));
                    assert_eq!((squares.as_str(), of(16).as_str()), (row[6], row[7]), "{what}");
                }
            }
        }
    }
}

/// When gradients become ten times as small, v falls by 0.1 % per step, which is less than the distance between two codes. On average it still falls.
/// Likewise a momentum with β = 0.99 follows gradients that change slowly.
#[test]
fn means_are_right_though_steps_are_smaller_than_codes() {
    let lengths = [4096];
    let (falls, follows) = (Rule::adamw_without_momentum(), Rule::signum(0.99));
    let spec = |rule, name| Spec::new(rule, Regime::fixed(1e-6), tensors(3, &lengths)).named(name);
    let floats = vec![spec(falls, "falls"), spec(follows, "follows")];
    let specs: Vec<Spec> = floats.iter().cloned().map(in_8_bits).collect();
    let mut exact = CpuRun::new(&floats);
    let mut run = CpuRun::new(&specs);
    let base = tensors(8, &lengths).remove(0);
    for step in 0..2000u32 {
        let size = |i: usize| if step < 800 || i.is_multiple_of(2) { 1.0 } else { 0.1 };
        let mut numbers = Numbers(u64::from(step) + 9);
        let noisy: Vec<f32> = (0..4096).map(|i| size(i) * numbers.next()).collect();
        let slow = base.iter().map(|x| x * (step as f32 / 300.0).cos() + 0.3).collect();
        let grads = [noisy, slow];
        run.step(&grads);
        exact.step(&grads);
    }
    let entry = |run: &CpuRun, name: &str| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(run.checkpoint().entry(name).expect("an entry"))
    };
    let v = entry(&exact, "second_moment/falls/0");
    let got = decoded(&run.checkpoint(), Moment::Second, "falls/0").expect("codes");
    for part in 0..2 {
        let roots = |values: &mut dyn Iterator<Item = f64>| values.skip(part).step_by(2).map(f64::sqrt).sum::<f64>();
        let (exact, got) = (roots(&mut v.iter().map(|&v| f64::from(v))), roots(&mut got.iter().copied()));
        assert_close(format_args!("√v of part {part}"), got / exact, 1.0, 0.02);
    }
    let m = entry(&exact, "momentum/follows/0");
    let got = decoded(&run.checkpoint(), Moment::First, "follows/0").expect("codes");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut m.iter().zip(&got).map(|(&m, got)| f64::from(m) - got));
    let size = norm(&mut m.iter().map(|&m| f64::from(m)));
    // With rounding to the nearest code it would be off by more than half.
    assert!(off <= 0.1 * size, "{off} of {size}");
}

/// Elements a thousand and a million times as small as their neighbours have steps of a bounded length, since their v is never 0.
#[test]
fn small_elements_beside_large_ones_take_bounded_steps() {
    let spec = in_8_bits(Spec::new(Rule::adamw(), Regime::fixed(1.0), vec![vec![0.0; 640]]));
    for mut run in every_path(std::slice::from_ref(&spec)) {
        let mut before = run.params().remove(0);
        for step in 0..60 {
            let mut numbers = Numbers(step + 1);
            // Every fifth element has a gradient in the first step only.
            let size = |i: usize| match i % 5 {
                3 if step > 0 => 0.0,
                at => [1.0, 1e-3, 1e-6, 1e-4, 1e-9][at],
            };
            run.step(&[(0..640).map(|i| size(i) * numbers.next()).collect()]);
            let after = run.params().remove(0);
            for (i, (w, next)) in before.iter().zip(&after).enumerate() {
                // AdamW's own bound is (1 - β₁)/√((1 - β₂)(1 - β₁²/β₂)) = 7.3, and codes may double the smallest magnitudes.
                assert!((w - next).abs() <= 15.0, "{}, step {step}, element {i}: {}", run.path(), w - next);
            }
            before = after;
        }
    }
}

/// A run in 8 bits ends about where the run in f32 ends, under every kind of regime, including those that derive the last step from the moments.
#[test]
fn runs_end_about_where_those_in_f32_end() {
    let loss = |w: &[f32]| w.iter().enumerate().map(|(i, w)| 0.5 * curvature(i) * f64::from(*w).powi(2)).sum::<f64>();
    fn curvature(i: usize) -> f64 {
        10f64.powf(-2.0 * i as f64 / 127.0)
    }
    for (rule, regime, factor) in [
        (Rule::adamw(), Regime::fixed(0.01), 1.3),
        (Rule::lion(), Regime::fixed(0.003), 1.3),
        (Rule::sgdm(0.9), Regime::seesaw(), 1.3),
        (Rule::adamw(), Regime::seesaw(), 1.5),
        (Rule::nadamw(), Regime::norm_ratio(), 1.5),
        (Rule::sgdm(0.9), Regime::barzilai_borwein(SecantForm::Short), 4.0),
        (Rule::rmsprop(), Regime::adgd(), 2.0),
        (Rule::sgdm(0.5), Regime::curvature(CurvatureForm::Short), 2.0),
    ] {
        let spec = Spec::new(rule, regime, tensors(4, &[128]));
        let pairs = every_path(std::slice::from_ref(&spec)).into_iter().zip(every_path(&[in_8_bits(spec.clone())]));
        for (floats, codes) in pairs {
            let path = codes.path();
            let [floats, codes] = [floats, codes].map(|mut run| {
                for step in 0..150 {
                    let gradient = |w: &[f32]| -> Vec<f32> {
                        let mut numbers = Numbers(step + 1);
                        let elements = w.iter().enumerate();
                        elements.map(|(i, w)| curvature(i) as f32 * w + 0.01 * numbers.next()).collect()
                    };
                    let w = run.params().remove(0);
                    run.step(&[gradient(&w)]);
                    if regime.needs_looks() {
                        let w = run.params().remove(0);
                        run.look(&[gradient(&w)]);
                    }
                }
                loss(&run.params()[0])
            });
            let what = format!("{path}, {}, {}: {codes} of {floats}", rule.name(), regime.name());
            assert!(codes <= factor * floats && floats <= factor * codes, "{what}");
        }
    }
}

/// Returns rules and regimes with every kind of state beside codes.
fn kept() -> Vec<Spec> {
    let spec = |seed, rule, regime, name: &str| {
        in_8_bits(Spec::new(rule, regime, tensors(seed, &[1, 0, 40, 4129])).named(name))
    };
    let half = |spec: Spec, rounding| spec.stored(Element::Bf16, Element::Bf16, rounding);
    let averaged = |seed, name: &str| {
        let averaging = Averaging::Running { start: 2 };
        Spec { averaging, ..spec(seed, Rule::sgdm(0.9), Regime::seesaw(), name) }
    };
    vec![
        half(spec(3, Rule::adamw(), Regime::seesaw(), "masters"), Rounding::Masters),
        half(spec(10, Rule::sgd(), Regime::seesaw(), "masters alone"), Rounding::Masters),
        half(averaged(11, "averaged masters"), Rounding::Masters),
        half(spec(4, Rule::lion(), Regime::norm_ratio(), "stochastic"), Rounding::Stochastic { seed: 3 }),
        spec(5, Rule::sgdm(0.9), Regime::barzilai_borwein(SecantForm::Geometric), "secant"),
        averaged(6, "averaged"),
        Spec {
            averaging: Averaging::ScheduleFree,
            ..spec(7, Rule::adamw_without_momentum(), Regime::seesaw(), "free")
        },
        spec(8, Rule::sgd(), Regime::seesaw(), "nothing"),
        Spec { state: State::F32, ..spec(9, Rule::adamw(), Regime::seesaw(), "floats") },
    ]
}

#[test]
fn skipped_steps_absent_tensors_and_frozen_groups_keep_every_bit() {
    let specs = kept();
    let setup = Setup { absent_gradients: true, ..Setup::default() };
    for mut run in every_path_with(&specs, setup) {
        (0..3).for_each(|step| run.step(&noise(&specs, step)));
        let (params, before) = (bits(&run.params()), codes(&*run));
        let mut bad = noise(&specs, 3);
        bad[2][7] = f32::NAN;
        run.step(&bad);
        assert!(codes(&*run) == before && bits(&run.params()) == params, "{}: a skipped step", run.path());
        run.step_without(&noise(&specs, 4), &[3]);
        let after = codes(&*run);
        let of = |all: &[(String, Vec<u8>)], tensor: &str| -> Vec<Vec<u8>> {
            let own = all.iter().filter(|(name, _)| name.ends_with(&format!("/{tensor}")));
            own.map(|(_, bytes)| bytes.clone()).collect()
        };
        assert!(of(&after, "masters/3") == of(&before, "masters/3"), "{}: an absent tensor", run.path());
        assert!(of(&after, "masters/2") != of(&before, "masters/2"), "{}: its neighbour", run.path());
        run.control("stochastic", &|controls| controls.frozen = true);
        run.step(&noise(&specs, 5));
        assert!(of(&codes(&*run), "stochastic/3") == of(&after, "stochastic/3"), "{}: a frozen group", run.path());
    }
}

/// An element whose parameter would leave the range keeps its momentum, up to one code at the block's new scale. Its neighbours move.
#[test]
fn an_element_out_of_range_keeps_its_momentum() {
    let regime = Regime::fixed(1.0);
    let spec = in_8_bits(Spec::new(Rule::sgdm(0.5), regime, vec![vec![1.0; 40]]));
    let spec = spec.stored(Element::F16, Element::F32, Rounding::Nearest);
    for mut run in every_path(std::slice::from_ref(&spec)) {
        run.step(&[vec![1.0; 40]]);
        let moment = |run: &dyn Run| decoded(&run.checkpoint(), Moment::First, "group/0").expect("codes");
        let before = moment(&*run);
        let mut grads = vec![1.0; 40];
        grads[5] = 1e6;
        run.step(&[grads]);
        let after = moment(&*run);
        let flag = run.records().records.iter().any(|record| record.overflow.is_some());
        assert!(flag, "{}", run.path());
        assert_close(run.path(), after[5], before[5], 0.02 * before[5]);
        assert_close(run.path(), after[6], 1.5, 0.03);
        assert!(run.params()[0][5] == 0.0, "{}", run.path());
    }
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let specs = kept();
    let steps = |run: &mut dyn Run, range: std::ops::Range<u64>| range.for_each(|step| run.step(&noise(&specs, step)));
    let runs = every_path(&specs).into_iter().zip(every_path(&specs));
    for (mut whole, mut resumed) in runs {
        steps(&mut *whole, 0..4);
        let checkpoint = whole.checkpoint();
        steps(&mut *whole, 4..9);
        resumed.restore(&checkpoint).expect("fits");
        assert!(resumed.checkpoint().to_bytes() == checkpoint.to_bytes(), "{}", resumed.path());
        steps(&mut *resumed, 4..9);
        assert!(resumed.checkpoint().to_bytes() == whole.checkpoint().to_bytes(), "{}", whole.path());
    }
    // A checkpoint restores the same codes on every path.
    let mut host = CpuRun::new(&specs);
    steps(&mut host, 0..4);
    let checkpoint = host.checkpoint();
    let mut others = every_path(&specs);
    others.extend(at_odd_places(&specs));
    for mut run in others {
        run.restore(&checkpoint).expect("fits");
        assert!(codes(&*run) == codes(&host), "{}", run.path());
    }
}

#[test]
fn a_checkpoint_says_what_it_keeps_and_is_converted_where_that_is_accepted() {
    let spec = |state| {
        let of = |rule, name: &str| {
            let spec = Spec::new(rule, Regime::seesaw(), tensors(2, &[33, 5, 64])).named(name);
            Spec { state, ..spec }
        };
        let masters = |rule, element, name: &str| of(rule, name).stored(element, element, Rounding::Masters);
        // The groups with 16 bits come first, so that their state ends before that of the others begins.
        vec![
            masters(Rule::sgd(), Element::Bf16, "masters"),
            masters(Rule::lion(), Element::F16, "masters of f16"),
            of(Rule::adamw(), "both"),
            of(Rule::sgdm(0.9), "momentum"),
            of(Rule::rmsprop(), "squares"),
        ]
    };
    let (floats, in_codes) = (spec(State::F32), spec(State::Bits8));
    for (from, to, name, longer) in [(&floats, &in_codes, "8 bits", "8 bits"), (&in_codes, &floats, "f32", "16 bits")] {
        let mut source = CpuRun::new(from);
        (0..3).for_each(|step| source.step(&noise(from, step)));
        let checkpoint = source.checkpoint();
        for mut run in every_path(to) {
            let before = run.checkpoint().to_bytes();
            let error = assert_refused(
                run.restore(&checkpoint),
                &["state of group \"masters\"", "F32", "Bits8", "Differences::settings()"],
            );
            assert_eq!(error.kind(), ErrorKind::CheckpointDiffers);
            assert!(run.checkpoint().to_bytes() == before, "{}: changed", run.path());
            let lines = run.restore_with(&checkpoint, Differences::none().settings()).expect("converts");
            let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
            for expected in [
                format!("group \"both\": what is kept of momentum goes on in {name}"),
                format!("group \"both\": what is kept of second moment goes on in {name}"),
                format!("group \"momentum\": what is kept of momentum goes on in {name}"),
                format!("group \"squares\": what is kept of second moment goes on in {name}"),
                format!("group \"masters\": what is kept of remainders goes on in {longer}"),
                format!("group \"masters of f16\": what is kept of remainders goes on in {longer}"),
            ] {
                assert!(lines.contains(&expected), "{expected} in {lines:#?}");
            }
            assert!(!lines.iter().any(|line| line.contains("anew") || line.contains("dropped")), "{lines:#?}");
            // The codes represent the moments.
            let (here, there) = (run.checkpoint(), &checkpoint);
            let (with_codes, with_floats) = if name == "f32" { (there, &here) } else { (&here, there) };
            for (moment, entry) in [(Moment::First, "momentum"), (Moment::Second, "second_moment")] {
                let values: Vec<f32> =
                    bytemuck::pod_collect_to_vec(with_floats.entry(&format!("{entry}/both/0")).expect("floats"));
                let codes = decoded(with_codes, moment, "both/0").expect("codes");
                let largest = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (value, code) in values.iter().zip(codes) {
                    let allowed = if name == "f32" { 0.0 } else { 0.009 * f64::from(largest) };
                    assert_close(format_args!("{}, {entry}", run.path()), code, *value, allowed);
                }
            }
            // The remainders represent the masters.
            for (element, group) in [(Element::Bf16, "masters"), (Element::F16, "masters of f16")] {
                let tensor = format!("{group}/0");
                let short = short_masters(with_codes, element, &tensor).expect("masters");
                let long = masters(&with_floats.to_bytes(), element, &tensor);
                for (short, long) in short.into_iter().zip(long) {
                    // The error is half a unit, or a whole one beside the next parameter.
                    let allowed = if name == "f32" { 0.0 } else { short_unit(element, short) };
                    assert_close(format_args!("{}, {element:?}", run.path()), long, short, allowed);
                }
            }
            run.step(&noise(to, 3));
        }
    }
}

/// Switching on an average converts the remainders to 16 bits, which represent the same masters, and switching it off converts them back.
#[test]
fn remainders_have_16_bits_where_an_average_is_kept() {
    let of = |averaging| {
        let spec = in_8_bits(Spec::new(Rule::adamw(), Regime::seesaw(), tensors(2, &[33, 64])));
        vec![Spec { averaging, ..spec }.stored(Element::Bf16, Element::Bf16, Rounding::Masters)]
    };
    let (off, on) = (of(Averaging::Off), of(Averaging::polynomial_decay()));
    let mut source = CpuRun::new(&off);
    (0..3).for_each(|step| source.step(&noise(&off, step)));
    let expected = short_masters(&source.checkpoint(), Element::Bf16, "group/1").expect("masters");
    for mut run in every_path(&on) {
        let lines = run.restore_with(&source.checkpoint(), Differences::none().settings()).expect("converts");
        let line = "what is kept of remainders goes on in 16 bits";
        assert!(lines.iter().any(|one| one.to_string().contains(line)), "{lines:#?}");
        let converted = run.checkpoint();
        let found = masters(&converted.to_bytes(), Element::Bf16, "group/1");
        assert!(found.iter().zip(&expected).all(|(&a, &b)| f64::from(a) == b), "{}", run.path());
        // The average started from the parameters.
        let averages: Vec<f32> = bytemuck::pod_collect_to_vec(converted.entry("averages/group/1").expect("averages"));
        assert!(bits(&[averages]) == bits(&[found]), "{}", run.path());
        let mut back = CpuRun::new(&off);
        back.restore_with(&converted, Differences::none().settings()).expect("converts");
        let found = short_masters(&back.checkpoint(), Element::Bf16, "group/1").expect("masters");
        assert!(found == expected, "{}", run.path());
        // A 24-bit master may lie between two parameters, where a 32-bit one loses its last place.
        run.swap_averages();
        run.swap_averages();
        for (found, &expected) in masters(&run.checkpoint().to_bytes(), Element::Bf16, "group/1").iter().zip(&expected)
        {
            assert_close(run.path(), *found, expected, expected.abs() * f64::from(f32::EPSILON));
        }
        run.step(&noise(&on, 3));
    }
}

#[test]
fn what_cannot_be_in_8_bits_is_refused() {
    let w = vec![0.5f32; 12];
    let of = |rule: Rule| {
        let group = Group::new("all").shaped_tensor("w", &[3, 4], &w, &w);
        OptimizerBuilder::new(rule).regime(Regime::fixed(0.1)).state(State::Bits8).group(group)
    };
    for rule in [Rule::amsgrad(), Rule::adagrad(), Rule::muon()] {
        let words = ["group \"all\"", rule.name(), "state", "8bit", "State::F32"];
        assert_eq!(assert_refused(of(rule).build_cpu(), &words).kind(), ErrorKind::Build);
    }
    // A group's setting overrides the builder's.
    let own = Group::new("all").shaped_tensor("w", &[3, 4], &w, &w).state(State::F32);
    let builder = OptimizerBuilder::new(Rule::muon()).regime(Regime::fixed(0.1)).state(State::Bits8);
    let optimizer = builder.group(own).build_cpu().expect("builds");
    assert_eq!(optimizer.groups()[0].state, State::F32);
    // Rules without state ignore the setting.
    assert_eq!(of(Rule::sgd()).build_cpu().expect("builds").groups()[0].state, State::Bits8);
    for gpu in &devices() {
        let tuning = Tuning { workgroup_size: 4, ..gpu.tuning() };
        let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
        let build = |state| {
            let specs = [Spec { state, ..Spec::new(Rule::adamw(), Regime::fixed(0.1), tensors(1, &[9])) }];
            GpuRun::try_with_room(&gpu, &specs, packed(&specs, 0, 0), &[], |builder| builder).map(drop)
        };
        build(State::F32).expect("builds");
        assert_refused(build(State::Bits8), &["workgroup_size", "4", "8"]);
    }
}

/// Ranks draw their own random bits. They end near a single optimizer with all tensors, and agree on every rate.
#[test]
fn ranks_with_8_bit_state_agree() {
    let spec = in_8_bits(Spec::new(Rule::adamw(), Regime::seesaw(), tensors(6, &[256, 256])));
    let parts = [0, 1].map(|rank| Spec { tensors: vec![spec.tensors[rank].clone()], ..spec.clone() });
    let rank = |at: usize| {
        let setup = Setup { shard: Some((at as u32, 2)), ..Setup::default() };
        every_path_with(std::slice::from_ref(&parts[at]), setup)
    };
    let alone = every_path(std::slice::from_ref(&spec));
    for ((mut alone, mut first), mut second) in alone.into_iter().zip(rank(0)).zip(rank(1)) {
        for step in 0..20 {
            let grads = noise(std::slice::from_ref(&spec), step);
            let parts = [vec![grads[0].clone()], vec![grads[1].clone()]];
            let sums = [first.measure(&parts[0]), second.measure(&parts[1])];
            let combined = wgpu_optim::ShardSums::combine(&sums).expect("sums of one step");
            first.try_apply(&parts[0], &combined).expect("applies");
            second.try_apply(&parts[1], &combined).expect("applies");
            alone.step(&grads);
            assert_eq!(first.rates(), second.rates(), "{}, step {step}", first.path());
        }
        let together = [first.params(), second.params()].concat();
        let start = &spec.tensors;
        let way = |to: &[Vec<f32>], from: &[Vec<f32>]| {
            let pairs = to.iter().flatten().zip(from.iter().flatten());
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let (off, all) = (way(&together, &alone.params()), way(&alone.params(), start));
        assert!(off <= 0.1 * all, "{}: {off} of {all}", alone.path());
    }
}

/// Multiplying the gradients by a power of two changes no bit of the parameters.
#[test]
fn a_power_of_two_on_gradients_changes_no_step() {
    let decay = WeightDecay::Decoupled(0.01);
    let spec = Spec { decay, ..Spec::new(Rule::adamw(), Regime::fixed(0.01), tensors(6, &[100])) };
    let tiny = AdamW { epsilon: 1e-30, ..AdamW::default() };
    let spec = in_8_bits(Spec { rule: Rule::AdamW(tiny), ..spec });
    let specs = std::slice::from_ref(&spec);
    for ((mut run, mut small), mut large) in every_path(specs).into_iter().zip(every_path(specs)).zip(every_path(specs))
    {
        for step in 0..10 {
            let grads = noise(specs, step);
            run.step(&grads);
            small.step(&times(2f32.powi(-20), &grads));
            large.step(&times(2f32.powi(20), &grads));
        }
        for (what, other) in [("2^-20", small), ("2^20", large)] {
            assert!(bits(&other.params()) == bits(&run.params()), "{}, {what}", run.path());
        }
    }
}

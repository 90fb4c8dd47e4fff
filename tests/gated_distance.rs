//! Promises of GatedDistance: the rate rises only where the norm fell and falls only where it rose, exactly; it is what the f64 oracle says,
//! whatever the geometry and however long the tensors; no power of two in the loss, no skipped step and no split of the parameters
//! changes what it does. The golden trace is in `golden_trace.rs`.
//!
//! Beside the kept fault below, tried once by hand: a gate that lets through what the distance proposes where the norm fell, a sketch whose
//! buckets start at the block, and (in `src/cpu/finish_sketch.rs`) a way that is not begun anew.

mod common;

use common::Numbers;
use common::oracle::Oracle;
use common::run::{CpuRun, GpuRun, Run, Spec, alone, bits, devices, every_path, packed};
use wgpu_optim::gpu::{PassName, Tuning};
use wgpu_optim::layout::{GroupState, gated_phases};
use wgpu_optim::{
    Averaging, Error, GatedDistance, Gpu, Group, OptimizerBuilder, Regime, Rule, Schedule,
    StepMode, WeightDecay,
};

fn rules() -> [Rule; 8] {
    let dampened = Rule::Sgdm {
        momentum: 0.8,
        dampening: 0.3,
        nesterov: false,
    };
    [
        Rule::sgd(),
        Rule::sgdm(0.9),
        dampened,
        Rule::nesterov(0.9),
        Rule::sign_sgd(),
        Rule::signum(0.9),
        Rule::adamw(),
        Rule::lion(),
    ]
}

fn group_per_rule(regime: Regime, tensor: &[f32]) -> Vec<Spec> {
    rules()
        .into_iter()
        .enumerate()
        .map(|(i, rule)| {
            Spec::new(rule, regime, vec![tensor.to_vec()]).named(format!("{i}, {}", rule.name()))
        })
        .collect()
}

/// A gate at work: the last norm and rate, once it runs.
#[derive(Default)]
struct Watch {
    last: Option<(f32, f32)>,
    ran: bool,
    rises: usize,
    falls: usize,
    violations: usize,
}

impl Watch {
    /// A step with a gradient of this norm, at this rate; `runs` after the ignition.
    fn see(&mut self, norm: f32, rate: f32, runs: bool) {
        if norm == 0.0 || !norm.is_finite() {
            return;
        }
        // The step that ends the ignition is not behind the gate yet.
        if let (true, Some((last_norm, last_rate))) = (self.ran, self.last) {
            self.rises += usize::from(rate > last_rate);
            self.falls += usize::from(rate < last_rate);
            let wrong = norm <= last_norm && rate < last_rate
                || norm >= last_norm && rate > last_rate
                || norm != last_norm && (norm / last_norm).ln().abs() > 1e-5 && rate == last_rate;
            self.violations += usize::from(wrong);
        }
        self.last = Some((norm, rate));
        self.ran = runs;
    }
}

/// Norms that wander over 24 orders of magnitude, stay, vanish, and are none.
fn fuzzed_norm(norm: &mut f32, numbers: &mut Numbers) -> f32 {
    let kind = numbers.next();
    let spread = match kind {
        x if x < -0.95 => return 0.0,
        x if x < -0.9 => return f32::INFINITY,
        x if x < -0.85 => return *norm,
        x if x < -0.3 => 0.01,
        x if x < 0.7 => 0.3,
        _ => 3.0,
    };
    *norm = (*norm * (spread * 2.0 * numbers.next()).exp()).clamp(1e-12, 1e12);
    *norm
}

fn fuzz(run: &mut dyn Run, groups: usize, steps: usize, seed: u64) -> Vec<Watch> {
    let mut numbers = Numbers(seed);
    let mut norm = 1.0;
    let mut watches: Vec<Watch> = (0..groups).map(|_| Watch::default()).collect();
    let mut last: Vec<GroupState> = run.states();
    for _ in 0..steps {
        let norm = fuzzed_norm(&mut norm, &mut numbers);
        // One of the elements carries most, so that no rounding of the norm hides what was meant.
        let gradient = vec![norm, 0.1 * norm * numbers.next(), 0.1 * norm];
        run.step(&vec![gradient; groups]);
        let states = run.states();
        let records = run.records().records;
        for (group, watch) in watches.iter_mut().enumerate() {
            let (state, record) = (&states[group], &records[group]);
            if record.flags.skipped() || record.flags.zero_gradient() {
                assert_eq!(state.gated_rate.to_bits(), last[group].gated_rate.to_bits());
                assert_eq!(state.window_steps, last[group].window_steps);
                continue;
            }
            assert!(state.gated_rate.is_finite() && state.gated_rate > 0.0);
            assert!(record.learning_rate.is_finite() && record.learning_rate > 0.0);
            // Along signs the rate has the mean magnitude in it, which the gate does not guard.
            if !rules()[group].is_scale_free() {
                assert_eq!(state.gated_rate, record.learning_rate);
            }
            let most = if watch.ran { 2.0 } else { 8.0 };
            assert!(
                last[group].gated_rate == 0.0
                    || state.gated_rate <= most * last[group].gated_rate * 1.000_001
            );
            let runs = state.phase == gated_phases::RUN;
            watch.see(record.norm, state.gated_rate, runs);
        }
        last = states;
    }
    watches
}

#[test]
fn the_rate_rises_only_where_the_norm_fell_and_falls_only_where_it_rose() {
    let _alone = alone();
    let specs = group_per_rule(Regime::gated_distance(), &[1.0, -2.0, 0.5]);
    for seed in 1..=20 {
        let watches = fuzz(&mut CpuRun::new(&specs), specs.len(), 300, seed);
        for (watch, spec) in watches.iter().zip(&specs) {
            let Watch { rises, falls, .. } = watch;
            assert!(rises.min(falls) > &60, "{}: {rises} {falls}", spec.name);
            assert_eq!(watch.violations, 0, "seed {seed}, {}", spec.name);
        }
    }
    for gpu in devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
        let watches = fuzz(&mut run, specs.len(), 120, 5);
        for (watch, spec) in watches.iter().zip(&specs) {
            assert!(watch.rises.min(watch.falls) > 20, "{}", spec.name);
            assert_eq!(watch.violations, 0, "{}, {}", run.path(), spec.name);
        }
    }
}

/// Seeded fault: what has no gate does not pass.
#[test]
fn the_watch_sees_a_rate_that_falls_with_the_norm() {
    let mut watch = Watch::default();
    for (norm, rate) in [(1.0, 0.1), (0.9, 0.1), (1.1, 0.2), (1.1, 0.1), (1.0, 0.2)] {
        watch.see(norm, rate, true);
    }
    assert_eq!(watch.violations, 3);
}

/// A pull that fades, a turn of it and noise: raises, an alarm, windows that end.
fn gradient(len: usize, t: usize, noise: &mut Numbers) -> Vec<f32> {
    let pull = 1.0 / (1.0 + (t as f32 / 6.0).powi(2));
    (0..len)
        .map(|i| pull * ((i % 97) as f32).cos() + 0.2 * noise.next())
        .collect()
}

/// Each rate is an f32 sum over the windows' steps of f32 sums of up to 20,000 elements. A step that went missing, or a bucket, or a
/// sign, is off by more than 1e-3.
const TOLERANCE: f64 = 4e-5;

fn follow_the_oracle(run: &mut dyn Run, specs: &[Spec], steps: usize) {
    let lengths: Vec<usize> = specs.iter().map(|spec| spec.tensors[0].len()).collect();
    let mut noise = Numbers(9);
    let mut oracles: Vec<Oracle> = specs.iter().map(Spec::oracle).collect();
    let mut last = vec![None; specs.len()];
    let mut restarts = 0.0;
    for t in 0..steps {
        let grads: Vec<Vec<f32>> = lengths
            .iter()
            .map(|&len| gradient(len, t, &mut noise))
            .collect();
        run.step(&grads);
        let records = run.records().records;
        for (i, (oracle, record)) in oracles.iter_mut().zip(&records).enumerate() {
            let out = oracle.step(&grads[i]);
            let what = format!("{}, {}, step {t}: {record}", run.path(), specs[i].name);
            let error = (f64::from(record.learning_rate) / out.rate).ln().abs();
            assert!(
                error <= TOLERANCE,
                "{what}, but the oracle says {}: off by {error:e}",
                out.rate
            );
            if let Some(last) = last[i].replace(record.ln_rate) {
                let error = (record.change() - (record.ln_rate - last)).abs();
                assert!(
                    error <= 4e-6,
                    "{what}: the terms add up to {}",
                    record.change()
                );
            }
            restarts += record.restart_term.abs();
        }
    }
    assert!(restarts > 0.0, "no window ended");
    for ((params, oracle), spec) in run.params().iter().zip(&oracles).zip(specs) {
        let largest = oracle.w.iter().fold(0f64, |a, b| a.max(b.abs()));
        for (i, (w, expected)) in params.iter().zip(&oracle.w).enumerate() {
            assert!(
                (f64::from(*w) - expected).abs() <= TOLERANCE * largest,
                "{}, {}, parameter {i}: {w} instead of {expected}",
                run.path(),
                spec.name
            );
        }
        assert!(oracle.gated.runs(), "{} never ran", spec.name);
    }
    // The sketch and the average leave each other alone.
    for (average, oracle) in run.averages().iter().zip(&oracles) {
        for (got, expected) in average.iter().zip(oracle.average.iter().flatten()) {
            assert!((f64::from(*got) - expected).abs() <= TOLERANCE);
        }
    }
}

/// Geometries whose lanes meet several buckets each, one, and one together.
fn geometries(gpu: &Gpu) -> Vec<Gpu> {
    let most = gpu.device().limits().max_compute_invocations_per_workgroup;
    [(1, 5), (8, 2), (64, 3), (128, 2), (256, 4)]
        .into_iter()
        .filter(|&(workgroup_size, _)| workgroup_size <= most)
        .map(|(workgroup_size, quads_per_invocation)| {
            let tuning = Tuning {
                workgroup_size,
                quads_per_invocation,
                finish_workgroup_size: workgroup_size,
                ..gpu.tuning()
            };
            gpu.clone().with_tuning(tuning).expect("a geometry")
        })
        .collect()
}

#[test]
fn every_rule_follows_the_oracle_at_every_length() {
    let _alone = alone();
    let mut numbers = Numbers(3);
    for some_rules in rules().chunks(6) {
        let mut specs = Vec::new();
        for &rule in some_rules {
            for len in [1, 61, 255, 256, 257, 1003] {
                let tensor = numbers.vec(len);
                specs.push(
                    Spec::new(rule, Regime::gated_distance(), vec![tensor]).named(format!(
                        "{}, {len}, {}",
                        rule.name(),
                        specs.len()
                    )),
                );
            }
        }
        for mut run in every_path(&specs) {
            follow_the_oracle(run.as_mut(), &specs, 70);
        }
    }
}

#[test]
fn every_geometry_follows_the_oracle() {
    let _alone = alone();
    let mut numbers = Numbers(3);
    // The second is more blocks than are added up at once, and starts at no multiple of four.
    let specs: Vec<Spec> = [(Rule::sgd(), 5), (Rule::sgdm(0.9), 20_011)]
        .into_iter()
        .map(|(rule, len)| {
            Spec::new(rule, Regime::gated_distance(), vec![numbers.vec(len)]).named(rule.name())
        })
        .collect();
    for gpu in devices() {
        for gpu in geometries(gpu) {
            let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 3, 2));
            let passes: Vec<PassName> = run.optimizer.dispatches().iter().map(|d| d.pass).collect();
            let last = [PassName::FoldSketches, PassName::FinishSketch];
            let folds = gpu.tuning().block_elements() < 600;
            assert_eq!(passes.ends_with(&last), folds, "{passes:?}");
            follow_the_oracle(&mut run, &specs, 70);
            run.assert_surroundings_untouched();
        }
    }
    follow_the_oracle(&mut CpuRun::new(&specs), &specs, 70);
}

#[test]
fn decay_clip_maximize_schedule_and_constants_follow_the_oracle() {
    let _alone = alone();
    let mut numbers = Numbers(6);
    let own = GatedDistance {
        exponent: 0.25,
        first_step: 1e-2,
        energy_factor: Some(2.0),
    };
    for some_rules in rules().chunks(6) {
        let mut specs = Vec::new();
        for &rule in some_rules {
            let spec = |name: &str, numbers: &mut Numbers| {
                Spec::new(rule, Regime::gated_distance(), vec![numbers.vec(40)])
                    .named(format!("{name}, {}", specs.len()))
            };
            let mut cases = [
                spec("decoupled", &mut numbers),
                spec("coupled and clipped", &mut numbers),
                spec("climbs, scheduled", &mut numbers),
                spec("constants", &mut numbers),
            ];
            cases[0].decay = WeightDecay::Decoupled(0.01);
            cases[1].decay = WeightDecay::Coupled(0.01);
            cases[1].clip = 1.5;
            cases[1].averaging = Averaging::Running { start: 0 };
            cases[2].maximize = true;
            cases[2].schedule = Schedule::InverseSqrt { warmup: 5 };
            cases[3].regime = Regime::GatedDistance(own);
            for mut case in cases {
                case.name = format!("{}, {}", specs.len(), case.name);
                specs.push(case);
            }
        }
        for mut run in every_path(&specs) {
            follow_the_oracle(run.as_mut(), &specs, 70);
        }
    }
}

/// Parameters, and so steps, whose squares no f32 holds.
#[test]
fn steps_of_any_size_are_measured() {
    let _alone = alone();
    let mut specs = Vec::new();
    for size in [1e25f32, 1e-25] {
        let tensor = Numbers(2).vec(300).iter().map(|w| size * w).collect();
        let first_step = if size < 1.0 { 1e-25 } else { 1e-3 };
        let regime = Regime::GatedDistance(GatedDistance {
            first_step,
            ..GatedDistance::default()
        });
        specs.push(Spec::new(Rule::sgd(), regime, vec![tensor]).named(format!("{size:e}")));
    }
    for mut run in every_path(&specs) {
        follow_the_oracle(run.as_mut(), &specs, 70);
    }
}

#[test]
fn rescaling_the_loss_by_a_power_of_two_changes_no_bit_of_the_steps() {
    let _alone = alone();
    let mut specs = group_per_rule(Regime::gated_distance(), &Numbers(4).vec(300));
    // AdamW's ε has a size.
    specs.retain(|spec| spec.rule != Rule::adamw());
    for power in [-20, 24] {
        let scale = 2f32.powi(power);
        for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
            let mut noise = Numbers(8);
            for t in 0..70 {
                let g = gradient(300, t, &mut noise);
                let scaled: Vec<f32> = g.iter().map(|g| scale * g).collect();
                run.step(&vec![g; specs.len()]);
                other.step(&vec![scaled; specs.len()]);
            }
            let running = run.states().iter().all(|s| s.phase == gated_phases::RUN);
            assert!(running, "{}", run.path());
            assert_eq!(bits(&run.params()), bits(&other.params()), "{}", run.path());
            for (i, (a, b)) in run.rates().iter().zip(other.rates()).enumerate() {
                // Along signs the magnitude takes the scale out of the rate again.
                let expected = if rules()[i].is_scale_free() {
                    b
                } else {
                    b * scale
                };
                assert_eq!(*a, expected, "{}, {}", run.path(), specs[i].name);
            }
        }
    }
}

#[test]
fn a_skipped_step_leaves_no_trace_in_the_way() {
    let _alone = alone();
    let specs = group_per_rule(Regime::gated_distance(), &Numbers(4).vec(300));
    for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        let mut noise = Numbers(8);
        for t in 0..40 {
            let grads = vec![gradient(300, t, &mut noise); specs.len()];
            run.step(&grads);
            other.step(&grads);
            if t % 7 == 3 {
                let mut bad = grads;
                bad[2][5] = f32::NAN;
                run.step(&bad);
            }
        }
        assert_eq!(bits(&run.params()), bits(&other.params()), "{}", run.path());
        let ways = |run: &dyn Run| -> Vec<(f32, i32)> {
            let states = run.states();
            let way = |s: &GroupState| (s.way_square_mantissa, s.way_square_exponent);
            states.iter().map(way).collect()
        };
        assert_eq!(ways(run.as_ref()), ways(other.as_ref()), "{}", run.path());
    }
}

/// However the parameters are split over tensors, and over groups that share a norm, the way is that of all of them.
#[test]
fn a_shared_norm_shares_the_way() {
    let _alone = alone();
    let lengths = [100, 301, 7, 600];
    let tensors: Vec<Vec<f32>> = lengths.map(|len| Numbers(len as u64).vec(len)).into();
    for rule in rules() {
        let group = |name: &str, tensors: Vec<Vec<f32>>| {
            Spec::new(rule, Regime::gated_distance(), tensors).named(name)
        };
        let together = [group("all", vec![tensors.concat()])];
        let split = [group("all", tensors.clone())];
        let between = Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 50]]);
        let shared = [
            group("a", vec![tensors[0].clone()]).sharing("norm"),
            between.named("between"),
            group("b", tensors[1..].to_vec()).sharing("norm"),
        ];
        let paths = every_path(&together)
            .into_iter()
            .zip(every_path(&split))
            .zip(every_path(&shared));
        for ((mut together, mut split), mut shared) in paths {
            let mut noise = Numbers(1);
            for t in 0..40 {
                let g = gradient(1008, t, &mut noise);
                let mut parts = Vec::new();
                let mut start = 0;
                for len in lengths {
                    parts.push(g[start..start + len].to_vec());
                    start += len;
                }
                split.step(&parts);
                parts.insert(1, vec![0.1; 50]);
                shared.step(&parts);
                together.step(&[g]);
                let expected = together.rates()[0];
                let got = [split.rates()[0], shared.rates()[0], shared.rates()[2]];
                assert_eq!(got[1], got[2], "{}", shared.path());
                for got in got {
                    let error = f64::from(got / expected).ln().abs();
                    assert!(error <= TOLERANCE, "{}, step {t}: {error}", split.path());
                }
            }
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let _alone = alone();
    let w = [1.0f32; 4];
    let gated = |name: &str| {
        Group::new(name)
            .regime(Regime::gated_distance())
            .tensor(name, &w[..], &w[..])
    };
    let refused = |groups: Vec<Group<_>>, mode| {
        let builder = OptimizerBuilder::new(Rule::sgd())
            .step_mode(mode)
            .global_norm();
        groups
            .into_iter()
            .fold(builder, OptimizerBuilder::group)
            .build_cpu()
            .map(|_| ())
    };
    assert_eq!(
        refused(vec![gated("a"), gated("b")], StepMode::TwoPass),
        Ok(())
    );
    for other in [
        gated("b").regime(Regime::seesaw()),
        gated("b").rule(Rule::sign_sgd()),
        gated("b").clip_norm(1.0),
    ] {
        let error = refused(vec![gated("a"), other], StepMode::TwoPass).unwrap_err();
        assert!(matches!(error, Error::MixedSketch { .. }), "{error}");
        assert!(error.to_string().contains("\"a\" and \"b\""), "{error}");
    }
    let error = refused(vec![gated("a")], StepMode::Lagged).unwrap_err();
    assert!(error.to_string().contains("TwoPass"), "{error}");
    let factor = Regime::GatedDistance(GatedDistance {
        energy_factor: Some(0.0),
        ..GatedDistance::default()
    });
    let error = refused(vec![gated("a").regime(factor)], StepMode::TwoPass).unwrap_err();
    assert!(error.to_string().contains("energy_factor"), "{error}");
}

/// Who does not ask for it does not pay for it.
#[test]
fn other_regimes_have_the_passes_that_they_had() {
    let _alone = alone();
    let specs = [Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 9]])];
    for gpu in devices() {
        let run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
        let passes: Vec<&str> = run
            .optimizer
            .dispatches()
            .iter()
            .map(|dispatch| dispatch.pass.name())
            .collect();
        let last = passes[passes.len() - 1];
        assert_eq!(last, "update_parameters", "{passes:?}");
    }
}

//! Tests of groups and of the places of tensors: settings per group, shared norms, empty tensors, many tensors at the cost of one, one buffer or
//! many, and tensors larger than a binding.
//!
//! Each of these faults was introduced by hand once and made a test fail: a window's memory that is short by a quad per block, and blocks larger than
//! a binding. These tests found two faults: a clip by the regularised norm, and inner products scaled differently within one norm.

use std::fmt::Display;

use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::PassName;
use wgpu_optim::internals::layout::Squares;
use wgpu_optim::{Averaging, Group, NormRatio, OptimizerBuilder, Record, Regime, Rule, Seesaw, WeightDecay};
use wgpu_optim_conformance::oracle::Oracle;
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Place, Run, Setup, Spec, bits, devices, every_path, every_path_with, lengths, packed, separate,
};
use wgpu_optim_conformance::{
    Numbers, assert_close, assert_refused, download, small_bindings, step, tensors, times, ulps, ulps_of_largest,
};

use crate::helpers::{Pair, assert_same_bits, bytes_of, pairs};

fn run_steps(run: &mut dyn Run, grads: &[Vec<Vec<f32>>]) {
    for grads in grads {
        run.step(grads);
    }
}

/// Returns gradients for some steps, whose norms vary by powers of four.
fn gradients(lengths: &[usize], steps: usize, seed: u64) -> Vec<Vec<Vec<f32>>> {
    let mut numbers = Numbers(seed);
    let mut step = || {
        let scale = 4f32.powi((3.0 * numbers.next()).round() as i32);
        let mut tensor = |&len: &usize| (0..len).map(|_| scale * (numbers.next() + 0.3)).collect();
        lengths.iter().map(&mut tensor).collect()
    };
    (0..steps).map(|_| step()).collect()
}

fn rate_bits(run: &dyn Run) -> Vec<u32> {
    bits(&[run.rates()]).remove(0)
}

/// Asserts that two runs have the same parameters, averages and rates, bit for bit.
#[track_caller]
fn assert_same(run: &dyn Run, other: &dyn Run, what: impl Display) {
    assert_same_bits(run, other, &what);
    assert_eq!(rate_bits(run), rate_bits(other), "{}, {what}", run.path());
}

/// Asserts that the parameters are those of the CPU path up to a few roundings.
#[track_caller]
fn assert_near(run: &dyn Run, cpu: &CpuRun, what: &str) {
    for (got, expected) in run.params().concat().into_iter().zip(cpu.params().concat()) {
        assert_close(format_args!("{}, {what}", run.path()), got, expected, 1e-6 * f64::from(expected.abs().max(1.0)));
    }
}

#[test]
fn each_group_takes_the_builders_settings_or_its_own() {
    let values = vec![0.0f32; 4];
    let own = Spec {
        decay: WeightDecay::Decoupled(0.5),
        clip: 3.0,
        maximize: false,
        ..Spec::new(Rule::signum(0.5), Regime::norm_ratio(), vec![]).named("own").sharing("together")
    };
    let builder = || {
        OptimizerBuilder::new(Rule::sgdm(0.9))
            .regime(Regime::fixed(0.25))
            .weight_decay(0.125)
            .clip_norm(2.0)
            .maximize(true)
            .averaging(Averaging::Running { start: 3 })
            .global_norm()
            .group(wgpu_optim::Group::new("inherits").tensor("a", &values, &values))
            .group(own.group().tensor("b", &values, &values))
    };
    // The defaults are the default regime, no decay, no clip, descent, and a norm for each group.
    let plain = OptimizerBuilder::new(Rule::sgd())
        .group(wgpu_optim::Group::new("plain").tensor("a", &values, &values))
        .build_cpu()
        .expect("builds");
    let config = &plain.groups()[0];
    let mut inherits = config.clone();
    inherits.name = "inherits".to_owned();
    inherits.rule = Rule::sgdm(0.9);
    inherits.regime = Regime::fixed(0.25);
    inherits.weight_decay = WeightDecay::Coupled(0.125);
    inherits.clip_norm = 2.0;
    inherits.maximize = true;
    inherits.averaging = Averaging::Running { start: 3 };
    inherits.scope = Some("global".to_owned());
    let mut owns = inherits.clone();
    owns.name = "own".to_owned();
    owns.rule = Rule::signum(0.5);
    owns.regime = Regime::norm_ratio();
    owns.weight_decay = WeightDecay::Decoupled(0.5);
    owns.clip_norm = 3.0;
    owns.maximize = false;
    owns.averaging = Averaging::Off;
    owns.scope = Some("together".to_owned());
    let optimizer = builder().build_cpu().expect("builds");
    assert_eq!(optimizer.groups(), [inherits, owns]);
    assert_eq!((config.rule, config.regime), (Rule::sgd(), Regime::seesaw()));
    assert_eq!((config.weight_decay, config.clip_norm), (WeightDecay::Coupled(0.0), f32::INFINITY));
    assert_eq!((config.maximize, &config.scope), (false, &None));
    assert_eq!(config.averaging, Averaging::Off);
}

/// Without a decay from the group or the builder, AdamW, NAdamW and AMSGrad have PyTorch's decay, and the other rules have none.
#[test]
fn adamw_decays_by_default() {
    let values = vec![0.0f32; 4];
    let decay_of = |builder: OptimizerBuilder<_>, group: wgpu_optim::Group<_>| {
        let optimizer = builder.group(group.tensor("a", &values, &values)).build_cpu().expect("builds");
        optimizer.groups()[0].weight_decay
    };
    let group = || wgpu_optim::Group::new("all");
    for rule in [Rule::all(), vec![Rule::adamw_without_momentum()]].concat() {
        let usual = match rule {
            Rule::AdamW(_) | Rule::NAdamW(_) | Rule::AmsGrad(_) => WeightDecay::Decoupled(0.01),
            _ => WeightDecay::Coupled(0.0),
        };
        assert_eq!(decay_of(OptimizerBuilder::new(rule), group()), usual, "{}", rule.name());
        assert_eq!(decay_of(OptimizerBuilder::new(Rule::sgd()), group().rule(rule)), usual, "{}", rule.name());
        // The command line uses this default.
        assert_eq!(usual.decoupled(), rule.usual_weight_decay().decoupled(), "{}", rule.name());
    }
    let adamw = || OptimizerBuilder::new(Rule::adamw());
    assert_eq!(decay_of(adamw(), group().decoupled_weight_decay(0.0)), WeightDecay::Decoupled(0.0));
    assert_eq!(decay_of(adamw().weight_decay(0.5), group()), WeightDecay::Coupled(0.5));
}

/// Each of several groups with different settings has the bits of an optimizer with this group alone.
#[test]
fn groups_do_not_disturb_each_other() {
    let mut numbers = Numbers(4);
    let specs: Vec<Spec> = [
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![numbers.vec(37), numbers.vec(5)]),
        Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![numbers.vec(100)]),
        Spec {
            decay: WeightDecay::Coupled(0.1),
            clip: 0.5,
            ..Spec::new(Rule::signum(0.8), Regime::norm_ratio(), vec![numbers.vec(3)])
        },
        Spec { maximize: true, ..Spec::new(Rule::nesterov(0.5), Regime::fixed(0.01), vec![numbers.vec(64)]) },
        Spec::new(Rule::sign_sgd(), Regime::hypergradient(), vec![numbers.vec(9)]),
    ]
    .into_iter()
    .map(|spec| spec.clone().named(spec.rule.name()))
    .collect();
    let grads = gradients(&lengths(&specs).collect::<Vec<_>>(), 6, 8);
    for (path, mut together) in every_path(&specs).into_iter().enumerate() {
        run_steps(together.as_mut(), &grads);
        let mut first = 0;
        for (i, spec) in specs.iter().enumerate() {
            let own = first..first + spec.tensors.len();
            // The tensors have the same places on the device, so that the blocks are the same.
            let alone_specs = std::slice::from_ref(spec);
            let places = packed(&specs, 0, 0)[own.clone()].to_vec();
            let mut alone: Box<dyn Run> = match path {
                0 => Box::new(CpuRun::new(alone_specs)),
                _ => Box::new(GpuRun::new(&devices()[path - 1], alone_specs, places)),
            };
            for grads in &grads {
                alone.step(&grads[own.clone()]);
            }
            let what = format!("{}, group {i}", alone.path());
            assert_eq!(bits(&alone.params()), bits(&together.params()[own.clone()]), "{what}");
            assert_eq!(rate_bits(alone.as_ref()), rate_bits(together.as_ref())[i..=i], "{what}");
            first = own.end;
        }
    }
}

/// Returns the tensors as one group, and as one group for each tensor with a shared norm.
fn one_and_many(rule: Rule, lengths: &[usize]) -> ([Spec; 1], Vec<Spec>) {
    let tensors = tensors(5, lengths);
    let many = tensors.iter().enumerate().map(|(i, tensor)| {
        Spec::new(rule, Regime::seesaw(), vec![tensor.clone()]).named(format!("{i}")).sharing("all")
    });
    let many = many.collect();
    ([Spec::new(rule, Regime::seesaw(), tensors)], many)
}

/// Three groups with the same settings and a shared norm have the bits of one group with all their tensors, where the blocks are the same. They are
/// the same when each tensor has its own buffers.
#[test]
fn groups_that_share_a_norm_are_one_group() {
    let lengths = [1001, 40, 8193];
    let grads = gradients(&lengths, 6, 6);
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()] {
        let (one, many) = one_and_many(rule, &lengths);
        let mut runs: Vec<Pair> = pairs(&one, &many).take(1).collect();
        for gpu in &devices() {
            let run = |specs: &[Spec]| Box::new(GpuRun::new(gpu, specs, separate(specs)));
            runs.push((run(&one), run(&many)));
        }
        for (one, many) in &mut runs {
            run_steps(one.as_mut(), &grads);
            run_steps(many.as_mut(), &grads);
            assert_eq!(rate_bits(many.as_ref()), [rate_bits(one.as_ref())[0]; 3], "{}, {rule:?}", one.path());
            assert_same_bits(one.as_ref(), many.as_ref(), format_args!("{rule:?}"));
        }
        // A seeded fault: the same groups with a norm for each have other rates.
        let own: Vec<Spec> = many.iter().map(|spec| Spec { norm: None, ..spec.clone() }).collect();
        let mut own = CpuRun::new(&own);
        run_steps(&mut own, &grads);
        assert_ne!(rate_bits(&own)[0], rate_bits(runs[0].0.as_ref())[0]);
    }
}

/// Blocks span the borders of packed tensors in one group, so that the sums differ by roundings only.
#[test]
fn packed_groups_that_share_a_norm_are_one_group_to_roundings() {
    let lengths = [1001, 43, 8193];
    let grads = gradients(&lengths, 6, 6);
    let (one, many) = one_and_many(Rule::sgd(), &lengths);
    for (mut one, mut many) in pairs(&one, &many) {
        run_steps(one.as_mut(), &grads);
        run_steps(many.as_mut(), &grads);
        for rate in many.rates() {
            // The rate changes six times, each time by sums that differ by a few roundings.
            assert!(ulps(rate, f64::from(one.rates()[0])) <= 40.0, "{}: {rate}", one.path());
        }
    }
}

/// Groups with one norm and different regimes each have the rate of their regime for all gradients together. The groups smooth the norm differently,
/// which must not affect the inner products that they share.
#[test]
fn groups_of_different_regimes_share_a_norm() {
    let regime = |smoothing| Regime::Seesaw(Seesaw { smoothing, ..Seesaw::default() });
    let regimes =
        [regime(0.9), regime(0.0), Regime::norm_ratio(), regime(0.99), Regime::fixed(0.5), Regime::hypergradient()];
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::signum(0.9)] {
        let spec = |(i, &regime): (usize, &Regime)| {
            Spec::new(rule, regime, tensors(31 + i as u64, &[20 + i])).named(format!("{i}")).sharing("all")
        };
        let specs: Vec<Spec> = regimes.iter().enumerate().map(spec).collect();
        let lengths: Vec<usize> = lengths(&specs).collect();
        // The norms fall and rise by up to 4^6, so that averages over one, ten and a hundred steps differ widely.
        let grads = gradients(&lengths, 12, 32).into_iter().enumerate();
        let grads: Vec<Vec<Vec<f32>>> =
            grads.map(|(t, step)| times(4f32.powi([0, -3, -6, -1, 3, -2][t % 6]), &step)).collect();
        let all: Vec<f32> = specs.iter().flat_map(|spec| spec.tensors[0].clone()).collect();
        for mut run in every_path(&specs) {
            let mut oracles: Vec<Oracle> = regimes.iter().map(|&regime| Oracle::new(rule, regime, &all)).collect();
            for (t, grads) in grads.iter().enumerate() {
                run.step(grads);
                let records = run.records().records;
                for (i, oracle) in oracles.iter_mut().enumerate() {
                    let out = oracle.step(&grads.concat());
                    let what = format_args!("{}, {rule:?}, {:?}, step {t}", run.path(), regimes[i]);
                    let ln_rate = oracle.ln_rate.expect("started");
                    // The tolerance is some ten roundings of 2^-24 per step.
                    let allowed = 1e-6 * (t + 1) as f64;
                    assert_close(
                        format_args!("{what}: {:?}, not {out:?}", records[i]),
                        records[i].ln_rate,
                        ln_rate,
                        allowed,
                    );
                }
            }
        }
    }
}

/// A clip uses the norm of the raw gradients of all groups that share it, also where one group has the decay and another the clip.
#[test]
fn a_shared_clip_goes_by_the_raw_norm() {
    let spec = |name: &str| Spec::new(Rule::sgd(), Regime::fixed(1.0), vec![vec![8.0; 8]]).named(name).sharing("all");
    for clipped_too in [false, true] {
        let decayed = Spec {
            decay: WeightDecay::Coupled(1.0),
            clip: if clipped_too { 1.0 } else { f32::INFINITY },
            ..spec("decayed")
        };
        let clipped = Spec { clip: 1.0, ..spec("clipped") };
        for mut run in every_path(&[decayed, clipped]) {
            // Over both groups ‖g‖ = 1/2 √16 = 2. With the decay it would be much larger.
            run.step(&[vec![0.5; 8], vec![0.5; 8]]);
            let records = run.records().records;
            assert_eq!(records[1].clip_factor, 0.5, "{}, {clipped_too}", run.path());
            assert_eq!(run.params()[1], vec![7.75; 8], "{}, {clipped_too}", run.path());
            let factor = if clipped_too { 0.5 } else { 1.0 };
            assert_eq!(run.params()[0], vec![8.0 - (factor * 0.5 + 8.0); 8], "{}, {clipped_too}", run.path());
        }
    }
}

#[test]
fn a_global_norm_is_over_every_group_that_names_no_other() {
    let spec = |name: &str| Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![0.0; 8]]).named(name);
    let specs = [spec("a"), spec("b").sharing("own"), spec("c")];
    let grads = [1.0f32, 2.0, 1.0].map(|g| vec![g; 8]);
    let assert_norms = |path: &str, records: Vec<Record>| {
        let norms: Vec<f32> = records.iter().map(|record| record.norm).collect();
        assert_eq!((norms[0], norms[2]), (4.0, 4.0), "{path}");
        assert!(ulps(norms[1], 32f64.sqrt()) <= 1.0, "{path}");
    };
    let mut w = [(); 3].map(|()| vec![0.0f32; 8]);
    let builder = OptimizerBuilder::new(Rule::sgd()).global_norm();
    let groups = specs.iter().zip(&w).map(|(spec, w)| spec.group().tensor(spec.tensor_name(0), w, w));
    let mut optimizer = groups.fold(builder, OptimizerBuilder::group).build_cpu().expect("builds");
    let [a, b, c] = &mut w;
    optimizer.step(&mut [a, b, c], &[&grads[0], &grads[1], &grads[2]]).expect("steps");
    assert_norms("CPU path", optimizer.drain_records().records);
    for gpu in &devices() {
        let mut run = GpuRun::with(gpu, &specs, packed(&specs, 0, 0), |builder| builder.global_norm());
        run.step(&grads);
        assert_norms(&run.path(), run.records().records);
    }
}

#[test]
fn empty_groups_and_tensors_do_nothing_and_disturb_nothing() {
    let mut numbers = Numbers(9);
    let (first, last) = (numbers.vec(5), numbers.vec(7));
    let full = [Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![first.clone(), last.clone()])];
    let with_empty = [
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![]).named("no tensor"),
        Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![], first, vec![], last, vec![]]),
        Spec::new(Rule::signum(0.9), Regime::fixed(0.25), vec![vec![]]).named("an empty tensor"),
    ];
    for (mut full, mut run) in pairs(&full, &with_empty) {
        for grads in gradients(&[5, 7], 4, 10) {
            full.step(&grads);
            run.step(&[vec![], grads[0].clone(), vec![], grads[1].clone(), vec![], vec![]]);
        }
        let params = run.params();
        assert_eq!(bits(&full.params()), bits(&[params[1].clone(), params[3].clone()]), "{}", run.path());
        assert_eq!(run.rates(), [0.0, full.rates()[0], 0.25], "{}", run.path());
        let records = run.records().records;
        assert_eq!(records.len(), 12);
        for record in &records {
            assert_eq!(record.flags.zero_gradient(), record.group != 1, "{}", run.path());
            assert_eq!(record.flags.waiting(), record.group == 0, "{}", run.path());
        }
    }
    // The optimizer has no tensor at all.
    for mut run in every_path(&with_empty[..1]) {
        run.step(&[]);
        assert!(run.records().records[0].flags.waiting(), "{}", run.path());
    }
}

fn count(optimizer: &wgpu_optim::Optimizer) -> [usize; 4] {
    [PassName::ReduceGradient, PassName::FinishReduction, PassName::LearningRate, PassName::UpdateParameters]
        .map(|pass| optimizer.dispatches().iter().filter(|dispatch| dispatch.pass == pass).count())
}

fn layers(count: usize) -> Vec<usize> {
    let mut numbers = Numbers(12);
    (0..count).map(|i| if i % 2 == 0 { 1 + (numbers.next().abs() * 900.0) as usize } else { 1 + i % 9 }).collect()
}

/// 200 tensors take as many dispatches as one.
#[test]
fn two_hundred_tensors_take_one_dispatch_per_pass() {
    let mut lengths = layers(200);
    let total: usize = lengths.iter().sum();
    lengths[0] += 4 - total % 4;
    let specs = [Spec::new(Rule::sgd(), Regime::seesaw(), tensors(13, &lengths))];
    let grads = gradients(&lengths, 3, 14);
    let mut cpu = CpuRun::new(&specs);
    run_steps(&mut cpu, &grads);
    for gpu in &devices() {
        let tight = packed(&specs, 0, 0);
        let mut odd_start = packed(&specs, 1, 0);
        for place in &mut odd_start {
            place.params.1 += 4;
        }
        // Each tensor starts at a multiple of 64 elements, as an allocator would place it.
        let mut at = 0;
        let padded: Vec<Place> = lengths
            .iter()
            .map(|&len| {
                let place = Place { params: (0, at), grads: (1, at) };
                at += len.next_multiple_of(64);
                place
            })
            .collect();
        for (name, places, windows) in [("tight", tight, 1), ("odd start", odd_start, 2), ("padded", padded, 2)] {
            let mut run = GpuRun::new(gpu, &specs, places);
            assert_eq!(count(&run.optimizer), [windows, 1, 1, windows], "{name}");
            run_steps(&mut run, &grads);
            run.assert_surroundings_untouched();
            let rate = f64::from(run.rates()[0]);
            assert!(ulps(cpu.rates()[0], rate) <= 20.0, "{name}: {rate} but {} on the CPU path", cpu.rates()[0]);
            assert_near(&run, &cpu, name);
        }
        // With separate buffers each tensor takes at least one window, and two if it has a tail.
        let apart = GpuRun::new(gpu, &specs, separate(&specs));
        assert!(count(&apart.optimizer)[0] >= 200);
    }
}

/// Parameters and gradients in one buffer (as in burn's allocator) give the bits that they give in two buffers. Interleaved tensors, with each
/// gradient directly before its parameters, do not overwrite their neighbours.
#[test]
fn one_buffer_for_parameters_and_gradients() {
    let lengths = [129, 3, 1000];
    let grads = gradients(&lengths, 5, 16);
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::nesterov(0.9)] {
        let specs = [Spec::new(rule, Regime::seesaw(), tensors(15, &lengths))];
        let mut cpu = CpuRun::new(&specs);
        run_steps(&mut cpu, &grads);
        let two = [0, 400, 800].map(|at| Place { params: (0, at), grads: (1, at + 1) });
        let one = two.map(|place| Place { grads: (0, 2000 + place.grads.1), ..place });
        let mut at = 0;
        let interleaved = lengths.map(|len| {
            at += 2 * len;
            Place { params: (0, at - len), grads: (0, at - 2 * len) }
        });
        for gpu in &devices() {
            let runs = [two, one, interleaved].map(|places| {
                let mut run = GpuRun::new(gpu, &specs, places.to_vec());
                run_steps(&mut run, &grads);
                run.assert_surroundings_untouched();
                run
            });
            assert_same(&runs[1], &runs[0], format_args!("{rule:?}"));
            assert_near(&runs[2], &cpu, "interleaved");
        }
    }
}

/// Splitting tensors of up to seven bindings into windows changes no bit.
#[test]
fn windows_of_64_kib_change_nothing() {
    let lengths = [40_000, 100_004, 8, 65_539];
    let grads = gradients(&lengths, 4, 20);
    for (whole, windowed) in devices().iter().zip(small_bindings(64 << 10)) {
        assert_eq!(whole.tuning(), windowed.tuning());
        for rule in [Rule::sgd(), Rule::sgdm(0.9)] {
            let specs = [Spec::new(rule, Regime::seesaw(), tensors(19, &lengths))];
            let mut unwindowed = GpuRun::new(whole, &specs, packed(&specs, 0, 4));
            let mut run = GpuRun::with(&windowed, &specs, packed(&specs, 0, 4), |builder| builder.record_steps(8));
            let windows = count(&run.optimizer)[0];
            assert_eq!(count(&unwindowed.optimizer), [2, 1, 1, 2]);
            assert!(windows >= 205_551 / 16_384, "{windows} windows");
            run_steps(&mut unwindowed, &grads);
            run_steps(&mut run, &grads);
            run.assert_surroundings_untouched();
            assert_same(&run, &unwindowed, format_args!("{rule:?}"));
        }
    }
}

/// A block is never larger than a binding, whatever the tuning says.
#[test]
fn blocks_larger_than_a_binding_are_cut() {
    for gpu in small_bindings(64 << 10) {
        let most = Tuning { workgroup_size: 8, quads_per_invocation: 4096, ..gpu.tuning() };
        let gpu = gpu.with_tuning(most).expect("within the tuning's range");
        let len = 40_001;
        let specs = [Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![0.0; len]])];
        // The worst case is a start one element before an alignment boundary.
        let place = Place { params: (0, 7), grads: (1, 3) };
        let mut run = GpuRun::with(&gpu, &specs, vec![place], |builder| builder.record_steps(4));
        run.step(&[vec![1.0; len]]);
        assert_eq!(run.sums()[0].square, Squares { sum: len as f32, exponent: 0 }, "{}", run.path());
        assert!(run.params()[0].iter().all(|w| *w == -0.5), "{}", run.path());
    }
}

/// The cost of a plan is linear in the number of groups that share a norm. With a loop over all of them for each group this would take minutes.
#[test]
fn twenty_thousand_groups_share_a_norm() {
    let (w, g) = ([1.0f32; 4], [0.5f32; 4]);
    let all = (0..20_000).fold(OptimizerBuilder::new(Rule::sgd()).global_norm(), |builder, index| {
        builder.group(Group::new(format!("group {index}")).tensor(format!("tensor {index}"), &w, &g))
    });
    let optimizer = all.build_cpu().expect("builds");
    assert_eq!((optimizer.groups().len(), optimizer.tensors().len()), (20_000, 20_000));
}

/// With telemetry, the rings of many tensors have the smallest possible size, and asking for more is refused.
#[test]
fn telemetry_of_many_tensors_has_a_bounded_ring() {
    let (w, g) = ([1.0f32; 1], [0.5f32; 1]);
    let many = || {
        let group = (0..100_000).fold(Group::new("all"), |group, i| group.tensor(format!("{i}"), &w, &g));
        OptimizerBuilder::new(Rule::sgd()).telemetry(true).group(group)
    };
    let held = bytes_of(|| many().build_cpu().expect("builds"));
    assert!(held < 400 << 20, "{held} bytes");
    assert_refused(many().record_steps(1 << 20).build_cpu(), &["record ring is 1048576", "telemetry of fewer groups"]);
}

/// The tensor exceeds one binding of 128 MiB, and has more elements than one workgroup could process within a driver's limit of 65,535 loop trips.
/// Every element counts, so that a lost window, block or trip shows up in the norm and in the parameters.
#[test]
fn two_to_the_25_elements_and_five() {
    let len = (1usize << 25) + 5;
    for gpu in &devices() {
        let spec = Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![0.0; len]]);
        let mut run = GpuRun::new(gpu, &[spec], vec![Place { params: (0, 0), grads: (1, 0) }]);
        // 2^25 ones and five times 1024 have the sum of squares 2^25 + 5 · 2^20, which is exact in f32, and so is every partial sum.
        let mut grads = vec![1.0f32; len];
        grads[len - 5..].fill(1024.0);
        gpu.queue().write_buffer(&run.buffers[1], 0, bytemuck::cast_slice(&grads));
        step(gpu, &run.optimizer);
        let expected = Squares { sum: (1u32 << 25) as f32 + 5.0 * (1u32 << 20) as f32, exponent: 0 };
        assert_eq!(run.sums()[0].square, expected, "{}", run.path());
        let params = download(gpu, &run.buffers[0], len);
        let wrong = params.iter().zip(&grads).position(|(w, g)| *w != -0.5 * g);
        assert_eq!(wrong, None, "{}: the first wrong parameter", run.path());
        assert_eq!(run.records().records.len(), 1);
    }
}

/// A first rate from the caller in one group does not affect the automatic first rate of another group with the same norm, nor the other way round.
#[test]
fn a_given_and_an_automatic_first_rate_share_a_norm() {
    let given = Regime::NormRatio(NormRatio { initial_rate: Some(0.125), ..NormRatio::default() });
    let specs = [
        Spec::new(Rule::sgd(), given, vec![vec![3.0; 4]]).named("given").sharing("all"),
        Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![3.0; 4], vec![0.0; 28]])
            .named("automatic")
            .sharing("all"),
    ];
    for mut run in every_path(&specs) {
        run.step(&[vec![0.5; 4], vec![0.5; 4], vec![0.5; 28]]);
        let rates = run.rates();
        assert_eq!(rates[0], 0.125, "{}", run.path());
        // ‖w₀‖ = √72 and ‖g‖ = 3 over both groups.
        let epsilon = Rule::sgd().first_step(&Averaging::Off);
        let expected = f64::from(epsilon) * (1.0 + 72f64.sqrt()) / 3.0;
        assert!(ulps(rates[1], expected) <= 4.0, "{}: {} instead of {expected}", run.path(), rates[1]);
    }
}

/// A clip over all groups has one factor, which follows from the norm of all gradients. It leaves rules, norms and rates unchanged.
#[test]
fn a_global_clip_is_over_groups_of_any_rules() {
    for decay in [0.0, 0.25] {
        let specs = [
            Spec {
                decay: WeightDecay::Coupled(decay),
                ..Spec::new(Rule::sgd(), Regime::fixed(0.5), tensors(1, &[64])).named("sgd")
            },
            Spec::new(Rule::sgdm(0.9), Regime::fixed(0.25), tensors(2, &[31, 1])).named("sgdm"),
            Spec::new(Rule::adamw(), Regime::fixed(0.125), tensors(3, &[7])).named("adamw"),
        ];
        let setup = Setup { global_clip: Some(2.0), ..Setup::default() };
        for (mut run, mut other) in every_path_with(&specs, setup).into_iter().zip(every_path(&specs)) {
            let what = format!("{}, decay {decay}", run.path());
            let mut clipped = Vec::new();
            for (t, grads) in gradients(&[64, 31, 1, 7], 6, 9).into_iter().enumerate() {
                let norm = grads.concat().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let factor = (2.0 / norm).min(1.0);
                let scaled = grads.iter().map(|g| g.iter().map(|&g| (f64::from(g) * factor) as f32).collect());
                other.step(&scaled.collect::<Vec<_>>());
                run.step(&grads);
                for record in run.records().records {
                    assert_close(format_args!("{what}, step {t}"), record.clip_factor, factor, 1e-6 * factor);
                    clipped.push(record.flags.clipped());
                }
                for (got, expected) in run.params().iter().zip(other.params()) {
                    let worst = ulps_of_largest(got, &expected, 1e-3);
                    assert!(worst <= 8.0, "{what}, step {t}: {worst} ulps");
                }
            }
            assert!(clipped.contains(&true) && clipped.contains(&false), "{what}");
        }
    }
}

//! Checkpoints in optimizers that were built differently: state that is kept has the bits of a run that was never interrupted, and state that starts
//! anew has those of a new optimizer.

use wgpu_optim::cpu::Values;
use wgpu_optim::{
    Averaging, Checkpoint, Difference, Differences, ErrorKind, Gpu, Group, LossScaler, NonFinitePolicy, Optimizer,
    OptimizerBuilder, Regime, Rule, Schedule, WeightDecay, gpu,
};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, Spec, bits, devices, every_path, every_path_with};
use wgpu_optim_conformance::{Numbers, assert_refused, download, noise, step, tensors, upload};

use super::plain;
use crate::helpers::raw_tensor;

/// Returns groups with separate norms and every kind of state. The lengths are multiples of four, so that the order of a tensor's sums does not
/// depend on its place.
fn several() -> Vec<Spec> {
    let spec = |name: &str, seed, rule, regime| Spec::new(rule, regime, tensors(seed, &[8, 64])).named(name);
    vec![
        Spec { telemetry: true, ..spec("momentum", 1, Rule::sgdm(0.9), Regime::seesaw()) },
        Spec { averaging: Averaging::polynomial_decay(), ..spec("adamw", 2, Rule::adamw(), Regime::seesaw()) },
        spec("counters", 3, Rule::sign_sgd(), Regime::seesaw()),
        Spec { averaging: Averaging::ScheduleFree, ..spec("free", 4, Rule::sgd(), Regime::seesaw()) },
        Spec { schedule: Schedule::InverseSqrt { warmup: 3 }, ..spec("dog", 5, Rule::sgd(), Regime::dowg()) },
        Spec { trust: Some(0.1), ..spec("trust", 6, Rule::lion(), Regime::fixed(0.01)) },
        Spec { shapes: vec![vec![2, 4], vec![64]], ..spec("factors", 7, Rule::adafactor(), Regime::seesaw()) },
    ]
}

/// Returns the gradients of a step, which depend only on a tensor's group and not on its place. One step in five has a NaN.
fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for spec in specs {
        let seed = spec.name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let lengths: Vec<usize> = spec.tensors.iter().map(Vec::len).collect();
        all.extend(tensors(seed ^ (step << 32), &lengths));
    }
    if step % 5 == 2 {
        *all.iter_mut().find_map(|tensor| tensor.first_mut()).expect("some") = f32::NAN;
    }
    all
}

fn advance(run: &mut dyn Run, specs: &[Spec], steps: std::ops::Range<u64>) {
    steps.for_each(|step| run.step(&gradients(specs, step)));
}

/// Returns the index of a group and of its first tensor.
fn first_tensor(specs: &[Spec], group: &str) -> (usize, usize) {
    let mut first = 0;
    for (index, spec) in specs.iter().enumerate() {
        if spec.name == group {
            return (index, first);
        }
        first += spec.tensors.len();
    }
    panic!("no group {group}")
}

/// Asserts that a group has the same parameters, averages and state in both runs, bit for bit.
#[track_caller]
fn assert_same_group(of: (&dyn Run, &[Spec]), other: (&dyn Run, &[Spec]), names: [&str; 2], what: &str) {
    let parts = |(run, specs): (&dyn Run, &[Spec]), name| {
        let (group, tensor) = first_tensor(specs, name);
        let own = |values: Vec<Vec<f32>>| bits(&values[tensor..tensor + specs[group].tensors.len()]);
        let mut state = run.states()[group];
        // This number counts the elements of all tensors.
        state.last_first_nonfinite = 0;
        (own(run.params()), own(run.averages()), state)
    };
    let [one, two] = [parts(of, names[0]), parts(other, names[1])];
    assert!(one == two, "{what}, {}, {names:?}: {:?} instead of {:?}", of.0.path(), one.2, two.2);
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Returns an entry of a checkpoint as f32.
fn memory(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&raw_tensor(&checkpoint.to_bytes(), name).2)
}

/// Groups are reordered, removed, added and renamed. The remaining ones continue as in the original, and new ones start as in their own optimizer.
#[test]
fn groups_that_stay_go_on_bit_for_bit() {
    let before = several();
    let mut after = several();
    after.swap(0, 4);
    after.swap(1, 2);
    after.remove(3);
    let added = |name: &str, rule| Spec::new(rule, Regime::seesaw(), tensors(9, &[4, 32])).named(name);
    after.insert(1, added("new adamw", Rule::adamw()));
    after.push(added("new sgdm", Rule::sgdm(0.5)));
    for ((mut old, mut new), mut alone) in
        every_path(&before).into_iter().zip(every_path(&after)).zip(every_path(&[after[1].clone(), after[7].clone()]))
    {
        advance(&mut *old, &before, 0..4);
        let checkpoint = old.checkpoint();
        let lines = new.restore_with(&checkpoint, Differences::none().tensors()).expect("accepted");
        let lines = listed(&lines);
        for words in [
            "group \"free\": group 3 in the checkpoint, nothing here",
            "group \"new adamw\": nothing in the checkpoint, group 1 here",
            "tensor \"new sgdm/1\": nothing in the checkpoint, tensor 15 here",
            "the first group in another order: \"momentum\" in the checkpoint, \"dog\" here",
        ] {
            assert!(lines.contains(words), "{words}: {lines}");
        }
        new.records();
        for step in 4..12 {
            // A NaN in one group skips the step in all groups, including this one.
            let mut own = gradients(&[after[1].clone(), after[7].clone()], step);
            if step % 5 == 2 {
                own[0][0] = f32::NAN;
            }
            alone.step(&own);
        }
        advance(&mut *old, &before, 4..12);
        advance(&mut *new, &after, 4..12);
        for name in ["momentum", "adamw", "counters", "dog", "trust", "factors"] {
            assert_same_group((&*new, &after), (&*old, &before), [name; 2], "the others");
        }
        for (group, name) in [(1, "new adamw"), (7, "new sgdm")] {
            let (params, alones) = (new.params(), alone.params());
            let (at, of_alone) = (first_tensor(&after, name).1, if group == 1 { 0 } else { 2 });
            assert!(bits(&params[at..at + 2]) == bits(&alones[of_alone..of_alone + 2]), "{name}, {}", new.path());
            assert_eq!(new.rates()[group].to_bits(), alone.rates()[usize::from(group == 7)].to_bits(), "{name}");
        }
        assert_eq!(new.records().lost_steps, 0);
    }
}

/// A renamed group is recognized by its tensors.
#[test]
fn a_renamed_group_goes_on() {
    let build = |name: &str| {
        let (w, g) = (vec![1.0f32; 8], vec![0.5f32; 8]);
        let group = Group::new(name).tensor("w", &w, &g);
        OptimizerBuilder::new(Rule::adamw()).group(group).build_cpu().expect("builds")
    };
    let (mut w, g) = (vec![1.0f32; 8], vec![0.5f32; 8]);
    let mut old = build("old");
    for _ in 0..3 {
        old.step(&mut [&mut w], &[&g]).expect("steps");
    }
    let checkpoint = old.checkpoint(Some(&[&w]), &Default::default()).expect("a checkpoint");
    let mut new = build("new");
    let lines = new.restore_with(&checkpoint, None, Differences::all()).expect("accepted");
    assert!(listed(&lines).contains("group \"new\": it goes on from group \"old\", which had the same tensors"));
    assert_eq!(new.states(), old.states());
    let mut moved = w.clone();
    old.step(&mut [&mut w], &[&g]).expect("steps");
    new.step(&mut [&mut moved], &[&g]).expect("steps");
    assert_eq!(w, moved);
}

/// Momentum continues where both rules define it in the same way. Otherwise it starts anew, with the bias corrections of a first step.
#[test]
fn moments_go_into_rules_that_have_them() {
    for (rule, other, goes_on) in [
        (Rule::sgdm(0.9), Rule::nesterov(0.9), true),
        (Rule::signum(0.9), Rule::lion(), true),
        (Rule::adamw(), Rule::nadamw(), true),
        (Rule::sgdm(0.9), Rule::signum(0.9), false),
        (Rule::sgdm(0.9), Rule::adamw(), false),
        (Rule::adamw(), Rule::sgd(), false),
        // One rule keeps a mean of squares, the other a sum.
        (Rule::rmsprop(), Rule::adagrad(), false),
        (Rule::adagrad(), Rule::adamw_without_momentum(), false),
        // Only one of the rules keeps the largest second moment.
        (Rule::adamw(), Rule::amsgrad(), false),
        (Rule::amsgrad(), Rule::adamw(), false),
    ] {
        let specs = |rule| vec![Spec::new(rule, Regime::seesaw(), tensors(3, &[5, 40]))];
        let (before, after) = (specs(rule), specs(other));
        for (mut old, mut new) in every_path(&before).into_iter().zip(every_path(&after)) {
            advance(&mut *old, &before, 0..4);
            let checkpoint = old.checkpoint();
            new.restore_with(&checkpoint, Differences::all()).expect("accepted");
            let what = format!("{}, {} to {}", new.path(), rule.name(), other.name());
            let after_load = new.checkpoint();
            assert_eq!(bits(&new.params()), bits(&old.params()), "{what}");
            if goes_on {
                for kind in ["momentum", "second_moment"] {
                    if rule.has_second_moment() || kind == "momentum" {
                        let name = format!("{kind}/group/1");
                        assert_eq!(memory(&after_load, &name), memory(&checkpoint, &name), "{what}");
                    }
                }
                assert_eq!(new.states(), old.states(), "{what}");
                continue;
            }
            // It has the bits of a new optimizer that starts with these parameters.
            let mut fresh_specs = after.clone();
            fresh_specs[0].tensors = old.params();
            let fresh = every_path(&fresh_specs).into_iter().find(|fresh| fresh.path() == new.path());
            let mut fresh = fresh.expect("the same path");
            for step in 4..9 {
                new.step(&gradients(&after, step));
                fresh.step(&gradients(&after, step));
                assert_eq!(bits(&new.params()), bits(&fresh.params()), "{what}, step {step}");
                assert_eq!(bits(&[new.rates()]), bits(&[fresh.rates()]), "{what}, step {step}");
            }
        }
    }
}

/// Under another regime the rate starts anew, and the momentum does not. What a regime keeps for each parameter starts with the current parameters.
#[test]
fn another_regime_starts_with_the_parameters_of_now() {
    for (rule, regime) in [
        (Rule::sgdm(0.9), Regime::norm_ratio()),
        (Rule::sgdm(0.9), Regime::fixed(0.1)),
        (Rule::sgd(), Regime::dog()),
        (Rule::sgd(), Regime::adgd()),
    ] {
        let specs = |regime| vec![Spec::new(rule, regime, tensors(3, &[5, 40]))];
        let (before, after) = (specs(Regime::seesaw()), specs(regime));
        for (mut old, mut new) in every_path(&before).into_iter().zip(every_path(&after)) {
            advance(&mut *old, &before, 0..4);
            let checkpoint = old.checkpoint();
            new.restore_with(&checkpoint, Differences::none().rules()).expect("accepted");
            let what = format!("{}, {}", new.path(), regime.name());
            let mut fresh_specs = after.clone();
            fresh_specs[0].tensors = old.params();
            let fresh = every_path(&fresh_specs).into_iter().find(|fresh| fresh.path() == new.path());
            let mut fresh = fresh.expect("the same path");
            if rule.has_momentum() {
                assert_eq!(memory(&new.checkpoint(), "momentum/group/1"), memory(&checkpoint, "momentum/group/1"));
            }
            for step in 4..9 {
                new.step(&gradients(&after, step));
                fresh.step(&gradients(&after, step));
                assert_eq!(bits(&[new.rates()]), bits(&[fresh.rates()]), "{what}, step {step}");
                if !rule.has_momentum() {
                    assert_eq!(bits(&new.params()), bits(&fresh.params()), "{what}, step {step}");
                }
            }
            assert_eq!(new.states()[0].steps_low, 9, "{what}");
        }
    }
}

/// SGD at a fixed rate has no state: with other settings it continues like an optimizer that always had them, from the same parameters. A schedule
/// follows the step's number.
#[test]
fn other_settings_hold_from_the_next_step() {
    let plain = || Spec::new(Rule::sgd(), Regime::fixed(0.1), tensors(3, &[5, 40]));
    for changed in [
        Spec { decay: WeightDecay::Decoupled(0.1), ..plain() },
        Spec { decay: WeightDecay::Coupled(0.1), ..plain() },
        Spec { clip: 0.5, ..plain() },
        Spec { maximize: true, ..plain() },
        Spec { regime: Regime::fixed(0.02), ..plain() },
        Spec { schedule: Schedule::WarmupCosine { warmup: 2, steps: 20, last: 0.1 }, ..plain() },
        Spec { telemetry: true, ..plain() },
    ] {
        let (before, after) = ([plain()], [changed.clone()]);
        for ((mut old, mut new), mut always) in
            every_path(&before).into_iter().zip(every_path(&after)).zip(every_path(&after))
        {
            advance(&mut *old, &before, 0..4);
            advance(&mut *always, &after, 0..4);
            // It has the parameters of one run and everything else of the other.
            let steps = |run: &mut dyn Run| {
                run.step(&gradients(&after, 4));
                (bits(&run.params()), bits(&[run.rates()]))
            };
            new.restore_with(&old.checkpoint(), Differences::none().settings()).expect("accepted");
            let mut always_from_old = every_path(&[Spec { tensors: old.params(), ..changed.clone() }]);
            let mut fresh =
                always_from_old.remove(always_from_old.iter().position(|f| f.path() == new.path()).expect("it"));
            let what = format!("{}, {changed:?}", new.path());
            let (params, rates) = steps(&mut *new);
            assert_eq!(rates, steps(&mut *always).1, "{what}");
            if changed.schedule == Schedule::Constant {
                assert_eq!(params, steps(&mut *fresh).0, "{what}");
            }
        }
    }
}

/// Rules with bias corrections count the steps of a group, so that a new tensor needs its own group.
#[test]
fn a_tensor_of_another_age_needs_a_group_of_its_own() {
    let spec =
        |name: &str, lengths: &[usize]| Spec::new(Rule::adamw(), Regime::seesaw(), tensors(3, lengths)).named(name);
    let before = [spec("a", &[5])];
    let mut old = CpuRun::new(&before);
    advance(&mut old, &before, 0..4);
    let checkpoint = old.checkpoint();
    let words = ["tensor \"a/1\" was moved by 0 steps", "its group \"a\" by 3", "group of its own"];
    let error =
        assert_refused(CpuRun::new(&[spec("a", &[5, 4])]).restore_with(&checkpoint, Differences::all()), &words);
    assert_eq!(error.kind(), ErrorKind::CheckpointDiffers);

    // Groups that share a norm have one rate from the first step on.
    let sharing = |name, lengths: &[usize]| spec(name, lengths).sharing("all");
    let before = [sharing("a", &[5])];
    let after = [sharing("a", &[5]), sharing("b", &[4])];
    for (mut old, mut new) in every_path(&before).into_iter().zip(every_path(&after)) {
        advance(&mut *old, &before, 0..4);
        let lines = new.restore_with(&old.checkpoint(), Differences::none().tensors()).expect("accepted");
        let words = "group \"b\": it takes over the learning rate of the norm that it shares with group \"a\"";
        assert!(listed(&lines).contains(words), "{}", listed(&lines));
        assert_eq!(new.states()[0].learning_rate, old.states()[0].learning_rate);
        for step in 4..9 {
            new.step(&gradients(&after, step));
            let rates = new.rates();
            assert!(rates[0] == rates[1] && rates[0] > 0.0, "{}, {rates:?}", new.path());
        }
    }
}

/// Tensors move to other groups with their state. The parameters of new tensors are the caller's.
#[test]
fn tensors_move_with_their_momentum() {
    let build = |groups: &[(&str, &[&str])]| {
        let mut builder = OptimizerBuilder::new(Rule::sgdm(0.9));
        for (name, tensors) in groups {
            let with = |group: Group<_>, tensor: &&str| group.tensor(*tensor, &[0.0f32; 3][..], &[0.0f32; 3][..]);
            builder = builder.group(tensors.iter().fold(Group::new(*name), with));
        }
        builder.build_cpu().expect("builds")
    };
    let mut old = build(&[("one", &["a", "b"]), ("two", &["c"])]);
    let mut params = [[1.0f32; 3], [2.0; 3], [3.0; 3]];
    let grads = [[0.5f32; 3], [0.25; 3], [1.0; 3]];
    for _ in 0..3 {
        let [a, b, c] = params.each_mut();
        old.step(&mut [a, b, c], &[&grads[0], &grads[1], &grads[2]]).expect("steps");
    }
    let slices: Vec<&dyn Values> = params.iter().map(|values| values as _).collect();
    let checkpoint = old.checkpoint(Some(&slices), &Default::default()).expect("a checkpoint");
    let mut new = build(&[("two", &["c", "b"]), ("one", &["a"]), ("three", &["d"])]);
    let mut moved = [[0.0f32; 3], [0.0; 3], [0.0; 3], [7.0; 3]];
    let [c, b, a, d] = moved.each_mut();
    let lines =
        new.restore_with(&checkpoint, Some(&mut [c, b, a, d]), Differences::none().tensors()).expect("accepted");
    assert!(listed(&lines).contains("the group of tensor \"b\": \"one\" in the checkpoint, \"two\" here"));
    assert_eq!(moved, [params[2], params[1], params[0], [7.0; 3]]);
    let after = new.checkpoint(None, &Default::default()).expect("a checkpoint");
    for name in ["momentum/a", "momentum/b", "momentum/c"] {
        assert_eq!(memory(&after, name), memory(&checkpoint, name));
    }
    assert_eq!(memory(&after, "momentum/d"), [0.0; 3]);
}

/// A new average starts at its start step, or from the current parameters.
#[test]
fn averages_start_from_the_parameters() {
    let spec = |averaging| [Spec { averaging, ..Spec::new(Rule::sgd(), Regime::seesaw(), tensors(3, &[5, 40])) }];
    let exponential = Averaging::Exponential { decay: 0.5, start: 0 };
    let before = spec(Averaging::Off);
    let paths = || every_path(&before).into_iter();
    for (averaging, starts) in
        [(exponential, true), (Averaging::Running { start: 5 }, false), (Averaging::ScheduleFree, false)]
    {
        for (mut old, mut new) in paths().zip(every_path(&spec(averaging))) {
            advance(&mut *old, &before, 0..4);
            new.restore_with(&old.checkpoint(), Differences::none().settings()).expect("accepted");
            assert_eq!(bits(&new.averages()), bits(&old.params()), "{}", new.path());
            let first = old.params();
            new.step(&gradients(&before, 4));
            let (params, averages) = (new.params().concat(), new.averages().concat());
            for ((w, average), before) in params.iter().zip(&averages).zip(first.concat()) {
                let expected = if starts { 0.5 * (before + w) } else { *w };
                assert!((average - expected).abs() <= 1e-6, "{}: {average} {expected}", new.path());
            }
        }
    }
    let mut old = CpuRun::new(&before);
    advance(&mut old, &before, 0..4);
    let without = old.optimizer.checkpoint(None, &Default::default()).expect("a checkpoint");
    let mut new = CpuRun::new(&spec(exponential));
    let refused = new.optimizer.restore_with(&without, None, Differences::all());
    assert_refused(refused, &["no average of group \"group\"", "start at step 3 or later", "with the parameters"]);
    let mut running = CpuRun::new(&spec(Averaging::Running { start: 1 }));
    let refused = running.restore_with(&old.checkpoint(), Differences::all());
    assert_refused(refused, &["averaging running was to start at step 1", "start at step 3 or later"]);
}

/// Controls that were set between steps stay, except where the group is built with another value.
#[test]
fn controls_stay_where_they_are_not_built_otherwise() {
    let before = plain();
    for mut old in every_path(&before) {
        old.control("weights", &|group| (group.weight_decay, group.learning_rate_factor) = (0.5, 0.25));
        old.control("biases", &|group| (group.frozen, group.clip_norm) = (true, 2.0));
        advance(&mut *old, &before, 0..4);
        let checkpoint = old.checkpoint();
        let mut after = plain();
        after[0].decay = WeightDecay::Decoupled(0.125);
        after[1].clip = 3.0;
        after.swap(0, 1);
        let new = every_path(&after).into_iter().find(|new| new.path() == old.path());
        let mut new = new.expect("the same path");
        new.restore_with(&checkpoint, Differences::all()).expect("accepted");
        let [weights, biases] = ["weights", "biases"].map(|group| new.controls(group));
        assert_eq!((weights.weight_decay, weights.learning_rate_factor), (0.125, 0.25));
        assert_eq!((biases.frozen, biases.clip_norm), (true, 3.0));
        let first = new.params();
        advance(&mut *new, &after, 4..6);
        assert_eq!(bits(&new.params()[..2]), bits(&first[..2]), "frozen");
        assert!(bits(&new.params()[2..]) != bits(&first[2..]), "not frozen");
    }
}

/// A loss scale is clamped to its new limits, and a halt names the element in its new place.
#[test]
fn scales_and_halts_go_on() {
    let policy = NonFinitePolicy::Error { after: 2 };
    let scaler =
        |most| Some(LossScaler { initial_scale: 8.0, max_scale: most, growth_interval: 2, ..LossScaler::default() });
    let setup = |most| Setup { policy, scaler: scaler(most), ..Setup::default() };
    let before = plain();
    let mut after = plain();
    after.swap(0, 1);
    for (mut old, mut new) in every_path_with(&before, setup(64.0)).into_iter().zip(every_path_with(&after, setup(8.0)))
    {
        for step in 0..6 {
            old.step(&noise(&before, step));
        }
        assert_eq!(old.loss_scale(), 64.0);
        new.restore_with(&old.checkpoint(), Differences::all()).expect("accepted");
        assert_eq!(new.loss_scale(), 8.0);
    }
    let setup = Setup { policy, ..Setup::default() };
    for (mut old, mut new) in every_path_with(&before, setup).into_iter().zip(every_path_with(&after, setup)) {
        let mut bad = noise(&before, 0);
        bad[3][4] = f32::NAN;
        let _ = old.try_step(&bad);
        let _ = old.try_step(&bad);
        new.restore_with(&old.checkpoint(), Differences::all()).expect("accepted");
        let stepped = new.try_step(&noise(&after, 1));
        let error = stepped.and_then(|()| new.try_records().map(|_| ()));
        assert_refused(error, &["tensor \"biases/1\" at index 4"]);
    }
}

/// A checkpoint can neither start nor end streams of parameters, which take turns in the caller's buffers, and a new tensor would have none.
#[test]
fn streams_are_neither_begun_nor_ended() {
    let spec = |regime, lengths: &[usize]| [Spec::new(Rule::sgd(), regime, tensors(3, lengths))];
    for (before, after, words) in [
        (spec(Regime::seesaw(), &[5]), spec(Regime::auto_sgd(), &[5]), "is Seesaw there, AutoSgd here"),
        (spec(Regime::auto_sgd(), &[5]), spec(Regime::seesaw(), &[5]), "is AutoSgd there, Seesaw here"),
        (spec(Regime::auto_sgd(), &[5]), spec(Regime::auto_sgd(), &[5, 4]), "nothing there, tensor 1 here"),
    ] {
        let mut old = CpuRun::new(&before);
        advance(&mut old, &before, 0..4);
        let refused = CpuRun::new(&after).restore_with(&old.checkpoint(), Differences::all());
        assert_refused(refused, &[words, "here; build the optimizer as it was when it was saved"]);
    }
}

/// Any change is refused, or the run continues with finite numbers and the unchanged groups keep their bits.
#[test]
fn any_change_is_refused_or_goes_on() {
    let mut numbers = Numbers(5);
    let mut draw = move |n: usize| ((numbers.next() * 0.5 + 0.5) * n as f32) as usize % n;
    let rules = [Rule::all(), Rule::of_matrices()].concat();
    // Leaves out the regimes that fit few of these settings.
    let suits_all = |regime: &Regime| !regime.needs_streams() && !regime.needs_schedule_free();
    let regimes: Vec<Regime> = Regime::all().into_iter().filter(suits_all).collect();
    let (mut refused, mut kept) = (0, 0);
    for case in 0..400 {
        let mut spec = |name: String| {
            let rule = rules[draw(rules.len())];
            let mut averages = vec![Averaging::Off, Averaging::polynomial_decay(), Averaging::Running { start: 9 }];
            averages.extend(Some(Averaging::ScheduleFree).filter(|free| free.fits(&rule)));
            let fitting: Vec<Regime> = regimes.iter().copied().filter(|regime| regime.fits(&rule)).collect();
            let regime = fitting[draw(fitting.len())];
            averages.retain(|averaging| regime.fits_averaging(averaging));
            let mut spec = Spec::new(rule, regime, tensors(draw(9) as u64, &[3, 5][..1 + draw(2)]));
            spec.averaging = averages[draw(averages.len())];
            spec.trust = Some(0.1).filter(|_| draw(4) == 0);
            spec.norm = Some("shared".to_owned()).filter(|_| spec.trust.is_none() && draw(3) == 0);
            spec.telemetry = draw(3) == 0;
            spec.decay = if draw(2) == 0 { WeightDecay::Coupled(0.01) } else { WeightDecay::Decoupled(0.0) };
            spec.named(name)
        };
        let names = |draw: &mut dyn FnMut(usize) -> usize| {
            let mut names: Vec<String> = (0..4).map(|name| format!("g{name}")).collect();
            names.rotate_left(draw(4));
            names.truncate(1 + draw(4));
            names
        };
        let mut seed = Numbers(case);
        let mut other = |n: usize| ((seed.next() * 0.5 + 0.5) * n as f32) as usize % n;
        let before: Vec<Spec> = names(&mut other).into_iter().map(&mut spec).collect();
        let mut after = before.clone();
        for name in names(&mut other) {
            match after.iter_mut().find(|spec| spec.name == name) {
                Some(_) if other(2) == 0 => {}
                Some(found) => *found = spec(name),
                None => after.push(spec(name)),
            }
        }
        let turns = other(after.len());
        after.rotate_left(turns);
        let (Ok(mut old), Ok(mut new)) =
            (CpuRun::try_with(&before, Setup::default()), CpuRun::try_with(&after, Setup::default()))
        else {
            continue;
        };
        advance(&mut old, &before, 0..6);
        let checkpoint = old.checkpoint();
        let untouched = new.checkpoint().to_bytes();
        match new.restore_with(&checkpoint, Differences::all()) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::CheckpointDiffers, "{error}");
                assert!(new.checkpoint().to_bytes() == untouched, "{error}");
                refused += 1;
                continue;
            }
        }
        // A converted state is a valid checkpoint itself.
        let again = Checkpoint::from_bytes(new.checkpoint().to_bytes()).expect("whole");
        CpuRun::new(&after).restore(&again).expect("fits");
        advance(&mut old, &before, 6..12);
        advance(&mut new, &after, 6..12);
        assert!(new.params().concat().iter().chain(&new.rates()).all(|x| x.is_finite()), "{before:?} {after:?}");
        for spec in &after {
            let same = before.iter().any(|old| format!("{old:?}") == format!("{spec:?}"));
            if same && spec.norm.is_none() {
                assert_same_group((&new, &after), (&old, &before), [&spec.name; 2], "any change");
                kept += 1;
            }
        }
    }
    assert!(refused > 5 && kept > 200, "{refused} refused, {kept} kept");
}

/// One call adds a group, on the device and on the host. The old optimizer and the parameters do not change.
#[test]
fn an_optimizer_is_rebuilt_in_one_call() {
    let words = "group \"adapter\": nothing in the checkpoint, group 1 here";
    let (w, a, g) = (vec![1.0f32; 8], vec![1.0f32; 4], vec![0.5f32; 8]);
    let build = |adapter: bool, average| {
        let builder =
            OptimizerBuilder::new(Rule::sgdm(0.9)).group(Group::new("base").averaging(average).tensor("w", &w, &g));
        if adapter { builder.group(Group::new("adapter").tensor("a", &a, &g[..4])) } else { builder }
    };
    let (mut moved, mut adapter) = (w.clone(), a.clone());
    let mut old = build(false, Averaging::Off).build_cpu().expect("builds");
    old.step(&mut [&mut moved], &[&g]).expect("steps");
    let before = (old.states().to_vec(), moved.clone());
    let (mut new, lines) =
        old.rebuild(build(true, Averaging::Off), None, Differences::none().tensors()).expect("accepted");
    assert!(listed(&lines).contains(words), "{}", listed(&lines));
    assert_eq!((old.states().to_vec(), moved.clone()), before);
    let mut twin = moved.clone();
    old.step(&mut [&mut twin], &[&g]).expect("steps");
    new.step(&mut [&mut moved, &mut adapter], &[&g[..], &g[..4]]).expect("steps");
    assert_eq!(moved, twin);
    assert!(adapter.iter().all(|a| *a < 1.0));
    let averaged = || build(false, Averaging::polynomial_decay());
    assert_refused(old.rebuild(averaged(), None, Differences::all()), &["with the parameters"]);
    assert_refused(old.rebuild(averaged(), Some(&[&twin]), Differences::none()), &["averaging of group \"base\""]);
    old.rebuild(averaged(), Some(&[&twin]), Differences::all()).expect("accepted");

    for gpu in &devices() {
        let buffers = [&w, &a, &g, &a].map(|values| upload(gpu, values));
        let build = |gpu: &Gpu, old: Option<&Optimizer>, average: Averaging| {
            let base: Group<gpu::Tensor> = Group::new("base").averaging(average);
            let base = base.tensor("w", buffers[0].slice(..32), buffers[2].slice(..32));
            let builder = OptimizerBuilder::new(Rule::sgdm(0.9)).group(base);
            match old {
                None => (builder.build(gpu).expect("builds"), Vec::new()),
                Some(old) => {
                    let adapter = Group::new("adapter").tensor("a", buffers[1].slice(..16), buffers[3].slice(..16));
                    let rebuilt = old.rebuild(builder.group(adapter), Differences::all());
                    pollster::block_on(rebuilt).expect("accepted")
                }
            }
        };
        let (old, _) = build(gpu, None, Averaging::Off);
        step(gpu, &old);
        let before = download(gpu, &buffers[0], 8);
        let (new, lines) = build(gpu, Some(&old), Averaging::Off);
        assert!(listed(&lines).contains(words), "{}", listed(&lines));
        assert_eq!(download(gpu, &buffers[0], 8), before);
        // An average starts from the parameters, which are read back for it.
        let (averaged, _) = build(gpu, Some(&old), Averaging::polynomial_decay());
        let average = pollster::block_on(averaged.read_averages(0)).expect("read");
        assert_eq!(average, before);
        step(gpu, &new);
        let after = download(gpu, &buffers[0], 8);
        assert!(after[0] < before[0] && download(gpu, &buffers[1], 4)[0] < 1.0);
        assert!((after[0] - twin[0]).abs() <= 1e-6, "{} {}", after[0], twin[0]);
    }
}

/// Measures the times in the documentation of `Optimizer::rebuild` and `CpuOptimizer::rebuild`, and tests nothing. Run it with `cargo test --release
/// --test optimizer -- --ignored --nocapture how_long_a_rebuild_takes`.
#[test]
#[ignore = "a measurement"]
fn how_long_a_rebuild_takes() {
    let (elements, names) = (1usize << 22, ["a", "b", "c", "d"]);
    let (w, g) = (vec![1.0f32; elements], vec![0.5f32; elements]);
    for rule in [Rule::sgdm(0.9), Rule::adamw()] {
        let build = |extra: bool| {
            let with = |builder: OptimizerBuilder<_>, name: &str| builder.group(Group::new(name).tensor(name, &w, &g));
            let builder = names.into_iter().fold(OptimizerBuilder::new(rule), with);
            if extra { builder.group(Group::new("e").tensor("e", &w[..4], &g[..4])) } else { builder }
        };
        let mut old = build(false).build_cpu().expect("builds");
        let mut params = vec![w.clone(); names.len()];
        old.step(&mut params, &vec![g.as_slice(); names.len()]).expect("steps");
        let times = (0..5).map(|_| {
            let start = std::time::Instant::now();
            old.rebuild(build(true), None, Differences::all()).expect("accepted");
            start.elapsed()
        });
        println!("{}, CPU path: {:?}", rule.name(), times.min().expect("some"));
        for gpu in &devices() {
            let mut buffers: Vec<_> = (0..8).map(|index| upload(gpu, if index % 2 == 0 { &w } else { &g })).collect();
            buffers.extend([upload(gpu, &w[..4]), upload(gpu, &g[..4])]);
            let build = |extra: bool| {
                let names = ["a", "b", "c", "d", "e"].into_iter().take(if extra { 5 } else { 4 });
                let pairs = names.zip(buffers.chunks(2));
                pairs.fold(OptimizerBuilder::<gpu::Tensor>::new(rule), |builder, (name, pair)| {
                    builder.group(Group::new(name).tensor(name, pair[0].slice(..), pair[1].slice(..)))
                })
            };
            let old = build(false).build(gpu).expect("builds");
            step(gpu, &old);
            let _ = download(gpu, &buffers[0], 4);
            let times = (0..5).map(|_| {
                let start = std::time::Instant::now();
                let rebuilt = pollster::block_on(old.rebuild(build(true), Differences::all())).expect("accepted");
                let rate = rebuilt.0.learning_rates();
                let _ = download(gpu, rate, 4);
                start.elapsed()
            });
            println!("{}, {}: {:?}", rule.name(), gpu.describe(), times.min().expect("some"));
        }
    }
}

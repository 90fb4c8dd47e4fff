//! Promises of `Averaging::ScheduleFree`: z, x and y are those of the paper's formula, for every rule without momentum, under every kind
//! of regime, wherever tensors lie; a skipped step leaves no trace; a rescaled loss changes no bit; x is what an exchange, a copy and a
//! checkpoint give, and the parameters come back from an exchange; a resumed run has the same bits; what cannot be is refused.

use wgpu_optim::{
    AdamW, Averaging, Checkpoint, CpuOptimizer, Element, Error, Gpu, Group, LossScaler, Notes, OptimizerBuilder,
    Parameters, Record, Regime, Rounding, Rule, Schedule, Term, WeightDecay,
};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Run, Setup, Spec, alone, bits, devices, every_path, every_path_with, packed,
};
use wgpu_optim_conformance::{Numbers, small_bindings, ulps};

fn rules() -> [Rule; 3] {
    [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()]
}

fn free(rule: Rule, regime: Regime, tensors: Vec<Vec<f32>>) -> Spec {
    Spec { averaging: Averaging::ScheduleFree, ..Spec::new(rule, regime, tensors) }
}

fn tensors(seed: u64, lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(seed);
    lengths.iter().map(|&len| numbers.vec(len)).collect()
}

/// Every rule without momentum, with each kind of decay, under regimes of every kind of memory.
fn every_case(lengths: &[usize]) -> Vec<Spec> {
    let mut specs = Vec::new();
    for rule in rules() {
        for (decay, regime, schedule) in [
            (WeightDecay::Coupled(0.0), Regime::fixed(0.05), Schedule::Constant),
            (
                WeightDecay::Decoupled(0.1),
                Regime::fixed(0.05),
                Schedule::WarmupCosine { warmup: 3, steps: 30, last: 0.1 },
            ),
            (WeightDecay::Coupled(0.1), Regime::seesaw(), Schedule::Constant),
            (WeightDecay::Decoupled(0.1), Regime::seesaw(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::norm_ratio(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::dog(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::adgd(), Schedule::Constant),
        ] {
            let tensors = tensors(specs.len() as u64, lengths);
            let mut spec = free(rule, regime, tensors).named(format!("{}", specs.len()));
            (spec.decay, spec.schedule) = (decay, schedule);
            specs.push(spec);
        }
    }
    specs
}

/// Those of each rule at a fixed rate with a schedule and decoupled decay, under Seesaw, and with the first parameters beside z.
fn few_cases(lengths: &[usize]) -> Vec<Spec> {
    let cases = every_case(lengths).into_iter().enumerate();
    let few = cases.filter(|(case, _)| [1, 3, 5].contains(&(case % 8)));
    few.map(|(_, spec)| spec).collect()
}

/// Gradients of a quadratic with noise, at the parameters of the step.
fn gradients(params: &[Vec<f32>], step: u64) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(100 + step);
    let gradient = |params: &Vec<f32>| {
        let noise = numbers.vec(params.len());
        let pairs = params.iter().zip(noise);
        pairs.map(|(w, noise)| w - 0.5 + 0.2 * noise).collect()
    };
    params.iter().map(gradient).collect()
}

/// z, x and y in f64, as the documentation has them, by the rates that the optimizer records.
struct Plain {
    rule: Rule,
    decay: WeightDecay,
    y: Vec<f64>,
    x: Vec<f64>,
    z: Vec<f64>,
    v: Vec<f64>,
    weights: f64,
    k: i32,
}

impl Plain {
    fn new(spec: &Spec) -> Self {
        let w: Vec<f64> = spec.tensors.concat().into_iter().map(f64::from).collect();
        Plain {
            rule: spec.rule,
            decay: spec.decay,
            y: w.clone(),
            x: w.clone(),
            z: w.clone(),
            v: vec![0.0; w.len()],
            weights: 0.0,
            k: 0,
        }
    }

    fn step(&mut self, raw: &[f32], rate: f64) {
        self.k += 1;
        let coupled = f64::from(self.decay.coupled());
        let g: Vec<f64> = raw.iter().zip(&self.y).map(|(&g, y)| f64::from(g) + coupled * y).collect();
        let u: Vec<f64> = match self.rule {
            Rule::Sgd(_) => g,
            Rule::SignSgd(_) => g.iter().map(|g| if *g == 0.0 { 0.0 } else { g.signum() }).collect(),
            Rule::AdamW(AdamW { beta2, epsilon, .. }) => {
                let (beta2, epsilon) = (f64::from(beta2), f64::from(epsilon));
                for (v, g) in self.v.iter_mut().zip(&g) {
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                }
                let correction = (1.0 - beta2.powi(self.k)).sqrt();
                let pairs = g.iter().zip(&self.v);
                pairs.map(|(g, v)| g / (v.sqrt() / correction + epsilon)).collect()
            }
            _ => unreachable!("a rule without momentum"),
        };
        let weight = (rate * f64::from(self.k)).powi(2);
        self.weights += weight;
        let share = weight / self.weights;
        let shrink = 1.0 - rate * f64::from(self.decay.decoupled());
        for (i, u) in u.iter().enumerate() {
            self.z[i] = shrink * self.z[i] - rate * u;
            self.x[i] = (1.0 - share) * self.x[i] + share * self.z[i];
            self.y[i] = 0.85 * self.x[i] + 0.15 * self.z[i];
        }
    }
}

/// The tensors of a group end to end.
fn of_group(specs: &[Spec], group: usize, tensors: &[Vec<f32>]) -> Vec<f32> {
    let before: usize = specs[..group].iter().map(|spec| spec.tensors.len()).sum();
    tensors[before..][..specs[group].tensors.len()].concat()
}

/// The largest distance, in units of the last place of the largest expected number.
fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    let unit = f64::from(f32::EPSILON) * largest.max(1e-3);
    let distances = got.iter().zip(expected).map(|(&got, expected)| (f64::from(got) - expected).abs() / unit);
    distances.fold(0.0, |most, distance| if distance.is_nan() { f64::INFINITY } else { most.max(distance) })
}

const STEPS: u64 = 40;
const SKIPPED: [u64; 3] = [0, 4, 21];

/// Steps, some of them skipped; after each of them parameters and averages are those of the formula.
fn check(run: &mut dyn Run, specs: &[Spec], gradients: impl Fn(&[Vec<f32>], u64) -> Vec<Vec<f32>>) {
    let mut plain: Vec<Plain> = specs.iter().map(Plain::new).collect();
    let mut worst = 0f64;
    for step in 0..STEPS {
        let mut grads = gradients(&run.params(), step);
        let before = (bits(&run.params()), bits(&run.averages()));
        let skipped = SKIPPED.contains(&step);
        if skipped {
            *grads.last_mut().and_then(|g| g.last_mut()).expect("some") = f32::NAN;
        }
        let weights = |run: &dyn Run| -> Vec<(f32, i32)> {
            let states = run.states().into_iter();
            states.map(|state| (state.weight_sum.mantissa, state.weight_sum.exponent)).collect()
        };
        let sums = weights(run);
        run.step(&grads);
        let (params, averages) = (run.params(), run.averages());
        if skipped {
            assert_eq!((bits(&params), bits(&averages)), before, "{}", run.path());
            assert_eq!(weights(run), sums, "{}", run.path());
            continue;
        }
        let rates = run.rates();
        for (group, plain) in plain.iter_mut().enumerate() {
            plain.step(&of_group(specs, group, &grads), f64::from(rates[group]));
            let y = distance(&of_group(specs, group, &params), &plain.y);
            let x = distance(&of_group(specs, group, &averages), &plain.x);
            worst = worst.max(x).max(y);
            assert!(
                x <= 24.0 && y <= 24.0,
                "{}, group {group}, step {step}: x is {x:.1} ulps off, y {y:.1}; {:?}",
                run.path(),
                specs[group]
            );
        }
    }
    // The average is another point than the parameters by then.
    for group in 0..specs.len() {
        let [params, averages] = [run.params(), run.averages()].map(|of| bits(&[of_group(specs, group, &of)]));
        assert_ne!(params, averages, "{}, group {group}", run.path());
    }
    println!("{}: {worst:.1} ulps", run.path());
}

#[test]
fn the_iterates_are_those_of_the_formula() {
    let _alone = alone();
    let specs = every_case(&[1, 37, 4]);
    check(&mut CpuRun::new(&specs), &specs, gradients);
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 3, 0));
        check(&mut run, &specs, gradients);
        run.assert_surroundings_untouched();
    }
}

/// The numbers of `tests/golden/make_schedule_free.py`, which takes the average from its definition.
#[test]
fn the_golden_numbers_are_met() {
    let _alone = alone();
    const D: usize = 12;
    let rows: Vec<Vec<&str>> = include_str!("../golden/schedule_free.csv")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("case"))
        .map(|line| line.split(',').collect())
        .collect();
    let mut names: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    names.dedup();
    assert_eq!((names.len(), rows.len()), (9, 9 * 6 * 2));
    let initial: Vec<f32> = (0..D).map(|i| (i as f32 - 6.0) / 4.0).collect();
    let specs: Vec<Spec> = names
        .iter()
        .map(|name| {
            let [sgd, sign, adamw] = rules();
            let rule = match name.split('-').next() {
                Some("sgd") => sgd,
                Some("signsgd") => sign,
                _ => adamw,
            };
            let mut spec = free(rule, Regime::fixed(0.01), vec![initial.clone()]).named(*name);
            spec.decay = match name.split('-').nth(1) {
                Some("coupled") => WeightDecay::Coupled(0.1),
                Some(_) => WeightDecay::Decoupled(0.1),
                None => spec.decay,
            };
            spec
        })
        .collect();
    for mut run in every_path(&specs) {
        let (mut compared, mut worst) = (0, 0f64);
        for t in 0..100 {
            // Exact in f32.
            let gradient: Vec<f32> =
                (0..D).map(|i| ((7 * i + 13 * t) % 32) as f32 / 16.0 - 1.0 + (i as f32 - 5.0) / 64.0).collect();
            run.step(&vec![gradient; specs.len()]);
            let step = (t + 1).to_string();
            let (params, averages) = (run.params(), run.averages());
            for row in rows.iter().filter(|row| row[1] == step) {
                let at = names.iter().position(|name| *name == row[0]);
                let at = at.expect("a case");
                let got = match row[2] {
                    "y" => &params[at],
                    _ => &averages[at],
                };
                let number = |bits: &str| u32::from_str_radix(bits, 16).expect("bits");
                let expected: Vec<f64> = row[3..].iter().map(|bits| f64::from(f32::from_bits(number(bits)))).collect();
                let ulps = distance(got, &expected);
                // Decoupled decay is a factor of f32 once a step, whose rounding is the same every time.
                assert!(
                    ulps <= 2.0 + 0.25 * (t + 1) as f64,
                    "{}, {} {}, step {step}: {ulps:.1} ulps",
                    run.path(),
                    row[0],
                    row[2]
                );
                worst = worst.max(ulps);
                compared += 1;
            }
        }
        assert_eq!(compared, rows.len());
        println!("{}: golden numbers, {worst:.1} ulps", run.path());
    }
}

/// Of a group that `Alignment::Iterates` is for: record, y and x are those of the oracle, with each kind of decay, clip and direction of climb.
#[test]
fn comparing_with_the_way_back_follows_the_oracle() {
    let _alone = alone();
    let hypergradient = Regime::hypergradient();
    let mut specs = Vec::new();
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        for regime in [Regime::seesaw(), hypergradient] {
            for decay in [WeightDecay::Coupled(0.0), WeightDecay::Coupled(0.05), WeightDecay::Decoupled(0.1)] {
                for (clip, maximize) in [(f32::INFINITY, false), (0.8, true)] {
                    let tensors = tensors(18 + specs.len() as u64, &[37, 24]);
                    let spec = free(rule, regime, tensors).named(format!("{}", specs.len()));
                    specs.push(Spec { decay, clip, maximize, ..spec });
                }
            }
        }
    }
    for mut run in every_path(&specs) {
        let mut oracles: Vec<_> = specs.iter().map(Spec::oracle).collect();
        let (mut agreed, mut contradicted) = (0, 0);
        for step in 0..STEPS {
            let params = run.params();
            let mut grads = gradients(&params, step);
            for (i, g) in grads.iter_mut().enumerate() {
                if specs[i / 2].maximize {
                    g.iter_mut().for_each(|g| *g = -*g);
                }
            }
            run.step(&grads);
            let (params, averages) = (run.params(), run.averages());
            for record in run.records().records {
                let (group, spec) = (record.group, &specs[record.group]);
                let oracle = &mut oracles[group];
                let out = oracle.step(&of_group(&specs, group, &grads));
                let what = format!("{}, {spec:?}, step {step}", run.path());
                for (got, expected) in [
                    (record.slow_alignment, out.slow),
                    (record.fast_alignment, 0.0),
                    (record.term(Term::Norm), out.norm_term),
                    (record.term(Term::Alignment), out.alignment_term),
                    (record.term(Term::Brake), 0.0),
                    (record.term(Term::Held), out.held_term),
                    (record.learning_rate / out.rate as f32, 1.0),
                ] {
                    let off = f64::from(got) - expected;
                    assert!(off.abs() <= 2e-5, "{what}: {got} instead of {expected}");
                }
                assert_eq!(record.slow_alignment == 0.0, step < 2, "{what}");
                agreed += usize::from(record.slow_alignment > 0.05);
                contradicted += usize::from(record.slow_alignment < -0.05);
                let average = oracle.average.as_ref().expect("an average");
                for (got, expected) in
                    [(of_group(&specs, group, &params), &oracle.w), (of_group(&specs, group, &averages), average)]
                {
                    for (got, expected) in got.iter().zip(expected) {
                        let off = f64::from(*got) - expected;
                        assert!(off.abs() <= 2e-5, "{what}: {got} instead of {expected}");
                    }
                }
            }
        }
        assert!(agreed > 50 && contradicted > 50, "{agreed} {contradicted}");
    }
}

/// What the record says of the alignment, against f64 from x, z and the gradients as they are before each step, whichever groups share a
/// norm. Groups that all can are compared with y - z = 0.85 (x - z) and keep nothing else. Where one cannot, all are compared with counters.
fn watch_alignment(run: &mut dyn Run, specs: &[Spec], iterates: bool, steps: u64) {
    // One scope, that of the first group.
    let members: Vec<usize> = (0..specs.len())
        .filter(|&group| group == 0 || specs[group].norm.is_some() && specs[group].norm == specs[0].norm)
        .collect();
    let mut counters: Vec<Vec<f64>> = specs.iter().map(|spec| vec![0.0; spec.tensors.concat().len()]).collect();
    let mut agreed = 0;
    for step in 0..steps {
        let grads = gradients(&run.params(), step);
        let (averages, checkpoint) = (run.averages(), run.checkpoint());
        let [mut product, mut gradient, mut direction] = [0f64; 3];
        for &group in &members {
            let spec = &specs[group];
            let of = |tensors: &[Vec<f32>]| of_group(specs, group, tensors);
            let x = of(&averages);
            let tensors = spec.tensors.iter().enumerate();
            let z: Vec<f32> = if spec.averaging == Averaging::ScheduleFree && step > 0 {
                let names = tensors.map(|(i, _)| format!("base_iterates/{}", spec.tensor_name(i)));
                names.flat_map(|name| tensor_of(&checkpoint, &name)).collect()
            } else {
                x.clone()
            };
            for (i, raw) in of(&grads).into_iter().enumerate() {
                let y = 0.85 * f64::from(x[i]) + 0.15 * f64::from(z[i]);
                // As the optimizer has it.
                let stored = conformance::stored::rounded(spec.grads, &[raw])[0];
                let g = f64::from(stored) + f64::from(spec.decay.coupled()) * y;
                let way = if iterates { f64::from(x[i]) - f64::from(z[i]) } else { counters[group][i] };
                product += g * way;
                gradient += g * g;
                direction += way * way;
                counters[group][i] = (counters[group][i] + g.signum()).clamp(-7.0, 7.0);
            }
        }
        let expected = match step {
            0 => 0.0,
            1 if iterates => 0.0,
            _ => product / (gradient.sqrt() * direction.sqrt()),
        };
        run.step(&grads);
        for record in run.records().records {
            let asks = specs[record.group].regime.needs_alignment();
            if asks && members.contains(&record.group) {
                let what = format!("{}, group {}, step {step}", run.path(), record.group);
                let off = f64::from(record.slow_alignment) - expected;
                assert!(off.abs() <= 1e-4, "{what}: {} instead of {expected}", record.slow_alignment);
                if iterates {
                    assert_eq!((record.fast_alignment, record.term(Term::Brake)), (0.0, 0.0), "{what}");
                } else if step > 0 {
                    assert_ne!(record.fast_alignment, 0.0, "{what}");
                }
                agreed += usize::from(expected.abs() > 0.02);
            }
        }
    }
    assert!(agreed > 5, "{}: nothing was told apart", run.path());
    let names = run.checkpoint().names();
    for &group in &members {
        let counted = format!("direction_counters/{}", specs[group].tensor_name(0));
        assert_eq!(names.contains(&counted), !iterates, "{names:?}");
    }
}

#[test]
fn what_is_compared_with_the_gradient_depends_on_who_shares_the_norm() {
    let _alone = alone();
    let of =
        |rule, seed, name: &str| free(rule, Regime::seesaw(), tensors(seed, &[33, 6, 130])).named(name).sharing("both");
    let decayed = |spec: Spec| Spec { decay: WeightDecay::Coupled(0.1), ..spec };
    let [sgd, sign, adamw] = rules();
    let plain = Spec { averaging: Averaging::Off, ..of(sgd, 21, "plain") };
    let fixed = Spec { regime: Regime::fixed(0.01), ..of(sign, 22, "fixed") };
    for (others, iterates) in [
        (vec![], true),
        (vec![of(sgd, 20, "another")], true),
        (vec![of(sign, 20, "signs")], true),
        // Its rate is given, but its gradient counts, and it has a way back as well.
        (vec![fixed.clone()], true),
        (vec![plain.clone()], false),
        (vec![of(adamw, 20, "adamw")], false),
        (vec![of(sign, 20, "signs"), plain.clone(), fixed], false),
    ] {
        for first in [sgd, sign] {
            let specs = [vec![decayed(of(first, 19, "first"))], others.clone()].concat();
            for mut run in every_path(&specs) {
                watch_alignment(&mut *run, &specs, iterates, 16);
            }
        }
    }
}

/// Masters of 16-bit parameters, gradients of 16 bits, and tensors that need windows and threads of their own.
#[test]
fn the_way_back_is_of_masters_and_of_every_window() {
    let _alone = alone();
    for (params, grads) in [(Element::F16, Element::F16), (Element::Bf16, Element::Bf16), (Element::F32, Element::Bf16)]
    {
        for rule in [Rule::sgd(), Rule::sign_sgd()] {
            let mut spec =
                free(rule, Regime::seesaw(), tensors(23, &[35, 6, 129])).stored(params, grads, Rounding::Masters);
            spec.decay = WeightDecay::Coupled(0.1);
            let specs = [spec];
            for mut run in every_path(&specs) {
                watch_alignment(&mut *run, &specs, true, 16);
            }
        }
    }
    let specs = [free(Rule::sgd(), Regime::seesaw(), tensors(24, &[140_001, 3]))];
    watch_alignment(&mut CpuRun::new(&specs), &specs, true, 8);
    for gpu in small_bindings(128 << 10) {
        let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 5, 2));
        watch_alignment(&mut run, &specs, true, 8);
    }
}

/// A tensor that needs several windows, and blocks of the host that go to several threads.
#[test]
fn large_tensors_too() {
    let _alone = alone();
    let specs = [free(Rule::adamw_without_momentum(), Regime::seesaw(), tensors(3, &[140_001, 3]))];
    check(&mut CpuRun::new(&specs), &specs, gradients);
    for gpu in small_bindings(128 << 10) {
        let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 5, 2));
        check(&mut run, &specs, gradients);
    }
}

/// Settings that change the gradient on its way, or what is measured of the step.
#[test]
fn with_clip_maximize_telemetry_trust_and_rates_of_their_own() {
    let _alone = alone();
    let mut specs = Vec::new();
    for rule in rules() {
        let mut spec = free(rule, Regime::seesaw(), tensors(4, &[33, 6])).named(rule.name());
        (spec.telemetry, spec.trust) = (true, Some(0.01));
        spec.per_tensor = false;
        specs.push(spec);
        let mut spec = free(rule, Regime::fixed(0.05), tensors(5, &[33])).named(format!("{} shared", rule.name()));
        spec.norm = Some("shared".to_owned());
        spec.telemetry = true;
        specs.push(spec);
    }
    for mut run in every_path(&specs) {
        check(&mut *run, &specs, gradients);
    }
    // Climbing on the negative is descending.
    let down = [free(Rule::sgd(), Regime::seesaw(), tensors(6, &[33]))];
    let mut up = down.clone();
    up[0].maximize = true;
    for (mut down, mut up) in every_path(&down).into_iter().zip(every_path(&up)) {
        for step in 0..STEPS {
            let grads = gradients(&down.params(), step);
            let negative = |g: &Vec<f32>| g.iter().map(|g| -g).collect();
            down.step(&grads);
            up.step(&grads.iter().map(negative).collect::<Vec<_>>());
        }
        assert_eq!(bits(&down.params()), bits(&up.params()), "{}", up.path());
        assert_eq!(bits(&down.averages()), bits(&up.averages()), "{}", up.path());
    }
    // The sum of two micro-batches counts as their mean, and a clip that is twice the norm changes nothing.
    let once = [free(Rule::sgd(), Regime::seesaw(), tensors(7, &[33]))];
    let mut twice = once.clone();
    twice[0].clip = 1e6;
    let setup = Setup { micro_batches: Some(2), ..Setup::default() };
    let runs = every_path(&once).into_iter().zip(every_path_with(&twice, setup));
    for (mut once, mut twice) in runs {
        for step in 0..STEPS {
            let grads = gradients(&once.params(), step);
            let sum = |g: &Vec<f32>| g.iter().map(|g| 2.0 * g).collect();
            once.step(&grads);
            twice.step(&grads.iter().map(sum).collect::<Vec<_>>());
        }
        assert_eq!(bits(&once.params()), bits(&twice.params()));
        assert_eq!(bits(&once.averages()), bits(&twice.averages()));
    }
}

/// A loss times a power of two: the rate has the inverse in it, and nothing else changes, however far the weights' sum moves.
#[test]
fn a_rescaled_loss_changes_no_bit() {
    let _alone = alone();
    for exponent in [-60i32, -7, 1, 60] {
        let factor = 2f32.powi(exponent);
        let regimes = [Regime::seesaw(), Regime::norm_ratio()];
        let specs: Vec<Spec> = regimes
            .into_iter()
            .enumerate()
            .map(|(i, regime)| free(Rule::sgd(), regime, tensors(8, &[65])).named(format!("{i}")))
            .collect();
        let runs = every_path(&specs).into_iter().zip(every_path(&specs));
        for (mut run, mut rescaled) in runs {
            for step in 0..STEPS {
                let grads = gradients(&run.params(), step);
                let times = |g: &Vec<f32>| g.iter().map(|g| factor * g).collect();
                run.step(&grads);
                rescaled.step(&grads.iter().map(times).collect::<Vec<_>>());
            }
            assert_eq!(bits(&run.params()), bits(&rescaled.params()));
            assert_eq!(bits(&run.averages()), bits(&rescaled.averages()));
            let pairs = run.states().into_iter().zip(rescaled.states());
            for (state, rescaled) in pairs {
                assert_eq!(state.weight_sum.mantissa, rescaled.weight_sum.mantissa);
                assert_eq!(state.weight_sum.exponent, rescaled.weight_sum.exponent + 2 * exponent);
            }
        }
    }
}

/// The scale is divided out before, and a gradient that it made too large is skipped as any other.
#[test]
fn a_loss_scaler_changes_no_bit() {
    let _alone = alone();
    let specs = few_cases(&[9]);
    let setup = Setup { scaler: Some(LossScaler::default()), ..Setup::default() };
    let runs = every_path(&specs).into_iter().zip(every_path_with(&specs, setup));
    for (mut plain, mut scaled) in runs {
        for step in 0..20 {
            let grads = gradients(&plain.params(), step);
            let scale = scaled.loss_scale();
            let times = |g: &Vec<f32>| g.iter().map(|g| scale * g).collect();
            if step == 5 {
                scaled.step(&vec![vec![f32::INFINITY; 9]; specs.len()]);
                let scale = scaled.loss_scale();
                let times = |g: &Vec<f32>| g.iter().map(|g| scale * g).collect();
                scaled.step(&grads.iter().map(times).collect::<Vec<_>>());
            } else {
                scaled.step(&grads.iter().map(times).collect::<Vec<_>>());
            }
            plain.step(&grads);
        }
        assert_eq!(bits(&plain.params()), bits(&scaled.params()));
        assert_eq!(bits(&plain.averages()), bits(&scaled.averages()));
    }
}

/// Gradients of zero give Seesaw no rate: nothing moves and nothing counts, and the parameters are their average.
#[test]
fn nothing_moves_before_there_is_a_rate() {
    let _alone = alone();
    let values = vec![-0.0, 0.0, f32::MAX, 1e-45, 0.1, -3e-39, 7.5];
    let specs: Vec<Spec> =
        rules().into_iter().map(|rule| free(rule, Regime::seesaw(), vec![values.clone()]).named(rule.name())).collect();
    for mut run in every_path(&specs) {
        let start = bits(&run.params());
        for _ in 0..3 {
            run.step(&vec![vec![0.0; values.len()]; specs.len()]);
            assert_eq!(bits(&run.params()), start, "{}", run.path());
            assert_eq!(bits(&run.averages()), start, "{}", run.path());
            run.swap_averages();
            assert_eq!(bits(&run.params()), start, "{}", run.path());
            run.swap_averages();
            assert_eq!(bits(&run.params()), start, "{}", run.path());
        }
        run.step(&vec![vec![1.0; values.len()]; specs.len()]);
        assert_ne!(bits(&run.params()), start, "{}", run.path());
        // The first step that counts is all there is to average.
        assert_eq!(run.averages(), run.params(), "{}", run.path());
    }
}

/// An exchange, a copy and a checkpoint give the same x, and the parameters come back: to within one unit in the last place of the
/// largest of x, y and z, and of a run as it is, bit for bit.
#[test]
fn the_average_is_what_is_evaluated_and_saved() {
    let _alone = alone();
    let specs = few_cases(&[70, 9]);
    for mut run in every_path(&specs) {
        for step in 0..20 {
            let grads = gradients(&run.params(), step);
            run.step(&grads);
            let (params, averages) = (run.params(), run.averages());
            run.swap_averages();
            assert_eq!(bits(&run.params()), bits(&averages), "{}", run.path());
            run.swap_averages();
            for (before, after) in params.iter().zip(run.params()) {
                let largest = before.iter().fold(0f32, |most, w| most.max(w.abs()));
                for (&before, &after) in before.iter().zip(&after) {
                    assert!(
                        (before - after).abs() <= f32::EPSILON * largest,
                        "{}, step {step}: {before} came back as {after}",
                        run.path()
                    );
                }
            }
            let (all, same) = params
                .iter()
                .flatten()
                .zip(run.params().iter().flatten())
                .fold((0, 0), |(all, same), (before, after)| {
                    (all + 1, same + usize::from(before.to_bits() == after.to_bits()))
                });
            assert_eq!(same, all, "{}, step {step}", run.path());
        }
        let averages = run.averages();
        let checkpoint = run.checkpoint();
        let names: Vec<(String, usize)> = specs
            .iter()
            .flat_map(|spec| {
                let tensors = spec.tensors.iter().enumerate();
                tensors.map(|(i, tensor)| (spec.tensor_name(i), tensor.len()))
            })
            .collect();
        for (at, (name, len)) in names.iter().enumerate() {
            let saved = tensor_of(&checkpoint, &format!("averages/{name}"));
            assert_eq!(saved.len(), *len);
            for (saved, average) in saved.iter().zip(&averages[at]) {
                // It is computed on the host.
                assert!(ulps(*saved, f64::from(*average)) <= 4.0, "{}", run.path());
            }
            let (saved, params) = (tensor_of(&checkpoint, &format!("parameters/{name}")), &run.params()[at]);
            assert_eq!(bits(&[saved]), bits(std::slice::from_ref(params)));
            assert!(tensor_of(&checkpoint, &format!("base_iterates/{name}")).len() == *len);
        }
    }
}

/// A tensor of f32 out of a checkpoint's bytes, as any reader of safetensors finds it.
fn tensor_of(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.to_bytes();
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor(name).expect("this tensor");
    bytemuck::pod_collect_to_vec(tensor.data())
}

/// From a checkpoint, with the parameters and without, the run goes on with the same bits.
#[test]
fn a_resumed_run_has_the_same_bits() {
    let _alone = alone();
    let specs = few_cases(&[37, 4]);
    let runs = every_path(&specs).into_iter().zip(every_path(&specs));
    for (mut run, mut resumed) in runs {
        let mut step = 0;
        // While y is z, when they have just parted, and later.
        for interrupted in [1, 2, 3, 12] {
            while step < interrupted {
                let grads = gradients(&run.params(), step);
                run.step(&grads);
                step += 1;
            }
            run.records();
            let checkpoint = Checkpoint::from_bytes(run.checkpoint().to_bytes()).expect("reads");
            resumed.restore(&checkpoint).expect("restores");
            assert_eq!(bits(&run.averages()), bits(&resumed.averages()));
            for _ in 0..8 {
                let grads = gradients(&run.params(), step);
                run.step(&grads);
                resumed.step(&grads);
                step += 1;
            }
            assert_eq!(bits(&run.params()), bits(&resumed.params()));
            assert_eq!(bits(&run.averages()), bits(&resumed.averages()));
            let [of_run, of_resumed] = [&mut run, &mut resumed].map(|run| run.records().records);
            assert_eq!(of_run.len(), 8 * specs.len());
            assert_eq!(of_resumed.len(), of_run.len());
            for (run, resumed) in of_run.iter().zip(&of_resumed) {
                assert_eq!(run.slow_alignment, resumed.slow_alignment);
                assert_eq!(run.ln_rate, resumed.ln_rate);
            }
        }
    }
}

/// Without the parameters a checkpoint has z, and no average, which would be made from them.
#[test]
fn a_checkpoint_without_parameters_has_no_average() {
    let _alone = alone();
    let specs = [free(Rule::sgd(), Regime::seesaw(), tensors(9, &[5]))];
    let mut run = CpuRun::new(&specs);
    run.step(&[vec![1.0; 5]]);
    let checkpoint = run.optimizer.checkpoint(None, &Default::default());
    let names = checkpoint.expect("a checkpoint").names();
    assert!(names.contains(&"base_iterates/group/0".to_owned()));
    assert!(!names.contains(&"averages/group/0".to_owned()), "{names:?}");
    // A plain average is there in any case, and one checkpoint is not the other's.
    let mut plain = specs.clone();
    plain[0].averaging = Averaging::Running { start: 0 };
    let mut other = CpuRun::new(&plain);
    let refused = other.restore(&run.checkpoint()).expect_err("another average");
    assert!(refused.to_string().contains("ScheduleFree"), "{refused}");
    assert!(matches!(refused, Error::CheckpointDiffers { .. }));
}

#[test]
fn nothing_goes_on_while_the_average_is_swapped_in() {
    let _alone = alone();
    let specs = [free(Rule::sgd(), Regime::fixed(0.5), tensors(10, &[5]))];
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
        run.step(&[vec![1.0; 5]]);
        run.swap_averages();
        assert!(run.optimizer.averages_are_swapped());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert_eq!(run.optimizer.encode_step(&mut encoder), Err(Error::AveragesSwapped { what: "a step" }));
        let notes = Notes::new();
        let saved = run.optimizer.checkpoint(Parameters::Included, &notes);
        assert!(matches!(pollster::block_on(saved), Err(Error::AveragesSwapped { what: "a checkpoint" })));
        run.swap_averages();
        run.step(&[vec![1.0; 5]]);
        // By the caller's own encoder, there and back.
        let before = bits(&run.params());
        let averages = bits(&run.averages());
        for expected in [averages, before] {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for dispatch in run.optimizer.swap_dispatches() {
                    dispatch.encode(&mut pass);
                }
            }
            run.optimizer.count_swap();
            gpu.queue().submit([encoder.finish()]);
            assert_eq!(bits(&run.params()), expected);
        }
        assert!(!run.optimizer.averages_are_swapped());
    }
    let mut run = CpuRun::new(&specs);
    let (mut w, g) = (specs[0].tensors[0].clone(), vec![1.0; 5]);
    let optimizer = &mut run.optimizer;
    optimizer.step(&mut [&mut w], &[&g]).expect("steps");
    optimizer.swap_averages(&mut [&mut w]).expect("swaps");
    assert_eq!(optimizer.step(&mut [&mut w], &[&g]), Err(Error::AveragesSwapped { what: "a step" }));
    assert!(matches!(
        optimizer.checkpoint(Some(&[&w]), &Default::default()),
        Err(Error::AveragesSwapped { what: "a checkpoint" })
    ));
    let place = &mut [0.0; 5];
    assert_eq!(optimizer.copy_averages(0, &w, place), Err(Error::AveragesSwapped { what: "a copy of the averages" }));
    optimizer.swap_averages(&mut [&mut w]).expect("swaps");
    assert_eq!(optimizer.averages(0), None);
    assert!(matches!(optimizer.copy_averages(1, &w, place), Err(Error::UnknownTensor { index: 1, tensors: 1 })));
    assert!(matches!(optimizer.copy_averages(0, &w[..4], place), Err(Error::StepLength { actual: 4, .. })));
    assert!(matches!(optimizer.copy_averages(0, &w, &mut place[..4]), Err(Error::AveragesLength { actual: 4, .. })));
    optimizer.copy_averages(0, &w, place).expect("copies");
}

/// Masters of 16-bit parameters: what is stored is their rounding, and the average is of masters.
#[test]
fn sixteen_bits_with_masters() {
    let _alone = alone();
    for element in [Element::F16, Element::Bf16] {
        let specs: Vec<Spec> = rules()
            .into_iter()
            .map(|rule| {
                free(rule, Regime::fixed(0.01), tensors(11, &[35, 6])).named(rule.name()).stored(
                    element,
                    element,
                    Rounding::Masters,
                )
            })
            .collect();
        let wide: Vec<Spec> = specs.iter().cloned().map(|spec| Spec { params: Element::F32, ..spec }).collect();
        for (mut half, mut wide) in every_path(&specs).into_iter().zip(every_path(&wide)) {
            for step in 0..20 {
                let grads = gradients(&vec![vec![0.25; 41]; 3], step);
                let grads: Vec<Vec<f32>> = grads.iter().flat_map(|g| [g[..35].to_vec(), g[35..].to_vec()]).collect();
                half.step(&grads);
                wide.step(&grads);
            }
            for (half, wide) in half.averages().iter().zip(wide.averages()) {
                for (half, wide) in half.iter().zip(wide) {
                    assert!((half - wide).abs() <= 2e-6, "{element:?}: {half} {wide}");
                }
            }
            let (params, averages) = (half.params(), half.averages());
            half.swap_averages();
            for (stored, averages) in half.params().iter().zip(&averages) {
                let expected = conformance::stored::rounded(element, averages);
                assert_eq!(bits(std::slice::from_ref(stored)), bits(&[expected]));
            }
            half.swap_averages();
            assert_eq!(bits(&half.params()), bits(&params), "{}", half.path());
            let after = half.averages();
            for (before, after) in averages.iter().flatten().zip(after.iter().flatten()) {
                assert!((before - after).abs() <= 1e-6);
            }
            let checkpoint = half.checkpoint();
            for (at, spec) in specs.iter().enumerate() {
                let saved = tensor_of(&checkpoint, &format!("averages/{}", spec.tensor_name(0)));
                for (saved, average) in saved.iter().zip(&after[2 * at]) {
                    assert!(ulps(*saved, f64::from(*average)) <= 4.0);
                }
            }
        }
    }
}

fn built(
    rule: Rule,
    configure: impl Fn(OptimizerBuilder<wgpu_optim::cpu::Tensor>) -> OptimizerBuilder<wgpu_optim::cpu::Tensor>,
) -> Result<CpuOptimizer, Error> {
    let values = [1.0f32; 4];
    let builder =
        OptimizerBuilder::new(rule).schedule_free().group(Group::new("weights").tensor("w", &values[..], &values[..]));
    configure(builder).build_cpu()
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let _alone = alone();
    let all = |text: Result<CpuOptimizer, Error>, words: &[&str]| {
        let error = text.expect_err("this must be refused").to_string();
        assert!(!error.contains('\n'));
        for word in words {
            assert!(error.contains(word), "\"{word}\" is not in: {error}");
        }
    };
    for rule in Rule::all() {
        let fits = Averaging::ScheduleFree.fits(&rule);
        assert_eq!(fits, !rule.has_momentum());
        assert!(Averaging::polynomial_decay().fits(&rule) && Averaging::Off.fits(&rule));
        if fits {
            built(rule, |builder| builder).expect("builds");
        } else {
            all(
                built(rule, |builder| builder),
                &[
                    "group \"weights\" with rule",
                    rule.name(),
                    "schedule-free",
                    "Averaging::polynomial_decay()",
                    "Rule::adamw_without_momentum()",
                ],
            );
        }
    }
    assert!(Averaging::ScheduleFree.fits(&Rule::adamw_without_momentum()));
    all(built(Rule::sgd(), |builder| builder.regime(Regime::auto_sgd())), &["\"weights\"", "auto-sgd"]);
    let values = vec![half::f16::ONE; 4];
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
        let builder = OptimizerBuilder::new(Rule::sgd())
            .rounding(rounding)
            .group(Group::new("weights").schedule_free().tensor("w", &values, &values));
        all(builder.build_cpu(), &["\"w\"", rounding.name(), "masters"]);
    }
    // A group may have it alone, and another may be without.
    let mixed = built(Rule::sgd(), |builder| {
        let values = [1.0f32; 4];
        builder.group(Group::new("averaged").rule(Rule::sgdm(0.9)).averaging(Averaging::polynomial_decay()).tensor(
            "v",
            &values[..],
            &values[..],
        ))
    });
    mixed.expect("builds");
}

/// AdamW with β₁ = 0 keeps v alone, and takes the steps of one whose β₁ is as good as 0.
#[test]
fn adamw_without_momentum_keeps_one_vector() {
    let _alone = alone();
    let rule = Rule::adamw_without_momentum();
    assert!(!rule.has_momentum() && rule.has_second_moment() && rule.is_scale_free());
    let with = |beta1| Rule::AdamW(AdamW { beta1, beta2: 0.999, epsilon: 1e-8 });
    for regime in [Regime::fixed(0.01), Regime::adgd(), Regime::norm_ratio()] {
        let specs = |rule| [Spec::new(rule, regime, tensors(12, &[37, 5]))];
        let runs = every_path(&specs(rule)).into_iter().zip(every_path(&specs(with(1e-30))));
        for (mut without, mut with) in runs {
            for step in 0..20 {
                let grads = gradients(&with.params(), step);
                without.step(&grads);
                with.step(&grads);
            }
            let [without_params, with_params] = [without.params(), with.params()];
            for (a, b) in without_params.iter().flatten().zip(with_params.iter().flatten()) {
                assert!(ulps(*a, f64::from(*b)) <= 16.0, "{}: {a} {b}", with.path());
            }
            let names = without.checkpoint().names();
            assert!(!names.iter().any(|name| name.starts_with("momentum/")));
            assert!(names.iter().any(|name| name.starts_with("second_moment/")));
        }
    }
    let bytes = |rule: Rule, averaging: Averaging, regime: Regime| {
        let values = vec![0.0f32; 1 << 20];
        let mut optimizer = None;
        let info = allocation_counter::measure(|| {
            let builder = OptimizerBuilder::new(rule)
                .averaging(averaging)
                .regime(regime)
                .group(Group::new("all").tensor("w", &values, &values));
            optimizer = Some(builder.build_cpu().expect("builds"));
        });
        drop(optimizer);
        info.bytes_current
    };
    // v and z; under Seesaw AdamW is compared with a byte of direction memory, and SGD and SIGNSGD with y - z.
    let nothing = bytes(Rule::sgd(), Averaging::Off, Regime::fixed(0.1));
    for (rule, regime, plain, free) in [
        (rule, Regime::fixed(0.1), 4, 8),
        (rule, Regime::seesaw(), 5, 9),
        (Rule::sgd(), Regime::fixed(0.1), 0, 4),
        (Rule::sgd(), Regime::seesaw(), 1, 4),
        (Rule::sgd(), Regime::hypergradient(), 1, 4),
        (Rule::sign_sgd(), Regime::seesaw(), 1, 4),
    ] {
        for (averaging, expected) in [(Averaging::Off, plain), (Averaging::ScheduleFree, free)] {
            let more = bytes(rule, averaging, regime) - nothing;
            assert_eq!(more, expected << 20, "{rule:?}, {regime:?}, {averaging:?}");
        }
    }
}

/// Ranks that have other parameters come to the same as one optimizer of them all.
#[test]
fn ranks_take_the_same_steps() {
    let _alone = alone();
    for rule in rules() {
        ranks_take_the_same_steps_of(&[free(rule, Regime::seesaw(), tensors(14, &[20, 12]))]);
    }
}

fn ranks_take_the_same_steps_of(whole: &[Spec; 1]) {
    let mut alone = CpuRun::new(whole);
    let ranks: Vec<Vec<Spec>> = (0..2)
        .map(|rank| {
            let mut specs = whole.to_vec();
            specs[0].tensors = vec![whole[0].tensors[rank].clone()];
            specs
        })
        .collect();
    let setup = |rank: usize| Setup { shard: Some((rank as u32, 2)), ..Setup::default() };
    let mut runs: Vec<Vec<Box<dyn Run>>> = (0..2).map(|rank| every_path_with(&ranks[rank], setup(rank))).collect();
    for step in 0..12 {
        let grads = gradients(&alone.params(), step);
        alone.step(&grads);
        for path in 0..runs[0].len() {
            let measured: Vec<_> = (0..2).map(|rank| runs[rank][path].measure(&grads[rank..][..1])).collect();
            let combined = wgpu_optim::ShardSums::combine(&measured).expect("combines");
            for rank in 0..2 {
                let grads = &grads[rank..][..1];
                runs[rank][path].try_apply(grads, &combined).expect("steps");
            }
        }
    }
    let expected = alone.records().records;
    assert!(expected[2..].iter().all(|record| record.slow_alignment != 0.0));
    for (rank, runs) in runs.iter_mut().enumerate() {
        for run in runs {
            for (record, expected) in run.records().records.iter().zip(&expected) {
                let off = record.slow_alignment - expected.slow_alignment;
                assert!(off.abs() <= 1e-4, "{}: {record:?}", run.path());
            }
            for (whole, rank) in
                [(&alone.params()[rank], &run.params()[0]), (&alone.averages()[rank], &run.averages()[0])]
            {
                for (a, b) in whole.iter().zip(rank) {
                    assert!((a - b).abs() <= 1e-5, "{}: {a} {b}", run.path());
                }
            }
        }
    }
}

/// Buffers that move take their average along.
#[test]
fn moved_buffers_take_the_same_steps() {
    let _alone = alone();
    for rule in rules() {
        moved_buffers_of(&[free(rule, Regime::seesaw(), tensors(15, &[64, 64]))]);
    }
}

fn moved_buffers_of(specs: &[Spec]) {
    for gpu in &devices() {
        let room = [1024, 1024, 1024, 1024];
        let at = |start: usize| {
            let place = |i: usize| conformance::run::Place { params: (0, start + 64 * i), grads: (1, start + 64 * i) };
            vec![place(0), place(1)]
        };
        let build = |gpu: &Gpu| GpuRun::with_room(gpu, specs, at(0), &room, |builder| builder.rebindable(true));
        let (mut stays, mut moves) = (build(gpu), build(gpu));
        for step in 0..8usize {
            let grads = gradients(&stays.params(), step as u64);
            stays.step(&grads);
            moves.step(&grads);
            let copied = bits(&moves.averages());
            assert_eq!(bits(&stays.averages()), copied, "{}", gpu.describe());
            for expected in [copied, bits(&moves.params())] {
                moves.swap_averages();
                assert_eq!(bits(&moves.params()), expected, "{}", gpu.describe());
            }
            moves.move_to(at(64 * (1 + step % 3))).expect("moves");
        }
        assert_eq!(bits(&stays.params()), bits(&moves.params()));
        let alignments = |run: &mut GpuRun| -> Vec<f32> {
            let records = run.records().records.into_iter();
            records.map(|record| record.slow_alignment).collect()
        };
        let compared = alignments(&mut stays);
        assert!(compared[2..].iter().all(|alignment| *alignment != 0.0));
        assert_eq!(compared, alignments(&mut moves), "{}", gpu.describe());
    }
}

/// The record's norms are of y, and the rate in it is what the weights go by.
#[test]
fn records_are_of_the_parameters() {
    let _alone = alone();
    let mut specs = [free(Rule::sgd(), Regime::seesaw(), tensors(16, &[33]))];
    specs[0].telemetry = true;
    for mut run in every_path(&specs) {
        for step in 0..10 {
            let before = run.params();
            let grads = gradients(&before, step);
            run.step(&grads);
            let records = run.records();
            let record: &Record = records.records.last().expect("a record");
            assert_eq!(record.learning_rate, run.rates()[0]);
            let norm = |values: Vec<f64>| values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let after = run.params();
            let length = norm(after[0].iter().map(|&w| f64::from(w)).collect());
            let pairs = after[0].iter().zip(&before[0]);
            let moved = norm(pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect());
            let tensor = records.tensors.last().expect("a record of the tensor");
            assert!((f64::from(tensor.parameter_norm) / length - 1.0).abs() < 1e-5);
            assert!((f64::from(tensor.step_norm) - moved).abs() < 1e-5 * moved + 1e-7);
        }
    }
}

/// x is recovered from y at every step: what that costs over many steps, on the CPU path, against f64. `WGPU_OPTIM_SOAK=full` takes a million.
#[test]
fn many_steps_stay_close() {
    let _alone = alone();
    let steps: u64 = match std::env::var("WGPU_OPTIM_SOAK").as_deref() {
        Ok("full") => 1_000_000,
        _ => 100_000,
    };
    let specs = [free(Rule::sgd(), Regime::fixed(0.05), vec![vec![1.0, -0.5, 0.25, 2.0]])];
    let mut run = CpuRun::new(&specs);
    let mut plain = Plain::new(&specs[0]);
    let mut numbers = Numbers(17);
    let mut worst = 0f64;
    let mut params = specs[0].tensors[0].clone();
    for step in 0..steps {
        // Of the exact iterate, so that what is compared is rounding alone.
        let grads: Vec<f32> = plain.y.iter().map(|y| (y - 1.0) as f32 + numbers.next()).collect();
        run.optimizer.step(&mut [&mut params], &[&grads]).expect("steps");
        plain.step(&grads, f64::from(run.optimizer.learning_rates()[0]));
        if step % 97 == 0 || step + 1 == steps {
            let mut average = [0.0; 4];
            run.optimizer.copy_averages(0, &params, &mut average).expect("copies");
            for (got, expected) in average.iter().zip(&plain.x) {
                worst = worst.max((f64::from(*got) - expected).abs());
            }
        }
    }
    // Half a unit of the last place of 1 at each step, at random: 0.6 of it after 100,000 steps, 1.5 of it after a million.
    let walk = (steps as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
    println!("{steps} steps: {worst:.1e}, a random walk of half units {walk:.1e}");
    assert!(worst <= 3.0 * walk, "{worst:e}, {walk:e}");
}

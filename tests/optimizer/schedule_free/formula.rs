//! z, x and y follow the formula.

use super::{STEPS, every_case, free, gradients, of_group, rules};
use wgpu_optim::{AdamW, Regime, Rule, Term, WeightDecay};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, bits, devices, every_path, packed};
use wgpu_optim_conformance::{Numbers, assert_all_close, assert_close, small_bindings, tensors, ulps_of_largest};

/// z, x and y in f64 as the documentation defines them, with the rates that the optimizer records.
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
        let [y, x, z, v] = [w.clone(), w.clone(), w.clone(), vec![0.0; w.len()]];
        Plain { rule: spec.rule, decay: spec.decay, y, x, z, v, weights: 0.0, k: 0 }
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

const SKIPPED: [u64; 3] = [0, 4, 21];

/// Takes steps, some of which are skipped, and compares parameters and averages with the formula after each of them.
fn check(run: &mut dyn Run, specs: &[Spec]) {
    let mut plain: Vec<Plain> = specs.iter().map(Plain::new).collect();
    let weights = |run: &dyn Run| -> Vec<(f32, i32)> {
        let states = run.states().into_iter();
        states.map(|state| (state.weight_sum.mantissa, state.weight_sum.exponent)).collect()
    };
    for step in 0..STEPS {
        let mut grads = gradients(&run.params(), step);
        let skipped = SKIPPED.contains(&step);
        if skipped {
            *grads.last_mut().and_then(|g| g.last_mut()).expect("some") = f32::NAN;
        }
        let before = (bits(&run.params()), bits(&run.averages()), weights(run));
        run.step(&grads);
        let (params, averages) = (run.params(), run.averages());
        if skipped {
            assert_eq!((bits(&params), bits(&averages), weights(run)), before, "{}", run.path());
            continue;
        }
        let rates = run.rates();
        for (group, plain) in plain.iter_mut().enumerate() {
            plain.step(&of_group(specs, group, &grads), f64::from(rates[group]));
            let y = ulps_of_largest(&of_group(specs, group, &params), &plain.y, 1e-3);
            let x = ulps_of_largest(&of_group(specs, group, &averages), &plain.x, 1e-3);
            let what = format_args!("{}, step {step}, {:?}", run.path(), specs[group]);
            assert!(x <= 24.0 && y <= 24.0, "{what}: x is {x:.1} ulps off, y {y:.1}");
        }
    }
    // By then the average differs from the parameters.
    for group in 0..specs.len() {
        let [params, averages] = [run.params(), run.averages()].map(|of| bits(&[of_group(specs, group, &of)]));
        assert_ne!(params, averages, "{}, group {group}", run.path());
    }
}

#[test]
fn the_iterates_are_those_of_the_formula() {
    let specs = every_case(&[1, 37, 4]);
    check(&mut CpuRun::new(&specs), &specs);
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 3, 0));
        check(&mut run, &specs);
        run.assert_surroundings_untouched();
    }
}

/// One tensor needs several windows on the device and several threads on the host.
#[test]
fn large_tensors_too() {
    let specs = [free(Rule::adamw_without_momentum(), Regime::seesaw(), tensors(3, &[140_001, 3]))];
    check(&mut CpuRun::new(&specs), &specs);
    for gpu in small_bindings(128 << 10) {
        check(&mut GpuRun::new(&gpu, &specs, packed(&specs, 5, 2)), &specs);
    }
}

/// These settings change what is measured in a step.
#[test]
fn with_telemetry_trust_and_shared_norms() {
    let specs = rules().into_iter().flat_map(|rule| {
        let trusting = free(rule, Regime::seesaw(), tensors(4, &[33, 6])).named(rule.name());
        let shared = free(rule, Regime::fixed(0.05), tensors(5, &[33])).named(format!("{} shared", rule.name()));
        let (telemetry, trust) = (true, Some(0.01));
        [Spec { telemetry, trust, ..trusting }, Spec { telemetry, ..shared.sharing("shared") }]
    });
    let specs: Vec<Spec> = specs.collect();
    for mut run in every_path(&specs) {
        check(&mut *run, &specs);
    }
}

/// For groups with `Alignment::Iterates`, the record, y and x follow the oracle, with each kind of decay, clip and direction.
#[test]
fn comparing_with_the_way_back_follows_the_oracle() {
    let mut specs = Vec::new();
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        for regime in [Regime::seesaw(), Regime::hypergradient()] {
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
                    assert_close(&what, got, expected, 2e-5);
                }
                assert_eq!(record.slow_alignment == 0.0, step < 2, "{what}");
                agreed += usize::from(record.slow_alignment > 0.05);
                contradicted += usize::from(record.slow_alignment < -0.05);
                let average = oracle.average.as_ref().expect("an average");
                for (got, expected) in [(&params, &oracle.w), (&averages, average)] {
                    assert_all_close(&what, &of_group(&specs, group, got), expected, 2e-5);
                }
            }
        }
        assert!(agreed > 50 && contradicted > 50, "{agreed} {contradicted}");
    }
}

/// x is recovered from y at every step. Over many steps on the CPU path, the rounding errors stay near those of a random walk. `WGPU_OPTIM_SOAK=full`
/// takes a million steps.
#[test]
fn many_steps_stay_close() {
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
        // The gradients are those at the exact iterate, so that only rounding makes a difference.
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
    // A random walk of half ulps of 1, one per step. The error was 0.6 times as large after 100,000 steps, and 1.5 times after a million.
    let walk = (steps as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
    println!("{steps} steps: {worst:.1e}, a random walk of half units {walk:.1e}");
    assert!(worst <= 3.0 * walk, "{worst:e}, {walk:e}");
}

//! The vector that the gradient is compared with.

use super::{free, gradients, of_group, rules};
use wgpu_optim::{Averaging, Element, Regime, Rounding, Rule, Term, WeightDecay};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, every_path, packed};
use wgpu_optim_conformance::stored::rounded;
use wgpu_optim_conformance::{assert_close, small_bindings, tensors};

use crate::helpers::raw_tensor;

/// Returns an f32 tensor of a checkpoint.
fn tensor_of(checkpoint: &[u8], name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&raw_tensor(checkpoint, name).2)
}

/// Compares the record's alignment with f64, from x, z and the gradients before each step. Groups that share a norm are compared with y - z = 0.85 (x
/// - z) if all of them can be, and keep nothing else. Otherwise all of them are compared with counters.
fn watch_alignment(run: &mut dyn Run, specs: &[Spec], iterates: bool, steps: u64) {
    // The groups of the first group's scope.
    let members: Vec<usize> = (0..specs.len())
        .filter(|&group| group == 0 || specs[group].norm.is_some() && specs[group].norm == specs[0].norm)
        .collect();
    let mut counters: Vec<Vec<f64>> = specs.iter().map(|spec| vec![0.0; spec.tensors.concat().len()]).collect();
    let mut agreed = 0;
    for step in 0..steps {
        let grads = gradients(&run.params(), step);
        let (averages, checkpoint) = (run.averages(), run.checkpoint().to_bytes());
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
                // The gradient as the optimizer reads it.
                let stored = rounded(spec.grads, &[raw])[0];
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
                assert_close(&what, record.slow_alignment, expected, 1e-4);
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
        // A group at a fixed rate still adds its gradient and its y - z to the sums.
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

/// The cases are masters of 16-bit parameters, 16-bit gradients, and tensors that need several windows and threads.
#[test]
fn the_way_back_is_of_masters_and_of_every_window() {
    for (params, grads) in [(Element::F16, Element::F16), (Element::Bf16, Element::Bf16), (Element::F32, Element::Bf16)]
    {
        for rule in [Rule::sgd(), Rule::sign_sgd()] {
            let spec = free(rule, Regime::seesaw(), tensors(23, &[35, 6, 129]));
            let decay = WeightDecay::Coupled(0.1);
            let specs = [Spec { decay, ..spec.stored(params, grads, Rounding::Masters) }];
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

//! Evaluation and checkpoints.

use super::{few_cases, free, gradients, rules};
use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::run::{bits, every_path};
use wgpu_optim_conformance::{filled, ulps};

use crate::helpers::raw_tensor;

/// Without a rate, as under Seesaw with gradients of zero, nothing moves or counts, and the parameters are their average.
#[test]
fn nothing_moves_before_there_is_a_rate() {
    let values = vec![-0.0, 0.0, f32::MAX, 1e-45, 0.1, -3e-39, 7.5];
    let spec = |rule: Rule| free(rule, Regime::seesaw(), vec![values.clone()]).named(rule.name());
    let specs = rules().map(spec);
    for mut run in every_path(&specs) {
        let start = bits(&run.params());
        for _ in 0..3 {
            run.step(&filled(&specs, 0.0));
            assert_eq!(bits(&run.params()), start, "{}", run.path());
            assert_eq!(bits(&run.averages()), start, "{}", run.path());
            run.swap_averages();
            assert_eq!(bits(&run.params()), start, "{}", run.path());
            run.swap_averages();
            assert_eq!(bits(&run.params()), start, "{}", run.path());
        }
        run.step(&filled(&specs, 1.0));
        assert_ne!(bits(&run.params()), start, "{}", run.path());
        // The average has only the first step that counts.
        assert_eq!(run.averages(), run.params(), "{}", run.path());
    }
}

/// A swap, a copy and a checkpoint give the same x, and a second swap restores the parameters, bit for bit.
#[test]
fn the_average_is_what_is_evaluated_and_saved() {
    let specs = few_cases(&[70, 9]);
    for mut run in every_path(&specs) {
        for step in 0..20 {
            let grads = gradients(&run.params(), step);
            run.step(&grads);
            let (params, averages) = (bits(&run.params()), bits(&run.averages()));
            run.swap_averages();
            assert_eq!(bits(&run.params()), averages, "{}, step {step}", run.path());
            run.swap_averages();
            assert_eq!(bits(&run.params()), params, "{}, step {step}", run.path());
        }
        let checkpoint = run.checkpoint().to_bytes();
        let saved = |what: &str, name: &str| -> Vec<f32> {
            bytemuck::pod_collect_to_vec(&raw_tensor(&checkpoint, &format!("{what}/{name}")).2)
        };
        let names = specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|i| spec.tensor_name(i)));
        for ((name, params), averages) in names.zip(run.params()).zip(run.averages()) {
            let saved_averages = saved("averages", &name);
            assert_eq!(saved_averages.len(), averages.len());
            for (saved, average) in saved_averages.iter().zip(averages) {
                // The checkpoint's average is computed on the host.
                assert!(ulps(*saved, average.into()) <= 4.0, "{}, {name}: {saved}, not {average}", run.path());
            }
            assert_eq!(saved("base_iterates", &name).len(), params.len());
            assert_eq!(bits(&[saved("parameters", &name)]), bits(&[params]));
        }
    }
}

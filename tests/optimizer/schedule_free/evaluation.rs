//! What is evaluated, saved and recorded.

use super::{few_cases, free, gradients, rules};
use wgpu_optim::{Error, Record, Regime, Rule};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, alone, bits, devices, every_path, gpu_run_with};
use wgpu_optim_conformance::{assert_close, filled, submit_pass, tensors, ulps};

use crate::helpers::raw_tensor;

/// Gradients of zero give Seesaw no rate: nothing moves and nothing counts, and the parameters are their average.
#[test]
fn nothing_moves_before_there_is_a_rate() {
    let _alone = alone();
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
        // The first step that counts is all there is to average.
        assert_eq!(run.averages(), run.params(), "{}", run.path());
    }
}

/// An exchange, a copy and a checkpoint give the same x, and the parameters come back, bit for bit.
#[test]
fn the_average_is_what_is_evaluated_and_saved() {
    let _alone = alone();
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
                // It is computed on the host.
                assert!(ulps(*saved, average.into()) <= 4.0, "{}, {name}: {saved}, not {average}", run.path());
            }
            assert_eq!(saved("base_iterates", &name).len(), params.len());
            assert_eq!(bits(&[saved("parameters", &name)]), bits(&[params]));
        }
    }
}

#[test]
fn nothing_goes_on_while_the_average_is_swapped_in() {
    let _alone = alone();
    let specs = [free(Rule::sgd(), Regime::fixed(0.5), tensors(10, &[5]))];
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &specs, Setup::default());
        run.step(&[vec![1.0; 5]]);
        run.swap_averages();
        assert!(run.optimizer.averages_are_swapped());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert_eq!(run.optimizer.encode_step(&mut encoder), Err(Error::AveragesSwapped { what: "a step" }));
        run.swap_averages();
        run.step(&[vec![1.0; 5]]);
        // By the caller's own encoder, there and back.
        let before = bits(&run.params());
        let averages = bits(&run.averages());
        for expected in [averages, before] {
            submit_pass(gpu, |pass| {
                for dispatch in run.optimizer.swap_dispatches() {
                    dispatch.encode(pass);
                }
            });
            run.optimizer.count_swap();
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
    let place = &mut [0.0; 5];
    assert_eq!(optimizer.copy_averages(0, &w, place), Err(Error::AveragesSwapped { what: "a copy of the averages" }));
    optimizer.swap_averages(&mut [&mut w]).expect("swaps");
    assert_eq!(optimizer.averages(0), None);
    assert!(matches!(optimizer.copy_averages(1, &w, place), Err(Error::UnknownTensor { index: 1, tensors: 1 })));
    assert!(matches!(optimizer.copy_averages(0, &w[..4], place), Err(Error::StepLength { actual: 4, .. })));
    assert!(matches!(optimizer.copy_averages(0, &w, &mut place[..4]), Err(Error::AveragesLength { actual: 4, .. })));
    optimizer.copy_averages(0, &w, place).expect("copies");
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
            let norm = |values: Vec<f32>| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let after = run.params();
            let length = norm(after[0].clone());
            let moved = norm(after[0].iter().zip(&before[0]).map(|(a, b)| a - b).collect());
            let tensor = records.tensors.last().expect("a record of the tensor");
            assert_close(run.path(), tensor.parameter_norm, length, 1e-5 * length);
            assert_close(run.path(), tensor.step_norm, moved, 1e-5 * moved + 1e-7);
        }
    }
}

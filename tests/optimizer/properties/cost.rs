//! The property P5: the cost of computing the rate.

use super::three_rules;
use wgpu_optim::internals::PassName;
use wgpu_optim::{Gpu, OptimizerBuilder, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::{Setup, Spec, devices, gpu_run_with};
use wgpu_optim_conformance::upload;

use crate::helpers::bytes_of;

/// P5: The cost is of the order of SGD's. The dispatches are those of SGD with a fixed rate and a clip: one sweep over the gradient and one update.
/// Rules without momentum keep one byte per parameter, and the others keep nothing beside the momentum.
#[test]
fn p5_no_more_dispatches_than_sgd_with_a_clip_and_one_byte_per_parameter() {
    let passes =
        [PassName::ReduceGradient, PassName::FinishReduction, PassName::LearningRate, PassName::UpdateParameters];
    for gpu in &devices() {
        for rule in three_rules() {
            let automatic = Spec::new(rule, Regime::seesaw(), vec![vec![0.0; 1 << 17]]);
            let fixed = Spec { regime: Regime::fixed(0.1), clip: 1.0, ..automatic.clone() };
            for spec in [automatic, fixed] {
                let run = gpu_run_with(gpu, &[spec], Setup::default());
                let names: Vec<PassName> = run.optimizer.dispatches().iter().map(|dispatch| dispatch.pass).collect();
                assert_eq!(names, passes);
            }
        }
    }
}

/// P5: The allocator's count of memory on the host, for a million more parameters.
#[test]
fn p5_bytes_per_parameter_on_the_cpu_path() {
    for (rule, regime, expected) in expected_bytes() {
        let bytes = |elements: usize| {
            let values = vec![0.0f32; elements];
            bytes_of(|| {
                let group = Spec::new(rule, regime, vec![]).group().tensor("w", &values, &values);
                OptimizerBuilder::new(rule).group(group).build_cpu().expect("builds")
            })
        };
        let per_parameter = (bytes(3 << 20) - bytes(1 << 20)) as f64 / f64::from(2 << 20);
        // Block tables and partials take some 150 bytes per 8192 parameters.
        assert!(
            (expected..=expected + 0.05).contains(&per_parameter),
            "{rule:?}, {regime:?}: {per_parameter} bytes per parameter"
        );
    }
}

fn expected_bytes() -> Vec<(Rule, Regime, f64)> {
    vec![
        (Rule::sgd(), Regime::fixed(0.1), 0.0),
        (Rule::sgd(), Regime::norm_ratio(), 0.0),
        (Rule::sgd(), Regime::seesaw(), 1.0),
        (Rule::sign_sgd(), Regime::seesaw(), 1.0),
        (Rule::sgdm(0.9), Regime::fixed(0.1), 4.0),
        (Rule::sgdm(0.9), Regime::seesaw(), 4.0),
        (Rule::signum(0.9), Regime::seesaw(), 4.0),
        (Rule::lion(), Regime::seesaw(), 4.0),
        (Rule::adamw(), Regime::fixed(0.1), 8.0),
        (Rule::adamw(), Regime::seesaw(), 8.0),
        (Rule::amsgrad(), Regime::seesaw(), 12.0),
    ]
}

/// P5: wgpu's count of allocated memory on the device, where the backend has one.
#[test]
fn p5_bytes_per_parameter_on_the_device() {
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        // This test opens its own device, so that nothing else allocates on it.
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
        let allocated = || gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes);
        let settle = || {
            gpu.queue().submit([]);
            gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("polls");
        };
        if allocated().is_none() {
            assert_ne!(adapter.get_info().backend, wgpu::Backend::Vulkan, "wgpu allocates for Vulkan");
            continue;
        }
        for (rule, regime, expected) in expected_bytes() {
            let bytes = |elements: usize| {
                let buffers = [(); 2].map(|()| upload(&gpu, &vec![0.0; elements]));
                let [w, g] = [0, 1].map(|at| buffers[at].slice(..4 * elements as u64));
                settle();
                let before = allocated().expect("a report") as f64;
                let group = Spec::new(rule, regime, vec![]).group().tensor("w", w, g);
                let optimizer = OptimizerBuilder::new(rule).record_steps(1).group(group).build(&gpu).expect("builds");
                settle();
                let after = allocated().expect("a report") as f64;
                drop(optimizer);
                after - before
            };
            let per_parameter = (bytes(3 << 20) - bytes(1 << 20)) / f64::from(2 << 20);
            // A block takes 28 bytes and a partial 60. wgpu also keeps a staging buffer for the uploads of the set-up.
            let tuning = gpu.tuning();
            let per_block = 28.0 * 2.0 + 60.0 * f64::from(tuning.partials_per_block());
            let slack = per_block / f64::from(tuning.block_elements()) + 0.1;
            assert!(
                (expected - 0.01..=expected + slack).contains(&per_parameter),
                "{}, {rule:?}, {regime:?}: {per_parameter} bytes per parameter",
                gpu.describe()
            );
        }
    }
}

//! Tests of the bi-level controller: decay and rate reach the analytic optimum of problems that have one, inner products agree with f64, and the
//! controls on the host and on the device are the same.

use wgpu_optim::BiLevel;
use wgpu_optim::{
    Averaging, BiLevelConfig, BiLevelRecord, CpuBiLevel, Element, ErrorKind, Regime, Rounding, Rule, WeightDecay,
};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, devices, gpu_run_with};
use wgpu_optim_conformance::{assert_close, assert_refused, assert_says, noise, tensors};

use super::device_runs;

/// A run and its controller.
enum Controlled {
    Host(Box<CpuRun>, CpuBiLevel),
    Device(Box<GpuRun>, Box<BiLevel>),
}

fn controlled(specs: &[Spec], config: BiLevelConfig) -> Vec<Controlled> {
    let host = CpuRun::new(specs);
    let bi_level = CpuBiLevel::new(&host.optimizer, config).expect("a controller");
    let mut all = vec![Controlled::Host(Box::new(host), bi_level)];
    all.extend(device_runs(specs).into_iter().map(|run| {
        let bi_level = BiLevel::new(&run.optimizer, config).expect("a controller");
        Controlled::Device(Box::new(run), Box::new(bi_level))
    }));
    all
}

impl Controlled {
    fn run(&mut self) -> &mut dyn Run {
        match self {
            Controlled::Host(run, _) => &mut **run,
            Controlled::Device(run, _) => &mut **run,
        }
    }

    /// Takes a step along training gradients, followed by a validation at the new parameters.
    fn step(&mut self, training: &[Vec<f32>], validation: impl Fn(&[Vec<f32>]) -> Vec<Vec<f32>>) -> Vec<BiLevelRecord> {
        match self {
            Controlled::Host(run, bi_level) => {
                let (optimizer, params) = run.parts();
                bi_level.before_step(optimizer, &params).expect("noted");
                run.step(training);
                let grads = run.stored(&validation(&run.params()));
                let grads: Vec<_> = grads.iter().map(|grads| grads.slice()).collect();
                let (optimizer, params) = run.parts();
                bi_level.validation(optimizer, &params, &grads).expect("validated")
            }
            Controlled::Device(run, bi_level) => {
                let mut encoder = run.encoder();
                bi_level.encode_before_step(&run.optimizer, &mut encoder).expect("noted");
                run.gpu.queue().submit([encoder.finish()]);
                run.step(training);
                let grads = validation(&run.params());
                run.write_grads(&grads);
                let mut encoder = run.encoder();
                bi_level.encode_validation(&run.optimizer, &mut encoder).expect("validated");
                run.gpu.queue().submit([encoder.finish()]);
                pollster::block_on(bi_level.read(&run.optimizer)).expect("arrives")
            }
        }
    }
}

fn shifted(params: &[Vec<f32>], by: f32) -> Vec<Vec<f32>> {
    params.iter().map(|tensor| tensor.iter().map(|w| w - by).collect()).collect()
}

/// Ridge regression in one dimension: training moves w to a / (1 + λ), and validation has its optimum at b, and so at λ = a / b - 1. The decay
/// reaches this value from both sides.
#[test]
fn decay_finds_the_best_ridge() {
    for (rule, decay, rate) in [
        (Rule::sgd(), WeightDecay::Coupled as fn(f32) -> WeightDecay, 0.2),
        (Rule::sgdm(0.5), WeightDecay::Coupled, 0.1),
        (Rule::sgd(), WeightDecay::Decoupled, 0.2),
    ] {
        for (first, a, b, best) in [(1e-2, 3.0f32, 2.0f32, 0.5f64), (8.0, 3.0, 2.0, 0.5), (1.0, -2.0, -1.6, 0.25)] {
            let case = Spec::new(rule, Regime::fixed(rate), vec![vec![0.3]]);
            let specs = [Spec { decay: decay(first), ..case }];
            for mut run in controlled(&specs, BiLevelConfig::weight_decay()) {
                let path = run.run().path();
                let mut last = Vec::new();
                for _ in 0..400 {
                    let training = shifted(&run.run().params(), a);
                    last = run.step(&training, |params| shifted(params, b));
                }
                // Steps of 2 % circle the optimum at a distance that depends on how fast w follows.
                assert_close(format!("{path}, from {first}"), last[0].weight_decay, best, 0.05 * best);
                assert_eq!(last[0].learning_rate_factor, 1.0, "{path}");
                assert_close(&path, run.run().params()[0][0], b, 0.02 * f64::from(b.abs()));
            }
        }
    }
}

/// The best single step on ½ h w² has the rate 1 / h, which is reached from both sides.
#[test]
fn rate_finds_the_best_step() {
    let h = 4.0f32;
    for first in [0.01, 20.0] {
        let case = Spec::new(Rule::sgd(), Regime::fixed(first), vec![vec![1.0; 5]]);
        for mut run in controlled(&[case], BiLevelConfig::learning_rate().step(0.05)) {
            let path = run.run().path();
            let mut last = Vec::new();
            for step in 0..150 {
                // The loss is that of each step from a new point: if w went to 0, it would underflow f32.
                let point: Vec<f32> = (0..5).map(|i| ((i + step) % 7) as f32 - 2.5).collect();
                let before = run.run().params().concat();
                let training = vec![point.iter().map(|x| h * x).collect::<Vec<f32>>()];
                last = run.step(&training, |params| {
                    let moved = params[0].iter().zip(&before).map(|(after, before)| after - before);
                    vec![point.iter().zip(moved).map(|(x, moved)| h * (x + moved)).collect()]
                });
            }
            assert_close(
                format!("{path}, from {first}"),
                first * last[0].learning_rate_factor,
                1.0 / h,
                0.052 / f64::from(h),
            );
            assert_eq!(last[0].weight_decay, 0.0, "{path}");
        }
    }
}

/// Inner products over several tensors and groups agree with f64 for every element type, and the controls of each group follow their signs.
#[test]
fn inner_products_and_signs_are_those_of_f64() {
    for (params, grads) in [
        (Element::F32, Element::F32),
        (Element::Bf16, Element::F32),
        (Element::F16, Element::F16),
        (Element::F32, Element::Bf16),
    ] {
        let group = |name: &str, seed, lengths: &[usize]| {
            let case = Spec::new(Rule::sgdm(0.9), Regime::fixed(0.1), tensors(seed, lengths)).named(name);
            Spec { decay: WeightDecay::Decoupled(0.01), ..case }.stored(params, grads, Rounding::Nearest)
        };
        let specs = [group("a", 1, &[5000, 7, 0, 4096]), group("b", 2, &[333])];
        for mut run in controlled(&specs, BiLevelConfig::both()) {
            let path = run.run().path();
            let [mut decays, mut factors] = [vec![0.01f32; 2], vec![1.0f32; 2]];
            for step in 0..6 {
                let before = run.run().params();
                let validation = noise(&specs, 100 + step);
                let records = run.step(&noise(&specs, step), |_| validation.clone());
                let after = run.run().params();
                for (group, range) in [0..4, 4..5].into_iter().enumerate() {
                    let (mut product, mut along, mut sizes) = (0.0, 0.0, 0.0);
                    for tensor in range {
                        for (i, &g) in validation[tensor].iter().enumerate() {
                            let g = f64::from(match grads {
                                Element::F32 => g,
                                Element::F16 => wgpu_optim::half::f16::from_f32(g).to_f32(),
                                _ => wgpu_optim::half::bf16::from_f32(g).to_f32(),
                            });
                            let [x, z] = [&after, &before].map(|values| f64::from(values[tensor][i]));
                            product += g * x;
                            along += g * (x - z);
                            sizes += (g * x).abs() + (g * (x - z)).abs();
                        }
                    }
                    let record = &records[group];
                    assert_eq!(record.group, ["a", "b"][group]);
                    assert_close(&path, record.along_parameters, product, 1e-6 * sizes);
                    assert_close(&path, record.along_step.expect("the rate moves"), along, 1e-6 * sizes);
                    decays[group] *= (0.02 * product.signum() as f32).exp();
                    factors[group] *= (-0.02 * along.signum() as f32).exp();
                    assert_close(&path, record.weight_decay, decays[group], 1e-5 * f64::from(decays[group]));
                    assert_close(&path, record.learning_rate_factor, factors[group], 1e-5 * f64::from(factors[group]));
                }
            }
            // The next step uses the factor.
            run.run().step(&noise(&specs, 50));
            for (group, &factor) in factors.iter().enumerate() {
                assert_close(&path, run.run().rates()[group], 0.1 * factor, 1e-5);
            }
        }
    }
}

/// Validation gradients with an inner product of 0 change nothing, and no control leaves its bounds.
#[test]
fn no_slope_is_no_step_and_bounds_hold() {
    let case = Spec::new(Rule::sgd(), Regime::fixed(1.0), vec![vec![1.0; 9]]);
    let specs = [Spec { decay: WeightDecay::Decoupled(0.01), ..case }];
    let config = BiLevelConfig::both().step(0.5).decay_bounds(5e-3, 2e-2).rate_bounds(0.25, 3.0);
    for mut run in controlled(&specs, config) {
        let path = run.run().path();
        for nothing in [0.0, f32::NAN, f32::INFINITY] {
            let records = run.step(&[vec![0.0; 9]], |_| vec![vec![nothing; 9]]);
            assert_eq!((records[0].weight_decay, records[0].learning_rate_factor), (0.01, 1.0), "{path}, {nothing}");
        }
        for (sign, decay, factor, words) in
            [(1.0, 2e-2, 0.25, "more decay lowers"), (-1.0, 5e-3, 3.0, "the step lowers it")]
        {
            let mut last = Vec::new();
            for _ in 0..20 {
                // This gradient increases the parameters.
                last = run.step(&[vec![-0.1; 9]], |_| vec![vec![sign; 9]]);
            }
            assert_eq!((last[0].weight_decay, last[0].learning_rate_factor), (decay, factor), "{path}");
            assert_says(&last[0], &["group \"group\"", words]);
        }
    }
}

#[test]
fn wrong_settings_and_calls_are_refused() {
    let decayed =
        |rule, regime| Spec { decay: WeightDecay::Decoupled(0.01), ..Spec::new(rule, regime, tensors(1, &[70, 4])) };
    let specs = [decayed(Rule::sgd(), Regime::fixed(1.0))];
    let config = BiLevelConfig::weight_decay();
    let host = CpuRun::new(&specs);
    for (config, words) in [
        (config.step(0.0), "step is 0"),
        (config.step(-0.1), "step is -0.1"),
        (config.step(1.5), "step is 1.5"),
        (config.step(f32::NAN), "step is NaN"),
        (config.decay_bounds(0.0, 1.0), "decay_bounds is 0e0 to 1e0"),
        (config.decay_bounds(1.0, 0.5), "decay_bounds"),
        (config.decay_bounds(1.0, f32::INFINITY), "decay_bounds"),
        (config.rate_bounds(1e-31, 1.0), "rate_bounds"),
        (config.rate_bounds(1.0, 1e31), "rate_bounds"),
    ] {
        assert_refused(CpuBiLevel::new(&host.optimizer, config), &["the bi-level controller", words]);
    }
    let refused = |spec: Spec, config: BiLevelConfig, words: &[&str]| {
        assert_refused(CpuBiLevel::new(&CpuRun::new(&[spec]).optimizer, config), words).kind()
    };
    let plain = Spec::new(Rule::sgd(), Regime::fixed(1.0), tensors(1, &[4])).named("plain");
    let free = Spec { averaging: Averaging::ScheduleFree, ..specs[0].clone() };
    let kind = refused(plain.clone(), config, &["weight decay of group \"plain\", which is 0", "such as 1e-4"]);
    assert_eq!(kind, ErrorKind::Call);
    refused(free, BiLevelConfig::both(), &["schedule-free", "only the weight decay"]);
    refused(decayed(Rule::sgd(), Regime::auto_sgd()), config, &["auto-sgd"]);
    let rank = CpuRun::with(&specs, Setup { shard: Some((1, 2)), ..Setup::default() });
    assert_refused(CpuBiLevel::new(&rank.optimizer, config), &["several ranks"]);

    let mut host = host;
    let mut bi_level = CpuBiLevel::new(&host.optimizer, BiLevelConfig::learning_rate()).expect("a controller");
    let grads = noise(&specs, 1);
    let (optimizer, params) = host.parts();
    let early = bi_level.validation(optimizer, &params, &grads);
    assert_refused(early, &["CpuBiLevel::validation", "CpuBiLevel::before_step before each step"]);
    assert_refused(bi_level.validation(optimizer, &params, &grads[..1]), &["2 tensors"]);
    for gpu in &devices() {
        let run = gpu_run_with(gpu, &specs, Setup::default());
        let other = gpu_run_with(gpu, std::slice::from_ref(&plain), Setup::default());
        assert_refused(BiLevel::new(&other.optimizer, config), &["\"plain\""]);
        let mut bi_level = BiLevel::new(&run.optimizer, BiLevelConfig::both()).expect("a controller");
        let mut encoder = run.encoder();
        let early = bi_level.encode_validation(&run.optimizer, &mut encoder);
        assert_refused(early, &["BiLevel::encode_validation", "BiLevel::encode_before_step before each step"]);
        assert_refused(bi_level.encode_before_step(&other.optimizer, &mut encoder), &["another optimizer"]);
    }
}

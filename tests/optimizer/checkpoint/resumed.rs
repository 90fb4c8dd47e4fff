//! Runs that are resumed from a checkpoint, on the same path and on another.

use super::plain;
use wgpu_optim::gpu::Tuning;
use wgpu_optim::{
    Averaging, Checkpoint, Element, ErrorKind, LossScaler, NonFinitePolicy, Notes, Parameters, Regime, Rule, Schedule,
};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Place, Run, Setup, Spec, bits, devices, every_path_with, gpu_run_with, packed,
};
use wgpu_optim_conformance::stored::half_ulp;
use wgpu_optim_conformance::{Numbers, assert_close, assert_refused, filled, noise, tensors};

use crate::halves::kept;
use crate::helpers::{assert_same_bits, pairs_with, rules_and_regimes};
use crate::schedule_free::few_cases;

/// Returns every rule, regimes with every kind of state, some averages, telemetry and trust ratios, and a group of odd tensors with a shared norm.
fn cases() -> Vec<Spec> {
    let mut numbers = Numbers(1);
    let mut specs = Vec::new();
    for (rule, regime) in rules_and_regimes() {
        let name = format!("{}, {}", rule.name(), regime.name());
        specs.push(Spec::new(rule, regime, vec![numbers.vec(7), numbers.vec(66)]).named(name));
    }
    let averages = [
        Averaging::Off,
        Averaging::Running { start: 2 },
        Averaging::Exponential { decay: 0.5, start: 0 },
        Averaging::polynomial_decay(),
        // This average has not started when the run is interrupted.
        Averaging::Running { start: 8 },
    ];
    for (spec, averaging) in specs.iter_mut().zip(averages.into_iter().cycle()) {
        spec.averaging = averaging;
        spec.telemetry = spec.name.starts_with("nesterov");
        spec.trust = spec.name.ends_with("fixed").then_some(0.1);
    }
    specs[1].schedule = Schedule::WarmupCosine { warmup: 3, steps: 20, last: 0.1 };
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        let tensors = vec![numbers.vec(1), vec![], numbers.vec(5003)];
        let name = format!("shared, {}", rule.name());
        let spec = Spec::new(rule, Regime::seesaw(), tensors).named(name).sharing("both");
        specs.push(Spec { per_tensor: rule == Rule::sgd(), ..spec });
    }
    specs
}

/// Returns groups with streams, which all groups of an optimizer use or none.
fn streams() -> Vec<Spec> {
    let spec =
        |(seed, rule): (u64, Rule)| Spec::new(rule, Regime::auto_sgd(), tensors(seed, &[7, 66])).named(rule.name());
    [(2, Rule::sgd()), (3, Rule::sign_sgd())].map(spec).to_vec()
}

/// Returns a few groups with every kind of state between them.
fn few() -> Vec<Spec> {
    let wanted = [
        "shared",
        "sgd, bb-geometric",
        "sgdm, dowg",
        "nesterov, seesaw",
        "signsgd, norm-ratio",
        "signum, fixed",
        "adamw, dowg",
    ];
    let mut specs = cases();
    specs.retain(|spec| wanted.iter().any(|name| spec.name.starts_with(name)));
    specs
}

/// Returns the gradients of a step. One step in five has a NaN.
fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    let mut grads = noise(specs, 100 + step);
    if step % 5 == 2 {
        *grads.last_mut().and_then(|g| g.last_mut()).expect("some") = f32::NAN;
    }
    grads
}

fn advance(run: &mut dyn Run, specs: &[Spec], steps: std::ops::Range<u64>) {
    for step in steps {
        run.set_loss(1.0 + step as f32);
        run.step(&gradients(specs, step));
    }
}

/// Returns the same groups with other parameters, as a new process has them before it restores.
fn elsewhere(specs: &[Spec]) -> Vec<Spec> {
    let mut specs = specs.to_vec();
    for tensor in specs.iter_mut().flat_map(|spec| &mut spec.tensors) {
        tensor.fill(0.5);
    }
    specs
}

/// Returns settings with a loss scale that changes.
fn setup() -> Setup {
    let scaler = LossScaler { initial_scale: 8.0, growth_interval: 2, ..LossScaler::default() };
    Setup { scaler: Some(scaler), ..Setup::default() }
}

/// Runs are interrupted after an even and an odd number of steps. In schedule-free training, y is still z, has just left it, or has left it long ago.
#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_interrupted() {
    for (what, specs, interrupted) in [
        ("every rule", cases(), &[4, 7][..]),
        ("streams", streams(), &[4, 7]),
        ("f16", kept(Element::F16), &[4]),
        ("bf16", kept(Element::Bf16), &[4]),
        ("schedule-free", few_cases(&[37, 4]), &[1, 2, 4, 13]),
    ] {
        let last = *interrupted.last().expect("some");
        let end = last + 8;
        for (mut whole, mut resumed) in pairs_with((&specs, setup()), (&elsewhere(&specs), setup())) {
            let (mut step, mut checkpoints) = (0, Vec::new());
            for &until in interrupted {
                advance(&mut *whole, &specs, step..until);
                checkpoints.push(Checkpoint::from_bytes(whole.checkpoint().to_bytes()).expect("reads"));
                step = until;
            }
            whole.records();
            advance(&mut *whole, &specs, last..end);
            let expected = whole.records();
            assert_eq!(expected.tensors.is_empty(), !specs.iter().any(|spec| spec.telemetry));

            // The first restore is into a new optimizer. The second takes the same optimizer back to an earlier step.
            for (checkpoint, &from) in checkpoints.iter().zip(interrupted).rev() {
                assert_eq!(checkpoint.step(), from);
                resumed.restore(checkpoint).expect("it fits");
                assert!(resumed.records().records.is_empty(), "{what}");
                advance(&mut *resumed, &specs, from..end);
                assert_same_bits(&*resumed, &*whole, format_args!("{what}, from {from}"));
                let what = format!("{}, {what}, from {from}", resumed.path());
                assert_eq!(resumed.states(), whole.states(), "{what}");
                assert_eq!(bits(&[resumed.rates()]), bits(&[whole.rates()]), "{what}");
                assert_eq!(resumed.loss_scale(), whole.loss_scale(), "{what}");
                let mut records = resumed.records();
                assert_eq!(records.lost_steps, 0, "{what}");
                records.records.retain(|record| record.step >= last);
                records.tensors.retain(|record| record.step >= last);
                records.lost_steps = expected.lost_steps;
                // The norm of a skipped step is NaN.
                assert!(format!("{records:?}") == format!("{expected:?}"), "{what}");
                // The checkpoints compare all other state.
                assert!(resumed.checkpoint().to_bytes() == whole.checkpoint().to_bytes(), "{what}: checkpoints differ");
            }
            let skipped = (0..end).filter(|step| step % 5 == 2).count();
            assert_eq!(whole.states()[0].skipped as usize, skipped);
        }
    }
}

/// Returns a run on a device with another tuning than its preset, with scattered tensors and small blocks.
fn scattered(specs: &[Spec], index: usize) -> GpuRun {
    let gpu = &devices()[index];
    let tuning = Tuning { workgroup_size: 16, quads_per_invocation: 4, ..gpu.tuning() };
    let gpu = gpu.clone().with_tuning(tuning).expect("it can");
    let places = packed(specs, 3, 1).into_iter().enumerate().map(|(index, place)| Place {
        // The gradient of every third tensor is in the buffer of the parameters.
        grads: if index % 3 == 0 { (0, 100_000 + place.params.1) } else { place.grads },
        ..place
    });
    GpuRun::with(&gpu, specs, places.collect(), |builder| setup().tell(builder).record_steps(5))
}

/// For each pair of paths and with any tuning, a restored checkpoint has the same bytes, and the run continues as on the first path up to rounding.
#[test]
fn a_checkpoint_is_the_same_on_every_path_and_in_every_geometry() {
    for specs in [few(), streams(), kept(Element::F16), kept(Element::Bf16)] {
        let element = specs[0].params;
        for (steps, first) in [3, 4].into_iter().flat_map(|steps| (0..=devices().len()).map(move |i| (steps, i))) {
            let mut first = every_path_with(&specs, setup()).swap_remove(first);
            advance(&mut *first, &specs, 0..steps);
            let bytes = first.checkpoint().to_bytes();
            let mut paths = every_path_with(&elsewhere(&specs), setup());
            for index in 0..devices().len() {
                paths.push(Box::new(scattered(&elsewhere(&specs), index)));
            }
            paths.push(Box::new(CpuRun::with(&elsewhere(&specs), setup())));
            let mut checkpoint = Checkpoint::from_bytes(&bytes[..]).expect("whole");
            for path in &mut paths {
                path.restore(&checkpoint).expect("it fits");
                checkpoint = path.checkpoint();
                assert!(checkpoint.to_bytes() == bytes, "{}", path.path());
            }
            advance(&mut *first, &specs, steps..steps + 4);
            for path in &mut paths {
                advance(&mut **path, &specs, steps..steps + 4);
                let what = format!("{} to {}, {element:?}, from {steps}", first.path(), path.path());
                let names = specs.iter().flat_map(|spec| std::iter::repeat_n(spec.name.as_str(), spec.tensors.len()));
                for ((expected, got), name) in first.params().into_iter().zip(path.params()).zip(names) {
                    for (expected, got) in expected.into_iter().zip(got) {
                        // A sign rule turns a rounding error into a whole step where a gradient is almost zero. None is here.
                        let allowed = match element {
                            Element::F32 => 2e-4 * (1.0 + f64::from(expected.abs())),
                            _ => 4.0 * half_ulp(element, expected.into()),
                        };
                        assert_close(format_args!("{what}, {name}"), got, expected, allowed);
                    }
                }
            }
        }
    }
}

/// A halt and the state needed to resume are restored on every path.
#[test]
fn a_halted_run_is_halted_until_it_is_resumed() {
    let halting = Setup { policy: NonFinitePolicy::Error { after: 2 }, ..Setup::default() };
    let specs = plain();
    let (good, bad) = (filled(&specs, 1.0), filled(&specs, f32::NAN));
    for (mut run, mut resumed) in pairs_with((&specs, halting), (&specs, halting)) {
        run.step(&good);
        run.step(&good);
        let params = bits(&run.params());
        for _ in 0..3 {
            let _ = run.try_step(&bad);
        }
        resumed.restore(&run.checkpoint()).expect("it fits");
        let stepped = resumed.try_step(&good).and_then(|()| resumed.try_records());
        assert_eq!(stepped.map_err(|error| error.kind()), Err(ErrorKind::Halted));
        assert!(bits(&resumed.params()) == params, "{}", resumed.path());
        resumed.resume();
        resumed.step(&good);
        resumed.step(&good);
        assert!(bits(&resumed.params()) != params, "{}", resumed.path());
    }
}

/// While the averages are swapped in, the parameters are in the place of the averages.
#[test]
fn swapped_averages_are_neither_saved_nor_restored() {
    for averaging in [Averaging::Running { start: 0 }, Averaging::ScheduleFree] {
        let mut specs = plain();
        specs[1].averaging = averaging;
        let words = ["a checkpoint"];
        for gpu in &devices() {
            let mut run = gpu_run_with(gpu, &specs, Setup::default());
            let before = run.checkpoint();
            run.swap_averages();
            let notes = Notes::new();
            let saved = pollster::block_on(run.optimizer.checkpoint(Parameters::Included, &notes));
            for refused in [assert_refused(saved, &words), assert_refused(run.restore(&before), &words)] {
                assert!(refused.to_string().contains("swapped in"), "{refused}");
            }
            run.swap_averages();
            run.restore(&before).expect("in place");
        }
        let mut run = CpuRun::new(&specs);
        let before = run.checkpoint();
        run.swap_averages();
        let saved = run.optimizer.checkpoint(None, &Notes::new());
        for refused in [assert_refused(saved, &words), assert_refused(run.restore(&before), &words)] {
            assert!(refused.to_string().contains("swapped in"), "{refused}");
        }
    }
}

/// A restore discards all earlier records, including those whose readback is under way.
#[test]
fn records_of_another_time_are_gone() {
    let specs = plain();
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &specs, Setup::default());
        let early = run.checkpoint();
        let grads = filled(&specs, 1.0);
        run.step(&grads);
        run.step(&grads);
        run.optimizer.try_drain_records().expect("alive");
        run.restore(&early).expect("it fits");
        run.step(&grads);
        let records = run.records();
        let steps: Vec<u64> = records.records.iter().map(|record| record.step).collect();
        assert_eq!((steps, records.lost_steps), (vec![0, 0], 0), "{}", run.path());
    }
}

//! Steps of the methods.

use wgpu_optim::{NormRatio, Regime, ZerothOrderMethod, wgpu};
use wgpu_optim_conformance::run::devices;

use super::oracle::Oracle;
use super::{Run, Spec, losses};

/// Lengths around every boundary: multiples of four, workgroups and blocks of the device, blocks of the CPU path, and 0.
const SHAPES: &[&[usize]] = &[
    &[0],
    &[1],
    &[2],
    &[3],
    &[5],
    &[0, 7],
    &[1, 1],
    &[1, 9],
    &[9, 1],
    &[4, 4],
    &[3, 5, 2],
    &[63, 65],
    &[4095],
    &[4097],
    &[64, 64],
    &[16_385],
    &[129, 127],
    &[7],
    &[],
];

const METHODS: [ZerothOrderMethod; 5] = [
    ZerothOrderMethod::Mezo,
    ZerothOrderMethod::Lozo { rank: 1, interval: 1 },
    ZerothOrderMethod::Lozo { rank: 4, interval: 3 },
    ZerothOrderMethod::LozoM { rank: 2, interval: 3, momentum: 0.9 },
    ZerothOrderMethod::LozoM { rank: 5, interval: 1, momentum: 0.5 },
];

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed * 101) as f32 * 0.618).sin()).collect()
}

fn spec(method: ZerothOrderMethod) -> Spec {
    let tensor = |(index, shape): (usize, &&[usize])| (shape.to_vec(), values(shape.iter().product(), index));
    let tensors = SHAPES.iter().enumerate().map(tensor).collect();
    Spec { regime: Regime::fixed(0.02), decay: 0.1, seed: 5, tensors, ..Spec::filled(method, &[], 0.0) }
}

/// Returns the largest difference from the reference, in units of 1 + |w|.
fn most_off(run: &dyn Run, oracle: &Oracle) -> f64 {
    let (got, exact) = (run.params(), &oracle.w);
    assert!(got.iter().map(Vec::len).eq(exact.iter().map(Vec::len)));
    let off = got.iter().flatten().zip(exact.iter().flatten());
    let off = off.map(|(got, exact)| (f64::from(*got) - exact).abs() / (1.0 + exact.abs()));
    // A NaN is infinitely far off.
    off.map(|off| if off.is_nan() { f64::INFINITY } else { off }).fold(0.0, f64::max)
}

/// Twelve steps agree with f64 on every path. The first one, one with a new V and one without are skipped.
#[test]
fn steps_are_those_of_the_papers() {
    for method in METHODS {
        let spec = spec(method);
        for mut run in spec.everywhere() {
            let mut oracle = Oracle::new(&spec);
            for step in 0..12 {
                let mut of_step = losses(step);
                match step {
                    0 => of_step[0] = f32::NAN,
                    6 => of_step[1] = f32::INFINITY,
                    7 => of_step[0] = f32::NEG_INFINITY,
                    _ => {}
                }
                run.take(of_step);
                oracle.take(of_step, 0.02);
                let off = most_off(&*run, &oracle);
                assert!(off <= 1e-6, "{}, {method:?}, step {step}: {off:.1e}", run.path());
            }
            let records = run.records();
            let skipped: Vec<u64> = records
                .records
                .iter()
                .filter(|record| record.record.flags.skipped())
                .map(|one| one.record.step)
                .collect();
            assert_eq!((skipped, records.lost_steps), (vec![0, 6, 7], 0), "{}", run.path());
        }
    }
}

/// With c = 0 only rounding moves the parameters: by less than 1e-4 of their size in 10,000 steps. 5e-6 is usual.
#[test]
fn parameters_drift_by_rounding_alone() {
    for method in METHODS {
        let spec = Spec { tensors: vec![(vec![50, 20], values(1000, 3)), (vec![30], values(30, 4))], ..spec(method) };
        let start = spec.tensors.iter().flat_map(|(_, values)| values.clone()).collect::<Vec<f32>>();
        let spec = Spec { decay: 0.0, ..spec };
        for (index, mut run) in spec.everywhere().into_iter().enumerate() {
            for _ in 0..if index == 0 { 10_000 } else { 300 } {
                run.take([2.0, 2.0]);
            }
            let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let moved = run.params().concat();
            let off = length(&mut moved.iter().zip(&start).map(|(w, start)| f64::from(*w) - f64::from(*start)));
            let drift = off / length(&mut start.iter().map(|w| f64::from(*w)));
            println!("{}, {method:?}: {drift:.1e}", run.path());
            assert!(drift < 1e-4, "{}, {method:?}: {drift:.1e}", run.path());
        }
    }
}

/// A loss that is not finite restores the parameters, and the record and its sentence say so. Two losses whose difference overflows f32 count as not
/// finite.
#[test]
fn a_loss_that_is_not_finite_restores_the_parameters() {
    for method in METHODS {
        let spec = spec(method);
        let start: Vec<f32> = spec.tensors.iter().flat_map(|(_, values)| values.clone()).collect();
        for mut run in spec.everywhere() {
            let bad = [
                [f32::NAN, 1.0],
                [1.0, f32::NAN],
                [f32::INFINITY, f32::INFINITY],
                [1.0, f32::NEG_INFINITY],
                [3e38, -3e38],
            ];
            bad.into_iter().for_each(|of_step| run.take(of_step));
            for (w, start) in run.params().concat().iter().zip(&start) {
                assert!((w - start).abs() <= 2e-6, "{}, {method:?}: {w} instead of {start}", run.path());
            }
            let records = run.records().records;
            for (record, of_step) in records.iter().zip(bad) {
                assert!(record.record.flags.skipped() && record.slope.is_nan(), "{record}");
                assert_eq!(record.losses.map(f32::to_bits), of_step.map(f32::to_bits), "{record}");
            }
            assert_eq!(
                records[0].to_string(),
                "step 0: skipped, the parameters were restored: no slope from the losses NaN at w + εz and 1 at w - εz"
            );
            // The largest slope that counts leaves the parameters finite.
            run.take([1e26, -1e26]);
            assert!(run.params().concat().iter().all(|w| w.is_finite()), "{}, {method:?}", run.path());
            assert!(!run.records().records[0].record.flags.skipped());
        }
    }
}

/// Records contain the losses, the slope and the rate. They are drained once, and the number of overwritten ones is reported.
#[test]
fn records_tell_the_losses_and_the_slope() {
    let spec = Spec { epsilon: 0.25, ..Spec::filled(ZerothOrderMethod::mezo(), &[&[8]], 1.0) };
    for mut run in spec.everywhere() {
        run.take([1.5, 1.0]);
        run.take([1.0, 1.75]);
        let records = run.records().records;
        let told: Vec<_> = records.iter().map(|one| (one.record.step, one.losses, one.slope)).collect();
        assert_eq!(told, [(0, [1.5, 1.0], 1.0), (1, [1.0, 1.75], -1.5)], "{}", run.path());
        assert!(records.iter().all(|one| one.record.learning_rate == 1e-2));
        assert!((records[1].record.norm - 1.5 * 8f32.sqrt()).abs() <= 1e-5, "{}", records[1].record.norm);
        assert_eq!(
            records[1].to_string(),
            "step 1: η 1.0000e-2, +0.0 %; slope c = -1.5000e0, from the losses 1 at w + εz and 1.75 at w - εz"
        );
        assert_eq!(run.records(), Default::default(), "{}", run.path());
    }
    let mut run = spec.on_host();
    (0..1030).for_each(|_| run.take([1.0, 1.0]));
    let drained = run.records();
    assert_eq!((drained.records.len(), drained.lost_steps), (1024, 6));
}

/// NormRatio with exponent 1 and without smoothing makes all steps equally long on average: η |c| √E‖z‖² = ε (1 + ‖w₀‖), where ε is that of the first
/// step.
#[test]
fn norm_ratio_follows_the_slope() {
    for (method, square) in [
        (ZerothOrderMethod::mezo(), 400.0 + 10.0),
        (ZerothOrderMethod::Lozo { rank: 3, interval: 2 }, 3.0 * 400.0 + 10.0),
    ] {
        let regime = NormRatio { smoothing: 0.0, first_step: Some(0.02), ..NormRatio::default() };
        let regime = Regime::NormRatio(regime);
        let spec = Spec { regime, ..Spec::filled(method, &[&[20, 20], &[10]], 0.5) };
        let length = 0.02 * (1.0 + 0.5 * f64::from(410.0f32).sqrt());
        for mut run in spec.everywhere() {
            // Skipped steps and a slope of 0 do not count as the first step.
            run.take([f32::NAN, 1.0]);
            run.take([1.0, 1.0]);
            let slopes = [0.5f32, -0.25, 1.0, 3.0, 0.7];
            for slope in slopes {
                run.take([1.0 + 1e-3 * slope, 1.0 - 1e-3 * slope]);
            }
            let records = run.records().records;
            assert!(records[1].record.flags.waiting() && records[2].record.flags.first(), "{}", records[2]);
            for record in &records[2..] {
                let n = f64::from(record.slope.abs()) * f64::sqrt(square);
                assert!((f64::from(record.record.norm) / n - 1.0).abs() <= 1e-6, "{record}");
                let step = f64::from(record.record.learning_rate) * n;
                assert!((step / length - 1.0).abs() <= 1e-5, "{}: {step} instead of {length}", run.path());
            }
            assert!(records[4].to_string().contains("norm rose"), "{}", records[4]);
        }
    }
}

/// A step has three passes, each of which reads and writes the parameters: 24 bytes per parameter. Its other buffers do not grow with the number of
/// parameters, except for LOZO-M's vectors and a table of blocks.
#[test]
fn a_step_moves_24_bytes_for_each_parameter_and_keeps_none() {
    for gpu in &devices() {
        let cases = [
            (ZerothOrderMethod::mezo(), 0.0),
            (ZerothOrderMethod::Lozo { rank: 2, interval: 50 }, 4.0 * 2.0),
            (ZerothOrderMethod::LozoM { rank: 2, interval: 50, momentum: 0.9 }, 4.0 * 2.0 * 2.0),
        ];
        for (method, for_each_row) in cases {
            let kept = |rows: usize| {
                let run = Spec::filled(method, &[&[rows, 256]], 0.5).on_device(gpu);
                let mut own: Vec<wgpu::Buffer> = Vec::new();
                let mut passes = 0;
                for dispatch in run.optimizer.dispatches() {
                    for bound in dispatch.bind_groups.iter().flat_map(|group| group.buffers()) {
                        if bound.buffer == run.buffer {
                            passes += 1;
                        } else if !own.contains(&bound.buffer) {
                            own.push(bound.buffer.clone());
                        }
                    }
                }
                assert_eq!(passes, 3, "{}, {method:?}", gpu.describe());
                own.iter().map(wgpu::Buffer::size).sum::<u64>() as f64
            };
            let (few, many) = (256, 4096);
            let bytes = (kept(many) - kept(few)) / (many - few) as f64 - for_each_row;
            // A block of at least 1024 elements takes 20 bytes.
            assert!((0.0..=256.0 * 20.0 / 1024.0).contains(&bytes), "{}, {method:?}: {bytes}", gpu.describe());
        }
    }
}

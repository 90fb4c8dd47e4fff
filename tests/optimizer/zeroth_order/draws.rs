//! Random directions.

use wgpu_optim::{Regime, ZerothOrderMethod};
use wgpu_optim_conformance::run::devices;

use super::oracle::{Oracle, normal};
use super::{Run, Spec, losses};

/// Returns a case with w = 0 and ε = 1, so that the perturbed parameters are z.
fn of_zeros(method: ZerothOrderMethod, shapes: &[&[usize]]) -> Spec {
    Spec { epsilon: 1.0, ..Spec::filled(method, shapes, 0.0) }
}

/// Returns the largest difference from f64, in ulps.
fn most_ulps(got: &[f32], exact: &[f64]) -> f64 {
    let unit = |x: f64| f64::from(f32::EPSILON) * x.abs().log2().floor().exp2();
    let ulps = got.iter().zip(exact).map(|(got, exact)| ((f64::from(*got) - exact).abs() - 1e-14) / unit(*exact));
    ulps.fold(0.0, f64::max)
}

/// The numbers agree with f64 to 8 ulps on every path, and so to 16 between paths. WGSL allows 2.5 ulps each for a root and a quotient.
#[test]
fn numbers_are_those_of_box_and_muller() {
    let spec = of_zeros(ZerothOrderMethod::mezo(), &[&[40_001], &[3], &[], &[5000]]);
    for mut run in spec.everywhere() {
        let mut oracle = Oracle::new(&spec);
        for step in 0..3 {
            run.perturb();
            let z = oracle.take([0.0; 2], 0.0);
            for (got, exact) in run.params().iter().zip(&z) {
                // Restored parameters contain the rounding errors of z.
                let ulps = most_ulps(got, exact);
                println!("{}, step {step}: {ulps:.1} ulps", run.path());
                assert!(ulps <= 8.0 || step > 0, "{}: {ulps:.1} ulps", run.path());
                let off = got.iter().zip(exact).map(|(got, exact)| (f64::from(*got) - exact).abs());
                assert!(off.fold(0.0, f64::max) <= 4e-6, "{}, step {step}", run.path());
            }
            run.reverse(1.0);
            run.step(1.0);
        }
    }
}

/// The mean is 0, the variance 1 and the fourth moment 3. Elements are not correlated with the next element, with the next step or with another seed.
/// The tolerance is 4.5 standard deviations of an estimate from n draws: 1/√n, √(2/n), √(96/n) and 1/√n.
#[test]
fn moments_are_those_of_the_normal_distribution() {
    const N: usize = 1 << 20;
    let spec = of_zeros(ZerothOrderMethod::mezo(), &[&[N]]);
    for (mut run, mut other) in spec.everywhere().into_iter().zip(Spec { seed: 2, ..spec.clone() }.everywhere()) {
        let z: Vec<Vec<f32>> = (0..2)
            .map(|_| {
                run.perturb();
                let z = run.params().remove(0);
                run.reverse(1.0);
                run.step(1.0);
                z
            })
            .collect();
        other.perturb();
        let of_other = other.params().remove(0);
        let n = N as f64;
        let mean = |of: &dyn Fn(usize) -> f64| (0..N).map(of).sum::<f64>() / n;
        let at = |values: &[f32], i: usize| f64::from(values[i]);
        let bound = 4.5 / n.sqrt();
        for z in &z {
            let checks = [
                ("mean", mean(&|i| at(z, i)), bound),
                ("variance", mean(&|i| at(z, i).powi(2)) - 1.0, 2f64.sqrt() * bound),
                ("fourth moment", mean(&|i| at(z, i).powi(4)) - 3.0, 96f64.sqrt() * bound),
                ("correlation with the next", mean(&|i| at(z, i) * at(z, (i + 1) % N)), bound),
                (
                    "correlation of the squares",
                    mean(&|i| (at(z, i).powi(2) - 1.0) * (at(z, (i + 1) % N).powi(2) - 1.0)),
                    2.0 * bound,
                ),
            ];
            for (what, off, bound) in checks {
                assert!(off.abs() <= bound, "{}: {what} is off by {off:.2e}, above {bound:.2e}", run.path());
            }
            assert!(z.iter().all(|z| z.abs() < 5.8));
        }
        for (what, second) in [("step", &z[1]), ("seed", &of_other)] {
            let off = mean(&|i| at(&z[0], i) * at(second, i));
            assert!(off.abs() <= bound, "{}: correlation with the next {what} is {off:.2e}", run.path());
        }
    }
}

/// Low-rank directions are products of their factors. V stays the same within an interval, U changes in each step, and vectors have separate numbers.
#[test]
fn low_rank_directions_are_products_of_their_factors() {
    let shapes: &[&[usize]] = &[&[7, 5], &[3], &[0, 4], &[1, 1], &[6, 2, 9], &[], &[33, 130], &[2, 3]];
    for method in [
        ZerothOrderMethod::Lozo { rank: 1, interval: 2 },
        ZerothOrderMethod::Lozo { rank: 3, interval: 3 },
        ZerothOrderMethod::LozoM { rank: 32, interval: 2, momentum: 0.5 },
    ] {
        let spec = of_zeros(method, shapes);
        for mut run in spec.everywhere() {
            let mut oracle = Oracle::new(&spec);
            for step in 0..5 {
                run.perturb();
                let z = oracle.take([0.0; 2], 0.0);
                for (tensor, (got, exact)) in run.params().iter().zip(&z).enumerate() {
                    let off = got.iter().zip(exact).map(|(got, exact)| (f64::from(*got) - exact).abs());
                    let off = off.fold(0.0, f64::max);
                    assert!(off <= 3e-5, "{}, {method:?}, step {step}, tensor {tensor}: {off:.1e}", run.path());
                }
                run.reverse(1.0);
                run.step(1.0);
            }
        }
    }
}

/// The bits depend only on the seed, whether calls are submitted one by one or many steps at once. Another seed gives other bits.
#[test]
fn bits_are_those_of_the_seed() {
    for method in [ZerothOrderMethod::mezo(), ZerothOrderMethod::lozo(), ZerothOrderMethod::lozo_m()] {
        let spec = Spec { decay: 0.1, ..Spec::filled(method, &[&[31, 17], &[29]], 0.5) };
        let bits = |run: &dyn Run| run.params().concat().iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let others = Spec { seed: 3, ..spec.clone() }.everywhere();
        let runs = spec.everywhere().into_iter().zip(spec.everywhere()).zip(others);
        for ((mut first, mut second), mut other) in runs {
            for step in 0..120 {
                [&mut first, &mut second, &mut other].into_iter().for_each(|run| run.take(losses(step)));
            }
            assert_eq!(bits(&*first), bits(&*second), "{}, {method:?}", first.path());
            assert_ne!(bits(&*first), bits(&*other), "{}, {method:?}", first.path());
        }
        for gpu in &devices() {
            let (mut apart, mut at_once) = (spec.on_device(gpu), spec.on_device(gpu));
            (0..60).for_each(|step| apart.take(losses(step)));
            let of_steps: Vec<f32> = (0..60).flat_map(losses).collect();
            at_once.take_all(&of_steps);
            assert_eq!(bits(&apart), bits(&at_once), "{}, {method:?}", gpu.describe());
            assert_eq!(apart.records(), at_once.records(), "{}, {method:?}", gpu.describe());
        }
    }
}

/// For a linear loss with gradient G, the mean of c Z is G for MeZO and r G for LOZO, which is where the paper and its code differ by r. The steps of
/// a run add up to it.
#[test]
fn the_mean_of_all_steps_is_the_gradient_times_the_rank() {
    const STEPS: usize = 400_000;
    let rate = 1e-4f32;
    for (method, factor) in [
        (ZerothOrderMethod::mezo(), 1.0),
        (ZerothOrderMethod::Lozo { rank: 1, interval: 1 }, 1.0),
        (ZerothOrderMethod::Lozo { rank: 2, interval: 1 }, 2.0),
        (ZerothOrderMethod::Lozo { rank: 4, interval: 1 }, 4.0),
    ] {
        let gradient = [0.5f64, -1.0, 2.0, 0.25, -0.75, 1.5];
        let spec = Spec { regime: Regime::fixed(rate), ..of_zeros(method, &[&[3, 2]]) };
        let mut run = spec.on_host();
        for _ in 0..STEPS {
            let loss = |run: &super::OnHost| {
                run.params[0].iter().zip(gradient).map(|(w, g)| f64::from(*w) * g).sum::<f64>() as f32
            };
            run.perturb();
            let above = loss(&run);
            run.reverse(above);
            let below = loss(&run);
            run.step(below);
        }
        let scale = -1.0 / (f64::from(rate) * STEPS as f64 * factor);
        let off: Vec<f64> = run.params[0].iter().zip(gradient).map(|(w, g)| f64::from(*w) * scale - g).collect();
        let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = length(&off) / length(&gradient);
        println!("{method:?}: {:.3} %", 100.0 * off);
        assert!(off <= 1e-2, "{method:?}: off by {:.2} %", 100.0 * off);
    }
}

/// The numbers of two keys or two indices differ.
#[test]
fn the_reference_is_no_constant() {
    let numbers: std::collections::HashSet<u64> =
        (0..50).flat_map(|key| (0..50).map(move |index| normal(key, index).to_bits())).collect();
    assert!(numbers.len() > 2490);
}

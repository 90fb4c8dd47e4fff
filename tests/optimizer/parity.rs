//! Promise: with a fixed rate SGD, SGD with momentum, Adam and AdamW are those of PyTorch, and Lion is that of its paper, parameter for
//! parameter over 100 steps. The numbers come from `tests/golden/make_torch.py` and `tests/golden/make_lion.py`.

use wgpu_optim::{AdamW, Regime, Rule, Sgdm, WeightDecay};
use wgpu_optim_conformance::run::{Spec, every_path};

const D: usize = 12;
const RATE: f32 = 0.01;

/// The generator's gradient, exact in f32.
fn gradient(t: usize) -> Vec<f32> {
    (0..D).map(|i| ((7 * i + 13 * t) % 32) as f32 / 16.0 - 1.0 + (i as f32 - 5.0) / 64.0).collect()
}

fn spec(name: &str) -> Spec {
    let sgdm = |dampening, nesterov| Rule::Sgdm(Sgdm { momentum: 0.9, dampening, nesterov });
    let rule = match name {
        "sgd" | "decay" | "clip" => Rule::sgd(),
        "dampened" => sgdm(0.1, false),
        "nesterov" | "nesterov-decay" => sgdm(0.0, true),
        "adamw-betas" => Rule::AdamW(AdamW { beta1: 0.5, beta2: 0.75, epsilon: 0.125 }),
        name if name.starts_with("adam") => Rule::adamw(),
        name if name.starts_with("lion") => Rule::lion(),
        _ => sgdm(0.0, false),
    };
    let initial = (0..D).map(|i| (i as f32 - 6.0) / 4.0).collect();
    let mut spec = Spec::new(rule, Regime::fixed(RATE), vec![initial]).named(name);
    spec.decay = match name {
        "lion-decay" => WeightDecay::Decoupled(0.1),
        "adamw-strong" => WeightDecay::Decoupled(0.5),
        // PyTorch's default.
        name if name.starts_with("adamw") => WeightDecay::Decoupled(0.01),
        name if name.contains("decay") => WeightDecay::Coupled(0.01),
        _ => spec.decay,
    };
    if name.contains("clip") {
        spec.clip = 1.5;
    }
    spec.maximize = name.ends_with("maximize");
    spec
}

/// Units in the last place of the largest parameter. Both sides round every step once or twice; 1.5 of them is the most that was seen.
/// PyTorch adds 1e-6 to the norm of a clip, which shortens every step by a part in a few million: 7.2 after 100 steps. Lion's numbers are in
/// f64, where the same product and difference are not rounded every time.
fn allowed_ulps(name: &str, steps: usize) -> f64 {
    if name.contains("clip") {
        2.0 + 0.1 * steps as f64
    } else if name.starts_with("lion") {
        2.0 + 0.25 * steps as f64
    } else {
        2.0
    }
}

#[test]
fn a_fixed_rate_is_pytorchs() {
    follow(include_str!("../golden/torch.csv"), 18);
}

#[test]
fn lion_is_its_papers() {
    follow(include_str!("../golden/lion.csv"), 2);
}

/// Every case of a file on every path.
fn follow(text: &str, cases: usize) {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("case"))
        .map(|line| line.split(',').collect())
        .collect();
    let mut names: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    names.dedup();
    assert_eq!((names.len(), rows.len()), (cases, cases * 6));
    let specs: Vec<Spec> = names.iter().map(|name| spec(name)).collect();
    for mut run in every_path(&specs) {
        let mut compared = 0;
        let mut worst: Vec<f64> = vec![0.0; names.len()];
        for t in 0..100 {
            run.step(&vec![gradient(t); specs.len()]);
            let step = (t + 1).to_string();
            for row in rows.iter().filter(|row| row[1] == step) {
                let at = names.iter().position(|name| *name == row[0]);
                let at = at.expect("a case");
                let params = &run.params()[at];
                let expected: Vec<f32> =
                    row[2..].iter().map(|bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("bits"))).collect();
                let largest = expected.iter().fold(0f32, |most, w| most.max(w.abs()));
                let unit = f64::from(largest) * f64::from(f32::EPSILON);
                assert_eq!(params.len(), expected.len());
                for (i, (&w, &expected)) in params.iter().zip(&expected).enumerate() {
                    let ulps = (f64::from(w) - f64::from(expected)).abs() / unit;
                    assert!(
                        ulps <= allowed_ulps(row[0], t + 1),
                        "{}, {}, step {}, parameter {i}: {w} instead of {expected}, {ulps} ulps",
                        run.path(),
                        row[0],
                        t + 1
                    );
                    worst[at] = worst[at].max(ulps);
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, rows.len() * D);
        for (name, ulps) in names.iter().zip(worst) {
            println!("{}, {name}: {ulps:.2} ulps", run.path());
        }
    }
}

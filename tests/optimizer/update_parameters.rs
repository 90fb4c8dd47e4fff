//! Tests of pass 4: for every rule listed here and on every path, each parameter agrees with f64 to a few ulps.

use wgpu_optim::{AdamW, AmsGrad, Lion, Regime, Rule, Sgdm, Signum};
use wgpu_optim_conformance::run::{Spec, every_path};
use wgpu_optim_conformance::{Numbers, assert_close};

const LEN: usize = 1001;
const RATE: f32 = 0.037;

/// Returns a parameter after one step of a rule, in f64.
fn exact(rule: Rule, w: f64, g: f64, step: i32, m: &mut Option<f64>, [v, largest_v]: &mut [f64; 2]) -> f64 {
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let direction = match rule {
        Rule::Sgd(_) => g,
        Rule::SignSgd(_) => sign(g),
        Rule::Sgdm(Sgdm { momentum, dampening, nesterov }) => {
            let (mu, share) = (f64::from(momentum), 1.0 - f64::from(dampening));
            let new = m.map_or(g, |m| mu * m + share * g);
            *m = Some(new);
            if nesterov { g + mu * new } else { new }
        }
        Rule::Signum(Signum { momentum }) => {
            let beta = f64::from(momentum);
            let new = beta * m.unwrap_or(0.0) + (1.0 - beta) * g;
            *m = Some(new);
            sign(new)
        }
        Rule::AdamW(AdamW { beta1, beta2, epsilon }) | Rule::AmsGrad(AmsGrad { beta1, beta2, epsilon }) => {
            let [beta1, beta2, epsilon] = [beta1, beta2, epsilon].map(f64::from);
            let new = beta1 * m.unwrap_or(0.0) + (1.0 - beta1) * g;
            *m = Some(new);
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *largest_v = largest_v.max(*v);
            let divisor = if matches!(rule, Rule::AmsGrad(_)) { *largest_v } else { *v };
            new / (1.0 - beta1.powi(step)) / ((divisor / (1.0 - beta2.powi(step))).sqrt() + epsilon)
        }
        Rule::Lion(Lion { beta1, beta2 }) => {
            let [beta1, beta2] = [beta1, beta2].map(f64::from);
            let old = m.unwrap_or(0.0);
            *m = Some(beta2 * old + (1.0 - beta2) * g);
            sign(beta1 * old + (1.0 - beta1) * g)
        }
        _ => unreachable!("every rule is listed"),
    };
    w - f64::from(RATE) * direction
}

/// Returns the tolerance. Each step rounds the product η u and the difference by at most half an ulp each of the larger of w and η u. The momentum
/// rounds two products and a sum before that. 3 ulps a step are enough, and a wrong sign or factor is off by 2^20.
fn tolerance(w: f64, g: f64, steps: usize) -> f64 {
    let unit = w.abs().max(f64::from(RATE) * 10.0 * g.abs()).max(1e-30) * f64::from(f32::EPSILON);
    3.0 * steps as f64 * unit
}

/// A parameter, its momentum, and its second moment with the largest value so far.
type Remembered = (f64, Option<f64>, [f64; 2]);

#[test]
fn every_rule_is_right_to_the_last_places() {
    let rules = [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::nesterov(0.9),
        Rule::Sgdm(Sgdm { momentum: 0.8, dampening: 0.25, nesterov: false }),
        Rule::sign_sgd(),
        Rule::signum(0.5),
        Rule::adamw(),
        Rule::AdamW(AdamW { beta1: 0.0, beta2: 0.5, epsilon: 0.125 }),
        Rule::lion(),
        // v decreases where a gradient is smaller than the one before.
        Rule::AmsGrad(AmsGrad { beta1: 0.9, beta2: 0.5, epsilon: 0.125 }),
    ];
    let start = Numbers(1).vec(LEN);
    let spec = |(index, &rule): (usize, &Rule)| {
        Spec::new(rule, Regime::fixed(RATE), vec![start.clone()]).named(index.to_string())
    };
    let specs: Vec<Spec> = rules.iter().enumerate().map(spec).collect();
    let steps = 3;
    for mut run in every_path(&specs) {
        let mut expected: Vec<Vec<Remembered>> =
            rules.iter().map(|_| start.iter().map(|&w| (f64::from(w), None, [0.0; 2])).collect()).collect();
        let mut largest = vec![0f64; LEN];
        for step in 0..steps {
            let grads = Numbers(10 + step as u64).vec(LEN);
            run.step(&vec![grads.clone(); rules.len()]);
            for (rule, row) in rules.iter().zip(&mut expected) {
                for ((w, m, v), &g) in row.iter_mut().zip(&grads) {
                    *w = exact(*rule, *w, f64::from(g), step + 1, m, v);
                }
            }
            for (largest, g) in largest.iter_mut().zip(&grads) {
                *largest = largest.max(f64::from(g.abs()));
            }
        }
        let got = run.params();
        for (index, rule) in rules.iter().enumerate() {
            for i in 0..LEN {
                let (w, ..) = expected[index][i];
                let scale = w.abs().max(f64::from(start[i].abs()));
                let allowed = tolerance(scale, if rule.is_scale_free() { 1.0 } else { largest[i] }, steps as usize);
                let what = format_args!("{}, {}, parameter {i}", run.path(), rule.name());
                assert_close(what, got[index][i], w, allowed);
            }
        }
    }
}

/// A gradient of any finite size moves a parameter of AdamW by about η, or by η g/ε if it is small, although its square may overflow f32. Later steps
/// are not affected.
#[test]
fn any_finite_gradient_leaves_adamw_finite() {
    let sizes = [3.4e38f32, 1e30, 1.9e19, 1.8e19, 1e10, 1.0, 1e-5, 1e-20, 1e-30, 1e-38, 0.0];
    let specs = [Spec::new(Rule::adamw(), Regime::fixed(RATE), vec![vec![0.0; 2 * sizes.len()]])];
    for mut run in every_path(&specs) {
        let gradient: Vec<f32> = sizes.iter().flat_map(|&size| [size, -size]).collect();
        run.step(std::slice::from_ref(&gradient));
        for (w, g) in run.params()[0].iter().zip(&gradient) {
            let size = f64::from(g.abs()).min(1.8e19);
            let expected = -f64::from(RATE) * size / (size + 1e-8) * f64::from(g.signum());
            let unit = expected.abs().max(1e-37) * f64::from(f32::EPSILON);
            assert_close(format_args!("{}: the step along {g:e}", run.path()), *w, expected, 12.0 * unit);
        }
        let before = run.params();
        run.step(&[vec![1.0; 2 * sizes.len()]]);
        for ((w, old), g) in run.params()[0].iter().zip(&before[0]).zip(&gradient) {
            let step = (w - old).abs();
            // By the Cauchy-Schwarz inequality, m/√v of two gradients is at most 3.
            assert!(step.is_finite() && step <= 3.0 * RATE, "{}, after {g:e}: a step of {step}", run.path());
            assert!(step > 0.0, "{}, after {g:e}: it is stuck", run.path());
        }
    }
}

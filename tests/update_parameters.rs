//! Promise: pass 4 is right to the last places, for every rule, on every path: one parameter at a time against f64, in ulps.

mod common;

use common::Numbers;
use common::run::{Spec, every_path};
use wgpu_optim::{Regime, Rule};

const LEN: usize = 1001;
const RATE: f32 = 0.037;

/// What one step of a rule does to one parameter, in f64.
fn exact(rule: Rule, w: f64, g: f64, m: &mut Option<f64>) -> f64 {
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let direction = match rule {
        Rule::Sgd => g,
        Rule::SignSgd => sign(g),
        Rule::Sgdm {
            momentum,
            dampening,
            nesterov,
        } => {
            let (mu, share) = (f64::from(momentum), 1.0 - f64::from(dampening));
            let new = m.map_or(g, |m| mu * m + share * g);
            *m = Some(new);
            if nesterov { g + mu * new } else { new }
        }
        Rule::Signum { momentum } => {
            let beta = f64::from(momentum);
            let new = beta * m.unwrap_or(0.0) + (1.0 - beta) * g;
            *m = Some(new);
            sign(new)
        }
        _ => unreachable!("every rule is listed"),
    };
    w - f64::from(RATE) * direction
}

/// Each step rounds the product η u and the difference, at most half an ulp each of the larger of w and η u, and the momentum
/// rounds two products and a sum before that: 3 ulps a step are generous, and a wrong sign or share is off by 2^20.
fn tolerance(w: f64, g: f64, steps: usize) -> f64 {
    let unit = w.abs().max(f64::from(RATE) * 10.0 * g.abs()).max(1e-30) * f64::from(f32::EPSILON);
    3.0 * steps as f64 * unit
}

#[test]
fn every_rule_is_right_to_the_last_places() {
    let rules = [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::nesterov(0.9),
        Rule::Sgdm {
            momentum: 0.8,
            dampening: 0.25,
            nesterov: false,
        },
        Rule::sign_sgd(),
        Rule::signum(0.5),
    ];
    let start = Numbers(1).vec(LEN);
    let specs: Vec<Spec> = rules
        .iter()
        .enumerate()
        .map(|(index, &rule)| {
            Spec::new(rule, Regime::fixed(RATE), vec![start.clone()]).named(index.to_string())
        })
        .collect();
    let steps = 3;
    for mut run in every_path(&specs) {
        let mut expected: Vec<Vec<(f64, Option<f64>)>> = rules
            .iter()
            .map(|_| start.iter().map(|&w| (f64::from(w), None)).collect())
            .collect();
        let mut largest = vec![0f64; LEN];
        for step in 0..steps {
            let grads = Numbers(10 + step as u64).vec(LEN);
            run.step(&vec![grads.clone(); rules.len()]);
            for (rule, row) in rules.iter().zip(&mut expected) {
                for ((w, m), &g) in row.iter_mut().zip(&grads) {
                    *w = exact(*rule, *w, f64::from(g), m);
                }
            }
            for (largest, g) in largest.iter_mut().zip(&grads) {
                *largest = largest.max(f64::from(g.abs()));
            }
        }
        let got = run.params();
        for (index, rule) in rules.iter().enumerate() {
            for i in 0..LEN {
                let (w, _) = expected[index][i];
                let scale = w.abs().max(f64::from(start[i].abs()));
                assert!(
                    (f64::from(got[index][i]) - w).abs()
                        <= tolerance(scale, if rule.is_sign() { 1.0 } else { largest[i] }, steps),
                    "{}, {}, parameter {i}: {} against {w}",
                    run.path(),
                    rule.name(),
                    got[index][i]
                );
            }
        }
    }
}

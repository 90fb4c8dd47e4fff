//! Rules with passes over matrices, with shapes around the tiles of their kernels.

use wgpu_optim::{Adafactor, Averaging, Element, Muon, MuonScale, RateFactors, Regime, Rounding, Rule, WeightDecay};
use wgpu_optim_conformance::spec::{Spec, regimes, shape_for};

use super::case::{Cases, Subject};
use super::scenario::{Gradients, Layout, Part, Scenario, group};

const STEPS: usize = 4;

/// One element, a row, a column, less than a quad, both sides of a tile boundary, several tiles wide or tall, and empty
/// shapes.
const SHAPES: [[usize; 2]; 13] = [
    [1, 1],
    [1, 7],
    [7, 1],
    [3, 4],
    [4, 3],
    [63, 65],
    [64, 64],
    [65, 64],
    [16, 63],
    [130, 66],
    [33, 300],
    [257, 20],
    [0, 5],
];

/// Size of a binding in bytes, so that the matrices of one group do not fit into one.
const BINDING_BYTES: u64 = 64 << 10;

fn matrices(name: impl Into<String>, rule: Rule, regime: Regime) -> Spec {
    let lengths = SHAPES.map(|[rows, columns]| rows * columns);
    Spec { shapes: SHAPES.map(Vec::from).into(), ..group(name, rule, regime, &lengths) }
}

pub fn cases(_: &Subject) -> Cases {
    let muon = Rule::muon();
    let fixed = |name: &str, rule| matrices(name, Rule::Muon(rule), Regime::fixed(0.01));
    let plain = Muon::default();
    let of_muon = vec![
        fixed("original", Muon { scale: MuonScale::Original, ..plain }),
        fixed("spectral", Muon { scale: MuonScale::Spectral, ..plain }),
        fixed("heavy ball", Muon { nesterov: false, momentum: 0.5, ..plain }),
        fixed("no momentum", Muon { momentum: 0.0, ..plain }),
        fixed("one iteration", Muon { iterations: 1, ..plain }),
        fixed("two iterations", Muon { iterations: 2, ..plain }),
        fixed("a large epsilon", Muon { epsilon: 50.0, ..plain }),
        Spec { decay: WeightDecay::Coupled(0.1), clip: 0.5, ..fixed("coupled, clipped", plain) },
        Spec { decay: WeightDecay::Decoupled(0.1), maximize: true, ..fixed("decoupled, climbing", plain) },
        Spec { per_tensor: true, trust: Some(0.02), telemetry: true, ..matrices("trust", muon, Regime::seesaw()) },
    ];
    let adafactor = Rule::adafactor();
    let fixed = |name: &str, rule| matrices(name, Rule::Adafactor(rule), Regime::fixed(0.01));
    let plain = Adafactor::default();
    let mut mixed = fixed("matrices, flat tensors and stacks", plain);
    for (index, shape) in mixed.shapes.iter_mut().enumerate() {
        let elements = shape.iter().product::<usize>();
        *shape = match index % 3 {
            0 => vec![elements],
            1 if elements.is_multiple_of(shape[0]) => {
                [&[shape[0]], &shape_for(&muon, elements / shape[0])[..]].concat()
            }
            _ => continue,
        };
    }
    let of_adafactor = vec![
        mixed,
        fixed("a slow fall", Adafactor { fall: 0.3, ..plain }),
        fixed("a low limit", Adafactor { limit: 0.1, ..plain }),
        fixed("a large epsilon", Adafactor { epsilon: 0.5, ..plain }),
        Spec { decay: WeightDecay::Coupled(0.1), clip: 0.5, ..fixed("coupled, clipped", plain) },
        Spec { decay: WeightDecay::Decoupled(0.1), maximize: true, ..fixed("decoupled, climbing", plain) },
        Spec {
            per_tensor: true,
            trust: Some(1.0),
            trust_least: Some(0.4),
            telemetry: true,
            ..fixed("relative", plain)
        },
        Spec { averaging: Averaging::ScheduleFree, ..fixed("schedule-free", plain) },
    ];
    let mut cases: Cases =
        vec![scenario("settings of muon", of_muon).boxed(), scenario("settings of adafactor", of_adafactor).boxed()];
    for rule in [muon, adafactor] {
        let fitting = regimes().filter(|regime| regime.fits(&rule));
        let of_regimes = fitting.map(|regime| matrices(regime.name(), rule, regime)).collect();
        let halves = [Element::F16, Element::Bf16].map(|element| {
            let spec = matrices(element.name(), rule, Regime::seesaw());
            spec.stored(element, element, Rounding::Masters)
        });
        let seesaw = |of: &'static str| scenario(of, vec![matrices(of, rule, Regime::seesaw())]);
        let odd = Layout::Packed { start: 3, gap: 2 };
        cases.extend([
            scenario("matrices", of_regimes).boxed(),
            scenario("matrices in 16 bits", halves.into()).boxed(),
            Scenario { layout: odd, ..seesaw("odd places") }.boxed(),
            Scenario { layout: Layout::OneBuffer { gap: 1 }, ..seesaw("one buffer") }.boxed(),
            Scenario { binding_bytes: Some(BINDING_BYTES), ..seesaw("windows") }.boxed(),
        ]);
    }
    cases.extend(rows());
    cases
}

/// Returns cases with their own rates for rows and columns and with lazy rows, for every rule, with decays and
/// averages.
fn rows() -> Cases {
    const COLUMNS: usize = 7;
    let shapes = [[1, COLUMNS], [3, COLUMNS], [130, COLUMNS], [0, COLUMNS]];
    let of_shapes = |name: &str, rule: Rule, shapes: &[[usize; 2]]| {
        let lengths: Vec<usize> = shapes.iter().map(|[rows, columns]| rows * columns).collect();
        let shapes = shapes.iter().map(|&shape| shape.into()).collect();
        Spec { shapes, ..group(format!("{} {name}", rule.name()), rule, Regime::seesaw(), &lengths) }
    };
    let factor = |i: usize| [1.0, 1.0, 0.25, 3.0, 0.0][i % 5];
    let mut parts = Vec::new();
    let rules = Rule::all().into_iter().chain(Rule::of_matrices());
    for (number, rule) in rules.enumerate() {
        let decay = match number % 3 {
            0 => WeightDecay::Decoupled(0.1),
            1 => WeightDecay::Coupled(0.1),
            _ => WeightDecay::Coupled(0.0),
        };
        let averaging = match number % 2 {
            0 if Averaging::ScheduleFree.fits(&rule) => Averaging::ScheduleFree,
            0 => Averaging::polynomial_decay(),
            _ => Averaging::Off,
        };
        let columns = RateFactors::Columns((0..COLUMNS).map(factor).collect());
        let of_rows = RateFactors::Rows((0..66).map(factor).collect());
        let columns = Spec { rate_factors: Some(columns), ..of_shapes("columns", rule, &shapes) };
        let of_rows = Spec { rate_factors: Some(of_rows), ..of_shapes("rows", rule, &[[66, 5], [66, 1]]) };
        let lazy = Spec { lazy_rows: true, ..of_shapes("lazy", rule, &shapes) };
        let both =
            Spec { rate_factors: columns.rate_factors.clone(), ..lazy.clone() }.named(format!("{} both", rule.name()));
        for spec in [columns, of_rows, lazy, both].into_iter().filter(|spec| !(spec.lazy_rows && rule.owns_passes())) {
            let gradients = if spec.lazy_rows { Gradients::SomeRows(COLUMNS) } else { Gradients::Ordinary };
            parts.push(Part { spec: Spec { decay, averaging, ..spec }, gradients });
        }
    }
    let chunks =
        parts.chunks(12).map(|parts| Scenario { parts: parts.to_vec(), ..scenario("rows", Vec::new()) }.boxed());
    let of_adamw: Vec<Part> = parts.iter().filter(|part| part.spec.rule == Rule::adamw()).cloned().collect();
    let halves = of_adamw.iter().map(|part| {
        let spec = part.spec.clone().stored(Element::Bf16, Element::F16, Rounding::Masters);
        Part { spec, gradients: part.gradients }
    });
    let halves = Scenario {
        layout: Layout::Packed { start: 4, gap: 2 },
        parts: halves.collect(),
        ..scenario("rows in 16 bits", Vec::new())
    };
    let layouts = [Layout::Packed { start: 3, gap: 2 }, Layout::OneBuffer { gap: 1 }];
    let elsewhere = layouts.map(|layout| Scenario { layout, parts: of_adamw.clone(), ..scenario("rows", Vec::new()) });
    chunks.chain(elsewhere.map(Scenario::boxed)).chain([halves.boxed()]).collect()
}

fn scenario(what: &'static str, specs: Vec<Spec>) -> Scenario {
    Scenario::new(what, STEPS, specs)
}

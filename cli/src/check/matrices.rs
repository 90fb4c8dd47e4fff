//! Rules that own passes over matrices, over shapes around the tiles of their kernels.

use wgpu_optim::{Adafactor, Averaging, Element, Muon, MuonScale, Regime, Rounding, Rule, WeightDecay};
use wgpu_optim_conformance::spec::{Spec, regimes, shape_for};

use super::case::{Cases, Subject};
use super::scenario::{Layout, Scenario, group};

const STEPS: usize = 4;

/// One element, a row, a column, less than a quad, both sides of a tile, several tiles wide or tall, and nothing.
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

/// Bytes that a binding holds, where the matrices of one group do not fit into one.
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
        let name = rule.name();
        let fitting = regimes().filter(|regime| regime.fits(&rule));
        let of_regimes = fitting.map(|regime| matrices(regime.name(), rule, regime)).collect();
        let halves = [Element::F16, Element::Bf16].map(|element| {
            let spec = matrices(element.name(), rule, Regime::seesaw());
            spec.stored(element, element, Rounding::Masters)
        });
        let seesaw =
            |of: &str| Scenario::new(format!("{of}, {name}"), STEPS, vec![matrices(of, rule, Regime::seesaw())]);
        let odd = Layout::Packed { start: 3, gap: 2 };
        cases.extend([
            scenario(&format!("matrices, {name}"), of_regimes).boxed(),
            scenario(&format!("matrices in 16 bits, {name}"), halves.into()).boxed(),
            Scenario { layout: odd, ..seesaw("odd places") }.boxed(),
            Scenario { layout: Layout::OneBuffer { gap: 1 }, ..seesaw("one buffer") }.boxed(),
            Scenario { binding_bytes: Some(BINDING_BYTES), ..seesaw("windows") }.boxed(),
        ]);
    }
    cases
}

fn scenario(what: &str, specs: Vec<Spec>) -> Scenario {
    Scenario::new(what, STEPS, specs)
}

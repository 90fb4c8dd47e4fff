//! Rules that own passes over matrices, over shapes around the tiles of their kernels.

use wgpu_optim::{Element, Muon, MuonScale, Regime, Rounding, Rule, WeightDecay};
use wgpu_optim_conformance::spec::{Spec, regimes};

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
    let fitting = regimes().filter(|regime| regime.fits(&muon));
    let of_regimes = fitting.map(|regime| matrices(regime.name(), muon, regime)).collect();
    let fixed = |name: &str, rule| matrices(name, Rule::Muon(rule), Regime::fixed(0.01));
    let plain = Muon::default();
    let settings = vec![
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
    let halves = [Element::F16, Element::Bf16].map(|element| {
        let spec = matrices(element.name(), muon, Regime::seesaw());
        spec.stored(element, element, Rounding::Masters)
    });
    let seesaw = |name: &str| vec![matrices(name, muon, Regime::seesaw())];
    let scenario = |what, specs| Scenario::new(what, STEPS, specs);
    vec![
        scenario("matrices", of_regimes).boxed(),
        scenario("settings of matrices", settings).boxed(),
        scenario("matrices in 16 bits", halves.into()).boxed(),
        Scenario { layout: Layout::Packed { start: 3, gap: 2 }, ..scenario("odd places", seesaw("odd places")) }
            .boxed(),
        Scenario { layout: Layout::OneBuffer { gap: 1 }, ..scenario("one buffer", seesaw("one buffer")) }.boxed(),
        Scenario { binding_bytes: Some(BINDING_BYTES), ..scenario("windows", seesaw("windows")) }.boxed(),
    ]
}

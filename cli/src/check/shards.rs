//! Ranks that each have a piece of every tensor and step with the combined sums. They must be equivalent to one
//! optimizer of the whole.

use wgpu_optim::{AdaGradNorm, Element, Regime, Rounding, Rule, SecantForm, ShardSums, WeightDecay};
use wgpu_optim_conformance::run::Run;
use wgpu_optim_conformance::spec::{DOG, Spec, packed};

use super::case::{Cases, Outcome, Path, Subject};
use super::run::PathRun;
use super::scenario::{Scenario, Trace, group, loss_of};
use crate::CliError;

const STEPS: usize = 8;

/// Lengths of a group's tensors. Every rank has a different number of elements, and one has nothing of some tensors.
const LENGTHS: [usize; 4] = [2, 130, 5, 10_007];

pub fn cases(_: &Subject) -> Cases {
    let plain = |rule: Rule, regime: Regime| {
        let name = format!("{} {}", rule.name(), regime.name());
        group(name, rule, regime, &LENGTHS)
    };
    let decayed = |spec| Spec { decay: WeightDecay::Coupled(0.01), clip: 3.0, ..spec };
    let half = |rule, element: Element| group(element.name(), rule, Regime::seesaw(), &LENGTHS);
    let stored = |spec: Spec, element| spec.stored(element, element, Rounding::Masters);
    let batches = [
        vec![
            decayed(plain(Rule::sgd(), Regime::seesaw())),
            plain(Rule::sign_sgd(), Regime::seesaw()),
            plain(Rule::sgd(), Regime::ngn()),
        ],
        vec![
            decayed(plain(Rule::sgdm(0.9), Regime::seesaw())),
            plain(Rule::adamw(), Regime::seesaw()),
            plain(Rule::signum(0.9), Regime::AdaGradNorm(AdaGradNorm::default())),
        ],
        vec![plain(Rule::sgd(), Regime::barzilai_borwein(SecantForm::Long)), plain(Rule::sgd(), DOG)],
        vec![
            stored(decayed(half(Rule::sgdm(0.9), Element::Bf16)), Element::Bf16),
            stored(half(Rule::sgd(), Element::F16), Element::F16),
        ],
    ];
    let sharded = |(ranks, specs)| {
        Scenario { ranks: Some(ranks), judge: sharded, ..Scenario::new("shards", STEPS, specs) }.boxed()
    };
    [2, 3, 4, 3].into_iter().zip(batches).map(sharded).collect()
}

/// Returns the piece of every tensor that a rank has.
fn part(tensors: &[Vec<f32>], rank: usize, ranks: usize) -> Vec<Vec<f32>> {
    let start = |len: usize, rank: usize| len * rank / ranks;
    tensors.iter().map(|t| t[start(t.len(), rank)..start(t.len(), rank + 1)].to_vec()).collect()
}

/// Runs the steps, and joins the parameters. All ranks must have the same records, bit for bit.
fn trace<R: Run>(
    scenario: &Scenario,
    path: Path,
    mut ranks: Vec<PathRun<R>>,
    outcome: &mut Outcome,
) -> Result<Trace, CliError> {
    let mut records = Vec::new();
    for step in 1..=scenario.steps {
        let gradients = scenario.gradients(step);
        let parts: Vec<_> = (0..ranks.len()).map(|rank| part(&gradients, rank, ranks.len())).collect();
        let of_ranks = ranks.iter_mut().zip(&parts);
        let sums = of_ranks.map(|(rank, part)| rank.measure(part, loss_of(step))).collect::<Result<Vec<_>, _>>()?;
        let combined = ShardSums::combine(&sums)?;
        let of_ranks = ranks.iter_mut().zip(&parts);
        let mut applied = of_ranks.map(|(rank, part)| rank.apply(part, &combined)).collect::<Result<Vec<_>, _>>()?;
        for (rank, other) in applied.iter().enumerate().skip(1) {
            let what = || format!("records of step {step} on rank {rank}, against those on rank 0");
            outcome.same(path, what, other, &applied[0]);
        }
        records.push(applied.swap_remove(0));
    }
    let mut parameters: Vec<Vec<f32>> = Vec::new();
    for rank in &ranks {
        let pieces = rank.parameters()?;
        parameters.resize(pieces.len(), Vec::new());
        // Pieces are in the order of the ranks.
        for (tensor, piece) in parameters.iter_mut().zip(pieces) {
            tensor.extend(piece);
        }
    }
    Ok(Trace { records, parameters, averages: Vec::new(), checkpoints: Vec::new() })
}

/// Runs and judges a scenario on several ranks.
fn sharded(scenario: &Scenario, subject: &Subject) -> Result<Outcome, CliError> {
    let ranks = scenario.ranks.unwrap_or(1);
    let pieces = (0..ranks).map(|rank| {
        let mut specs = scenario.specs();
        specs.iter_mut().for_each(|spec| spec.tensors = part(&spec.tensors, rank, ranks));
        (specs, Some((rank as u32, ranks as u32)))
    });
    let on_device = pieces
        .clone()
        .map(|(specs, shard)| scenario.device_run_of(subject, &subject.gpu, &specs, packed(&specs, 0, 0), shard));
    let on_host = pieces.map(|(specs, shard)| scenario.host_run(&specs, shard));
    let mut outcome = Outcome::default();
    let all = trace(scenario, Path::Device, on_device.collect::<Result<_, _>>()?, &mut outcome)?;
    scenario.judge_all(Path::Device, &all, &mut outcome);
    let all = trace(scenario, Path::Cpu, on_host.collect::<Result<_, _>>()?, &mut outcome)?;
    scenario.judge_all(Path::Cpu, &all, &mut outcome);
    Ok(outcome)
}

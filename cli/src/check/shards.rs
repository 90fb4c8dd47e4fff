//! Ranks that have a piece of every tensor each, and step by what all of them have measured: they are one optimizer of the whole.

use wgpu_optim::{AdaGradNorm, DoG, Element, Record, Regime, Rounding, Rule, SecantForm, ShardSums, WeightDecay};
use wgpu_optim_conformance::spec::{Spec, packed};

use super::case::{Case, Outcome, Path, Subject};
use super::run::{DeviceRun, HostRun};
use super::scenario::{Scenario, Trace, loss_of, with_lengths};
use crate::CliError;

const STEPS: usize = 8;

/// Lengths of a group's tensors: no rank has as much of them as another, and one has nothing of some.
const LENGTHS: [usize; 4] = [2, 130, 5, 10_007];

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let decayed =
        |rule, regime| Spec { decay: WeightDecay::Coupled(0.01), clip: 3.0, ..Spec::new(rule, regime, Vec::new()) };
    let plain = |rule, regime| Spec::new(rule, regime, Vec::new());
    let batches = [
        vec![
            decayed(Rule::sgd(), Regime::seesaw()),
            plain(Rule::sign_sgd(), Regime::seesaw()),
            plain(Rule::sgd(), Regime::ngn()),
        ],
        vec![
            decayed(Rule::sgdm(0.9), Regime::seesaw()),
            plain(Rule::adamw(), Regime::seesaw()),
            plain(Rule::signum(0.9), Regime::AdaGradNorm(AdaGradNorm::default())),
        ],
        vec![
            plain(Rule::sgd(), Regime::barzilai_borwein(SecantForm::Long)),
            // Steps of the usual 1e-6 are so small beside the parameters that their rounding shows.
            plain(Rule::sgd(), Regime::DoG(DoG { initial_distance: 1e-2 })),
        ],
    ];
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (ranks, specs) in [2, 3, 4].into_iter().zip(batches) {
        let specs = specs.into_iter().map(|spec| {
            let name = format!("{} {}", spec.rule.name(), spec.regime.name());
            with_lengths(spec.named(name), &LENGTHS)
        });
        cases.push(Box::new(Sharded { whole: Scenario::new("shards", STEPS, specs.collect()), ranks }));
    }
    let halves = [
        (decayed(Rule::sgdm(0.9), Regime::seesaw()), Element::Bf16),
        (plain(Rule::sgd(), Regime::seesaw()), Element::F16),
    ];
    let halves = halves.map(|(spec, element)| {
        let spec = with_lengths(spec.named(element.name()), &LENGTHS);
        spec.stored(element, element, Rounding::Masters)
    });
    cases.push(Box::new(Sharded { whole: Scenario::new("shards", STEPS, halves.into()), ranks: 3 }));
    cases
}

/// A scenario that several ranks run together.
struct Sharded {
    whole: Scenario,
    ranks: usize,
}

/// Either path, as one of the ranks.
trait Rank {
    fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError>;
    fn apply(&mut self, gradients: &[Vec<f32>], all: &[ShardSums]) -> Result<Vec<Record>, CliError>;
    fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError>;
}

impl Rank for HostRun {
    fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        HostRun::measure(self, gradients, loss)
    }
    fn apply(&mut self, gradients: &[Vec<f32>], all: &[ShardSums]) -> Result<Vec<Record>, CliError> {
        HostRun::apply(self, gradients, &ShardSums::combine(all)?)
    }
    fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        Ok(HostRun::parameters(self).to_vec())
    }
}

impl Rank for DeviceRun<'_> {
    fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        DeviceRun::measure(self, gradients, loss)
    }
    fn apply(&mut self, _: &[Vec<f32>], all: &[ShardSums]) -> Result<Vec<Record>, CliError> {
        DeviceRun::apply(self, &ShardSums::combine(all)?)
    }
    fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        DeviceRun::parameters(self)
    }
}

impl Sharded {
    /// What of a tensor of this length a rank has.
    fn range(&self, len: usize, rank: usize) -> std::ops::Range<usize> {
        len * rank / self.ranks..len * (rank + 1) / self.ranks
    }

    fn part(&self, tensors: &[Vec<f32>], rank: usize) -> Vec<Vec<f32>> {
        let piece = |tensor: &Vec<f32>| tensor[self.range(tensor.len(), rank)].to_vec();
        tensors.iter().map(piece).collect()
    }

    fn specs_of(&self, rank: usize) -> Vec<Spec> {
        let mut specs = self.whole.specs();
        for spec in &mut specs {
            spec.tensors = self.part(&spec.tensors, rank);
        }
        specs
    }

    /// The steps, and the parameters put together. All ranks must have the same records, bit for bit.
    fn trace<R: Rank>(
        &self,
        path: Path,
        build: impl Fn(usize, (u32, u32)) -> Result<R, CliError>,
        outcome: &mut Outcome,
    ) -> Result<Trace, CliError> {
        let count = self.ranks as u32;
        let mut ranks =
            (0..self.ranks).map(|rank| build(rank, (rank as u32, count))).collect::<Result<Vec<R>, CliError>>()?;
        let mut records = Vec::new();
        for step in 1..=self.whole.steps {
            let gradients = self.whole.gradients(step);
            let parts: Vec<Vec<Vec<f32>>> = (0..self.ranks).map(|rank| self.part(&gradients, rank)).collect();
            let of_ranks = ranks.iter_mut().zip(&parts);
            let sums = of_ranks.map(|(rank, part)| rank.measure(part, loss_of(step))).collect::<Result<Vec<_>, _>>()?;
            let of_ranks = ranks.iter_mut().zip(&parts);
            let mut applied = of_ranks.map(|(rank, part)| rank.apply(part, &sums)).collect::<Result<Vec<_>, _>>()?;
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
            // Pieces come in the order of the ranks.
            for (tensor, piece) in parameters.iter_mut().zip(pieces) {
                tensor.extend(piece);
            }
        }
        Ok(Trace { records, parameters, averages: Vec::new() })
    }
}

impl Case for Sharded {
    fn name(&self) -> String {
        format!("{} ranks, {}", self.ranks, self.whole.name())
    }

    fn run(&self, subject: &Subject) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let told = |rank| {
            let mut told = self.whole.told();
            told.setup.shard = Some(rank);
            told
        };
        let on_device = |rank: usize, of| {
            let specs = self.specs_of(rank);
            let places = packed(&specs, 0, 0);
            let fault = subject.fault.as_ref();
            DeviceRun::new(&subject.gpu, fault, &specs, places, told(of))
        };
        let trace = self.trace(Path::Device, on_device, &mut outcome)?;
        self.whole.judge_all(Path::Device, &trace, &mut outcome);
        let on_host = |rank: usize, of| HostRun::new(&self.specs_of(rank), told(of));
        let trace = self.trace(Path::Cpu, on_host, &mut outcome)?;
        self.whole.judge_all(Path::Cpu, &trace, &mut outcome);
        Ok(outcome)
    }

    fn smaller(&self) -> Vec<Box<dyn Case>> {
        let fewer = (1..self.ranks).map(|ranks| Sharded { whole: self.whole.clone(), ranks });
        let smaller = self.whole.smaller_scenarios().into_iter();
        let smaller = smaller.map(|whole| Sharded { whole, ranks: self.ranks });
        fewer.chain(smaller).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
}
